"""Processes that are killed, meet each other, or find the disk full: `python killed.py FOLDER SCENARIO ROUNDS …`.

Each scenario forks children from this process, which has imported everything, so that a kill costs milliseconds. It
prints a JSON object of what was seen; the checks of what must never be seen are here.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import torch
from conftest import CLASSNAMES, PARITY
from crafted_files import few_shot_features
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from tqdm import tqdm

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data.feature_cache import feature_cache
from hf_coop.data.features import encode_images

RNG = random.Random(0)


def fork(work: Callable[[], object], errors: Path | None = None) -> int:
    """A child that does `work` and ends; its error goes to a file."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        if errors is None:
            traceback.print_exc()
        else:
            errors.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def kill_after(child: int, seconds: float) -> bool:
    """Whether the child was still at work when it was killed."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def two_prompts() -> list[HFCoOp]:
    """Models whose three files all differ."""
    return [HFCoOp.from_clip(PARITY, CLASSNAMES[:count], n_ctx=count) for count in (2, 4)]


def save(folder: Path, rounds: int) -> dict[str, int]:
    """Saves over an existing folder, killed: each file is of one of the two saves, whole."""
    models, place, kills = two_prompts(), folder / "prompt", 0
    whole = []
    for number, model in enumerate(models):
        model.save_pretrained(folder / f"whole-{number}")
        whole.append(contents(folder / f"whole-{number}"))
    models[0].save_pretrained(place)
    start = time.monotonic()
    models[0].save_pretrained(place)
    length = time.monotonic() - start

    def saving() -> None:
        while True:
            for model in models:
                model.save_pretrained(place)

    for _ in range(rounds):
        kills += kill_after(fork(saving), RNG.uniform(0, 3 * length))
        found = contents(place)
        assert found.keys() == whole[0].keys(), found.keys()
        for name, content in found.items():
            assert content in (whole[0][name], whole[1][name]), f"{name} is neither the old nor the new one"
    models[1].save_pretrained(place)
    assert contents(place) == whole[1]
    assert not list(folder.glob(".*")), "what killed processes left is still there"
    return {"kills": kills}


def both(folder: Path, rounds: int) -> dict[str, int]:
    """Two processes save into one folder at once: what is there after both is of one of them."""
    models, seen = two_prompts(), set()
    whole = []
    for number, model in enumerate(models):
        model.save_pretrained(folder / f"whole-{number}")
        whole.append(contents(folder / f"whole-{number}"))
    for number in range(rounds):
        place = folder / f"prompt-{number}"
        children = [fork(lambda model=model, place=place: model.save_pretrained(place)) for model in models]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert contents(place) in whole, "the files of two prompts are mixed"
        seen.add(whole.index(contents(place)))
    return {"winners": len(seen)}


def train(folder: Path, rounds: int, optim: str) -> dict[str, int]:
    """A run that is killed and resumed until it ends has the bytes of a run that nobody killed."""
    data = few_shot_features()

    def training(output_dir: Path) -> None:
        torch.manual_seed(0)
        length = {"num_train_epochs": 30} if optim == "sgd" else {"max_text_passes": 60}
        args = CoOpTrainingArguments(
            output_dir=str(output_dir),
            optim=optim,
            per_device_train_batch_size=5 if optim == "sgd" else None,
            use_cpu=True,
            save_strategy="steps",
            save_steps=1,
            resume_from_checkpoint="True",
            disable_tqdm=True,
            **length,
        )
        trainer = CoOpTrainer(HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2), args, data)
        trainer.train()
        trainer.save_model()

    start = time.monotonic()
    assert os.waitpid(fork(lambda: training(folder / "whole")), 0)[1] == 0
    length = time.monotonic() - start
    whole = contents(folder / "whole")
    kills = runs = 0
    while kills < rounds:
        out = folder / f"run-{runs}"
        ended = False
        while not ended and kills < rounds:
            killed = kill_after(fork(lambda out=out: training(out)), RNG.uniform(0.1, 0.8) * length)
            kills, ended = kills + killed, not killed
        assert os.waitpid(fork(lambda out=out: training(out)), 0)[1] == 0, "it cannot be resumed"
        assert contents(out) == whole, "the bytes are others"
        runs += 1
    return {"kills": kills, "runs": runs}


def photos(count: int = 60) -> Dataset:
    pixels = torch.randint(0, 256, (count, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [PILImage.fromarray(row.numpy()) for row in pixels]
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


def caching(folder: Path) -> Callable[[], torch.Tensor]:
    """What encodes images, with its cache in `folder`."""
    model, data = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2), photos()
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder
    return lambda: encode_images(model, data, batch_size=4)


def cache(folder: Path, rounds: int) -> dict[str, int]:
    """Image features whose caching is killed, by one process or two at once, are right the next time."""
    encode = caching(folder / "whole")
    start = time.monotonic()
    expected = encode()
    length, kills = time.monotonic() - start, 0
    for number in range(rounds):
        datasets.config.HF_DATASETS_CACHE = folder / f"cache-{number % 5}"
        children = [fork(encode) for _ in range(1 + number % 2)]
        time.sleep(RNG.uniform(0, length))
        kills += sum(kill_after(child, 0) for child in children)
        if number % 3 == 2:
            children = [fork(encode), fork(encode)]
            assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
            assert torch.equal(encode(), expected)
            left = [path.name for path in feature_cache().iterdir() if path.suffix != ".arrow"]
            assert not left, f"what killed processes left is still there: {left}"
    return {"kills": kills}


def full(folder: Path, rounds: int) -> dict[str, int]:
    """No file may grow beyond some size, as on a full disk: a clear error, and what was there stays whole."""
    models, place, errors = two_prompts(), folder / "prompt", folder / "error"
    models[0].save_pretrained(place)
    before, refused = contents(place), 0
    encode = caching(folder / "cache")
    data = few_shot_features()

    def limited(work: Callable[[], object], size: int) -> Callable[[], object]:
        def run() -> object:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                return work()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        return run

    def training() -> None:
        args = CoOpTrainingArguments(
            output_dir=str(folder / "run"), num_train_epochs=2, use_cpu=True, disable_tqdm=True, optim="sgd"
        )
        CoOpTrainer(HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2), args, data).train()

    for number in range(rounds):
        size = RNG.choice([0, 10, 300, 700, 900, 1100, 1400, 1800])
        work = (lambda: models[1].save_pretrained(place), encode, training)[number % 3]
        errors.unlink(missing_ok=True)
        status = os.waitpid(fork(limited(work, size), errors), 0)[1]
        assert os.WIFEXITED(status), f"ended by signal {status}"
        if status:
            refused += 1
            message = errors.read_text()
            assert message.startswith(("OSError", "ValueError")), message
            assert str(folder) in message, message
            assert contents(place) == before
            assert not list(folder.glob(".prompt-*")), "half a save is left"
        elif number % 3 == 0:
            models[0].save_pretrained(place)
    return {"refused": refused}


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    tqdm.set_lock(threading.RLock())  # its own is shared by what is forked, and a killed child would hold it for ever
    scenarios = {"save": save, "both": both, "cache": cache, "full": full}
    scenarios |= {"sgd": partial(train, optim="sgd"), "lbfgs": partial(train, optim="lbfgs")}
    seen = {}
    for name, rounds in zip(sys.argv[2::2], map(int, sys.argv[3::2]), strict=True):
        folder = Path(sys.argv[1], name)
        folder.mkdir()
        seen[name] = scenarios[name](folder, rounds)
    print(json.dumps(seen))
