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
from typing import Any, ClassVar, NamedTuple

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from transformers import CLIPModel

from ..encoding import load_tokenizer
from ..encoding.prompts import CLASS_TOKEN_POSITIONS
from ..errors import short, some
from ..pretrained import check_plain_file
from ..tuners import config_class_of
from ..tuners.config import PromptConfig, option_fields, registered_configs
from ..tuners.model import check_values
from .adapter_files import naming_file

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


class PublishedPrompt(NamedTuple):
    """A published checkpoint, read.

    Attributes:
        config ([`PromptConfig`]): of the adapter that it becomes.
        learned (`dict[str, torch.Tensor]`): the tensors of the prompt learner, in fp32.
    """

    config: PromptConfig
    learned: dict[str, torch.Tensor]


def read_checkpoint(
    checkpoint: str | os.PathLike[str],
    clip: CLIPModel,
    classnames: Sequence[str],
    *,
    method: str | None = None,
    class_token_position: str = "end",
) -> PublishedPrompt:
    """Read a checkpoint of the published code (`prompt_learner/model.pth.tar-50`), and check that it fits `clip`.

    How many vectors it has, and whether they are class-specific, the checkpoint tells. Its tensors tell CoOp from
    CoCoOp, but not CoOp from methods that learn the same tensors, nor where the class name stood.

    Args:
        checkpoint: the file.
        clip (`CLIPModel`): the model it was trained with, converted for transformers.
        classnames (`Sequence[str]`): in label order, as in training; checked against the checkpoint's embeddings.
        method (`str`, *optional*): default: the first of the registered ones that learns tensors of such names.
        class_token_position (`str`): "end", "middle" or "front".

    Raises:
        ValueError: the file is no such checkpoint, the model is another, or the class names are others or in another
            order, of which the first wrong one is named.
        OSError: the file is not found.
    """
    if class_token_position not in CLASS_TOKEN_POSITIONS:
        raise ValueError(f"class_token_position must be one of {CLASS_TOKEN_POSITIONS}, got {class_token_position!r}")
    where, tensors = os.fspath(checkpoint), read_prompt_learner(checkpoint)
    learned = {name: tensor for name, tensor in tensors.items() if not name.startswith("token_")}
    options: dict[str, Any] = {"n_ctx": tensors["ctx"].shape[-2]}
    if tensors["ctx"].ndim == 3:
        options["class_specific_context"] = True
    if class_token_position != "end":
        options["class_token_position"] = class_token_position
    config_classes = [config_class_of(method)] if method else registered_configs()
    for config_class in config_classes:
        known = {name: value for name, value in options.items() if name in option_fields(config_class)}
        config = config_class(classnames=list(classnames), **known)
        with naming_file(where):
            expected = _tensors_of(config, clip)
        if expected.keys() == learned.keys():
            break
    else:
        names = ", ".join(config_class.label for config_class in config_classes)
        raise ValueError(f"{where!r} holds {short(some(sorted(learned)), 100)}, which is not what {names} learns")
    for name in options.keys() - known.keys():
        raise ValueError(
            f"{where!r} is a {config.label} checkpoint, and {config.label} has no such option: leave out "
            f"{name}={options[name]!r}"
        )
    with naming_file(where):
        check_classes(clip, config, tensors["token_prefix"], tensors["token_suffix"])
    for name, tensor in learned.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{where!r} does not fit the model: {name} has shape {tuple(tensor.shape)}, but the model makes it "
                f"{tuple(expected[name].shape)}"
            )
    return PublishedPrompt(config, {name: tensor.float() for name, tensor in learned.items()})


def _tensors_of(config: PromptConfig, clip: CLIPModel) -> dict[str, torch.Tensor]:
    """What the prompt learner of `config` holds, for `clip`; `config` is tokenised and checked."""
    tokenizer = load_tokenizer(clip)
    config.tokenize(tokenizer)
    config.check_fits(clip, tokenizer)
    return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].prompt_learner_cls(config, clip).state_dict()


