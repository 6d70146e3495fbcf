"""Adapters from strangers: every refusal names the file and the value."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSNAMES, PARITY
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hf_coop import CoOpConfig, HFCoOp
from hf_coop.files import staged_folder
from hf_coop.hub import describe_adapter
from hf_coop.hub.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config

CTX = "base_model.model.text_model.prompt_learner.ctx"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "sound"
    HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter to damage."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_weights(folder: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def test_the_tensor_is_named_as_peft_does(sound):
    assert list(load_file(sound / WEIGHTS_FILE)) == [CTX]


def test_saving_again_writes_the_same_bytes(sound, tmp_path):
    model = HFCoOp.from_pretrained(sound)
    for _ in range(2):
        model.save_pretrained(tmp_path / "again")
        for path in sound.iterdir():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_config_records_what_loading_needs(sound):
    config = json.loads((sound / CONFIG_FILE).read_text())
    assert config["peft_type"] == "COOP"
    assert config["base_model_name_or_path"] == str(PARITY)
    assert config["classnames"] == CLASSNAMES
    assert len(config["token_ids"]) == len(CLASSNAMES)
    assert config["hf_coop_version"]


def test_a_failed_save_leaves_the_folder_as_it_was(sound, adapter):
    model = HFCoOp.from_pretrained(sound)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    model.create_or_update_model_card = lambda folder: (_ for _ in ()).throw(OSError("no space left on device"))
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]


def test_staging_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"), staged_folder(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', no method of hf-coop: method must be one of "),
        ({"peft_type": ["COOP"]}, "peft_type is ['COOP']"),
        ({"n_ctx": "4"}, "n_ctx must be a whole number from 1 to 1024, got '4'"),
        ({"n_ctx": 10**12}, "n_ctx must be a whole number from 1 to 1024, got 1000000000000"),
        ({"n_ctx": True}, "n_ctx must be a whole number from 1 to 1024, got True"),
        ({"n_ctx": None}, "makes it [16, 'width of the tower']"),
        ({"n_ctx": 5}, "has shape [4, 64], but adapter_config.json makes it [5, 'width of the tower']"),
        ({"class_specific_context": True}, "has shape [4, 64], but adapter_config.json makes it [5, 4,"),
        ({"class_specific_context": 1}, "class_specific_context must be true or false, got 1"),
        ({"class_token_position": "start"}, "class_token_position must be one of end, middle, front, got 'start'"),
        ({"classnames": "cat"}, "classnames must be a list of strings"),
        ({"classnames": []}, "classnames is empty"),
        ({"classnames": None}, "one entry for each of the 0 class names"),
        ({"classnames": ["cat", 7, "b", "c", "d"]}, "class name 1 is 7 of type int"),
        ({"classnames": ["cat", "dog"]}, "one entry for each of the 2 class names, found 5 entries"),
        ({"classnames": ["\ud800", "a", "b", "c", "d"]}, "class name 0 is '\\ud800'"),
        ({"classnames": [str(i) for i in range(100_001)]}, "100001 class names given, at most 100000"),
        ({"token_ids": {"cat": 1}}, "token_ids must hold one entry for each of the 5 class names"),
        ({"token_ids": [[1, "2", 3]] * 5}, "token_ids of class name 'cat' must be 3 to 1024 ids"),
        ({"token_ids": [[189, -1, 190]] * 5}, "token_ids of class name 'cat' must be 3 to 1024 ids"),
        ({"name_lengths": [99] * 5}, "name_lengths of class name 'cat' is 99"),
        ({"ctx_init": 3}, "ctx_init must hold words"),
        ({"ctx_token_ids": [1, 2]}, "ctx_token_ids must be n_ctx=4 token ids, got [1, 2]"),
        ({"base_model_name_or_path": {"a": 1}}, "base_model_name_or_path must be a string, got {'a': 1}"),
        ({"revision": 3}, "revision must be a string, got 3"),
        ({"tokenizer_name_or_path": ["x"]}, "tokenizer_name_or_path must be a string, got ['x']"),
        ({"task_type": "CAUSAL_LM"}, "task_type must be left out, got 'CAUSAL_LM'"),
        ({"target_modules": ".*"}, "target_modules must be ['text_model'], got '.*'"),
    ],
)
def test_wrong_fields(adapter, fields, message):
    change_config(adapter, **fields)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is checked below
        read_adapter_config(adapter)
    assert str(adapter) in str(refusal.value)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "holds no JSON object, but a list"),
        (b"{}", "peft_type is None, no method of hf-coop"),
        (b'{"peft_type": ', "holds no JSON object"),
        (b"\xff\xfe\x00", "holds no JSON object"),
        (b"[" * 100_000, "holds no JSON object"),
        (b'{"peft_type": "COOP"}', "no classnames"),
        (b'{"peft_type": "COOP", "x": "' + b"a" * (33 * 2**20) + b'"}', "bytes, at most"),
    ],
    ids=range(8),
)
def test_damaged_configs(adapter, content, message):
    (adapter / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        HFCoOp.from_pretrained(adapter)
    assert message in str(refusal.value)
    assert str(adapter / CONFIG_FILE) in str(refusal.value)


def test_unknown_fields_are_ignored_with_a_warning(adapter):
    change_config(adapter, later_option=3, another="x")
    with pytest.warns(UserWarning, match="unknown fields are ignored .*'another', 'later_option'"):
        assert HFCoOp.from_pretrained(adapter).classnames == CLASSNAMES


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds 0 tensors named ctx"),
        ({CTX: torch.zeros(4, 64), "x.ctx": torch.zeros(4, 64)}, "holds 2 tensors named ctx"),
        ({CTX: torch.zeros(64)}, "has shape [64], but adapter_config.json makes it [4, "),
        ({CTX: torch.full((4, 64), float("nan"))}, f"{CTX} holds values that are not finite"),
        ({CTX: torch.zeros(4, 64, dtype=torch.int32)}, f"{CTX} is of int32: adapters hold float32"),
        ({CTX: torch.zeros(4, 64).to(torch.float8_e4m3fn)}, "is of float8_e4m3fn: adapters hold float32"),
        ({CTX: torch.full((4, 64), 3e38)}, f"{CTX} holds the value 3e+38, far beyond what is learned"),
        ({CTX: torch.zeros(4, 48)}, "has shape (4, 48), but adapter_config.json and the base model make it (4, 64)"),
        ({CTX: torch.zeros(4, 64), "lora_A.weight": torch.zeros(1)}, "unknown tensors ['lora_A.weight']"),
    ],
)
def test_wrong_weights(adapter, tensors, message):
    change_weights(adapter, **tensors)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        HFCoOp.from_pretrained(adapter)
    assert message in str(refusal.value)
    assert WEIGHTS_FILE in str(refusal.value)


@pytest.mark.parametrize("size", [0, 7, 200])
def test_truncated_weights(adapter, size):
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors(: damaged or no safetensors file| is empty)"):
        HFCoOp.from_pretrained(adapter)


def test_pickled_weights_are_refused(adapter):
    (adapter / WEIGHTS_FILE).rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"only adapter_model.bin: pickled weights can run code and are not read"):
        HFCoOp.from_pretrained(adapter)


def test_names_that_are_not_their_token_ids(adapter):
    change_config(adapter, classnames=["dog", *CLASSNAMES[1:]])
    with pytest.raises(
        ValueError, match=rf"{CONFIG_FILE}: token_ids of class name 'dog' are \[189, .*tokenizer of .* makes"
    ):
        HFCoOp.from_pretrained(adapter)


def test_token_ids_of_another_vocabulary(adapter):
    change_config(adapter, token_ids=[[49406, 2368, 269, 49407]] * 5, name_lengths=[1] * 5)
    with pytest.raises(ValueError, match=rf"{CONFIG_FILE}: the adapter's token ids \(up to 49407, end token 49407\)"):
        HFCoOp.from_pretrained(adapter)


def test_prompts_longer_than_the_tower(adapter):
    change_config(adapter, n_ctx=70)
    change_weights(adapter, **{CTX: torch.zeros(70, 64)})
    with pytest.raises(
        ValueError, match=rf"{CONFIG_FILE}: the prompt of class name 'boeing 737-800' takes 86 positions"
    ):
        HFCoOp.from_pretrained(adapter)


def test_plain_peft_refuses_too(adapter):
    clip = CLIPModel.from_pretrained(PARITY)
    change_weights(adapter, **{CTX: torch.full((4, 64), float("inf"))})
    with pytest.raises(ValueError, match="not finite numbers"):
        PeftModel.from_pretrained(clip, adapter)
    change_config(adapter, target_modules=["vision_model"])
    with pytest.raises(ValueError, match="target_modules must be"):
        PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), adapter)


def test_a_bad_second_adapter_leaves_the_model_as_it_was(sound, adapter):
    model = HFCoOp.from_pretrained(sound)
    change_weights(adapter, **{CTX: torch.zeros(4, 48)})
    with pytest.raises(ValueError, match="has shape"):
        model.load_adapter(adapter, "bad")
    assert list(model.peft_config) == ["default"]
    assert model.active_adapter == "default"
    assert list(model.prompt_layer.prompt_learner) == ["default"]


def test_an_adapter_loads_without_a_tokenizer(adapter, tmp_path):
    bare = tmp_path / "bare"
    CLIPModel.from_pretrained(PARITY).save_pretrained(bare)
    model = HFCoOp.from_pretrained(adapter, bare)
    assert model.classnames == CLASSNAMES
    assert not (bare / "tokenizer.json").exists()


@pytest.mark.parametrize("path", ["/home/author/clip", "user/missing"])
def test_a_base_model_that_is_not_here(adapter, path):
    change_config(adapter, base_model_name_or_path=path)
    with pytest.raises(OSError, match="pass the name or folder of a CLIP model as base_model_name_or_path"):
        HFCoOp.from_pretrained(adapter, local_files_only=True)


def test_nothing_in_a_config_is_a_template_or_a_path_to_write(adapter, tmp_path):
    hostile = "{{ 7*7 }} ../../evil <script> %s {0.__class__}"
    names = [hostile, *CLASSNAMES[1:]]
    change_config(adapter, classnames=names, token_ids=None, name_lengths=None, hf_coop_version="{{ 6*6 }}")
    files = set(tmp_path.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = HFCoOp.from_pretrained(adapter)
    assert model.classnames == names
    assert set(tmp_path.rglob("*")) == files
    model.save_pretrained(tmp_path / "again")
    assert "49" not in (tmp_path / "again" / "README.md").read_text().split("## Classes")[1].split("## Limits")[0]


def test_labels_follow_the_active_adapter(sound):
    model = HFCoOp.from_pretrained(sound)
    model.add_adapter("two", CoOpConfig(classnames=["red kite", "robin"], n_ctx=2))
    model.set_adapter("two")
    assert model.config.id2label == {0: "red kite", 1: "robin"}
    model.set_adapter("default")
    model.set_classnames(["sunflower", "rose"])
    assert model.config.label2id == {"sunflower": 0, "rose": 1}
    assert model.config.num_labels == 2
    model.set_adapter("two")
    model.delete_adapter("two")
    assert model.config.id2label == {0: "sunflower", 1: "rose"}


def test_a_message_stays_short(adapter):
    change_config(adapter, classnames="cat" * 10**6)
    with pytest.raises(ValueError, match="classnames must be a list of strings") as refusal:
        read_adapter_config(adapter)
    assert len(str(refusal.value)) < 2000


def test_a_pipeline_gives_what_predict_gives(sound, images):
    from transformers import pipeline

    model = HFCoOp.from_pretrained(sound)
    classify = pipeline("image-classification", model=model, image_processor=model.image_processor)
    for found, expected in zip(classify(images), model.predict(images), strict=True):
        assert [row["label"] for row in found] == [row["label"] for row in expected]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], rel=1e-5)


def test_describing_needs_no_model(adapter):
    change_config(adapter, base_model_name_or_path="user/missing", revision="abc")
    facts = describe_adapter(adapter)
    assert facts["base model"] == "user/missing at abc"
    assert facts["method"] == "CoOp"
    assert facts["classes"] == f"5: {', '.join(CLASSNAMES)}"
    assert facts["parameters"].startswith("256 ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cls": "x"}, None),  # PEFT's own reading of the config fails on it
        ({"peft_type": "KGCOOP"}, "adapter 'second' is KgCoOp, those of this model are CoOp"),
        ({"revision": "../../x"}, "revision must be the name of a branch, tag or commit, got '../../x'"),
        ({"n_ctx": 5}, "has shape"),
    ],
)
def test_a_second_adapter_names_its_file(sound, adapter, fields, message):
    model = HFCoOp.from_pretrained(sound)
    change_config(adapter, **fields)
    if message is None:
        model.load_adapter(adapter, "second", is_trainable=True)
        assert model.prompt_layer.prompt_learner["second"].ctx.requires_grad
        return
    with pytest.raises(ValueError, match=message) as refusal:
        model.load_adapter(adapter, "second")
    assert str(adapter) in str(refusal.value)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "README.md"])
@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/proc/self/maps"])
@pytest.mark.filterwarnings("ignore:.*its metadata are not readable")
def test_files_that_are_none(adapter, name, target):
    (adapter / name).unlink()
    (adapter / name).symlink_to(target)
    if name == "README.md":
        assert HFCoOp.from_pretrained(adapter).card_details.to_dict() == {}
        return
    with pytest.raises(ValueError, match=rf"{name}.* is (no plain file|empty)"):
        HFCoOp.from_pretrained(adapter)


@pytest.mark.parametrize(
    "metadata",
    [
        "\n".join(f"k{k}: [1, 2, {{a: b}}]" for k in range(60_000)),
        "\n".join(["a: &a {k: 1}", *(f"b{k}: &b{k} {{<<: [*a, *a]}}" for k in range(30))]),
        "hf_coop: !!python/object/apply:os.system ['true']",
        "hf_coop: " + "[" * 20_000,
        "hf_coop: 3",
    ],
    ids=range(5),
)
def test_cards_that_cost(adapter, metadata):
    (adapter / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.warns(UserWarning, match="its metadata are not readable and left out") as told:
        assert HFCoOp.from_pretrained(adapter).card_details.to_dict() == {}
    assert all(len(str(warning.message)) < 600 for warning in told)
