"""L-BFGS over the whole few-shot set.

With image features cached, a pass through the text tower costs the same for all images as for a few.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ..errors import some
from .arguments import CoOpTrainingArguments
from .gradients import BatchGradients

HISTORY_SIZE = 20
MAX_PASSES_OF_A_LINE_SEARCH = 25
TOLERANCE = 1e-9  # of change and gradient, below which a line search cannot go on
LINES = ("d", "prev_flat_grad")  # what else of it has a number for each parameter, and what is one number
NUMBERS = ("t", "H_diag", "prev_loss", "n_iter", "func_evals")
HISTORY = ("old_dirs", "old_stps", "ro")  # lists of tensors in the state of `torch.optim.LBFGS`
PREFIX = "lbfgs."


class Evaluation(NamedTuple):
    """What a text pass found at a point `(n,)`, all parameters behind each other; `gradient` is of the same shape."""

    point: torch.Tensor
    loss: float
    accuracy: float
    gradient: torch.Tensor


class OutOfPassesError(Exception):
    """The text passes are used up in the middle of a line search."""


class FullBatchLBFGS:
    """`torch.optim.LBFGS` with a strong-Wolfe line search on all images and all their cached views as one batch.

    The loss, weight decay and anchor included, is then a deterministic function of a few thousand numbers, and 50 to
    100 evaluations do what thousands of steps of SGD do. `torch.optim.LBFGS` evaluates its starting point anew at
    every `step`; here the evaluations it may come back to are kept, so that none is done twice.

    Args:
        gradients ([`BatchGradients`]): computes loss and gradients.
        image_embeds (`torch.Tensor` of shape `(N, V, D)`), labels (`torch.Tensor` of shape `(N,)`): the images.
        args ([`CoOpTrainingArguments`]): `max_text_passes`, evaluations at most, each one pass through the text tower
            and back; `weight_decay`, of a term `weight_decay / 2 * |parameters|^2`.

    Attributes:
        text_passes (`int`): evaluations so far.
        ended (`str`): why it does not go on; empty while it does.
    """

    def __init__(
        self,
        gradients: BatchGradients,
        image_embeds: torch.Tensor,
        labels: torch.Tensor,
        args: CoOpTrainingArguments,
    ) -> None:
        self.gradients = gradients
        self.max_text_passes, self.weight_decay = args.max_text_passes or 0, args.weight_decay or 0.0
        self.images = {
            "image_embeds": image_embeds.flatten(0, 1),
            "labels": labels.repeat_interleave(image_embeds.shape[1]),
        }
        self.optimizer = torch.optim.LBFGS(
            gradients.parameters,
            max_iter=1,
            max_eval=MAX_PASSES_OF_A_LINE_SEARCH + 1,
            history_size=HISTORY_SIZE,
            tolerance_grad=TOLERANCE,
            tolerance_change=TOLERANCE,
            line_search_fn="strong_wolfe",
        )
        self.text_passes, self.ended = 0, ""
        self._known: list[Evaluation] = []  # where the line search began, the best, and the last

    def step(self) -> Evaluation:
        """One iteration, a line search along one direction; gives what was found at the point where it ends.

        Raises:
            FloatingPointError: the loss there is no finite number.
        """
        start = self._evaluate()
        try:
            self.optimizer.step(self._closure)
            found = self._evaluate()
        except OutOfPassesError:
            found = min(self._known, key=lambda known: known.loss)
            self._go_to(found.point)
            self.optimizer.state.clear()  # it was left in the middle of an iteration
        if not math.isfinite(found.loss):
            raise FloatingPointError(f"the loss is {found.loss}")
        if self.text_passes >= self.max_text_passes:
            self.ended = f"all {self.max_text_passes} text passes are done"
        elif torch.equal(found.point, start.point):
            self.ended = f"converged after {self.text_passes} text passes: the line search finds nothing lower"
        self._known = [found]
        return found

    def _closure(self) -> float:
        """The loss at the parameters as they are; they are given their gradients."""
        found, start = self._evaluate(), 0
        for parameter in self.gradients.parameters:
            parameter.grad = found.gradient[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return found.loss

    def _evaluate(self) -> Evaluation:
        point = torch.cat([parameter.detach().flatten() for parameter in self.gradients.parameters])
        for known in self._known:
            if torch.equal(known.point, point):
                return known
        if self.text_passes >= self.max_text_passes:
            raise OutOfPassesError
        found = self._pass(point)
        kept = [self._known[0], min(self._known, key=lambda known: known.loss)] if self._known else []
        self._known = [*kept, found]
        return found

    @torch.enable_grad()
    def _pass(self, point: torch.Tensor) -> Evaluation:
        self.text_passes += 1
        gradients, decay = self.gradients, self.weight_decay
        measured = gradients.add(self.images, len(self.images["labels"]))
        gradients.merge()
        loss, accuracy = gradients.accelerator.reduce(measured, "sum").tolist()
        gradient = torch.cat([p.grad.flatten() for p in gradients.parameters if p.grad is not None])
        return Evaluation(point, loss + decay / 2 * float(point.square().sum()), accuracy, gradient + decay * point)

    @torch.no_grad()
    def _go_to(self, point: torch.Tensor) -> None:
        torch.nn.utils.vector_to_parameters(point, self.gradients.parameters)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that `load_state_tensors` needs to go on as if nothing had happened."""
        [last] = self._known
        own = {"text_passes": self.text_passes, "loss": last.loss, "accuracy": last.accuracy}
        own["converged"] = int(bool(self.ended) and self.text_passes < self.max_text_passes)
        values: dict[str, Any] = {**own, "gradient": last.gradient}
        for name, value in self.optimizer.state[self.gradients.parameters[0]].items():
            if name in HISTORY and value:
                values[f"state.{name}"] = torch.stack(value)
            elif name not in (*HISTORY, "al") and value is not None:  # al is scratch
                values[f"state.{name}"] = value
        return {f"{PREFIX}{name}": _as_tensor(value) for name, value in values.items()}

    def load_state_tensors(self, tensors: dict[str, torch.Tensor], same_loss: bool = True) -> None:
        """Go on from `state_tensors`, at the point that the parameters have been given.

        Args:
            tensors: of a checkpoint.
            same_loss (`bool`): False where other settings have made it another one: what was found is then forgotten.

        Raises:
            ValueError: something is missing, of another shape or not finite.
        """
        values = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        point = torch.cat([parameter.detach().flatten() for parameter in self.gradients.parameters])
        try:
            self.text_passes = int(values["text_passes"])
            gradient = values["gradient"].to(point).clone()
            self._known = [Evaluation(point, float(values["loss"]), float(values["accuracy"]), gradient)]
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"its L-BFGS state lacks {error}") from error
        check_shapes(values, len(point))
        state = self.optimizer.state[self.gradients.parameters[0]]
        for name, value in values.items():
            if name.startswith("state."):
                state[name.removeprefix("state.")] = _from_tensor(name, value, point)
        for name in HISTORY:
            if "n_iter" in state:
                state.setdefault(name, [])
        if self.text_passes >= self.max_text_passes:
            self.ended = f"all {self.max_text_passes} text passes are done"
        elif not same_loss:
            self._known = []
            state.clear()
        elif values.get("converged"):
            self.ended = f"converged after {self.text_passes} text passes"


