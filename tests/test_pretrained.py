"""Names and files of strangers: what is refused before it is used, and how failures are told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSNAMES, PARITY
from safetensors.torch import load_file, save_file

from hf_coop import CoOpConfig, HFCoOp
from hf_coop.errors import short
from hf_coop.escaping import one_line
from hf_coop.pretrained import (
    check_plain_file,
    check_revision,
    check_source,
    checked_downloads,
    naming_source,
    read_json,
)

SOUND_REVISIONS = ["main", "v1.0", "refs/pr/1", "feature/x-y_z", "0123abc" * 5, "release-1.2.3+build", "ünïcode"]
BAD_REVISIONS = [
    *("", "/etc/x", "../x", "a/../b", "a..b", "a/./b", ".x", "a/.x", "x.", "x/", "a//b", "x.lock", "x.lock/y", "-x"),
    *("@", "a@{1}", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\x00", "a\nb", "\x1b[31m", "\u202ex"),
]


@pytest.mark.parametrize("revision", SOUND_REVISIONS)
def test_revisions_that_git_allows(revision):
    check_revision(revision)
    assert CoOpConfig(classnames=CLASSNAMES, revision=revision).revision == revision


@pytest.mark.parametrize("revision", [*BAD_REVISIONS, "x" * 2000])
def test_revisions_that_lead_elsewhere(revision):
    """One of an adapter's config made the Hub's client create files at that path."""
    for use in (
        lambda: check_revision(revision),
        lambda: CoOpConfig(classnames=CLASSNAMES, revision=revision),
        lambda: HFCoOp.from_pretrained("user/name", revision=revision),
        lambda: HFCoOp.from_clip("user/name", CLASSNAMES, revision=revision),
    ):
        with pytest.raises(ValueError, match="revision must be the name of a branch, tag or commit, got") as refusal:
            use()
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 200


def test_a_revision_that_is_no_string():
    with pytest.raises(TypeError, match="revision must be a string, got 3"):
        check_revision(3)


@pytest.mark.parametrize("name", ["a/b/c", "a--b", "-a", "a b", "user/na..me", "/no/such", "~", "x" * 200, "http://x"])
def test_names_that_no_repository_has(name):
    with pytest.raises(FileNotFoundError, match=r"is neither a folder on this machine nor the name of a repository"):
        check_source(name)


@pytest.mark.parametrize("subfolder", ["../x", "/x", "a/../../b", "a\nb"])
def test_subfolders_that_lead_out(subfolder):
    with pytest.raises(ValueError, match="subfolder must be a folder within, got"):
        HFCoOp.from_pretrained("user/name", subfolder=subfolder)


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\x00b", "\ud800", "x" * 2000])
@pytest.mark.parametrize("field", ["base_model_name_or_path", "tokenizer_name_or_path"])
def test_names_that_cannot_be_seen(field, name):
    with pytest.raises(ValueError, match=f"{field} must name a repository or a folder, got") as refusal:
        CoOpConfig(classnames=CLASSNAMES, **{field: name})
    assert str(refusal.value).isprintable()


def test_only_plain_files_are_read(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "kernel").symlink_to("/proc/self/maps")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "link").symlink_to("large")
    for name, why in {"zero": "no plain file", "pipe": "no plain file", "folder": "no plain file"}.items():
        with pytest.raises(ValueError, match=f"{name} is {why}"):
            read_json(tmp_path / name)
    with pytest.raises(ValueError, match="kernel is empty"):
        read_json(tmp_path / "kernel")
    with pytest.raises(ValueError, match="large has 11 bytes, at most 10 are read"):
        check_plain_file(tmp_path / "large", 10)
    check_plain_file(tmp_path / "link", 11)


CONTENT = b"content"
SHA256, SHA1 = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha1(b"blob 7\0" + CONTENT).hexdigest()


@pytest.mark.parametrize("name", [SHA256, SHA1])
@pytest.mark.parametrize("shared", [False, True])
def test_what_the_hub_sent_wrongly_is_deleted(tmp_path, name, shared):
    """Also of files that repositories share: these are stored by another kind of hash, and were taken for damaged."""
    blobs, stored = tmp_path / "models--user--name" / "blobs", tmp_path / "blobs" / "ab" / ("ab" * 32)
    blobs.mkdir(parents=True)
    stored.parent.mkdir(parents=True)

    def fetch(content: bytes) -> None:
        with checked_downloads("user/name", str(tmp_path)):
            (stored if shared else blobs / name).write_bytes(content)
            if shared:
                (blobs / name).symlink_to(Path("../../blobs/ab", stored.name))
            (blobs / f"{name}.incomplete").write_bytes(b"half of it")

    with pytest.raises(OSError, match="a file was damaged while it was fetched, and is deleted from the cache"):
        fetch(b"other content")
    assert not (blobs / name).is_symlink()
    assert not (blobs / name).exists()
    assert not stored.exists()
    fetch(CONTENT)
    assert (blobs / name).read_bytes() == CONTENT
    with checked_downloads("user/name", str(tmp_path)):  # nothing is fetched, nothing read
        (blobs / name).write_bytes(b"changed here")


def test_what_was_fetched_is_checked_though_reading_it_failed(tmp_path):
    blobs = tmp_path / "models--user--name" / "blobs"
    blobs.mkdir(parents=True)

    def fetch() -> None:
        with checked_downloads("user/name", str(tmp_path)):
            (blobs / SHA256).write_bytes(b"{")
            json.loads("{")

    with pytest.raises(OSError, match="was damaged"):
        fetch()
    assert not list(blobs.iterdir())


class Panic(BaseException):
    """As the Rust of the tokenizers raises it."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), ImportError("a\nb"), MemoryError(), Panic("rust")])
