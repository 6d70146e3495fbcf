"""What writes files, on a disk that is full: `unshare -rm python full_disk.py FOLDER`, which mounts a small one.

Each kind of work is done on the disk while there is room, then while ballast leaves few bytes, and again with room.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import datasets
import torch
from conftest import CLASSNAMES, PARITY
from crafted_files import few_shot_features
from killed import photos, two_prompts
from typer.testing import CliRunner

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data.features import encode_images
from hf_coop.demo import CLASSNAMES as DIGITS
from hf_coop.demo import DEMO_CLIP, load_digits_dataset
from hf_coop.files import whole_file
from hf_coop.serving import PhotoSorter, explain, export_model
from hf_coop_cli import app

LEFT = (0, 4096, 8192, 20_000, 65_536)  # bytes of room
BALLAST = "ballast"
Work = Callable[[], object]


def contents(disk: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(disk)): path.read_bytes()
        for path in disk.rglob("*")
        if path.is_file() and path.name != BALLAST
    }


def fill(disk: Path, leave: int) -> None:
    state = os.statvfs(disk)
    (disk / BALLAST).write_bytes(bytes(max(0, state.f_bavail * state.f_bsize - leave)))


def empty(disk: Path) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(work: Work, disk: Path) -> bool:
    """Whether it could not be done, which a line must say that names the place."""
    try:
        work()
    except OSError as error:
        message = str(error)
    else:
        return False
    assert message.isprintable(), message
    assert str(disk) in message, message
    return True


def train(folder: Path, optim: str) -> None:
    torch.manual_seed(0)
    length = {"num_train_epochs": 30} if optim == "sgd" else {"max_text_passes": 30}
    args = CoOpTrainingArguments(
        output_dir=str(folder),
        optim=optim,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=1,
        resume_from_checkpoint="True",
        **length,
    )
    trainer = CoOpTrainer(HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2), args, few_shot_features())
    trainer.train()
    trainer.save_model()


def command(*arguments: object) -> None:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exit_code:
        raise OSError(done.output.split("error: ")[-1].strip())


def works(disk: Path) -> dict[str, tuple[Work, Work]]:
    """By name: what is done first, and what is then done again and again."""
    first, second = two_prompts()
    demo = HFCoOp.from_clip(DEMO_CLIP, DIGITS, n_ctx=2)
    digits = load_digits_dataset()["test"].select(range(60))
    images, photo = photos(), disk.parent / "photo.png"
    digits[0]["image"].resize((300, 300)).save(photo)

    def metrics(text: str) -> None:
        with whole_file(disk / "metrics.json") as file:
            file.write(text)

    def sort(label: str) -> None:
        shutil.copy(photo, place := disk.parent / f"{label}.bmp")
        place.write_bytes(bytes(100_000))
        PhotoSorter(disk, [label]).sort(place, [{"label": label, "score": 1.0}])

    def experiment(*seeds: int) -> None:
        options = ["--benchmark", "demo", "--methods", "zero_shot", "coop", "--shots", 1, "--seeds", *seeds]
        options += ["--max_text_passes", 2, "--model_name_or_path", "demo", "--use_cpu", "True"]
        options += ["--save_prompts", "--retry_failed"]
        command("experiment", "few-shot", "--output_dir", disk / "results", *options)

    return {
        "save": (lambda: first.save_pretrained(disk / "prompt"), lambda: second.save_pretrained(disk / "prompt")),
        "sgd": (list, lambda: train(disk / "run", "sgd")),
        "lbfgs": (list, lambda: train(disk / "run", "lbfgs")),
        "features": (list, lambda: encode_images(first, images, batch_size=4)),
        "metrics": (lambda: metrics("old"), lambda: metrics("new" * 100_000)),
        "explain": (list, lambda: explain(demo, digits, disk / "report")),
        "onnx": (lambda: (disk / "x.onnx").write_bytes(b"old"), lambda: export_model(demo, disk / "x.onnx")),
        "program": (lambda: (disk / "x.pt2").write_bytes(b"old"), lambda: export_model(demo, disk / "x.pt2")),
        "sort": (lambda: sort("cat"), lambda: sort("dog")),
        "experiment": (lambda: experiment(1), lambda: experiment(1, 2)),
    }


def results(disk: Path) -> set[str]:
    """The runs in the folder of an experiment that did not fail; every line is one, whole."""
    lines = (disk / "results" / "results.jsonl").read_text().splitlines() if (disk / "results").exists() else []
    rows = [row for row in map(json.loads, lines) if row["error"] is None]
    return {f"{row['method']} {row['seed']} {row['results'][0]['accuracy']}" for row in rows}


def main(disk: Path) -> dict[str, int]:
    datasets.config.HF_DATASETS_CACHE = disk / "cache"
    datasets.disable_progress_bars()
    seen = {}
    for name, (first, again) in works(disk).items():
        empty(disk)
        first()
        again()
        whole, seen[name] = contents(disk), 0
        whole_results = results(disk)
        for leave in LEFT:
            empty(disk)
            first()
            before, runs = contents(disk), results(disk)
            fill(disk, leave)
            if refused(again, disk):
                seen[name] += 1
                after = contents(disk)
                if name in ("sgd", "lbfgs"):  # checkpoints that were whole before the disk was full
                    assert all(path.startswith("run/checkpoint-") for path in after), after.keys()
                elif name == "experiment":
                    assert runs <= results(disk) <= whole_results
                else:
                    new = {path for path in after if not path.startswith("cache/")}
                    assert {path: after[path] for path in new} == before, (name, leave, new)
                names = {part for path in after for part in path.split("/")}
                assert not [part for part in names - {".lock"} if part.startswith((".", "tmp"))], names
            (disk / BALLAST).unlink()
            again()
            if name == "experiment":
                assert results(disk) == whole_results
            elif name not in ("onnx", "program"):
                assert contents(disk) == whole, (name, leave)
        assert seen[name], f"{name} was never refused"
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1], "disk")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], check=True)
    with redirect_stdout(sys.stderr):
        found = main(place)
    print(json.dumps(found))
