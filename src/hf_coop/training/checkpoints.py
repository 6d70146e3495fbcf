"""Training checkpoints: folders `checkpoint-{step}`, written whole or not at all, and checked before use."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import short, some
from ..files import LOCK_FILE, locked_folder, open_to_readers
from ..hub.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from ..modeling import HFCoOp
from ..pretrained import check_plain_file, read_json
from ..tuners.model import check_values

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
TENSORS_FILE = "trainer_state.safetensors"
RUN_FILES = (CONFIG_FILE, WEIGHTS_FILE, "metrics.json")
LOGGED = {"epoch", "step", "loss", "accuracy"}  # in each row of the history
MAX_STEPS = 2**53  # beyond, JSON's numbers are not exact
STEP_PATTERN = re.compile(r"checkpoint-(\d+)")
NOT_OF_THE_PROMPT = ("inference_mode", "hf_coop_version", "peft_version", "base_model_name_or_path", "revision")


@dataclass
class TrainerState:
    """Where training stands, and what it has measured.

    Attributes:
        epoch (`int`): the epoch to go on with, from 0.
        epoch_step (`int`): updates of it that are done.
        global_step (`int`): updates done in all.
        losses, accuracies (`list[float]`): of each update, on its training images.
        log_history (`list[dict]`): a row for each finished epoch.
        run (`dict`): what the run was started with; a checkpoint of another run is not resumed.
    """

    epoch: int = 0
    epoch_step: int = 0
    global_step: int = 0
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        """The epoch of the last update, from 1."""
        return self.epoch + (self.epoch_step > 0)


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a folder, the last one written last: after going back to an earlier step, not the highest."""

    def written(path: Path) -> tuple[int, int]:
        state = path / STATE_FILE
        return state.stat().st_mtime_ns if state.is_file() else 0, int(path.name.split("-")[1])

    found = [path for path in Path(output_dir).glob("checkpoint-*") if STEP_PATTERN.fullmatch(path.name)]
    return sorted(found, key=written)


def check_output_dir(
    output_dir: str | os.PathLike[str], resume: str | os.PathLike[str] | bool | None, overwrite: bool
) -> Path | None:
    """Refuse a folder that holds another run, unless it is told to be overwritten.

    Args:
        output_dir: where the run is to write.
        resume: `resume_from_checkpoint`.
        overwrite (`bool`): whether what is there may be lost.

    Returns:
        The checkpoint to go on from, if any, as [`find_checkpoint`] gives it.

    Raises:
        ValueError: the folder holds a run that `resume` does not go on with, is in use by one, or is a file; or there
            is no checkpoint.
    """
    path = Path(output_dir)
    if path.is_file():
        raise ValueError(f"output_dir {str(output_dir)!r} is a file")
    if (path / LOCK_FILE).exists():
        with locked_folder(path):
            pass
    checkpoint = find_checkpoint(resume, str(output_dir))
    held = [name for name in RUN_FILES if (path / name).exists()] + [p.name for p in list_checkpoints(path)]
    if held and not (overwrite or lies_in(checkpoint, path)):
        raise ValueError(
            f"output_dir {str(output_dir)!r} holds another run ({', '.join(held[:4])}): choose another folder, go on "
            "with that run by resume_from_checkpoint=True if it has checkpoints, or start anew by "
            "overwrite_output_dir=True"
        )
    return checkpoint


def lies_in(checkpoint: Path | None, output_dir: str | os.PathLike[str]) -> bool:
    """Whether it is a checkpoint of the run in `output_dir`."""
    return checkpoint is not None and checkpoint.parent.resolve() == Path(output_dir).resolve()


