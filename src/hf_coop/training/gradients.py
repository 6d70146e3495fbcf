"""The gradients of a batch: of all the method's losses, over all the processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from ..modeling import HFCoOp


class BatchGradients:
    """Adds up the gradients of a method's losses over the parts of a batch, and merges them when all is there.

    Several losses are kept apart until then, because how they are merged (`PromptLearner.merge_gradients`) may depend
    on the whole batch.

    Args:
        model ([`HFCoOp`]): what is trained.
        accelerator (`Accelerator`): precision, loss scale and processes.

    Attributes:
        parameters (`list[nn.Parameter]`): what the gradients are of.
    """

    def __init__(self, model: HFCoOp, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sums: list[list[torch.Tensor]] = []  # of each loss, of each parameter

    def add(self, inputs: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        """Add the gradients of some images.

        Args:
            inputs (`dict[str, torch.Tensor]`): as [`HFCoOp.logits_and_losses`] takes them.
            weight (`float`): the images' share of the whole batch.

        Returns:
            Loss and accuracy `(2,)`, times `weight`.
        """
        with self.accelerator.autocast():
            logits, losses = self.model.logits_and_losses(**inputs)
        scaler = self.accelerator.scaler
        for number, loss in enumerate(losses):
            weighted = loss * weight if scaler is None else scaler.scale(loss * weight)
            more = number + 1 < len(losses)
            gradients = torch.autograd.grad(weighted, self.parameters, retain_graph=more, materialize_grads=True)
            if number == len(self._sums):
                self._sums.append(list(gradients))
            else:
                self._sums[number] = [old + new for old, new in zip(self._sums[number], gradients, strict=True)]
        hits = (logits.argmax(-1) == inputs["labels"]).float().mean()
        return weight * torch.stack([losses[0].detach(), hits])

    def merge(self) -> None:
        """Give each parameter its gradient over all that was added in all processes, and begin anew."""
        merge_gradients = self.model.prompt_layer.active_learner.merge_gradients
        for parameter, *gradients in zip(self.parameters, *self._sums, strict=True):
            parameter.grad = merge_gradients(*(self.accelerator.reduce(g, "sum") for g in gradients))
        self._sums = []
