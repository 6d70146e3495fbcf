"""CoCoOp: equal to the published code and to one image at a time, in bounded memory, with clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from hf_coop import CoCoOpConfig, HFCoOp

CASE = PARITY / "cocoop_init.safetensors"
LABELS = torch.tensor([0, 3, 1, 4])


def fresh(classnames=CLASSNAMES, seed: int = 0, **kwargs) -> HFCoOp:
    """A CoCoOp with a meta-network that is far from zero, as a trained one is."""
    torch.manual_seed(seed)
    model = HFCoOp.from_clip(PARITY, classnames, method="cocoop", **kwargs)
    for parameter in model.prompt_layer.active_learner.meta_net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def step(model: HFCoOp, pixel_values: torch.Tensor, labels: torch.Tensor = LABELS) -> dict[str, torch.Tensor]:
    """Logits, loss and the gradient of every trainable parameter."""
    model.zero_grad()
    out = model(pixel_values=pixel_values, labels=labels)
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.prompt_layer.active_learner.named_parameters()}
    return {"logits": out.logits.detach(), "loss": out.loss.detach(), **gradients}


def plain_logits(model: HFCoOp, pixel_values: torch.Tensor) -> torch.Tensor:
    """As published: image by image, K prompts of 77 tokens through the tower's own forward."""
    clip, learner = model.clip, model.prompt_layer.active_learner
    n_ctx, meta_net = len(learner.ctx), learner.meta_net
    texts = [f"{' '.join(['a'] * n_ctx)} {name.replace('_', ' ')}." for name in model.classnames]
    input_ids = model.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    rows = []
    for image in F.normalize(clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1):
        bias = meta_net.linear2(F.relu(meta_net.linear1(image)))

        def inject(module, args, embeds, ctx=learner.ctx + bias):
            return torch.cat([embeds[:, :1], ctx.expand(len(embeds), -1, -1), embeds[:, 1 + n_ctx :]], dim=1)

        hook = clip.text_model.embeddings.token_embedding.register_forward_hook(inject)
        classes = clip.text_projection(clip.text_model(input_ids=input_ids).pooler_output)
        hook.remove()
        rows.append(clip.logit_scale.exp() * F.normalize(classes, dim=-1) @ image)
    return torch.stack(rows)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not value.any():  # a dead meta-network's gradients
            assert not found[name].any(), name
        else:
            assert relative_error(found[name], value) < tolerance, name


@pytest.mark.parametrize("chunk", [256, 13, 5, 1])
def test_equals_the_published_code(chunk):
    recorded = load_file(CASE)
    with safe_open(CASE, framework="pt") as file:
        case = json.loads(file.metadata()["case"])
    model = HFCoOp.from_clip(PARITY, case["classnames"], method="cocoop", max_prompts_per_chunk=chunk)
    learner = model.prompt_layer.active_learner
    assert torch.equal(learner.ctx, recorded["ctx_initial"])
    learner.load_state_dict({k: v for k, v in recorded.items() if k == "ctx" or k.startswith("meta_net.")})
    expected = {
        "logits": recorded["logits"],
        "loss": recorded["loss"],
        "ctx": recorded["ctx_grad"],
        **{f"meta_net.{n}": recorded[f"meta_net_grad.{n}"] for n, _ in learner.meta_net.named_parameters()},
    }
    assert_same(step(model, recorded["pixel_values"], recorded["labels"]), expected)


@pytest.mark.parametrize("chunk", [1, 3, 5, 9, 10, 11, 256])
def test_any_chunk_size_equals_the_plain_way(chunk, pixel_values):
    model = fresh(max_prompts_per_chunk=chunk)
    found = step(model, pixel_values)
    logits = plain_logits(model, pixel_values)
    model.zero_grad()
    F.cross_entropy(logits, LABELS).backward()
    learner = model.prompt_layer.active_learner
    expected = {name: parameter.grad for name, parameter in learner.named_parameters()}
    assert all(gradient.any() for gradient in expected.values())
    assert_same(found, {"logits": logits.detach(), "loss": F.cross_entropy(logits, LABELS).detach(), **expected})
    with torch.no_grad():
        assert relative_error(model(pixel_values=pixel_values).logits, logits) < 1e-5


def test_a_batch_equals_its_images_one_by_one(pixel_values):
    model = fresh(max_prompts_per_chunk=7)
    whole = model(pixel_values=pixel_values).logits
    alone = torch.cat([model(pixel_values=image[None]).logits for image in pixel_values])
    assert relative_error(whole, alone) < 1e-5


def test_single_image_and_single_class(pixel_values):
    model = fresh(classnames=["cat"])
    assert model(pixel_values=pixel_values[:1]).logits.shape == (1, 1)


