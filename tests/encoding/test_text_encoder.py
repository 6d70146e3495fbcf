"""Encoding K class prompts with shared prefixes gives what the unmodified tower gives for each prompt alone."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from hf_coop.encoding.frozen_layers import frozen_layers
from hf_coop.encoding.prompts import CLASS_TOKEN_POSITIONS, PromptLayout, tokenize_classnames
from hf_coop.encoding.text_encoder import encode_prompts

TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def encode_alone(
    text_model: nn.Module, tokenizer, name: str, ctx: torch.Tensor, position: str, pad_to: int = 0
) -> torch.Tensor:
    """One prompt through the tower's own forward; `ctx` `(M, dim)` replaces its filler's token embeddings."""
    n_words = len(tokenizer(name.replace("_", " "), add_special_tokens=False)["input_ids"])
    sos, *rest = tokenizer(f"{name.replace('_', ' ')}.")["input_ids"]
    before = {"end": len(ctx), "middle": len(ctx) // 2, "front": 0}[position]
    words = 0 if position == "end" else n_words
    filler = [0] * before, [0] * (len(ctx) - before)
    ids = [sos, *filler[0], *rest[:words], *filler[1], *rest[words:]]
    places = [*range(1, 1 + before), *range(1 + before + words, 1 + len(ctx) + words)]
    ids += [tokenizer.pad_token_id] * (pad_to - len(ids))

    def inject(module: nn.Module, args: tuple, embeds: torch.Tensor) -> torch.Tensor:
        return embeds[0].index_put((torch.tensor(places),), ctx.to(embeds.dtype))[None]

    hook = text_model.embeddings.token_embedding.register_forward_hook(inject)
    try:
        return text_model(input_ids=torch.tensor([ids])).pooler_output[0]
    finally:
        hook.remove()


def random_context(layout_size: int, dim: int = 64, groups: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(groups, layout_size, dim).normal_(std=0.02, generator=generator).requires_grad_()


def frozen_tower(dtype: torch.dtype = torch.float32, **kwargs) -> CLIPTextModel:
    return CLIPModel.from_pretrained(PARITY, dtype=dtype, **kwargs).requires_grad_(False).text_model


def by_modules(tower: CLIPTextModel) -> CLIPTextModel:
    """The tower with a hook in it, which only its modules call."""
    tower.encoder.layers[1].mlp.fc1.register_forward_hook(lambda *args: None)
    return tower


@pytest.mark.parametrize("prepare", [lambda tower: tower, by_modules], ids=["frozen layers", "modules"])
@pytest.mark.parametrize("n_ctx", [1, 2, 5, 16])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", CLASS_TOKEN_POSITIONS)
def test_features_and_gradients_equal_each_prompt_alone(tokenizer, position, csc, n_ctx, prepare):
    tower = prepare(frozen_tower())
    assert (frozen_layers(tower.encoder) is None) == (prepare is by_modules)
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), n_ctx, position, csc)
    ctx = random_context(n_ctx * (len(CLASSNAMES) if csc else 1))
    features = encode_prompts(tower, layout, ctx)[0]
    own = ctx[0].view(-1, n_ctx, 64).expand(len(CLASSNAMES), -1, -1)
    expected = torch.stack(
        [encode_alone(tower, tokenizer, n, c, position) for n, c in zip(CLASSNAMES, own, strict=True)]
    )
    assert relative_error(features, expected) < TOLERANCE[torch.float32]
    upstream = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((features * upstream).sum(), ctx)
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), ctx)
    assert relative_error(found, gradient) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("names", [["cat"], ["cat", "dog"], CLASSNAMES], ids=len)
def test_dtypes_and_attention_implementations(tokenizer, names, dtype, attention):
    tower = frozen_tower(dtype, attn_implementation=attention)
    layout = PromptLayout.build(tokenize_classnames(tokenizer, names), 4)
    ctx = random_context(4)
    features = encode_prompts(tower, layout, ctx)[0]
    assert features.dtype == dtype
    exact = frozen_tower()
    expected = torch.stack([encode_alone(exact, tokenizer, n, ctx[0], "end", pad_to=77) for n in names])
    assert relative_error(features, expected) < TOLERANCE[dtype]
    (found,) = torch.autograd.grad(features.float().square().mean(), ctx)
    (gradient,) = torch.autograd.grad(expected.square().mean(), ctx)
    assert found.dtype == torch.float32
    assert relative_error(found, gradient) < 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("position", CLASS_TOKEN_POSITIONS)
def test_groups_of_contexts_are_independent(tokenizer, position):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 3, position)
    ctx = random_context(3, groups=4)
    features = encode_prompts(tower, layout, ctx)
    alone = torch.cat([encode_prompts(tower, layout, ctx[g : g + 1]) for g in range(4)])
    assert features.shape == (4, len(CLASSNAMES), 64)
    assert relative_error(features, alone) < TOLERANCE[torch.float32]
    (gradient,) = torch.autograd.grad(features[2].square().sum(), ctx)
    assert gradient[2].abs().min() > 0
    assert gradient[[0, 1, 3]].abs().max() == 0


@pytest.mark.parametrize("eos_token_id", [190, 2], ids=["eos", "legacy-eos"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_new"])
def test_other_sizes(tokenizer, eos_token_id, activation):
    """Other widths, head sizes and activations, and old configs whose end token id is wrong."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_hidden_layers": 2}
    config = CLIPTextConfig(vocab_size=191, eos_token_id=eos_token_id, hidden_act=activation, **sizes)
    tower = CLIPTextModel(config).requires_grad_(False).eval()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4, dim=48)
    features = encode_prompts(tower, layout, ctx)[0]
    expected = torch.stack([encode_alone(tower, tokenizer, n, ctx[0], "end") for n in CLASSNAMES])
    assert relative_error(features, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("position", CLASS_TOKEN_POSITIONS)
@pytest.mark.parametrize("csc", [False, True])
def test_each_token_is_processed_once(tokenizer, position, csc):
    """Every product with weights has one prefix and the tails, and nothing else; the last ones only EOS."""
    tower = frozen_tower()
    names = tokenize_classnames(tokenizer, CLASSNAMES)
    shared = 1 + (0 if csc else {"end": 4, "middle": 2, "front": 0}[position])
    n_tokens = shared + sum(len(ids) + 4 - shared for ids in names.token_ids)
    layout = PromptLayout.build(names, 4, position, csc)
    every, last = [(n_tokens, 3 * 64), *[(n_tokens, width) for width in (64, 256, 64)]], len(CLASSNAMES)
    forward = [*every, *every, (n_tokens, 3 * 64), (last, 64), (last, 256), (last, 64)]
    with Products() as products:
        features = encode_prompts(tower, layout, random_context(len(CLASSNAMES) * 4))
    assert products.shapes == forward
    with Products() as products:
        features.sum().backward()
    inputs = [64, 64, 64, 256] * 3
    assert products.shapes == [(rows, width) for (rows, _), width in zip(forward, inputs, strict=True)][::-1]


class Products(TorchDispatchMode):
    """Shapes of the results of all products of matrices, which those with weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.mkldnn._linear_pointwise):
            self.shapes.append(tuple(result.shape))
        return result


def test_without_onednn(tokenizer, monkeypatch):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    features = encode_prompts(tower, layout, ctx)
    (expected,) = torch.autograd.grad(features.square().sum(), ctx)
    monkeypatch.setattr("hf_coop.encoding.frozen_layers.ONEDNN_LINEAR", None)
    other = encode_prompts(tower, layout, ctx)
    assert relative_error(other, features) < TOLERANCE[torch.float32]
    assert relative_error(torch.autograd.grad(other.square().sum(), ctx)[0], expected) < 1e-5


def test_many_tokens_go_in_parts(tokenizer, monkeypatch):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4, groups=3)
    features = encode_prompts(tower, layout, ctx)
    (expected,) = torch.autograd.grad(features.square().sum(), ctx)
    for tokens in (1, 20, 50):
        monkeypatch.setattr("hf_coop.encoding.text_encoder.TOKENS_AT_A_TIME", tokens)
        with Products() as products:
            parts = encode_prompts(tower, layout, ctx)
        assert len(products.shapes) > 12
        assert relative_error(parts, features) < TOLERANCE[torch.float32]
        assert relative_error(torch.autograd.grad(parts.square().sum(), ctx)[0], expected) < 1e-5


def test_trainable_weights_get_their_gradients(tokenizer):
    tower = frozen_tower().requires_grad_(True)
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    weights = [parameter for name, parameter in tower.named_parameters() if "position_ids" not in name]
    found = torch.autograd.grad(encode_prompts(tower, layout, ctx).square().sum(), weights)
    alone = torch.stack([encode_alone(tower, tokenizer, n, ctx[0], "end") for n in CLASSNAMES])
    gradients = torch.autograd.grad(alone.square().sum(), weights)
    for one, other in zip(found, gradients, strict=True):
        assert (one - other).norm() < 1e-5 * max(other.norm(), 1)


@pytest.mark.parametrize(
    "change", ["in place", "new parameter", "state dict", "dtype there and back", "one trainable"]
)
def test_changed_weights_count_at_once(tokenizer, change):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    before = encode_prompts(tower, layout, ctx)
    projection = tower.encoder.layers[1].self_attn.k_proj
    if change == "in place":
        projection.weight.mul_(2)
    elif change == "new parameter":
        projection.weight = nn.Parameter(2 * projection.weight, requires_grad=False)
    elif change == "state dict":
        tower.load_state_dict({name: 1.1 * value for name, value in tower.state_dict().items()})
    elif change == "dtype there and back":
        tower.bfloat16().float()
    else:
        projection.weight.requires_grad_(True)
    after = encode_prompts(tower, layout, ctx)
    expected = torch.stack([encode_alone(tower, tokenizer, n, ctx[0], "end") for n in CLASSNAMES])
    assert relative_error(after[0], expected) < TOLERANCE[torch.float32]
    if change == "one trainable":
        after.sum().backward()
        assert projection.weight.grad.abs().max() > 0
    else:
        assert relative_error(after, before) > 1e-4


def test_a_graph_can_be_used_twice(tokenizer):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    features = encode_prompts(tower, layout, ctx)
    (first,) = torch.autograd.grad(features.sum(), ctx, retain_graph=True)
    encode_prompts(tower, layout, ctx).sum().backward()
    (second,) = torch.autograd.grad(features.sum(), ctx)
    assert torch.equal(first, second)
    assert torch.equal(first, ctx.grad)
    with pytest.raises(RuntimeError, match="second time"):
        features.sum().backward()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients_and_recomputes(tokenizer):
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4, "middle")
    gradients, runs = [], []
    for checkpointing in (False, True):
        clip = CLIPModel.from_pretrained(PARITY).requires_grad_(False)
        if checkpointing:
            clip.gradient_checkpointing_enable()
        clip.train()
        calls = []
        clip.text_model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *a, calls=calls: calls.append(1))
        ctx = random_context(4)
        encode_prompts(clip.text_model, layout, ctx).square().sum().backward()
        gradients.append(ctx.grad)
        runs.append(len(calls))
    assert torch.equal(*gradients)
    assert runs == [1, 2]


@pytest.mark.parametrize("prepare", [lambda tower: tower, by_modules], ids=["frozen layers", "modules"])
def test_autocast_computes_in_bf16_and_keeps_fp32_gradients(tokenizer, prepare):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    exact = encode_prompts(tower, layout, ctx)
    if prepare is by_modules:
        dtypes = []
        tower.encoder.layers[1].mlp.fc1.register_forward_hook(lambda m, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = encode_prompts(tower, layout, ctx)
        if prepare is not by_modules:
            dtypes = [frozen_layers(tower.encoder)[1].fc1.weight.dtype]
    assert dtypes == [torch.bfloat16]
    assert features.dtype == torch.float32
    assert relative_error(features, exact) < TOLERANCE[torch.bfloat16]
    (found,) = torch.autograd.grad(features.float().square().sum(), ctx)
    (gradient,) = torch.autograd.grad(exact.square().sum(), ctx)
    assert found.dtype == torch.float32
    assert relative_error(found, gradient) < 10 * TOLERANCE[torch.bfloat16]


def test_the_tower_is_left_as_it_was(tokenizer):
    tower = frozen_tower()
    before = {name: (id(module), dict(vars(module))) for name, module in tower.named_modules()}
    config = tower.config.to_dict()
    implementation = tower.config._attn_implementation
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    encode_prompts(tower, layout, random_context(4)).sum().backward()
    assert {name: (id(module), dict(vars(module))) for name, module in tower.named_modules()} == before
    assert tower.config.to_dict() == config
    assert tower.config._attn_implementation == implementation


def test_ordinary_text_in_other_threads_is_unaffected(tokenizer):
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    texts = tokenizer(["a photo of a cat.", "a dog."], padding=True, return_tensors="pt")
    ordinary = tower(**texts).pooler_output
    classes = encode_prompts(tower, layout, ctx).detach()
    wrong, errors = [], []
    started = threading.Barrier(3)

    def repeat(compute, expected):
        started.wait()
        try:
            for _ in range(40):
                if not torch.equal(compute(), expected):
                    wrong.append(compute)
        except Exception as error:
            errors.append(error)

    def class_encoding() -> torch.Tensor:
        features = encode_prompts(tower, layout, ctx)
        torch.autograd.grad(features.sum(), ctx)
        return features

    threads = [
        threading.Thread(target=repeat, args=(lambda: tower(**texts).pooler_output, ordinary)),
        threading.Thread(target=repeat, args=(class_encoding, classes)),
        threading.Thread(target=repeat, args=(class_encoding, classes)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong


def test_training_after_encoding_in_inference_mode(tokenizer):
    """Index tensors that a layout makes in inference mode must do for a later backward pass."""
    tower = frozen_tower()
    layout = PromptLayout.build(tokenize_classnames(tokenizer, CLASSNAMES), 4)
    ctx = random_context(4)
    with torch.inference_mode():
        encoded = encode_prompts(tower, layout, ctx)
    features = encode_prompts(tower, layout, ctx)
    features.sum().backward()
    assert torch.equal(features, encoded)
    assert ctx.grad.abs().max() > 0


def test_long_prompts_use_every_position_of_the_tower(tokenizer):
    config = CLIPConfig.from_pretrained(PARITY).text_config
    tower = frozen_tower()
    names = tokenize_classnames(tokenizer, ["cat", "dog"])
    n_ctx = config.max_position_embeddings - max(map(len, names.token_ids))
    layout = PromptLayout.build(names, n_ctx)
    assert layout.longest == config.max_position_embeddings
    ctx = random_context(n_ctx)
    features = encode_prompts(tower, layout, ctx)[0]
    expected = torch.stack([encode_alone(tower, tokenizer, name, ctx[0], "end") for name in ["cat", "dog"]])
    assert relative_error(features, expected) < TOLERANCE[torch.float32]