def check_shapes(values: dict[str, torch.Tensor], count: int) -> None:
    """Raise `ValueError` unless the tensors of a state are those of `count` parameters, and finite."""
    lines = len(values.get("state.old_dirs", ()))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("text_passes", "loss", "accuracy", "converged"), ())
    shapes["gradient"] = (count,)
    if any(name.startswith("state.") for name in values):
        shapes |= {f"state.{name}": (count,) for name in LINES} | {f"state.{name}": () for name in NUMBERS}
    if lines:
        shapes |= {"state.old_dirs": (lines, count), "state.old_stps": (lines, count), "state.ro": (lines,)}
    if wrong := sorted(shapes.keys() ^ values.keys()):
        raise ValueError(f"its L-BFGS state lacks, or has too many of: {some(wrong)}")
    for name, shape in shapes.items():
        if values[name].shape != shape or not values[name].isfinite().all() or lines > HISTORY_SIZE:
            raise ValueError(f"{name} of its L-BFGS state has shape {tuple(values[name].shape)}, or is not finite")


def _as_tensor(value: Any) -> torch.Tensor:
    """Python numbers in double precision, which holds them exactly."""
    exact = {int: torch.int64, float: torch.float64}.get(type(value))
    return torch.as_tensor(value, dtype=exact).detach().clone().contiguous()


def _from_tensor(name: str, value: torch.Tensor, like: torch.Tensor) -> Any:
    """Tensors in memory of their own: where the reader of a file leaves them, products are summed in another order."""
    if name.removeprefix("state.") in HISTORY:
        return [row.to(like.device).clone() for row in value]
    if value.ndim == 0 and value.dtype in (torch.int64, torch.float64):
        return value.item()
    return value.to(like.device).clone()
