"""The papers' protocols: what each varies, what it tests on, and the plan of independent runs that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from .methods import Method

Context = dict[str, Any]  # of n_ctx or ctx_init
NOT_LEARNED = 0  # the shots and the seed of a run that looks at no training image
CONTEXT_LENGTHS = (4, 8, 16)
WORDS = "a photo of a"


@dataclass(frozen=True)
class Protocol:
    """A protocol of the papers.

    Attributes:
        title (`str`): of its tables.
        columns (`str`): what its tables have a column for: "shots", "classes" (base and new) or "tested_on".
        shots, methods: what it compares unless told.
        ctx_init (`str`, *optional*): what prompts start from where neither `n_ctx` nor `ctx_init` is given.
        targets: for a training set, the other sets that are tested on, unless told.
    """

    title: str
    columns: str
    shots: tuple[int, ...]
    methods: tuple[str, ...]
    ctx_init: str | None = None
    targets: dict[str, tuple[str, ...]] | None = None

    @property
    def other_names(self) -> bool:
        """Whether what was learned is tested on class names that it was not learned with."""
        return self.columns != "shots"


DEMO_TARGETS = {"demo": ("demo_inverted", "demo_noisy", "demo_rotated", "demo_faint")}
OTHER_SETS = (
    *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd"),
    *("eurosat", "ucf101"),
)
IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
PROMPTS = ("zero_shot", "coop", "cocoop")

#: The protocols by name: CoOp (arXiv 2109.01134) has the first and the last, CoCoOp (arXiv 2203.05557) the others.
PROTOCOLS = {
    "few-shot": Protocol(
        "Few-shot classification", "shots", (1, 2, 4, 8, 16), ("zero_shot", "linear_probe", "coop", "coop_csc")
    ),
    "base-to-new": Protocol("Base-to-new generalisation", "classes", (16,), PROMPTS, WORDS),
    "cross-dataset": Protocol(
        "Cross-dataset transfer", "tested_on", (16,), PROMPTS, WORDS, {"imagenet": OTHER_SETS, **DEMO_TARGETS}
    ),
    "domain-generalization": Protocol(
        "Domain generalisation", "tested_on", (16,), PROMPTS, WORDS, {"imagenet": IMAGENET_VARIANTS, **DEMO_TARGETS}
    ),
    "context": Protocol("Context length and initialisation", "shots", (16,), ("coop",)),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Run:
    """One of the independent runs of an experiment; its fields are the columns that identify a row of results.

    Args:
        protocol (`str`), dataset (`str`): what is done, and the set that is learned on.
        method (`str`): as on the command line.
        shots (`int`), seed (`int`): of the draw and of training; both 0 for methods that look at no training image.
        n_ctx (`int`, *optional*), ctx_init (`str`, *optional*): the context, where it was asked for.
    """

    protocol: str
    dataset: str
    method: str
    shots: int
    seed: int
    n_ctx: int | None = None
    ctx_init: str | None = None

    def __str__(self) -> str:
        shots = f", {shots_name(self.shots)}, seed {self.seed}" if self.shots else ""
        return f"{self.dataset}: {self.method}{context_suffix(self.n_ctx, self.ctx_init)}{shots}"

    @property
    def context(self) -> Context:
        """The options of its prompt's context, where it was asked for."""
        return {name: value for name in ("n_ctx", "ctx_init") if (value := getattr(self, name)) is not None}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Run:
        """The run that a row of results is of."""
        return cls(**{name: row[name] for name in RUN_COLUMNS})

    def columns(self) -> dict[str, Any]:
        """The start of its row."""
        return asdict(self)


RUN_COLUMNS = tuple(field.name for field in fields(Run))


def shots_name(shots: int) -> str:
    """ "1 shot", "16 shots"."""
    return "1 shot" if shots == 1 else f"{shots} shots"


def context_suffix(n_ctx: int | None, ctx_init: str | None) -> str:
    """How a context is told of: ", M = 4" or ", from 'a photo of a'"."""
    length = "" if n_ctx is None else f", M = {n_ctx}"
    return length + ("" if ctx_init is None else f", from {ctx_init!r}")


def contexts(protocol: str, n_ctx: Sequence[int], ctx_init: Sequence[str]) -> list[Context]:
    """The contexts to compare: each length from random vectors, and each of the words.

    Raises:
        ValueError: several are given to a protocol that compares other things.
    """
    found: list[Context] = [{"n_ctx": length} for length in n_ctx] + [{"ctx_init": words} for words in ctx_init]
    if protocol == "context":
        return found or [{"n_ctx": length} for length in CONTEXT_LENGTHS] + [{"ctx_init": WORDS}]
    if len(n_ctx) == len(ctx_init) == 1:
        found = [{"n_ctx": n_ctx[0], "ctx_init": ctx_init[0]}]  # refused by the method where they are in conflict
    if len(found) > 1:
        raise ValueError(f"{protocol} takes one context, got {found}: the protocol that compares them is context")
    default = find_protocol(protocol).ctx_init
    return found or [{"ctx_init": default} if default else {}]


def plan_runs(
    protocol: str,
    datasets: Iterable[str],
    methods: Iterable[Method],
    shots: Sequence[int],
    seeds: Sequence[int],
    contexts: Sequence[Context],
) -> list[Run]:
    """The runs of an experiment, those of a set together; of methods that look at no training image, one a set.

    Raises:
        ValueError: a method cannot do what the protocol asks for.
    """
    runs: list[Run] = []
    for dataset, method in product(datasets, methods):
        if find_protocol(protocol).other_names and not method.takes_other_names:
            raise ValueError(
                f"{method.name} knows only the classes it was learned on, and {protocol} tests on others: leave it out"
            )
        if not method.learns:
            runs.append(Run(protocol, dataset, method.name, NOT_LEARNED, NOT_LEARNED))
            continue
        own = contexts if method.is_prompt else [{}]
        runs += [
            Run(protocol, dataset, method.name, shot, seed, **context)
            for shot, seed, context in product(shots, seeds, own)
        ]
    return runs
