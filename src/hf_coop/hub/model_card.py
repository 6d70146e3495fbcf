"""The model card: fills `model_card_template.md` with what is known of an adapter, as plain text."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.few_shot import describe_shots
from ..encoding import distinct_classnames
from ..errors import short
from ..escaping import markdown_text, one_line
from ..evaluation.card_figures import CARD_FIGURES, FOLDER, CardFigures
from ..pretrained import check_plain_file
from ..tuners.config import PromptConfig, own_options
from .card_file import CARD_DATA_KEY, REPO_PLACEHOLDER

METRICS = {
    "accuracy": "Accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "macro_f1": "Macro F1",
    "ece": "Expected calibration error",
}
MAX_CARD_BYTES, MAX_METADATA = 4 * 2**20, 2**16  # YAML is read at some 50 kilobytes a second
MAX_NAME = 200  # characters of a class name
MAX_LISTED_CLASSES, FOLDED_FROM, EXAMPLES = 1000, 20, 6


@dataclass
class CardDetails:
    """What a run knows of an adapter beyond its config. What is left out is not in the card.

    Args:
        dataset_name (`str`, *optional*): as people call it.
        dataset_id (`str`, *optional*): its repository on the Hub.
        split (`str`, *optional*): what was measured on.
        shots (`int`, *optional*): training images of the largest class.
        train_images (`int`, *optional*): training images in all.
        seed (`int`, *optional*): of the run.
        learned, zero_shot (`dict[str, float]`): metrics by name (`METRICS`; others are left out) of the learned prompt
            and of CLIP with a hand-written one.
        zero_shot_template (`str`, *optional*): the hand-written prompt.
        min_score (`float`, *optional*): below it an image is rather of none of the classes; found on validation images
            ([`~hf_coop.evaluation.none_of_these_threshold`]), and what `predict(…, min_score="auto")` goes by.
        training (`dict[str, str | int | float | bool]`): the recipe: learning rate, epochs, ….
        license (`str`, *optional*): of the adapter, as the Hub spells it: "apache-2.0".
        figures ([`~hf_coop.evaluation.card_figures.CardFigures`], *optional*): of the learned prompt beside the
            hand-written one; saved with the card.

    Raises:
        TypeError: naming the value that has another type.
    """

    dataset_name: str | None = None
    dataset_id: str | None = None
    split: str | None = None
    shots: int | None = None
    train_images: int | None = None
    seed: int | None = None
    learned: dict[str, float] = field(default_factory=dict)
    zero_shot: dict[str, float] = field(default_factory=dict)
    zero_shot_template: str | None = None
    min_score: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    figures: CardFigures | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("dataset_name", "dataset_id", "split", "zero_shot_template", "license"):
            self._check(name, getattr(self, name), str)
        for name in ("shots", "train_images", "seed"):
            self._check(name, getattr(self, name), int)
        self._check("figures", self.figures, CardFigures)
        self._check("min_score", self.min_score, (int, float))
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            self.min_score = None
        for name in ("learned", "zero_shot", "training"):
            values = getattr(self, name)
            if not isinstance(values, dict):
                raise TypeError(f"{name} must map names to values, got {reprlib.repr(values)}")
            for key, value in values.items():
                self._check(f"a name in {name}", key, str)
                self._check(f"{name}[{key!r}]", value, (str, bool, int, float) if name == "training" else (int, float))
        for name in ("learned", "zero_shot"):
            values = {key: float(value) for key, value in getattr(self, name).items() if key in METRICS}
            setattr(self, name, {key: value for key, value in values.items() if math.isfinite(value)})

    @staticmethod
    def _check(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is {reprlib.repr(value)}, of type {type(value).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """What is known, in plain values, text on one line; of the figures, what they were measured on."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: value for name, value in known.items() if value not in (None, {})}
        if self.figures is not None:
            known["figures"] = self.figures.images
        return json.loads(json.dumps(known), object_hook=_one_line_values) if known else {}

    @classmethod
    def from_card(cls, path: str | os.PathLike[str]) -> CardDetails:
        """Read back what `create_model_card` has put into the metadata of a card; nothing where it has not.

        The card may be a stranger's: what cannot be read is left out with a warning. Figures come back where they lie
        beside the card, which they do not in the cache of the Hub's client.
        """
        if not os.path.exists(path):
            return cls()
        try:
            check_plain_file(path, MAX_CARD_BYTES)
            stored = _metadata(Path(path).read_text(encoding="utf-8")).get(CARD_DATA_KEY) or {}
            known = {field.name for field in fields(cls)}
            stored = {name: value for name, value in stored.items() if name in known}
            if images := stored.pop("figures", None):
                stored["figures"] = CardFigures.read(Path(path).parent, one_line(str(images)))
            return cls(**stored)
        except Exception as error:  # YAML parsers raise errors of many kinds
            warnings.warn(
                f"{os.fspath(path)}: its metadata are not readable and left out ({short(error)})", stacklevel=2
            )
            return cls()


def _metadata(card: str) -> dict[str, Any]:
    """The metadata of a card that a stranger may have written.

    Raises:
        ValueError: they are long, or merge maps, which a few kilobytes can do without end.
    """
    block = card.split("\n---", 1)[0]
    if not block.startswith("---"):
        return {}
    if len(block) > MAX_METADATA:
        raise ValueError(f"{len(block)} characters, at most {MAX_METADATA} are read")
    if "<<" in block and "&" in block:
        raise ValueError("they merge maps (<<), which no card needs")
    return yaml.safe_load(block.removeprefix("---")) or {}


