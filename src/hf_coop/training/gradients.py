"""The gradients of a batch: of all the method's losses, over all the processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..encoding import DEFAULT_TEMPLATE, PromptLayout
from ..encoding.image_encoder import encode_pixels
from ..modeling import HFCoOp
from .arguments import CoOpTrainingArguments
from .processes import gather_parts, gather_shares, own_share

LOGITS_AT_A_TIME = 2**23  # of images x classes, so that memory stays bounded however many images a batch has


class BatchGradients:
    """Adds up the gradients of a method's losses over the parts of a batch, and merges them when all is there.

    The text tower is the work, so several processes share the classes: each encodes its part of the K prompts, all
    see the K class embeddings and so the same loss, and each goes back through its own part. Where class prompts
    depend on the image, or the image tower is trained too, they share the images instead. Both give what one process
    gives.

    Several losses are kept apart until all is added, because how they are merged (`PromptLearner.merge_gradients`) may
    depend on the whole batch.

    Args:
        model ([`HFCoOp`]): what is trained.
        accelerator (`Accelerator`): precision, loss scale and processes.
        args ([`CoOpTrainingArguments`], *optional*): `label_smoothing_factor`, `anchor_weight` and `anchor_template`,
            which change the first loss.

    Attributes:
        parameters (`list[nn.Parameter]`): what the gradients are of.
    """

    def __init__(
        self,
        model: HFCoOp,
        accelerator: Accelerator,
        args: CoOpTrainingArguments | None = None,
    ) -> None:
        self.model, self.accelerator, args = model, accelerator, args or CoOpTrainingArguments()
        self.smoothing = args.label_smoothing_factor or 0.0
        self.anchor_weight, self.anchor_template = args.anchor_weight or 0.0, args.anchor_template or DEFAULT_TEMPLATE
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        trains_images = any(parameter.requires_grad for parameter in model.clip.vision_model.parameters())
        self.shares_images = model.prompt_config.depends_on_image or trains_images
        self._sums: list[list[torch.Tensor]] = []  # of each loss, of each parameter

    def rows(self, batch: Sequence[int], encoded: bool) -> Sequence[int]:
        """The images of a batch that this process needs: all, where they are encoded and classes are shared."""
        if encoded and not self.shares_images:
            return batch
        own = own_share(self.accelerator, len(batch))
        return batch[own.start : own.stop] or batch[:1]  # where there are none, one that will weigh nothing

    def add(self, inputs: dict[str, torch.Tensor], size: int, weight: float = 1.0) -> torch.Tensor:
        """Add the gradients of some images.

        Args:
            inputs (`dict[str, torch.Tensor]`): of `rows`, as [`HFCoOp.logits_and_losses`] takes them.
            size (`int`): how many images those of all processes are.
            weight (`float`): their share of the whole batch.

        Returns:
            Loss and accuracy `(2,)`, times `weight`; the sum over processes is that of all images.
        """
        if self.shares_images:
            own = len(own_share(self.accelerator, size))
            with self.accelerator.autocast():
                classes = None if self.model.prompt_config.depends_on_image else self.model.class_embeddings()
                logits, losses = self.model.logits_and_losses(**inputs, class_embeds=classes)
                losses = (self._regularised(losses[0], logits, inputs["labels"], classes), *losses[1:])
            weight *= own / size
            _accumulate(self._sums, self._gradients(losses, weight, self.parameters))
            return self._measured(logits, losses, inputs["labels"], weight)
        return self._add_through_classes(*self._all_images(inputs, size), weight)

    def _all_images(self, inputs: dict[str, torch.Tensor], size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `(size, D)` and labels of the images, those of fresh crops gathered from all processes."""
        if "image_embeds" in inputs:
            return inputs["image_embeds"], inputs["labels"]
        with torch.no_grad(), self.accelerator.autocast():
            embeds = encode_pixels(self.model.clip, inputs["pixel_values"]).float()
        own = len(own_share(self.accelerator, size))
        return tuple(gather_shares(self.accelerator, x[:own], size) for x in (embeds, inputs["labels"]))

    def _add_through_classes(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        """First from the losses back to the K class embeddings, block by block of images; then through the tower."""
        processes, measured = self.accelerator.num_processes, torch.zeros(2, device=images.device)
        learner = self.model.prompt_layer.active_learner
        parts = learner.layout.shares(processes)
        with self.accelerator.autocast():
            own = self._embed_classes(parts[self.accelerator.process_index])  # (K of this process, D)
            classes = self._gather_classes(own.detach(), parts).requires_grad_()  # (K, D)
            sums: list[list[torch.Tensor]] = []
            rows = max(1, LOGITS_AT_A_TIME // len(classes))
            for block, truth in zip(images.split(rows), labels.split(rows), strict=True):
                logits, losses = self.model.logits_and_losses(image_embeds=block, labels=truth, class_embeds=classes)
                losses = (self._regularised(losses[0], logits, truth, classes), *losses[1:])
                share = weight * len(block) / len(images)
                _accumulate(sums, self._gradients(losses, share, [classes, *self.parameters]))
                measured += self._measured(logits, losses, truth, share)
        mine = sorted(parts[self.accelerator.process_index].order)
        for number, (of_classes, *direct) in enumerate(sums):
            through = [torch.zeros_like(parameter) for parameter in self.parameters]
            if mine:
                more = number + 1 < len(sums)
                through = torch.autograd.grad(
                    own, self.parameters, of_classes[mine], retain_graph=more, materialize_grads=True
                )
            # What does not go through the classes is the same in all processes, which are summed in the end.
            sums[number] = [a + b / processes for a, b in zip(through, direct, strict=True)]
        _accumulate(self._sums, sums)
        return measured / processes

    def _embed_classes(self, part: PromptLayout) -> torch.Tensor:
        if not len(part):
            return torch.zeros(0, self.model.clip.config.projection_dim, device=self.accelerator.device)
        learner, layer = self.model.prompt_layer.active_learner, self.model.prompt_layer
        return self.model.project(learner.encode(layer.base_layer, part))

    def _gather_classes(self, own: torch.Tensor, parts: Sequence[PromptLayout]) -> torch.Tensor:
        gathered = gather_parts(self.accelerator, own, [len(part) for part in parts])
        classes = [k for part in parts for k in sorted(part.order)]
        return gathered[torch.argsort(torch.tensor(classes, device=gathered.device))]

    def _regularised(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss with smoothed labels, and with class embeddings held near those of the hand-written prompt."""
        if self.smoothing:
            even = F.cross_entropy(logits, labels, label_smoothing=1.0)  # against the same probability of each class
            loss = loss + self.smoothing * (even - F.cross_entropy(logits, labels))
        if self.anchor_weight and classes is not None:
            # Half of the squared distance is 1 - cosine for vectors of length 1, without its cancellation.
            apart = (classes - self.model.template_embeddings(self.anchor_template)).square().sum(-1).mean() / 2
            scale = self.model.clip.logit_scale.detach().exp()  # so that the weight counts in logits, as the loss does
            loss = loss + self.anchor_weight * scale * apart
        return loss

    def _gradients(
        self, losses: Sequence[torch.Tensor], weight: float, of: Sequence[torch.Tensor]
    ) -> list[list[torch.Tensor]]:
        scaler, gradients = self.accelerator.scaler, []
        for number, loss in enumerate(losses):
            weighted = loss * weight if scaler is None else scaler.scale(loss * weight)
            more = number + 1 < len(losses)
            gradients.append([*torch.autograd.grad(weighted, of, retain_graph=more, materialize_grads=True)])
        return gradients

    @staticmethod
    def _measured(
        logits: torch.Tensor, losses: Sequence[torch.Tensor], labels: torch.Tensor, weight: float
    ) -> torch.Tensor:
        hits = (logits.argmax(-1) == labels).float().mean()
        return weight * torch.stack([losses[0].detach(), hits])

    def merge(self) -> None:
        """Give each parameter its gradient over all that was added in all processes, and begin anew."""
        merge_gradients = self.model.prompt_layer.active_learner.merge_gradients
        for parameter, *gradients in zip(self.parameters, *self._sums, strict=True):
            parameter.grad = merge_gradients(*(self.accelerator.reduce(g, "sum") for g in gradients))
        self._sums = []


def _accumulate(sums: list[list[torch.Tensor]], gradients: Sequence[Sequence[torch.Tensor]]) -> None:
    """Add gradients, of each loss and each tensor, to those that are there."""
    for number, of_loss in enumerate(gradients):
        if number == len(sums):
            sums.append(list(of_loss))
        else:
            sums[number] = [old + new for old, new in zip(sums[number], of_loss, strict=True)]
