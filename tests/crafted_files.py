"""Files as a stranger, a broken disk or an attacker may have made them: seeded mutations of sound ones.

`Sound` holds one sound file set of each kind; `craft` copies what a case needs and damages one file of it.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import CLASSNAMES, PARITY
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.hub.model_card import CardDetails

BASE_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
PUBLISHED = PARITY / "published/coop/prompt_learner/model.pth.tar-50"
LONG = "x" * 10**6
STRINGS = [
    *("", " ", "\x00", "\x1b[31mred\x1b[0m\x07", "\ud800", "\u202eevil\u2066", "a\nb\r\nc", LONG, "%s{}{0.__class__}"),
    *("/dev/zero", "../../outside", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x", "refs/../../x", "~"),
    *("{{ 7 * 7 }}", "<script>alert(1)</script>", "kernels-community/flash-attn", "float8_e4m3fn", "auto", "-rf"),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 255, 2**16, 10**6, 2 * 10**6, 10**9, 2**31, 2**53, 2**63, 10**30),
    *(0.5, -0.0, 1e308, 1e-320),
]
ODD = [None, True, False, float("nan"), float("inf"), [], {}, [[]], [None], {"a": {}}, [0] * 10**5, {"": ""}]
WIDTHS = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5, "F16": 2, "BF16": 2, "F64": 8}  # bytes a value
WIDTHS |= {"I32": 4, "BOOL": 1, "C64": 8, "U16": 2, "X9": 4}
FIELDS = {
    "adapter": {
        "revision": ["/tmp/x", "../x", "a..b", "main\n", ".lock", "-x", "a//b", "x" * 5000],
        "task_type": ["\x1b]0;title\x07", "\x00"],
        "peft_type": ["LORA", "COCOOP", "KGCOOP", "\x1b[2J"],
        "base_model_name_or_path": ["/dev", "/proc/self", "a/b/c/d", ".", "..", "user/no-such-model", "x" * 10**5],
        "tokenizer_name_or_path": ["/dev", "..", "user/none", "x y"],
        "cls": ["x"],
        "classnames": [["a"] * 5, ["\x1b[31m"] * 5, ["a" * 10**5] * 5, [LONG], ["<|endoftext|>"] * 5],
        "ctx_init": ["\ud800", "a photo of a", LONG, "\x1b"],
        "auto_mapping": [{"a": "b"}],
        "ctx_token_ids": [[0, 1, 2, 3], [10**9] * 4, [10**30] * 4],
    },
    "base": {
        "model_type": ["bert", "siglip", "chinese_clip", "\x1b[31m", 3],
        "quantization_config": [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "x"}, {}],
        "attn_implementation": ["kernels-community/x", "flash_attention_2"],
        "_attn_implementation": ["kernels-community/x"],
        "auto_map": [{"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}],
        "num_labels": [10**9, -1],
        "id2label": [{"0": "x"}, {"a": "b"}, ["x"]],
        "text_config_dict": [{"num_hidden_layers": 2 * 10**6}, {"vocab_size": 10**9}],
        "dtype": ["float8_e4m3fn", "int8", "x", 3],
        "transformers_weights": ["../x.safetensors", "x.bin"],
        "architectures": [["EvilModel"], 3],
    },
    "tokenizer": {
        "tokenizer_class": ["LlamaTokenizer", "evil.Tokenizer", "BertTokenizer", 3],
        "auto_map": [{"AutoTokenizer": ["evil.Slow", "evil.Fast"]}],
        "model_max_length": [0, 10**30],
        "extra_special_tokens": [{"a": "b"}, [LONG]],
    },
    "processor": {
        "size": [{"shortest_edge": 60_000}, {"height": 60_000, "width": 60_000}, {"longest_edge": 10**9}, 10**6],
        "crop_size": [{"height": 60_000, "width": 60_000}, {"height": 0, "width": 0}, 10**6, 31],
        "image_processor_type": ["EvilProcessor", "ViTImageProcessor", "SamImageProcessor"],
        "image_std": [[0, 0, 0], [float("nan")] * 3, [1]],
        "rescale_factor": [1e308, float("inf"), 0],
        "auto_map": [{"AutoImageProcessor": "evil.Processor"}],
    },
}


@dataclass
class Case:
    """One crafted file: what was done, in words, and the function that opens it."""

    what: str
    folder: Path
    open: Callable[[], Any]


def few_shot_features() -> Dataset:
    """Two image features a class."""
    embeds = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
    features = Features({"image_embeds": List(Value("float32"), length=48), "label": ClassLabel(names=CLASSNAMES)})
    labels = [k % len(CLASSNAMES) for k in range(len(embeds))]
    return Dataset.from_dict({"image_embeds": embeds.tolist(), "label": labels}, features=features)


class Sound:
    """A sound file set of each kind, and how each is opened.

    Args:
        root (`Path`): an empty folder.
        image: to classify.
    """

    def __init__(self, root: Path, image: Any) -> None:
        self.root, self.image, self.dataset = root, image, few_shot_features()
        self.base = root / "base"
        self.base.mkdir()
        for name in BASE_FILES:
            shutil.copy(PARITY / name, self.base)
        model = HFCoOp.from_clip(self.base, CLASSNAMES, n_ctx=4)
        model.card_details = CardDetails(dataset_name="Flowers", learned={"accuracy": 0.5}, training={"Epochs": 2})
        model.save_pretrained(root / "adapter")
        self.live = HFCoOp.from_pretrained(root / "adapter")
        for optim in ("sgd", "lbfgs"):
            self.train(root / optim, optim)
        (root / "published").mkdir()
        shutil.copy(PUBLISHED, root / "published" / "model.pth.tar-50")
        tensors = json.loads(self._published_case())
        self.published_names = tensors["classnames"]

    @staticmethod
    def _published_case() -> str:
        from safetensors import safe_open

        with safe_open(PARITY / "coop_end_unified_init_train.safetensors", "pt") as file:
            return file.metadata()["case"]

    def train(self, output_dir: Path, optim: str, resume: bool = False) -> torch.Tensor:
        """Train two epochs, or go on to a third, and give the logits."""
        torch.manual_seed(0)
        model = HFCoOp.from_clip(self.base, CLASSNAMES, n_ctx=2)
        length = (
            {"num_train_epochs": 3 if resume else 2} if optim == "sgd" else {"max_text_passes": 6 if resume else 3}
        )
        args = CoOpTrainingArguments(
            output_dir=str(output_dir),
            optim=optim,
            per_device_train_batch_size=5 if optim == "sgd" else None,
            use_cpu=True,
            save_strategy="epoch",
            resume_from_checkpoint="True" if resume else None,
            disable_tqdm=True,
            **length,
        )
        CoOpTrainer(model, args, self.dataset).train()
        return model(image_embeds=torch.tensor(self.dataset["image_embeds"][:])).logits

    def case(self, kind: str, number: int, seed: int) -> Case:
        """The crafted file with a number, the same each time."""
        rng = random.Random(f"{seed} {kind} {number}")
        folder = self.root / f"{kind}-{number}"
        what = getattr(self, f"_{kind}")(folder, rng)
        return Case(f"{kind} {number}: {what}", folder, lambda: self.open(kind, folder, rng))

    def open(self, kind: str, folder: Path, rng: random.Random) -> Any:
        """Scores, from whatever way such a file is opened."""
        if kind == "checkpoint":
            return self.train(folder, (folder / "optim").read_text(), resume=True)
        if kind == "published":
            model = HFCoOp.from_published(folder / "model.pth.tar-50", self.base, self.published_names)
            return scores_of(model.predict(self.image))
        if kind in ("base", "weights", "tokenizer", "processor"):
            own_adapter = rng.random() < 0.5
            model = HFCoOp.from_pretrained(self.root / "adapter", folder) if own_adapter else None
            return scores_of((model or HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2)).predict(self.image))
        way = rng.choice(["load", "load", "live", "info"])
        if way == "info":
            from hf_coop.hub import describe_adapter

            return [len(str(value)) for value in describe_adapter(folder).values()]
        if way == "load":
            return scores_of(HFCoOp.from_pretrained(folder).predict(self.image))
        try:
            self.live.load_adapter(folder, "stranger")
            self.live.set_adapter("stranger")
            return scores_of(self.live.predict(self.image))
        finally:
            self.live.set_adapter("default")
            if "stranger" in self.live.peft_config:
                self.live.delete_adapter("stranger")

    def _copy(self, source: str, folder: Path) -> None:
        shutil.copytree(self.root / source, folder)

    def _adapter(self, folder: Path, rng: random.Random) -> str:
        self._copy("adapter", folder)
        return damage_json(folder / "adapter_config.json", rng, FIELDS["adapter"])

    def _learned(self, folder: Path, rng: random.Random) -> str:
        self._copy("adapter", folder)
        return damage_safetensors(folder / "adapter_model.safetensors", rng)

    def _card(self, folder: Path, rng: random.Random) -> str:
        self._copy("adapter", folder)
        return damage_card(folder / "README.md", rng)

    def _base(self, folder: Path, rng: random.Random) -> str:
        self._copy("base", folder)
        return damage_json(folder / "config.json", rng, FIELDS["base"])

    def _weights(self, folder: Path, rng: random.Random) -> str:
        self._copy("base", folder)
        if rng.random() < 0.15:
            (folder / "model.safetensors").rename(folder / "part.safetensors")
            index = {"metadata": {}, "weight_map": {"a": "part.safetensors", "b": rng.choice(STRINGS)}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            return "an index of other names"
        return damage_safetensors(folder / "model.safetensors", rng)

    def _tokenizer(self, folder: Path, rng: random.Random) -> str:
        self._copy("base", folder)
        name = rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
        return damage_json(folder / name, rng, FIELDS["tokenizer"] if name == "tokenizer_config.json" else {})

    def _processor(self, folder: Path, rng: random.Random) -> str:
        self._copy("base", folder)
        return damage_json(folder / "preprocessor_config.json", rng, FIELDS["processor"])

    def _checkpoint(self, folder: Path, rng: random.Random) -> str:
        optim = rng.choice(["sgd", "lbfgs"])
        self._copy(optim, folder)
        (folder / "optim").write_text(optim)
        checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        name = rng.choice(["trainer_state.json", "trainer_state.safetensors", "adapter_model.safetensors"])
        damage = damage_json if name.endswith("json") else damage_safetensors
        return f"{optim}, {name}: {damage(checkpoint / name, rng)}"

    def _published(self, folder: Path, rng: random.Random) -> str:
        self._copy("published", folder)
        return damage_torch_file(folder / "model.pth.tar-50", rng)


KINDS = ("adapter", "learned", "card", "base", "weights", "tokenizer", "processor", "checkpoint", "published")


def scores_of(prediction: list[dict[str, Any]]) -> list[float]:
    """The scores of one image."""
    return [row["score"] for row in prediction]


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Flip, cut, insert, repeat or replace bytes of any file; or put something in its place that is no file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    way = rng.choice(["flip", "flip", "cut", "insert", "repeat", "zero", "link", "pipe", "folder", "sparse", "loop"])
    if way == "flip":
        for _ in range(rng.choice([1, 8, 200])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del data[place:]
    elif way == "insert":
        data[place:place] = rng.randbytes(rng.choice([1, 40, 5000]))
    elif way == "repeat":
        data[place:place] = data[: rng.randrange(1, 5000)]
    elif way == "zero":
        data[place : place + 64] = bytes(64)
    else:
        path.unlink()
        if way == "link":
            target = rng.choice(["/dev/zero", "/dev/null", "/proc/kcore", "/proc/self/maps", "nowhere"])
            path.symlink_to(target)
            return f"link to {target}"
        if way == "pipe":
            os.mkfifo(path)
        elif way == "folder":
            path.mkdir()
        elif way == "loop":
            path.symlink_to(path)
        else:
            with path.open("wb") as file:
                file.write(data)
                file.truncate(2**40)
        return way
    path.write_bytes(data)
    return f"{way} at {place}"


def damage_json(path: Path, rng: random.Random, fields: dict[str, list[Any]] = {}) -> str:  # noqa: B006
    """Change the bytes, or one value or key somewhere in the tree, or nest it deep."""
    way = rng.choice(["bytes", "value", "value", "value", "key", "field", "field", "field", "deep", "other"])
    if way == "bytes":
        return damage_bytes(path, rng)
    content = json.loads(path.read_text())
    if way == "deep":
        depth = rng.choice([100, 2000, 100_000])
        path.write_text('{"a": ' * depth + "1" + "}" * depth)
        return f"{depth} levels"
    if way == "other":
        path.write_text(json.dumps(any_value(rng)))
        return "another value for all"
    if way == "field" and fields:
        name = rng.choice(list(fields))
        content[name] = rng.choice(fields[name])
        what = f"{name} = {content[name]!r:.40}"
    else:
        holder, key = rng.choice(list(places(content)))
        value = any_value(rng)
        what = f"{key!r:.40} = {value!r:.40}"
        if way == "key" and isinstance(holder, dict):
            holder[rng.choice(STRINGS)] = holder.pop(key)
        else:
            holder[key] = value
    path.write_text(json.dumps(content))
    return what


def any_value(rng: random.Random) -> Any:
    """A value of any kind."""
    return rng.choice(rng.choice([STRINGS, NUMBERS, NUMBERS, ODD]))


def places(tree: Any) -> Any:
    """Every `(holder, key)` of a JSON tree."""
    for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def damage_safetensors(path: Path, rng: random.Random) -> str:
    """Change the bytes, the header (names, types, shapes, places) or the values."""
    way = rng.choice(["bytes", "header", "header", "values", "values", "name", "dtype", "lack"])
    if way == "bytes":
        return damage_bytes(path, rng)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    name = rng.choice([name for name in header if name != "__metadata__"])
    start, stop = header[name]["data_offsets"]
    what = f"{way} of {name}"
    if way == "header":
        holder, key = rng.choice(list(places(header)))
        holder[key] = any_value(rng)
        what = f"{key!r:.40} = {holder[key]!r:.40}"
    elif way == "values":
        value = rng.choice([float("nan"), float("inf"), 3e38, -3e38, 1e30, 1e10, 1e-40, 0.0, 200.0])
        whole = rng.random() < 0.5
        count = (stop - start) // 4 if whole else min(1, (stop - start) // 4)
        body[start : start + 4 * count] = struct.pack("<f", value) * count
        what += f": {count} of {value}"
    elif way == "name":
        header[rng.choice([*STRINGS, name + "x", "ctx"])] = header.pop(name)
    elif way == "dtype":
        kind, width = rng.choice(list(WIDTHS.items()))
        header[name] |= {"dtype": kind, "shape": [int((stop - start) / width)]}
        if rng.random() < 0.7:  # of the right shape
            shape = json.loads(data[8 : 8 + size])[name]["shape"]
            length = int(torch.Size(shape).numel() * width)
            header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, length]}}
            body = bytearray(rng.randbytes(length))
        what += f": {kind}"
    else:
        del header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return what


def damage_card(path: Path, rng: random.Random) -> str:
    """Change the bytes or the metadata, or make them long, deep or without end."""
    way = rng.choice(["bytes", "bytes", "long", "laughs", "merge", "tag", "deep", "value", "value"])
    if way == "bytes":
        return damage_bytes(path, rng)
    ends = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9) if k else 'lol'}]" for k in range(30)]
    maps = [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 4) if k else ''}], k{k}: 1}}" for k in range(25)]
    metadata = {
        "long": "\n".join(f"k{k}: [1, 2, {{a: b}}]" for k in range(rng.choice([1000, 60_000]))),
        "laughs": "\n".join([*ends, "hf_coop: {training: *a29}"]),
        "merge": "\n".join([*maps, "hf_coop: *a24"]),
        "tag": "hf_coop: !!python/object/apply:os.system ['touch /tmp/evil']",
        "deep": "hf_coop: " + "[" * rng.choice([100, 20_000]),
        "value": "hf_coop: " + json.dumps({rng.choice(["dataset_name", "shots", "learned", "x"]): any_value(rng)}),
    }[way]
    path.write_text(f"---\n{metadata}\n---\n# Card\n")
    return way


def damage_torch_file(path: Path, rng: random.Random) -> str:
    """Change the bytes of the file or of the pickle in it, or write a pickle that costs."""
    way = rng.choice(["bytes", "pickle", "pickle", "pickle", "memo", "hash", "shape", "keys", "many"])
    if way == "bytes":
        return damage_bytes(path, rng)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    pickled = bytearray(members[name])
    if way == "pickle":
        for _ in range(rng.choice([1, 3, 30])):
            pickled[rng.randrange(len(pickled))] = rng.randrange(256)
    elif way == "memo":
        pickled = bytearray(b"\x80\x02]r" + struct.pack("<I", rng.choice([2**28, 10**9, 2**32 - 1])) + b".")
    elif way == "hash":
        pickled = bytearray(b"\x80\x02}(K\x01q\x00" + b"h\x00h\x00\x86q\x00" * rng.choice([20, 60]) + b"K\x01u.")
    elif way == "many":
        pickled = pickled[:-1] + b"}q\x00h\x000" * 100_000 + b"."
    else:
        content = torch.load(path, map_location="cpu", weights_only=False)
        state = content["state_dict"]
        if way == "shape":
            changed = rng.choice(list(state))
            shape = rng.choice([(), (0,), (1,), (2, 3), (12, 1), (0, 1, 64), (12, 1, 63), (12, 100, 64), (3, 4, 64)])
            state[changed] = torch.zeros(shape, dtype=rng.choice([torch.float32, torch.float16, torch.int64]))
        else:
            state[rng.choice([*STRINGS[:8], "logit_scale", "meta_net.x"])] = rng.choice([torch.zeros(3), 3, "x", None])
        try:
            torch.save(content, path)
        except (UnicodeError, pickle.PicklingError):
            torch.save({"state_dict": state, "epoch": "x"}, path.with_suffix(".other"))
        return way
    members[name] = bytes(pickled)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return way
