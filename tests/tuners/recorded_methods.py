"""KgCoOp's and ProGrad's recorded cases; run by a launcher, it saves the gradients that its processes arrive at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp

PARITY = Path(__file__).parents[1] / "parity"
METHODS = ("kgcoop", "prograd")
VARIANTS = [(method, specific) for method in METHODS for specific in (False, True)]


def recorded(method: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = PARITY / f"{method}_0.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["case"]), load_file(path)


def recorded_model(method: str, class_specific_context: bool = False, **options: Any) -> HFCoOp:
    """The model with the recorded context or, class-specific, a context of its own near it for each class."""
    case, tensors = recorded(method)
    options = {"ctx_init": case["ctx_init"], "template": case["template"], **options}
    model = HFCoOp.from_clip(
        PARITY, case["classnames"], method, class_specific_context=class_specific_context, **options
    )
    noise = torch.randn(4, *tensors["ctx"].shape, generator=torch.Generator().manual_seed(0))
    ctx = tensors["ctx"] + 0.02 * noise if class_specific_context else tensors["ctx"]
    model.prompt_layer.active_learner.ctx.data.copy_(ctx)
    return model


def image_embeds(model: HFCoOp, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.clip.get_image_features(pixel_values=pixel_values).pooler_output


def plain(model: HFCoOp, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both papers' terms and their gradients, over 77-token prompts through the tower's own forward."""
    clip, ctx = model.clip, model.prompt_layer.active_learner.ctx
    names = [name.replace("_", " ") for name in model.classnames]
    n_ctx = ctx.shape[-2]

    def features(template: str, inject: bool) -> torch.Tensor:
        texts = [template.replace("{}", name) for name in names]
        ids = model.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        words = clip.text_model.embeddings.token_embedding

        def put(module: Any, args: Any, embeds: torch.Tensor) -> torch.Tensor:
            return torch.cat([embeds[:, :1], ctx.expand(len(names), -1, -1), embeds[:, 1 + n_ctx :]], dim=1)

        hook = words.register_forward_hook(put) if inject else None
        try:
            return F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=-1)
        finally:
            if hook is not None:
                hook.remove()

    learned = features(" ".join(["a"] * n_ctx) + " {}.", inject=True)
    written = features("a photo of a {}.", inject=False).detach()
    images = F.normalize(image_embeds(model, pixel_values), dim=-1)
    logits, zero_shot = (clip.logit_scale.exp().detach() * images @ classes.T for classes in (learned, written))
    terms = {
        "cross_entropy": F.cross_entropy(logits, labels),
        "distance": 1 - F.cosine_similarity(learned, written).mean(),
        "kl": -(zero_shot.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean(),
    }
    gradients = {f"{name}_grad": torch.autograd.grad(term, ctx, retain_graph=True)[0] for name, term in terms.items()}
    return {"logits": logits, **terms, **gradients}


def expected_gradient(method: str, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    g, h = terms["cross_entropy_grad"], terms["kl_grad"] / terms["kl_grad"].norm()
    if method == "kgcoop":
        return g + 8.0 * terms["distance_grad"]
    return g - min(0, (g * h).sum().item()) * h


def trained_gradient(method: str, specific: bool, output_dir: str, **options: Any) -> torch.Tensor:
    """The gradient of the five recorded images that one update of the trainer works with."""
    model, tensors = recorded_model(method, specific), recorded(method)[1]
    embeds = image_embeds(model, tensors["pixel_values"])
    dataset = Dataset.from_dict({"image_embeds": embeds.tolist(), "label": tensors["labels"].tolist()})
    fixed = {"learning_rate": 0.0, "weight_decay": 0.0, "num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True}
    args = CoOpTrainingArguments(
        output_dir, save_strategy="no", overwrite_output_dir=True, dataloader_drop_last=False, **fixed, **options
    )
    trainer = CoOpTrainer(model, args, dataset)
    assert trainer.train().global_step == 1
    return model.prompt_layer.active_learner.ctx.grad


if __name__ == "__main__":
    gradients = {
        f"{method}_{specific}": trained_gradient(method, specific, sys.argv[1], per_device_train_batch_size=3)
        for method, specific in VARIANTS
    }
    from accelerate import PartialState

    state = PartialState()
    gradients["processes"] = torch.tensor(state.num_processes)
    if state.is_main_process:
        save_file(gradients, Path(sys.argv[1], "gradients.safetensors"))
