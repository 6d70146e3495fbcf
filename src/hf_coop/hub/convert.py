"""Checkpoints of the published CoOp and CoCoOp code, turned into adapters.

They are pickles that also hold an optimizer and a scheduler. Nothing that a pickle names is imported or called here:
tensors are rebuilt by this module, and any other class becomes an inert placeholder.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..encoding.prompts import CLASS_TOKEN_POSITIONS
from ..modeling import HFCoOp
from .model_card import CardDetails

STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
EMBEDDING_TOLERANCE = 1e-2  # relative; half precision rounds by 1e-3, other tokens differ by about 1


def convert_checkpoint(
    checkpoint: str | os.PathLike[str],
    model_name_or_path: str | os.PathLike[str],
    classnames: Sequence[str],
    class_token_position: str = "end",
    **hub: Any,
) -> HFCoOp:
    """The model of a checkpoint that the published CoOp or CoCoOp code wrote (`prompt_learner/model.pth.tar-50`).

    Whether it is CoOp or CoCoOp, generic or class-specific, and how many vectors it has, the checkpoint tells. Where
    the class name stood, it does not.

    Args:
        checkpoint: the file.
        model_name_or_path: the CLIP it was trained with, converted for transformers.
        classnames (`Sequence[str]`): in label order, as in training; checked against the checkpoint's embeddings.
        class_token_position (`str`): "end", "middle" or "front"; CoCoOp has only "end".
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, `device`, as in [`HFCoOp.from_clip`].

    Raises:
        ValueError: the file is no such checkpoint, the model is another, or the class names are others or in another
            order, of which the first wrong one is named.
        OSError: the file or the model is not found.
    """
    if class_token_position not in CLASS_TOKEN_POSITIONS:
        raise ValueError(f"class_token_position must be one of {CLASS_TOKEN_POSITIONS}, got {class_token_position!r}")
    tensors = read_prompt_learner(checkpoint)
    ctx = tensors["ctx"]
    options: dict[str, Any] = {"n_ctx": ctx.shape[-2]}
    method = "cocoop" if any(name.startswith("meta_net.") for name in tensors) else "coop"
    if method == "coop":
        options |= {"class_token_position": class_token_position, "class_specific_context": ctx.ndim == 3}
    elif class_token_position != "end":
        raise ValueError(
            f"{os.fspath(checkpoint)!r} is a CoCoOp checkpoint, whose class names stand at the end: leave out "
            f"class_token_position={class_token_position!r}"
        )
    model = HFCoOp.from_clip(model_name_or_path, classnames, method, **options, **hub)
    check_classes(model, tensors["token_prefix"], tensors["token_suffix"])
    learned = {name: tensor.float() for name, tensor in tensors.items() if name.split(".")[0] in ("ctx", "meta_net")}
    try:
        model.prompt_layer.active_learner.load_state_dict(learned)
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(checkpoint)!r} does not fit {os.fspath(model_name_or_path)!r}: {error}"
        ) from error
    model.card_details = CardDetails(training={"Converted from": "a checkpoint of the published code"})
    return model.eval()


def check_classes(model: HFCoOp, token_prefix: torch.Tensor, token_suffix: torch.Tensor) -> None:
    """Raise `ValueError` unless the checkpoint's word embeddings are those of the model's class names, in order.

    Args:
        model ([`HFCoOp`]): with the class names in question.
        token_prefix (`torch.Tensor` of shape `(K, 1, dim)`): the stored embedding of the start token.
        token_suffix (`torch.Tensor` of shape `(K, positions - 1 - M, dim)`): those of name, full stop, end token and
            padding.
    """
    words = model.clip.text_model.embeddings.token_embedding.weight.detach().cpu().float()
    names, token_ids = model.classnames, model.prompt_config.token_ids
    assert token_ids is not None
    if token_suffix.ndim != 3 or token_prefix.shape[-1] != words.shape[1] or token_suffix.shape[-1] != words.shape[1]:
        raise ValueError(
            f"the checkpoint is of a text tower of width {token_suffix.shape[-1]}, the model's has {words.shape[1]}: "
            "give the CLIP it was trained with"
        )
    if len(token_suffix) != len(names):
        raise ValueError(f"the checkpoint has {len(token_suffix)} classes, but {len(names)} class names are given")
    if not _same(token_prefix[0], words[token_ids[0][:1]]):
        raise ValueError("the checkpoint's word embeddings are not the model's: give the CLIP it was trained with")

    def fits(stored: torch.Tensor, ids: list[int]) -> bool:
        return len(ids) - 1 <= len(stored) and _same(stored[: len(ids) - 1], words[ids[1:]])

    for label, (name, stored, ids) in enumerate(zip(names, token_suffix, token_ids, strict=True)):
        if not fits(stored, ids):
            other = next((names[k] for k, candidate in enumerate(token_ids) if fits(stored, candidate)), None)
            found = f"there it is {other!r}" if other else "none of the class names is there"
            raise ValueError(
                f"class {label} is not {name!r} in the checkpoint ({found}): give the class names it was trained "
                "with, in label order"
            )


def _same(stored: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((stored.float() - expected).norm() <= EMBEDDING_TOLERANCE * expected.norm())


def read_prompt_learner(checkpoint: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a published checkpoint: `ctx`, `token_prefix`, `token_suffix` and, for CoCoOp, `meta_net.*`.

    Raises:
        ValueError: the file is no such checkpoint, or holds values that are not finite.
        OSError: no such file.
    """
    where = os.fspath(checkpoint)
    content = read_torch_file(checkpoint)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not {"ctx", "token_prefix", "token_suffix"} <= tensors.keys():
        raise ValueError(
            f"{where!r} is no checkpoint of a prompt learner: it has no state_dict with ctx, token_prefix and "
            "token_suffix. Give prompt_learner/model.pth.tar-N of the published code"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{where!r}: {name} does not hold finite numbers")
    if tensors["ctx"].ndim not in (2, 3):
        raise ValueError(f"{where!r}: ctx has shape {tuple(tensors['ctx'].shape)}, expected 2 or 3 dimensions")
    return dict(tensors)


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, with tensors rebuilt and every other class an inert placeholder.

    Raises:
        ValueError: not a file of `torch.save`, or damaged.
        OSError: no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch.save never does")
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("/data.pkl")
            return _TensorUnpickler(archive.read(pickled), lambda key: archive.read(f"{root}/data/{key}")).load()
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not in the format of torch.save since PyTorch 1.6: if an older one wrote it, "
            "load and save it there first"
        ) from error
    except Exception as error:  # a damaged or hostile pickle can end in any error
        raise ValueError(f"{os.fspath(path)!r} cannot be read as a checkpoint: {error!r:.200}") from error


class _Placeholder:
    """Stands for an object of a class that is not known here; takes whatever is done to it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """Reads a pickle without importing or calling anything it names.

    Args:
        data (`bytes`): the pickle.
        read_storage (`Callable`): the bytes of the storage with a given key.
    """

    def __init__(self, data: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        # Functions are made anew for each pickle, since a pickle can set attributes of what it is given.
        def rebuild_tensor(
            storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any
        ) -> torch.Tensor:
            if math.prod(size) > storage.numel():
                raise ValueError(f"a tensor of shape {size} in a storage of {storage.numel()} values")
            return storage.as_strided(size, stride, offset).clone()

        def rebuild_parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
            return data

        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        return known.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, *_ = pid
        raw = bytearray(self.read_storage(key))
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
