"""CLIP's transformer layers with frozen weights: the same numbers, with less work than module by module.

Where weights need no gradients, the backward pass needs only the gradient of the hidden states. Written out for all
layers at once it keeps fewer tensors, and has fewer and larger operations, than autograd over the modules: queries,
keys and values are one product, the activation is one pass over memory. Products in fp32 on x86 go to oneDNN, which
on processors other than Intel's is twice as fast as the BLAS behind `torch.nn.functional.linear`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import GELUActivation, QuickGELUActivation
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPVisionEmbeddings,
    CLIPVisionModel,
)

from .attention import AttentionPlan, attend, attend_backward

aten = torch.ops.aten
Attention = Callable[[torch.Tensor, float], tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
ONEDNN_LINEAR = (
    torch.ops.mkldnn._linear_pointwise.default
    if platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)

# glibc gives the memory of large tensors back to the kernel and gets it anew page by page, a fifth of a training
# step's time, until it has seen larger blocks freed. One of 32 MiB, the most that counts, is enough (mallopt(3)).
torch.empty(2**25 - 2**13, dtype=torch.uint8)


class Activation(NamedTuple):
    """`f(x) = function(scale * x) / scale`, and the derivative of `function` times a gradient."""

    scale: float
    function: Callable[[torch.Tensor], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


ACTIVATIONS = {
    QuickGELUActivation: Activation(1.702, F.silu, aten.silu_backward),  # x * sigmoid(1.702 * x)
    GELUActivation: Activation(1.0, F.gelu, aten.gelu_backward),
}
MODULES = {
    *(CLIPVisionModel, CLIPVisionEmbeddings, nn.Conv2d, nn.Embedding),
    *(CLIPEncoder, nn.ModuleList, CLIPEncoderLayer, CLIPAttention, CLIPMLP, nn.Linear, nn.LayerNorm, *ACTIVATIONS),
}


class Linear(NamedTuple):
    """Weight and bias of a linear layer."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs @ weight.T + bias`."""
        return product(inputs, self.weight, self.bias)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the inputs."""
        return product(gradient, self.weight.mT)


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`inputs @ weight.T + bias`, by what is fastest here."""
    if ONEDNN_LINEAR and inputs.dtype == torch.float32 and inputs.device.type == "cpu":
        return ONEDNN_LINEAR(inputs, weight, bias, "none", [], "")
    return F.linear(inputs, weight, bias)


