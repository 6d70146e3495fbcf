"""Several prompts on one CLIP, for many users at a time: what the web app does, without the web."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import PARITY
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.serving.prompt_shelf import PromptShelf
from hf_coop_cli import app

TEMPLATE = "a handwritten digit {}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of several methods for the embedded CLIP."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for name, options in {
        "coop": {"learn_temperature": True},
        "cocoop": {"method": "cocoop"},
        "specific": {"class_specific_context": True},
    }.items():
        HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, n_ctx=4, **options).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def shelf(folder: Path) -> PromptShelf:
    return PromptShelf([str(folder / name) for name in ("coop", "cocoop", "specific")])


@pytest.fixture(scope="module")
def digits():
    return load_digits_dataset()


def pixels_of(shelf: PromptShelf, *images: Image.Image) -> torch.Tensor:
    return torch.cat([shelf.pixels(image) for image in images])


def labels_and_scores(probabilities: torch.Tensor, names) -> list[dict[str, float]]:
    return [dict(zip(names, row, strict=True)) for row in probabilities.tolist()]


def test_scores_are_those_of_predict(shelf, folder, digits):
    images = [digits["test"][0]["image"], Image.new("RGB", (50, 30), "red")]
    for name, model in shelf.models.items():
        alone = HFCoOp.from_pretrained(name)
        learned, hand_written = shelf.scores(model, pixels_of(shelf, *images), CLASSNAMES, TEMPLATE)
        expected = [{row["label"]: row["score"] for row in rows} for rows in alone.predict(images, top_k=10)]
        for found, wanted in zip(labels_and_scores(learned, CLASSNAMES), expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)
        pixels = alone.image_processor(images, return_tensors="pt").pixel_values
        zero_shot = alone.zero_shot_logits(alone.clip.get_image_features(pixel_values=pixels).pooler_output, TEMPLATE)
        torch.testing.assert_close(hand_written, zero_shot.softmax(-1), atol=1e-5, rtol=0)


def test_the_prompts_share_clips_tensors(shelf):
    pointers = {model.clip.vision_model.encoder.layers[0].mlp.fc1.weight.data_ptr() for model in shelf.models.values()}
    assert pointers == {shelf.clip.vision_model.encoder.layers[0].mlp.fc1.weight.data_ptr()}


def test_users_with_other_class_names_do_not_see_each_other(shelf, folder, digits):
    """Twenty requests of three kinds at once, each with the scores that it has alone."""
    image = digits["test"][0]["image"]
    pixels = pixels_of(shelf, image)
    requests = [
        (str(folder / "coop"), list(CLASSNAMES)),
        (str(folder / "coop"), ["one", "<b>seven</b>", "a bold eight"]),
        (str(folder / "cocoop"), ["two", "three"]),
    ]

    def score(request: tuple[str, list[str]]) -> torch.Tensor:
        return torch.cat(shelf.scores(shelf.models[request[0]], pixels, request[1], TEMPLATE))

    alone = [score(request) for request in requests]
    renamed = HFCoOp.from_pretrained(requests[1][0])
    renamed.set_classnames(requests[1][1])
    expected = {row["label"]: row["score"] for row in renamed.predict(image)}
    assert labels_and_scores(alone[1][:1], requests[1][1])[0] == pytest.approx(expected, abs=1e-5)
    with ThreadPoolExecutor(6) as users:
        for found, kind in zip(users.map(score, requests * 7), [0, 1, 2] * 7, strict=True):
            torch.testing.assert_close(found, alone[kind])
    assert shelf.models[requests[1][0]].classnames == list(CLASSNAMES)


def test_what_cannot_be_scored(shelf, folder, digits):
    image = pixels_of(shelf, digits["test"][0]["image"])
    with pytest.raises(ValueError, match="each context was learned for its own class"):
        shelf.scores(shelf.models[str(folder / "specific")], image, ["one", "two"])
    coop = shelf.models[str(folder / "coop")]
    with pytest.raises(ValueError, match=r"must have {} where the class name goes"):
        shelf.scores(coop, image, ["one"], "no braces")
    with pytest.raises(ValueError, match="at most 1000 class names of 200 characters"):
        shelf.scores(coop, image, ["one"] * 1001)
    with pytest.raises(ValueError, match="at most 1000 class names of 200 characters"):
        shelf.scores(coop, image, ["x" * 201])


def test_adapters_of_different_clips_are_refused(folder, tmp_path):
    HFCoOp.from_clip(PARITY, ["cat", "dog"]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the adapters are for different CLIPs .*parity"):
        PromptShelf([str(folder / "coop"), str(tmp_path / "other")])
    with pytest.raises(ValueError, match="give at least one adapter"):
        PromptShelf([])


def test_learning_is_told_of_and_measured_on_the_other_images(shelf, digits):
    images = digits["train"].select(range(200))
    *rows, model = shelf.learn(images, num_shots=4)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["loss"] < rows[0]["loss"]
    details = model.card_details
    assert (details.shots, details.zero_shot_template) == (4, "a photo of a {}.")
    assert details.learned["accuracy"] > details.zero_shot["accuracy"]
    learned, _ = shelf.scores(model, pixels_of(shelf, digits["test"][0]["image"]), model.classnames)
    assert learned.shape == (1, 10)
    assert not model.training


def test_learning_ends_when_nobody_waits_for_it(shelf, digits):
    def learning() -> bool:
        return any(thread.name == "hf-coop-learning" for thread in threading.enumerate())

    telling = shelf.learn(digits["train"], num_shots=16)
    next(telling)
    assert learning()
    telling.close()
    deadline = time.monotonic() + 20
    while learning():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_that_cannot_be_learned_from(shelf, digits):
    from datasets import ClassLabel

    blank = digits["train"].select(range(20)).cast_column("label", ClassLabel(names=[" ", *CLASSNAMES[1:]]))
    with pytest.raises(ValueError, match="class name 0 is blank"):
        next(shelf.learn(blank))


@pytest.mark.skipif(find_spec("gradio") is not None, reason="Gradio is installed here")
def test_the_app_says_what_it_needs():
    done = CliRunner().invoke(app, ["app", "digits"])
    assert (done.exit_code, done.output) == (1, "error: the app needs Gradio: pip install 'hf-coop[app]'\n")