def test_every_failure_is_one_line(error):
    expected = f"cannot load it 'user/name': {type(error).__name__}"
    with pytest.raises(OSError, match=expected) as told, naming_source("cannot load it", "user/name"):
        raise error
    assert str(told.value).isprintable()


def test_ctrl_c_is_no_failure():
    with pytest.raises(KeyboardInterrupt), naming_source("cannot load it", "user/name"):
        raise KeyboardInterrupt


def test_one_line_and_short():
    assert one_line("\x1b[31mred\x07\n\tx\u202ey\u2028z") == "[31mred x y z"
    assert one_line("क\u200dष") == "क\u200dष"
    assert short("a" * 1000 + "why", 20) == "aaaaaaaa … aaaaaawhy"


def base(tmp_path: Path, **config: Any) -> Path:
    """A copy of the tiny CLIP with another config."""
    folder = tmp_path / "base"
    shutil.copytree(PARITY, folder, ignore=shutil.ignore_patterns("published", "*_*.safetensors"))
    content = json.loads((PARITY / "config.json").read_text())
    for name, value in config.items():
        part, _, field = name.partition("__")
        content.update({part: {**content[part], field: value}} if field else {name: value})
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"text_config__num_hidden_layers": 2_000_000},
            "num_hidden_layers must be a whole number from 1 to 512, got",
        ),
        ({"num_labels": 10**9}, "num_labels must be a whole number from 1 to"),
        ({"vision_config__image_size": 60_000}, "image_size must be a whole number from 1 to 4096, got 60000"),
        ({"vision_config__image_size": [32, 10**9]}, "image_size must be"),
        ({"vision_config__patch_size": 0}, "patch_size must be"),
        ({"text_config__vocab_size": 10**9}, "vocab_size must be"),
        (
            {"text_config__hidden_size": 2**16},
            r"weights hold \d+ values, but config.json makes a model of at least",
        ),
        ({"text_config__num_hidden_layers": 4}, r"its weights (hold|lack text_model.encoder.layers.3)"),
        ({"text_config__max_position_embeddings": 76}, "RuntimeError"),
        ({"text_config__num_attention_heads": 7}, "is not a multiple of the number of attention heads"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "its weights are quantised"),
        ({"attn_implementation": "kernels-community/x"}, "has attn_implementation, which can fetch code"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "has auto_map, which can fetch code"),
        ({"text_config_dict": {"num_hidden_layers": 2_000_000}, "x": 1}, "num_hidden_layers must be"),
        ({"text_config__hidden_act": "x\x1b[31m"}, "KeyError"),
    ],
)
def test_configs_that_ask_for_too_much(tmp_path, config, message):
    folder = base(tmp_path, **config)
    with pytest.raises(OSError, match=message) as refusal:
        HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2)
    assert repr(str(folder)) in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_pickled_weights_are_never_tried(tmp_path):
    folder = base(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no model.safetensors, and pickled weights are not read"):
        HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2)