def find_checkpoint(resume: str | os.PathLike[str] | bool | None, output_dir: str) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means: a folder, or the newest with True; None to begin anew.

    Raises:
        ValueError: the folder is no checkpoint.
    """
    if not wants_resume(resume):
        return None
    path = Path(str(resume))
    if str(resume).lower() == "true":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            return None
        path = checkpoints[-1]
    for name in (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, TENSORS_FILE):
        if not (path / name).is_file():
            raise ValueError(
                f"{str(path)!r} is no checkpoint: it has no {name}; give a folder checkpoint-N of a run, or True for "
                "the newest in output_dir"
            )
    return path


def wants_resume(resume: str | os.PathLike[str] | bool | None) -> bool:
    """Whether `resume_from_checkpoint` asks for anything."""
    return resume is not None and str(resume).lower() not in ("", "false", "none")


def save_checkpoint(
    output_dir: str,
    model: HFCoOp,
    optimizer: torch.optim.Optimizer | None,
    state: TrainerState,
    extra: dict[str, torch.Tensor],
) -> Path:
    """Write `checkpoint-{global_step}`: adapter, optimizer, `extra` tensors (random states, L-BFGS) and position.

    Raises:
        OSError: the disk is full, say; the checkpoints before are untouched.
    """
    with _whole_folder(Path(output_dir) / f"checkpoint-{state.global_step}") as folder:
        model.prompt_config.save_pretrained(str(folder))
        weights = {name: value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        save_file({**_optimizer_tensors(optimizer), **extra}, folder / TENSORS_FILE)
        (folder / STATE_FILE).write_text(json.dumps(vars(state)), encoding="utf-8")
    return Path(output_dir) / f"checkpoint-{state.global_step}"


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when everything is in it."""
    staging = target.with_name(f".{target.name}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        open_to_readers(staging)
        _remove(target)
        staging.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        kept = list_checkpoints(target.parent)
        hint = f"{kept[-1]} is whole: make room and resume from it" if kept else "there is no earlier checkpoint"
        raise OSError(f"cannot write {str(target)!r}: {error}; {hint}") from error


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that no half of it is ever seen under its name."""
    if checkpoint.exists():
        doomed = checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}-old"))
        shutil.rmtree(doomed, ignore_errors=True)


def remove_checkpoints(output_dir: str, keep: int | None = 0, written: Path | None = None) -> None:
    """Delete the oldest checkpoints but `keep` (None: all stay), and what an interrupted write has left behind.

    The one just `written` is the newest, whatever the clock says.
    """
    checkpoints = sorted(list_checkpoints(output_dir), key=lambda path: path == written)
    for checkpoint in checkpoints[: max(0, len(checkpoints) - keep)] if keep is not None else []:
        _remove(checkpoint)
    for leftover in Path(output_dir).glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": torch.as_tensor(value).contiguous()
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


@contextmanager
def naming_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Put the checkpoint in front of what is wrong with it, as one `ValueError`."""
    try:
        yield
    except Exception as error:  # a file that was tampered with can end in any error
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is damaged: {short(error)}; resume from another one, or train anew"
        ) from error


def load_checkpoint(
    checkpoint: Path, model: HFCoOp, optimizer: torch.optim.Optimizer | None, run: dict[str, Any]
) -> tuple[TrainerState, dict[str, torch.Tensor]]:
    """Put a checkpoint into `model` and `optimizer`.

    Args:
        checkpoint (`Path`): from [`find_checkpoint`].
        run (`dict`): what this run is started with.

    Returns:
        The state, and the `extra` tensors.

    Raises:
        ValueError: the checkpoint is damaged, or of another model, other classes, other options or other images.
    """
    with naming_checkpoint(checkpoint):
        state = read_trainer_state(checkpoint / STATE_FILE)
        for name in (TENSORS_FILE, WEIGHTS_FILE):
            check_plain_file(checkpoint / name)
        tensors, weights = load_file(checkpoint / TENSORS_FILE), load_file(checkpoint / WEIGHTS_FILE)
        if "random.cpu" not in tensors:
            raise ValueError(f"{TENSORS_FILE} lacks random.cpu")
        if not isinstance(state.run.get("arguments", {}), dict):
            raise ValueError(f"{STATE_FILE}: run.arguments is no object")
    _check_same_run(checkpoint, model, state.run, run)
    with naming_checkpoint(checkpoint):
        set_peft_model_state_dict(model, weights)
        if optimizer is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": _momenta(optimizer, tensors)})
    return state, tensors