def test_gradients_reach_all_that_they_reach_without_chunks(pixel_values):
    """What made the image embedding, and a text tower that is trained too; by `autograd.grad` as by `backward`."""
    model = fresh(max_prompts_per_chunk=256)
    model.clip.text_model.requires_grad_(True)
    images = torch.randn(4, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    parameters = [p for n, p in model.clip.text_model.named_parameters() if p.requires_grad and "pooler" not in n]
    inputs = [images, *parameters]
    expected = torch.autograd.grad(model(image_embeds=images, labels=LABELS).loss, inputs)
    model.prompt_config.max_prompts_per_chunk = 3
    found = torch.autograd.grad(model(image_embeds=images, labels=LABELS).loss, inputs)
    for mine, whole in zip(found, expected, strict=True):
        assert torch.allclose(mine, whole, rtol=1e-4, atol=1e-6 * max(1, whole.abs().max()))


def test_chunks_with_gradient_checkpointing(pixel_values):
    model = fresh()
    before = step(model, pixel_values)
    model.prompt_config.max_prompts_per_chunk = 3
    model.clip.gradient_checkpointing_enable()
    model.train()
    assert_same(step(model, pixel_values), before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_chunks_bound_memory_in_training_and_inference():
    """Six images of a chunk each take hardly more than one, whose backward pass needs it all; fresh processes."""
    script = """
import sys, torch
from transformers import CLIPConfig, CLIPModel
from hf_coop import CoCoOpConfig, HFCoOp
batch, K, training = int(sys.argv[1]), 2000, sys.argv[2] == "train"
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 6}
ids = {"vocab_size": 10, "bos_token_id": 8, "eos_token_id": 9}
clip = CLIPModel(CLIPConfig(text_config={**sizes, **ids}, vision_config=sizes, projection_dim=32))
tokens = {"token_ids": [[8, k % 7, 2, 9] for k in range(K)], "name_lengths": [1] * K}
names = [str(k) for k in range(K)]
model = HFCoOp(clip, CoCoOpConfig(classnames=names, n_ctx=4, max_prompts_per_chunk=K, **tokens))

def peak():  # ru_maxrss would begin with the peak of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

start = peak()
with torch.set_grad_enabled(training):
    out = model(image_embeds=torch.randn(batch, 32), labels=torch.zeros(batch, dtype=torch.long))
    if training:
        out.loss.backward()
print((peak() - start) / 1024)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def mebibytes(*args: str) -> float:
        command = [sys.executable, "-W", "ignore", "-c", script, *args]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    one = mebibytes("1", "train")
    assert one > 50, "the measurement is too small to tell anything"
    assert mebibytes("6", "train") < 1.6 * one
    assert mebibytes("6", "predict") < 0.6 * one


def test_reduced_precision(pixel_values):
    exact, half = fresh(), fresh(dtype=torch.bfloat16, max_prompts_per_chunk=4)
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    expected, found = step(exact, pixel_values), step(half, pixel_values.bfloat16())
    assert found["logits"].dtype == torch.float32
    assert_same(found, expected, tolerance=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = step(exact, pixel_values)
        exact.prompt_config.max_prompts_per_chunk = 5
        assert_same(mixed, expected, tolerance=0.1)
        assert_same(step(exact, pixel_values), mixed, tolerance=0.02)


def test_learned_temperature(pixel_values):
    model = fresh(learn_temperature=True)
    gradients = step(model, pixel_values)
    assert gradients["logit_scale"].abs() > 0
    with torch.no_grad():
        logits = model(pixel_values=pixel_values).logits
        model.prompt_layer.active_learner.logit_scale += 1
        assert relative_error(model(pixel_values=pixel_values).logits, logits * torch.e) < 1e-5


def test_training_after_inference_mode(pixel_values):
    model = fresh(max_prompts_per_chunk=3)
    with torch.inference_mode():
        logits = model(pixel_values=pixel_values).logits.clone()
    assert relative_error(step(model, pixel_values)["logits"], logits) < 1e-5


@pytest.mark.parametrize(
    ("options", "n_ctx", "ctx_init"),
    [
        ({}, 4, "a photo of a"),
        ({"ctx_init": "a"}, 1, "a"),
        ({"ctx_init": "a photo of a", "n_ctx": 4}, 4, "a photo of a"),
        ({"n_ctx": 8}, 8, None),
        ({"n_ctx": 4}, 4, None),
    ],
)
def test_defaults_of_context(clip, options, n_ctx, ctx_init):
    model = HFCoOp.from_clip(clip, CLASSNAMES, method="cocoop", tokenizer_name_or_path=str(PARITY), **options)
    assert (model.prompt_config.n_ctx, model.prompt_config.ctx_init) == (n_ctx, ctx_init)
    assert model.prompt_layer.active_learner.ctx.shape == (n_ctx, 64)
    words = clip.text_model.embeddings.token_embedding.weight
    from_words = any(torch.equal(model.prompt_layer.active_learner.ctx[0], word) for word in words)
    assert from_words == (ctx_init is not None)


def test_default_is_the_papers():
    config = CoCoOpConfig(classnames=["cat"])
    assert (config.n_ctx, config.ctx_init) == (4, "a photo of a")


def test_default_words_may_be_other_than_four_tokens():
    class Characters:
        eos_token = "<end>"

        def __call__(self, text, add_special_tokens=True):
            texts = [text] if isinstance(text, str) else text
            ids = [[0] * add_special_tokens + [*map(ord, t)] + [1] * add_special_tokens for t in texts]
            return {"input_ids": ids[0] if isinstance(text, str) else ids}

    config = CoCoOpConfig(classnames=["cat"])
    config.tokenize(Characters())
    assert config.n_ctx == len("a photo of a")


def test_saves_and_loads_by_hf_coop_and_peft(tmp_path, pixel_values, images):
    model = fresh(n_ctx=3)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    endings = {name.split("prompt_learner.")[1] for name in tensors}
    assert endings == {"ctx"} | {f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    loaded = HFCoOp.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)
    assert [r[0]["label"] for r in loaded.predict(images)] == [r[0]["label"] for r in model.predict(images)]
    plain = peft.PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path)
    assert plain.peft_config["default"].peft_type == "COCOOP"


def test_adapter_of_vit_b16_is_small(tmp_path):
    config = CLIPConfig(
        text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1}, projection_dim=512
    )
    prompt = CoCoOpConfig(classnames=["cat"], n_ctx=4, token_ids=[[49406, 2368, 269, 49407]], name_lengths=[1])
    HFCoOp(CLIPModel(config), prompt).save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 300_000


def test_plain_peft_model_points_to_hf_coop(clip, pixel_values):
    model = peft.get_peft_model(clip, CoCoOpConfig(classnames=CLASSNAMES, tokenizer_name_or_path=str(PARITY)))
    with pytest.raises(ValueError, match="HFCoOp"):
        model(pixel_values=pixel_values)
    with pytest.raises(ValueError, match=r"class_embeddings\(image_embeds\)"):
        fresh().class_embeddings()
    ids = torch.tensor([[189, 5, 190]])
    untouched = CLIPModel.from_pretrained(PARITY)(input_ids=ids, pixel_values=pixel_values)
    assert torch.equal(model(input_ids=ids, pixel_values=pixel_values).logits_per_image, untouched.logits_per_image)


def test_set_classnames(pixel_values):
    model, names = fresh(), ["dog", "a very long name of a flower"]
    model.set_classnames(names)
    assert relative_error(model(pixel_values=pixel_values).logits, plain_logits(model, pixel_values)) < 1e-5
    with pytest.raises(ValueError, match="shorten the name"):
        model.set_classnames(["dog", "far too long " * 30])
    assert model.classnames == names


def test_several_adapters(pixel_values):
    model = fresh()
    first = model(pixel_values=pixel_values).logits
    model.add_adapter("other", CoCoOpConfig(classnames=["cat", "dog"], n_ctx=2, tokenizer_name_or_path=str(PARITY)))
    model.set_adapter("other")
    assert model(pixel_values=pixel_values).logits.shape == (4, 2)
    model.set_adapter("default")
    assert torch.equal(model(pixel_values=pixel_values).logits, first)


@pytest.mark.parametrize("option", [{"class_token_position": "middle"}, {"class_specific_context": True}])
def test_options_of_coop_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        CoCoOpConfig(classnames=["cat"], **option)
    with pytest.raises(ValueError, match=next(iter(option))):
        HFCoOp.from_clip("no/such-model", ["cat"], method="cocoop", **option)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8", None])
def test_bad_chunk_sizes(size):
    with pytest.raises(ValueError, match=f"max_prompts_per_chunk.*{size!r}"):
        CoCoOpConfig(classnames=["cat"], max_prompts_per_chunk=size)


def test_bad_image_batches(pixel_values):
    model = fresh()
    with pytest.raises(ValueError, match=r"no images.*\(0, 3, 32, 32\)"):
        model(pixel_values=pixel_values[:0])
    for shape in [(0, 48), (4, 47), (48,)]:
        with pytest.raises(ValueError, match="at least one image"):
            model.class_embeddings(torch.zeros(shape))


def test_meta_network_of_another_shape(tmp_path):
    model = fresh()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("meta_net.linear1.weight"))
    save_file({**tensors, name: torch.zeros(4, 48)}, weights)
    with pytest.raises(ValueError, match=r"meta_net\.linear1\.weight has shape \(4, 48\).*\(3, 48\)"):
        HFCoOp.from_pretrained(tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    with pytest.raises(ValueError, match=r"missing tensors.*meta_net\.linear1\.weight"):
        HFCoOp.from_pretrained(tmp_path)


def test_publishes_no_more_than_was_learned(tmp_path: Path):
    fresh(learn_temperature=True).save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 6
