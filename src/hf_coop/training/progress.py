"""What training shows: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

REFRESH_SECONDS = 0.25
PLAIN_LINES = 20


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "")


class TrainingProgress:
    """Epoch, loss, training accuracy, rate and time left.

    Args:
        epochs (`int`, *optional*), steps (`int`): of the whole run; with L-BFGS the epochs are iterations whose number
            is not known, and the steps are the text passes that it may take.
        step (`int`): steps done before.
        unit (`str`): what the steps are.
        live (`bool`): the live bar where the terminal can show it.
        visible (`bool`): False in all processes but the main one.
    """

    def __init__(
        self,
        epochs: int | None,
        steps: int,
        step: int,
        unit: str = "steps",
        live: bool = True,
        visible: bool = True,
    ) -> None:
        console = Console(stderr=True)
        self.epochs, self.unit, self.visible = epochs, unit, visible
        self.live = live and visible and (console.is_terminal or console.is_jupyter)
        self._shown_at, self._started, self._first_step, self._steps = 0.0, time.monotonic(), step, steps
        status = TextColumn("{task.fields[epoch]}  loss {task.fields[loss]}  accuracy {task.fields[accuracy]}")
        columns = (status, BarColumn(), _Rate(), TextColumn("left"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not self.live)
        self._task = self._bar.add_task("", total=steps, completed=step, unit=unit, epoch="", loss="", accuracy="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, epoch: int, step: int, loss_and_accuracy: torch.Tensor) -> None:
        """Show a step, a few times a second at most: reading the loss makes a GPU wait."""
        if not self.live or time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time.monotonic()
        loss, accuracy = loss_and_accuracy.tolist()
        self._show(epoch, step, loss, accuracy)

    def epoch(self, row: dict[str, Any]) -> None:
        """Show a finished epoch: on the bar, or as a line for about twenty of them."""
        epoch, step = row["epoch"], row["step"]
        if self.live:
            self._show(epoch, step, row["loss"], row["accuracy"])
        elif self.visible and self._is_told(epoch, step):
            # A run resumed at the end of an epoch has no step of its own yet.
            rate = max(1, step - self._first_step) / (time.monotonic() - self._started)
            validation = f", validation accuracy {row['eval_accuracy']:.1%}" if "eval_accuracy" in row else ""
            learning_rate = f", learning rate {row['learning_rate']:.2g}" if "learning_rate" in row else ""
            print(
                f"{self.position(epoch)}: loss {row['loss']:.4f}, training accuracy {row['accuracy']:.1%}"
                f"{validation}{learning_rate}, {rate:.1f} {self.unit}/s, {(self._steps - step) / rate:.0f} s left",
                flush=True,
            )

    def _is_told(self, epoch: int, step: int) -> bool:
        if self.epochs is None:
            return epoch == 1 or epoch % max(1, self._steps // PLAIN_LINES) == 0 or step >= self._steps
        return epoch in (1, self.epochs) or epoch % max(1, self.epochs // PLAIN_LINES) == 0

    def ended(self, why: str) -> None:
        """Say why there are no more iterations."""
        if self.visible:
            print(f"training ended: {why}", flush=True)

    def position(self, epoch: int) -> str:
        """What an epoch is called, from 1."""
        return f"iteration {epoch}" if self.epochs is None else f"epoch {epoch}/{self.epochs}"

    def _show(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        self._bar.update(
            self._task,
            completed=step,
            epoch=self.position(epoch),
            loss=f"{loss:.4f}",
            accuracy=f"{accuracy:.1%}",
        )