def read_trainer_state(path: Path) -> TrainerState:
    """The state in a checkpoint.

    Raises:
        ValueError: something lacks, or numbers are not what training can have written.
    """
    content, blank = read_json(path), vars(TrainerState())
    if lacking := [name for name in blank if type(content.get(name)) is not type(blank[name])]:
        raise ValueError(f"{STATE_FILE} lacks {', '.join(lacking)}")
    if unknown := sorted(content.keys() - blank.keys()):
        raise ValueError(f"{STATE_FILE} has unknown fields: {some(unknown)}")
    state = TrainerState(**content)
    counts = {name: content[name] for name in ("epoch", "epoch_step", "global_step")}
    if wrong := [f"{name}={count!r:.40}" for name, count in counts.items() if not 0 <= count <= MAX_STEPS]:
        raise ValueError(f"{STATE_FILE}: {', '.join(wrong)} must be from 0 to {MAX_STEPS}")
    measured = [*state.losses, *state.accuracies]
    if not all(isinstance(value, float) and math.isfinite(value) for value in measured):
        raise ValueError(f"{STATE_FILE}: losses and accuracies must be finite numbers")
    rows = [row for row in state.log_history if isinstance(row, dict) and row.keys() >= LOGGED]
    if not len(state.losses) == len(state.accuracies) >= state.epoch_step or len(rows) != state.epoch:
        raise ValueError(f"{STATE_FILE}: its history is not that of epoch {state.epoch}, step {state.global_step}")
    return state


def _momenta(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """The optimizer's state out of a checkpoint's tensors, of which it is taken away."""
    momenta: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {str(number): parameter.shape for number, parameter in enumerate(parameters)}
    for key in [key for key in tensors if key.startswith("optimizer.")]:
        _, number, name = key.split(".", 2)
        value = tensors.pop(key)
        if value.ndim and value.shape != shapes.get(number):
            raise ValueError(f"{key:.80} has shape {tuple(value.shape)}")
        if value.ndim:
            check_values(key, value)
        momenta.setdefault(int(number), {})[name] = value
    return momenta


def _check_same_run(checkpoint: Path, model: HFCoOp, before: dict[str, Any], now: dict[str, Any]) -> None:
    trained = read_adapter_config(str(checkpoint))
    old, new = trained.to_dict(), model.prompt_config.to_dict()
    where = f"checkpoint {str(checkpoint)!r}"
    if old["peft_type"] != new["peft_type"]:
        raise ValueError(
            f"{where} was trained by another method, {trained.label}; this is {model.prompt_config.label}"
        )
    if old["classnames"] != new["classnames"]:
        pairs = zip(old["classnames"], new["classnames"], strict=False)
        differ = [f"{was!r:.40} is now {name!r:.40}" for was, name in pairs if was != name]
        raise ValueError(
            f"{where} was trained on other classes ({len(old['classnames'])} there, {len(new['classnames'])} here"
            f"{'; ' + ', '.join(differ[:3]) if differ else ''}): train in another folder"
        )
    if before.get("base_model") != now["base_model"]:
        raise ValueError(
            f"{where} was trained on another base model, {old['base_model_name_or_path']!r:.80}; this one is "
            f"{new['base_model_name_or_path']!r:.80}, with other weights: train in another folder"
        )
    for name in sorted((old.keys() | new.keys()) - {*NOT_OF_THE_PROMPT, "token_ids", "name_lengths"}):
        if old.get(name) != new.get(name):
            raise ValueError(f"{where} was trained with {name}={old.get(name)!r:.80}, now it is {new.get(name)!r:.80}")
    if before.get("labels") != now["labels"]:
        raise ValueError(f"{where} was trained on other images or another number of shots: train in another folder")
    changed = changed_arguments(before, now)
    if "optim" in changed:
        was, now_is = changed["optim"]
        raise ValueError(f"{where} was trained with optim={was!r:.80}, whose state is of no use to {now_is!r}")
    if changed:
        told = ", ".join(f"{name} was {old!r:.80}, is {new!r:.80}" for name, (old, new) in changed.items())
        logger.warning("%s was made with other settings, so the result is that of neither run: %s", where, told)


def changed_arguments(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The arguments that two runs (`TrainerState.run`) have in common and give other values."""
    old, new = before.get("arguments", {}), now["arguments"]
    return {name: (old[name], new[name]) for name in old if name in new and old[name] != new[name]}


def random_states(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Torch's random states of all processes, `(processes, bytes)`."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return {
        f"random.{name}": accelerator.gather(state[None].to(accelerator.device)).cpu()
        for name, state in states.items()
    }


def set_random_states(accelerator: Accelerator, states: dict[str, torch.Tensor]) -> None:
    """Go on from `random_states`, unless they are of another number of processes."""
    if len(states["random.cpu"]) != accelerator.num_processes:
        return
    torch.set_rng_state(states["random.cpu"][accelerator.process_index].clone())  # of a view it reads another place
    if "random.cuda" in states and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(states["random.cuda"][accelerator.process_index].clone())