def check_classes(
    clip: CLIPModel, config: PromptConfig, token_prefix: torch.Tensor, token_suffix: torch.Tensor
) -> None:
    """Raise `ValueError` unless the checkpoint's word embeddings are those of the class names, in order.

    Args:
        clip (`CLIPModel`): gives the word embeddings.
        config ([`PromptConfig`]): with the class names in question, tokenised.
        token_prefix (`torch.Tensor` of shape `(K, 1, dim)`): the stored embedding of the start token.
        token_suffix (`torch.Tensor` of shape `(K, positions - 1 - M, dim)`): those of name, full stop, end token and
            padding.
    """
    words = clip.text_model.embeddings.token_embedding.weight.detach().cpu().float()
    names, token_ids = config.classnames, config.token_ids
    assert token_ids is not None
    for name, tensor in (("token_prefix", token_prefix), ("token_suffix", token_suffix)):
        if tensor.ndim != 3 or not len(tensor):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (classes, tokens, width)")
    if token_prefix.shape[-1] != words.shape[1] or token_suffix.shape[-1] != words.shape[1]:
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
            found = f"there it is {other!r:.80}" if other else "none of the class names is there"
            raise ValueError(
                f"class {label} is not {name!r:.80} in the checkpoint ({found}): give the class names it was trained "
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
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{where!r}: {short(name, 80)} does not hold finite numbers")
        check_values(f"{where!r}: {name}", tensor)
    if tensors["ctx"].ndim not in (2, 3):
        raise ValueError(f"{where!r}: ctx has shape {tuple(tensors['ctx'].shape)}, expected 2 or 3 dimensions")
    return dict(tensors)


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, with tensors rebuilt and every other class an inert placeholder.

    Raises:
        ValueError: not a file of `torch.save`, or damaged.
        OSError: no such file.
    """
    check_plain_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch.save never does")
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("/data.pkl")
            return _TensorUnpickler(archive.read(pickled), lambda key: archive.read(f"{root}/data/{key}")).load()
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not in the format of torch.save since PyTorch 1.6: if an older one wrote it, "
            "load and save it there first"
        ) from error
    except Exception as error:  # a damaged or hostile pickle can end in any error
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as a checkpoint: {type(error).__name__}: {short(error)}"
        ) from error


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


class _Dict(OrderedDict[Any, Any]):
    """A dictionary without tuples for keys: a tuple of tuples of tuples … takes for ever to hash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, tuple):
            raise ValueError("a key is a tuple, which those of torch.save are not")
        super().__setitem__(key, value)


class _TensorUnpickler(pickle._Unpickler):
    """Reads a pickle without importing or calling anything it names.

    In Python, whose memo is a dict: that of C takes memory for the highest number that a pickle writes into it.

    Args:
        data (`bytes`): the pickle.
        read_storage (`Callable`): the bytes of the storage with a given key.
    """

    def __init__(self, data: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.read_storage = read_storage
        self.storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def load_empty_dictionary(self) -> None:
        self.append(_Dict())  # type: ignore[attr-defined]

    # Those of torch.save alone, which writes protocol 2 and no sets.
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.EMPTY_DICT[0]: load_empty_dictionary}
    for opcode in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        del dispatch[opcode[0]]

    def find_class(self, module: str, name: str) -> Any:
        # Functions are made anew for each pickle, since a pickle can set attributes of what it is given.
        def rebuild_tensor(
            storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any
        ) -> torch.Tensor:
            if math.prod(size) > storage.numel():
                raise ValueError(f"a tensor of shape {size} in a storage of {storage.numel()} values")
            return storage.as_strided(size, stride, offset)  # a view, as many as there are

        def rebuild_parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
            return data

        def ordered_dict() -> _Dict:  # empty at first, as torch.save has it
            return _Dict()

        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("collections", "OrderedDict"): ordered_dict,
        }
        return known.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, *_ = pid
        if not isinstance(key, str) or not isinstance(dtype, torch.dtype):
            raise ValueError("a storage has no name or type")
        if (key, dtype) not in self.storages:
            raw = bytearray(self.read_storage(key))
            self.storages[key, dtype] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self.storages[key, dtype]