class Norm(NamedTuple):
    """A layer norm."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The normalised inputs, and mean and inverse deviation."""
        return torch.native_layer_norm(inputs, self.weight.shape, self.weight, self.bias, self.eps)

    def backward(
        self, gradient: torch.Tensor, inputs: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of the inputs."""
        shape, mask = self.weight.shape, [True, False, False]
        gradient = gradient.to(inputs.dtype)
        return aten.native_layer_norm_backward(gradient, inputs, shape, mean, rstd, self.weight, self.bias, mask)[0]


class FrozenLayer(NamedTuple):
    """The weights of a `CLIPEncoderLayer`, as its products want them."""

    heads: int
    scaling: float
    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    scaled_norm2: Norm  # so that the activation finds its inputs scaled
    fc1: Linear
    activation: Activation
    fc2: Linear

    @classmethod
    def of(cls, layer: nn.Module, dtype: torch.dtype) -> FrozenLayer:
        """Of `layer`, with the weights of its products in `dtype`."""
        attention, mlp = layer.self_attn, layer.mlp
        activation = ACTIVATIONS[type(mlp.activation_fn)]
        scale = activation.scale

        def norm(module: nn.LayerNorm, scale: float = 1.0) -> Norm:
            return Norm(module.weight * scale, module.bias * scale, module.eps)

        def linear(*modules: nn.Linear, scale: float = 1.0) -> Linear:
            weight = torch.cat([x.weight for x in modules]) if len(modules) > 1 else modules[0].weight
            return Linear(weight.to(dtype), (torch.cat([x.bias for x in modules]) * scale).to(dtype))

        return cls(
            heads=attention.num_heads,
            scaling=attention.scale,
            norm1=norm(layer.layer_norm1),
            qkv=linear(attention.q_proj, attention.k_proj, attention.v_proj),
            out=linear(attention.out_proj),
            norm2=norm(layer.layer_norm2),
            scaled_norm2=norm(layer.layer_norm2, scale),
            fc1=linear(mlp.fc1, scale=scale),
            activation=activation,
            fc2=linear(mlp.fc2, scale=scale),
        )

    def forward(
        self, hidden: torch.Tensor, attention: Attention, queries: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The layer's result, and what `backward` needs.

        Args:
            hidden (`torch.Tensor` of shape `(tokens, dim)`).
            attention (`Callable`): from `(tokens, 3, heads, head_dim)` and the scaling to `(queries, heads, head_dim)`
                and what the backward pass of attention needs.
            queries (`torch.Tensor`, *optional*): the numbers of the tokens that are asked for; all without.
        """
        dtype = self.qkv.weight.dtype
        normed, *statistics1 = self.norm1(hidden)
        qkv = self.qkv(normed.to(dtype)).view(len(hidden), 3, self.heads, -1)
        attended, states = attention(qkv, self.scaling)
        asked = hidden if queries is None else hidden[queries]
        middle = asked + self.out(attended.flatten(1))
        normed, *statistics2 = self.scaled_norm2(middle)
        inner = self.fc1(normed.to(dtype))
        scale = self.activation.scale
        result = torch.add(middle, self.fc2(self.activation.function(inner)), alpha=1 / scale)
        return result, (hidden, *statistics1, *states, middle, *statistics2, inner)

    def backward(
        self, gradient: torch.Tensor, kept: Sequence[torch.Tensor], plan: AttentionPlan, queries: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient of the layer's input, given that of its result."""
        hidden, *statistics1, states, weights, middle, mean2, rstd2, inner = kept
        dtype = inner.dtype
        d_inner = self.activation.backward(self.fc2.backward(gradient.to(dtype)), inner)
        d_middle = gradient + self.norm2.backward(self.fc1.backward(d_inner), middle, mean2, rstd2)
        d_attended = self.out.backward(d_middle.to(dtype))
        d_qkv = attend_backward(d_attended, states, weights, self.scaling, plan)
        d_hidden = self.norm1.backward(self.qkv.backward(d_qkv.flatten(1)), hidden, *statistics1)
        if queries is None:
            return d_hidden.add_(d_middle)
        return d_hidden.index_add_(0, queries, d_middle)


class _FrozenLayers(torch.autograd.Function):
    """All layers behind each other."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        layers: Sequence[FrozenLayer],
        plans: Sequence[tuple[AttentionPlan, torch.Tensor | None]],
    ) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for layer, (plan, queries) in zip(layers, plans, strict=True):
                hidden, tensors = layer.forward(hidden, partial(attend, plan=plan), queries)
                if ctx.needs_input_grad[0]:
                    kept.extend(tensors)
        ctx.layers, ctx.plans = layers, plans
        ctx.save_for_backward(*kept)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        kept = ctx.saved_tensors
        each = len(kept) // len(ctx.layers)
        with torch.autocast(gradient.device.type, enabled=False):
            for number in reversed(range(len(ctx.layers))):
                tensors = kept[number * each : (number + 1) * each]
                gradient = ctx.layers[number].backward(gradient, tensors, *ctx.plans[number])
        return gradient, None, None


def run_frozen_layers(
    layers: Sequence[FrozenLayer],
    hidden: torch.Tensor,
    plans: Sequence[tuple[AttentionPlan, torch.Tensor | None]],
) -> torch.Tensor:
    """Hidden states `(tokens, dim)` through `layers`; `plans` has the attention and the queries of each."""
    return _FrozenLayers.apply(hidden, layers, plans)


def frozen_layers(encoder: nn.Module) -> list[FrozenLayer] | None:
    """The layers of a `CLIPEncoder` for `run_frozen_layers`; none where the modules themselves must run.

    Made once for each state of the weights and dtype: joined weights, and under autocast those of lower precision,
    take memory.
    """
    if not can_run_frozen(encoder):
        return None
    state = product_dtype(encoder), tensor_versions(encoder)
    known = _FROZEN.get(encoder)
    if known is None or known[0] != state:
        addresses = [x.detach() for x in encoder.parameters()]  # theirs alone as long as these live
        known = _FROZEN[encoder] = state, [make_frozen_layer(layer) for layer in encoder.layers], addresses
    return known[1]


def make_frozen_layer(layer: nn.Module) -> FrozenLayer:
    """A layer of a `CLIPEncoder`, not kept."""
    with torch.inference_mode(False), torch.no_grad():  # else it could not be used in training later
        return FrozenLayer.of(layer, product_dtype(layer))


def can_run_frozen(*modules: nn.Module) -> bool:
    """Whether layers may run without their modules' own forward.

    Not where a weight wants a gradient, where a module has hooks or was replaced (LoRA, quantisation, pruning), where
    activations are to be recomputed, or where `torch.export` traces, whose tensors have no addresses.
    """
    if torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for module in modules for x in module.parameters()):
        return False
    return all(map(_is_plain, chain.from_iterable(module.modules() for module in modules)))


def product_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of products with the weights of `module`: that of autocast where it is on, else their own."""
    weight = next(module.parameters())
    device_type = weight.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype


_FROZEN: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def _is_plain(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    recomputed = module.training and getattr(module, "gradient_checkpointing", False)
    return type(module) in MODULES and not (hooks or recomputed or "forward" in vars(module))


def tensor_versions(module: nn.Module) -> list[tuple[int, Any]]:
    """What changes when a parameter of `module` is replaced or written to; always new for those of inference mode."""
    return [(x.data_ptr(), object() if x.is_inference() else x._version) for x in module.parameters()]