def _one_line_values(values: dict[str, Any]) -> dict[str, Any]:
    return {one_line(name): one_line(value) if isinstance(value, str) else value for name, value in values.items()}


def template_path() -> Path:
    """`model_card_template.md`: inside the installed package, or at the root of the repository it is developed in."""
    installed = Path(__file__).parents[1] / "model_card_template.md"
    return installed if installed.exists() else Path(__file__).parents[3] / "model_card_template.md"


def plain_text(value: Any) -> str:
    """Markdown that shows `value` as it is; a number is one already."""
    return str(value) if isinstance(value, (int, float)) else markdown_text(str(value))


def create_model_card(
    config: PromptConfig,
    details: CardDetails | None = None,
    nearest_words: Sequence[Sequence[tuple[str, float]]] | None = None,
) -> ModelCard:
    """The card of an adapter.

    Args:
        config ([`CoOpConfig`] or [`CoCoOpConfig`]): of the adapter.
        details ([`CardDetails`], *optional*): what a run has measured.
        nearest_words (*optional*): of each context vector (`interpret.nearest_words`).
    """
    details = details or CardDetails()
    details = CardDetails(**{**details.to_dict(), "figures": details.figures})
    names = [plain_text(short(name, MAX_NAME)) for name in config.classnames]
    base = config.base_model_name_or_path
    return ModelCard.from_template(
        card_data(config, details),
        template_path=str(template_path()),
        config=config,
        repo_id=REPO_PLACEHOLDER,
        base_model=plain_text(base) if base else None,
        base_model_link=hub_id(base),
        base_is_local=os.path.isabs(base or ""),
        base_model_code=json.dumps(os.fspath(base or "openai/clip-vit-base-patch16")),
        revision_code=json.dumps(config.revision) if config.revision else None,
        ctx_init=plain_text(config.ctx_init) if config.ctx_init else None,
        template=plain_text(config.template) if config.template else None,
        options={name: plain_text(value) for name, value in own_options(config).items()},
        classnames=names[:MAX_LISTED_CLASSES],
        n_classes=len(names),
        examples=names[:EXAMPLES],
        folded=len(names) >= FOLDED_FROM,
        results=_result_rows(details),
        figures=[(f"{FOLDER}/{name}", *texts) for name, texts in CARD_FIGURES.items()] if details.figures else [],
        learned_from=describe_shots(details.shots, details.train_images, len(names)),
        details={name: plain_text(value) for name, value in details.to_dict().items() if not isinstance(value, dict)},
        training={plain_text(name): plain_text(value) for name, value in details.training.items()},
        nearest_words=_word_rows(nearest_words or [], config),
    )


def card_data(config: PromptConfig, details: CardDetails) -> ModelCardData:
    """The card's metadata (https://huggingface.co/docs/hub/model-cards)."""
    base = hub_id(config.base_model_name_or_path)
    dataset = hub_id(details.dataset_id)
    kept = details.to_dict()
    return ModelCardData(
        library_name="peft",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="zero-shot-image-classification",
        tags=["hf-coop", config.label.lower(), "clip", "prompt-learning", "few-shot"],
        datasets=[dataset] if dataset else None,
        license=details.license,
        model_name=f"{config.label} prompt for CLIP" if details.learned else None,
        eval_results=_eval_results(details) or None,
        **({CARD_DATA_KEY: kept} if kept else {}),
    )


def _eval_results(details: CardDetails) -> list[EvalResult]:
    """One entry of the card's `model-index` for each metric of the learned prompt."""
    name = details.dataset_name or details.dataset_id or "unnamed"
    arguments = {"shots": details.shots, "seed": details.seed}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_id(details.dataset_id)
            or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            or "unnamed",
            dataset_name=name,
            dataset_split=details.split,
            dataset_args={key: value for key, value in arguments.items() if value is not None} or None,
            metric_type="f1" if metric == "macro_f1" else metric,
            metric_name=METRICS[metric],
            metric_value=round(value, 6),
        )
        for metric, value in details.learned.items()
    ]


def hub_id(name: str | os.PathLike[str] | None) -> str | None:
    """`name` if it can be a repository on the Hub and is no path here: all that the Hub takes in metadata."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(os.fspath(name))
    except HFValidationError:
        return None
    return os.fspath(name)


def _result_rows(details: CardDetails) -> list[dict[str, str]]:
    """A row for each metric, the hand-written prompt's value beside the learned one's."""

    def shown(values: Mapping[str, float], metric: str) -> str:
        return "" if metric not in values else f"{values[metric]:.4f}" if metric == "ece" else f"{values[metric]:.2%}"

    return [
        {"metric": label, "zero_shot": shown(details.zero_shot, metric), "learned": shown(details.learned, metric)}
        for metric, label in METRICS.items()
        if metric in details.learned or metric in details.zero_shot
    ]


def _word_rows(nearest_words: Sequence[Sequence[tuple[str, float]]], config: PromptConfig) -> list[dict[str, Any]]:
    assert config.n_ctx is not None or not nearest_words
    rows, owners = [], distinct_classnames(config.classnames)
    for number, words in enumerate(nearest_words):
        owner, vector = divmod(number, config.n_ctx or 1)
        of_class = f"{plain_text(owners[owner])}, " if config.class_specific_context else ""
        cells = [f"{plain_text(word)} ({distance:.4f})" for word, distance in words]
        rows.append({"vector": f"{of_class}{vector + 1}", "words": cells})
    return rows
