"""`Experiment`: what is asked for, checked before anything is loaded, and the plan of runs that it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import DEMO_SETS
from ..training.recipes import fill_in
from .image_sets import ImageSource, find_benchmark, find_target, fingerprint, own_images
from .jobs import check_backend
from .methods import Method, find_method
from .protocols import Run, contexts, find_protocol, plan_runs
from .run import Shared, training_arguments

if TYPE_CHECKING:
    from datasets import DatasetDict

FEATURES, PROMPTS = ".features", "prompts"  # below the folder of results


@dataclass
class Experiment:
    """What to run, and where the results go. Fields are the options of `hf-coop experiment`.

    Args:
        protocol (`str`): one of `PROTOCOLS`.
        output_dir (`str`): the folder of results. One that holds results of the same settings goes on and may grow.
        benchmark (`list[str]`): image sets of the papers, or the embedded ones ("demo"); or
        images: one's own images: `train_dir` and `test_dir`, or `dataset_name`, and other arguments of
            [`load_image_splits`].
        data_dir (`str`, *optional*): the folder of the benchmarks.
        targets (`list[str]`, *optional*): what else prompts are tested on: benchmarks, folders or data sets.
        methods (`list[str]`), shots, seeds (`list[int]`): of the runs; by default the protocol's.
        n_ctx (`list[int]`), ctx_init (`list[str]`): contexts, several for the protocol that compares them.
        model_name_or_path (`str`), model_revision (`str`, *optional*): the CLIP; "demo" is the embedded one, which is
            also the default where all sets are embedded.
        zero_shot_template (`str`, *optional*): the hand-written prompt; default: each set's own.
        prompt, training: options of the prompt and fields of [`CoOpTrainingArguments`] for all runs.
        jobs (`int`), backend (`str`), scheduler (`str`, *optional*): see `jobs.in_parallel`.
        save_prompts (`bool`): keep each learned prompt in `output_dir/prompts`.
        retry_failed (`bool`): do runs again that failed before.
        ci95 (`bool`): 95 % confidence intervals instead of standard deviations.
        published (`bool`): also show what the papers report.
    """

    protocol: str
    output_dir: str
    benchmark: Sequence[str] = ()
    images: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    targets: Sequence[str] = ()
    methods: Sequence[str] = ()
    shots: Sequence[int] = ()
    seeds: Sequence[int] = (1, 2, 3)
    n_ctx: Sequence[int] = ()
    ctx_init: Sequence[str] = ()
    model_name_or_path: str | None = None
    model_revision: str | None = None
    zero_shot_template: str | None = None
    prompt: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    jobs: int = 1
    backend: str = "loky"
    scheduler: str | None = None
    save_prompts: bool = False
    retry_failed: bool = False
    ci95: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        protocol = find_protocol(self.protocol)
        self.methods = list(dict.fromkeys(self.methods or protocol.methods))
        self.shots = sorted({*(self.shots or protocol.shots)})
        self.seeds = list(dict.fromkeys(self.seeds))
        if not self.seeds or min(self.shots) < 1 or min(self.seeds) < 0:
            raise ValueError(f"shots must be 1 or more and seeds 0 or more, got {self.shots} and {self.seeds}")
        if bool(self.benchmark) == bool(self.images):
            raise ValueError(
                "say what to learn on: benchmark, one or more image sets of the papers (demo: the embedded images), "
                "or train_dir and test_dir, or dataset_name"
            )
        if self.targets and protocol.targets is None:
            raise ValueError(f"targets go with the protocols that test on other sets, not with {self.protocol}")
        check_backend(self.jobs, self.backend, self.scheduler)
        embedded = {*self.benchmark, self.images.get("dataset_name")} - {None} <= DEMO_SETS.keys()
        self.model_name_or_path = self.model_name_or_path or ("demo" if embedded else "openai/clip-vit-base-patch16")
        self.runs  # noqa: B018 - says what is wrong with it
        self._check_options()

    @cached_property
    def compared(self) -> list[Method]:
        """The methods."""
        return [find_method(name) for name in self.methods]

    @cached_property
    def learned_on(self) -> list[ImageSource]:
        """The sets that are learned on."""
        if self.images:
            return [own_images(self.images, self.zero_shot_template)]
        return [find_benchmark(name, self.data_dir, self.zero_shot_template) for name in dict.fromkeys(self.benchmark)]

    @cached_property
    def tested_on(self) -> dict[str, list[ImageSource]]:
        """The other sets that are tested on, by the set that was learned on."""
        known = find_protocol(self.protocol).targets
        if known is None:
            return {}
        found = {}
        for source in self.learned_on:
            names = [name for name in self.targets or known.get(source.name, ()) if name != source.name]
            if not names:
                raise ValueError(
                    f"{self.protocol} tests on other sets than {source.name}: name them by targets (for "
                    f"{', '.join(known)} they are known)"
                )
            found[source.name] = [find_target(name, self.data_dir) for name in names]
        return found

    @cached_property
    def runs(self) -> list[Run]:
        """The plan."""
        own = contexts(self.protocol, self.n_ctx, self.ctx_init)
        datasets = [source.name for source in self.learned_on]
        return plan_runs(self.protocol, datasets, self.compared, self.shots, self.seeds, own)

    @cached_property
    def shared(self) -> Shared:
        """What every run gets."""
        sources = {source.name: source for source in self.learned_on}
        for target in (target for targets in self.tested_on.values() for target in targets):
            if sources.setdefault(target.name, target).where != target.where:
                raise ValueError(f"two image sets are called {target.name!r}: rename the folder of one")
        return Shared(
            model=str(self.model_name_or_path),
            revision=self.model_revision,
            prompt=dict(self.prompt),
            training=dict(self.training),
            sources=sources,
            targets={name: [target.name for target in targets] for name, targets in self.tested_on.items()},
            features=str(Path(self.output_dir, FEATURES).absolute()),
            prompts=str(Path(self.output_dir, PROMPTS).absolute()) if self.save_prompts else None,
        )

    def described(self, splits: Mapping[str, DatasetDict]) -> dict[str, Any]:
        """What the rows of a folder must have in common: settings, and what each set is."""
        mine = ("protocol", "model_name_or_path", "model_revision", "zero_shot_template", "prompt", "training")
        settings = {name: getattr(self, name) for name in mine}
        images = {f"images of {name}": fingerprint(of_set) for name, of_set in splits.items()}
        return settings | images | {f"targets of {name}": targets for name, targets in self.shared.targets.items()}

    def _check_options(self) -> None:
        """Raise before anything is loaded, where a method does not take the options of its runs."""
        for run in self.runs:
            method, source = find_method(run.method), self.shared.sources[run.dataset]
            if method.config is None:
                continue
            fill_in(training_arguments(run, self.shared, self.output_dir), method.config, num_shots=1)
            config = method.config(**method.prompt_options({**self.prompt, **run.context}, source.template))
            if find_protocol(self.protocol).other_names and config.class_specific_context:
                raise ValueError(f"class_specific_context=True: {self.protocol} tests on classes that have no context")