def test_weights_in_parts(tmp_path, images):
    folder, tensors = base(tmp_path), load_file(PARITY / "model.safetensors")
    expected = HFCoOp.from_clip(folder, CLASSNAMES, ctx_init="a photo of a").predict(images)
    (folder / "model.safetensors").unlink()
    parts: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        parts["ab"[number % 2] + ".safetensors"][name] = tensor
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert HFCoOp.from_clip(folder, CLASSNAMES, ctx_init="a photo of a").predict(images) == expected
    index["weight_map"]["x"] = "../a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"index.json names a file '\.\./a.safetensors'"):
        HFCoOp.from_clip(folder, CLASSNAMES, ctx_init="a photo of a")


def test_weights_that_are_not_finite(tmp_path, images):
    folder, tensors = base(tmp_path), load_file(PARITY / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the scores are not finite: .*base' are damaged"):
        HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2).predict(images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": {"height": 60_000, "width": 60_000}}, "crop_size must be at most 4096 pixels"),
        ({"size": {"shortest_edge": 60_000}}, "size must be at most 4096 pixels"),
        ({"crop_size": {"height": 31, "width": 31}}, "it makes pixels"),
        ({"image_std": [0, 0, 0]}, "it makes pixels"),
        ({"auto_map": {"AutoImageProcessor": "evil.Processor"}, "image_processor_type": "Evil"}, "image processor of"),
    ],
)
def test_image_processors(tmp_path, images, fields, message):
    folder = base(tmp_path)
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(content | fields))
    with pytest.raises(OSError, match=message) as refusal:
        HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2).predict(images)
    assert str(folder) in str(refusal.value)


def test_a_tokenizer_that_would_run_code_or_never_ends(tmp_path):
    folder = base(tmp_path)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["e.S", "e.F"]}}))
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"no tokenizer found at .*tokenizer.json is no plain file"):
        HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=2)


def test_a_context_that_has_half_a_character():
    with pytest.raises(ValueError, match="lone surrogate"):
        CoOpConfig(classnames=CLASSNAMES, ctx_init="a \ud800 b")


@pytest.mark.parametrize(
    "fields",
    [
        {"classnames": "x" * 10**6},
        {"classnames": ["a", 3.0 * 10**300, "x" * 10**6]},
        {"classnames": CLASSNAMES, "ctx_init": ["x"] * 10**6},
        {"classnames": CLASSNAMES, "learn_temperature": "x" * 10**6},
        {"classnames": CLASSNAMES, "token_ids": "x" * 10**6, "name_lengths": []},
        {"classnames": ["a"], "token_ids": [[1, *[10**9] * 1000, 2]], "name_lengths": ["x" * 10**6]},
        {"classnames": CLASSNAMES, "base_model_name_or_path": "x" * 10**6},
    ],
)
def test_messages_quote_little(fields):
    with pytest.raises((TypeError, ValueError)) as refusal:
        CoOpConfig(**fields)
    assert len(str(refusal.value)) < 300
