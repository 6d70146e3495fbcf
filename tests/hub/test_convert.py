"""Checkpoints of the published code: read without running anything, checked, and equal in what they compute."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PARITY, relative_error
from safetensors import safe_open
from safetensors.torch import load_file

from hf_coop import HFCoOp
from hf_coop.hub.convert import read_prompt_learner, read_torch_file

PUBLISHED = {
    "coop_end_unified_init_train": PARITY / "published/coop/prompt_learner/model.pth.tar-50",
    "cocoop_init": PARITY / "published/cocoop/prompt_learner/model.pth.tar-10",
}
COOP = PUBLISHED["coop_end_unified_init_train"]
HALF_PRECISION = 1e-3


def recorded(case: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    path = PARITY / f"{case}.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["case"])["classnames"]


CLASSNAMES = recorded("cocoop_init")[1]


def save_as_published(path: Path, model: HFCoOp, dtype: torch.dtype) -> Path:
    """The checkpoint that the published code would have written for a model."""
    words = model.clip.text_model.embeddings.token_embedding.weight.detach()
    config = model.prompt_config
    width = 77 - 1 - config.n_ctx
    suffixes = [ids[1:] + [0] * (width - len(ids) + 1) for ids in config.token_ids]
    state = OrderedDict(ctx=model.prompt_layer.active_learner.ctx.detach().to(dtype))
    state["token_prefix"] = words[torch.tensor([ids[:1] for ids in config.token_ids])].to(dtype)
    state["token_suffix"] = words[torch.tensor(suffixes)].to(dtype)
    torch.save({"state_dict": state, "epoch": 50, "val_result": None}, path)
    return path


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_checkpoints_compute_what_was_recorded(case, tmp_path):
    tensors, classnames = recorded(case)
    HFCoOp.from_published(PUBLISHED[case], PARITY, classnames).save_pretrained(tmp_path)
    model = HFCoOp.from_pretrained(tmp_path)
    assert model.prompt_config.peft_type == case.split("_")[0].upper()
    learner = model.prompt_layer.active_learner
    assert relative_error(learner.ctx, tensors["ctx"]) < HALF_PRECISION
    for name, expected in tensors.items():
        if name.startswith("meta_net."):
            assert relative_error(learner.get_parameter(name), expected) < HALF_PRECISION
    assert relative_error(model(pixel_values=tensors["pixel_values"]).logits, tensors["logits"]) < HALF_PRECISION


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["coop_end_csc_m4", "coop_middle_unified_m4", "coop_front_unified_m4"])
def test_every_option(case, dtype, tmp_path):
    tensors, classnames = recorded(case)
    position = case.split("_")[1]
    options = {"class_token_position": position, "class_specific_context": "csc" in case}
    original = HFCoOp.from_clip(PARITY, classnames, n_ctx=4, **options)
    original.prompt_layer.active_learner.ctx.data = tensors["ctx"]
    checkpoint = save_as_published(tmp_path / "model.pth.tar-50", original, dtype)
    model = HFCoOp.from_published(checkpoint, PARITY, classnames, class_token_position=position)
    assert model.prompt_config.class_specific_context == options["class_specific_context"]
    tolerance = HALF_PRECISION if dtype == torch.float16 else 1e-5
    assert relative_error(model(pixel_values=tensors["pixel_values"]).logits, tensors["logits"]) < tolerance


def test_equal_names(tmp_path, images):
    """Those of ImageNet hold two pairs, and the published code trains on them."""
    names = ["missile", "cat", "missile", "Missile"]
    with pytest.warns(UserWarning, match="same prompt"):
        original = HFCoOp.from_clip(PARITY, names, n_ctx=2).eval()
    checkpoint = save_as_published(tmp_path / "model.pth.tar-50", original, torch.float32)
    with pytest.warns(UserWarning, match=r"'missile' \(label 0\) and 'missile' \(label 2\)") as caught:
        model = HFCoOp.from_published(checkpoint, PARITY, names)
    assert len({str(warning.message) for warning in caught if "same prompt" in str(warning.message)}) == 1
    assert model.classnames == names
    assert model.predict(images) == original.predict(images)
    with pytest.raises(ValueError, match=r"class 1 is not 'missile' in the checkpoint \(there it is 'cat'\)"):
        HFCoOp.from_published(checkpoint, PARITY, ["missile", "missile", "cat", "missile"])


def test_names_in_another_order():
    swapped = [CLASSNAMES[0], CLASSNAMES[2], CLASSNAMES[1], *CLASSNAMES[3:]]
    with pytest.raises(ValueError, match=r"class 1 is not 'cat' in the checkpoint \(there it is 'English_marigold'\)"):
        HFCoOp.from_published(COOP, PARITY, swapped)


def test_other_names():
    with pytest.raises(
        ValueError, match=r"class 2 is not 'dog' in the checkpoint \(none of the class names is there\)"
    ):
        HFCoOp.from_published(COOP, PARITY, [*CLASSNAMES[:2], "dog", *CLASSNAMES[3:]])
    with pytest.raises(ValueError, match="the checkpoint has 12 classes, but 11 class names are given"):
        HFCoOp.from_published(COOP, PARITY, CLASSNAMES[:-1])


def test_a_name_that_only_begins_like_the_trained_one():
    names = [name if name != "Tiger Cat" else "Tiger" for name in CLASSNAMES]
    with pytest.raises(ValueError, match="class 3 is not 'Tiger' in the checkpoint"):
        HFCoOp.from_published(COOP, PARITY, names)


def test_another_clip(tmp_path, clip, tokenizer):
    with torch.no_grad():
        clip.text_model.embeddings.token_embedding.weight.add_(1)
    clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="word embeddings are not the model's: give the CLIP it was trained with"):
        HFCoOp.from_published(COOP, tmp_path, CLASSNAMES)


def test_cocoop_has_no_other_position():
    with pytest.raises(ValueError, match="leave out class_token_position='front'"):
        HFCoOp.from_published(PUBLISHED["cocoop_init"], PARITY, CLASSNAMES, class_token_position="front")
    with pytest.raises(ValueError, match="class_token_position must be one of"):
        HFCoOp.from_published(COOP, PARITY, CLASSNAMES, class_token_position="start")


class Runs:
    """Pickles as a call of any function, through each way that pickle has for it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def hostile_file(path: Path, payload: bytes) -> Path:
    with zipfile.ZipFile(COOP) as sound, zipfile.ZipFile(path, "w") as archive:
        for name in sound.namelist():
            archive.writestr(name, payload if name.endswith("data.pkl") else sound.read(name))
    return path


def test_nothing_that_a_pickle_names_is_imported_or_called(tmp_path):
    mark, control = tmp_path / "mark", tmp_path / "control"
    pickle.loads(pickle.dumps(Runs(open, str(control), "w")))
    assert control.exists()  # what an ordinary reader would have done
    (tmp_path / "hostile_module.py").write_text(f"open({str(mark)!r}, 'w').close()\nrun = open\n")
    payload = pickle.dumps(
        {
            "state_dict": {"ctx": Runs(exec, f"open({str(mark)!r}, 'w')")},
            "optimizer": [Runs(open, str(mark), "w"), Runs(getattr, str, "mro"), Runs(__import__, "hostile_module")],
        },
        protocol=2,
    )
    by_name = b"chostile_module\nrun\n(X\x04\x00\x00\x00markX\x01\x00\x00\x00wtR."
    instance = b"(X\x04\x00\x00\x00mark" + b"ihostile_module\nrun\n."
    paths = [
        str(hostile_file(tmp_path / f"{number}.pth", content))
        for number, content in enumerate([payload, by_name, instance])
    ]
    code = (
        "import sys; from hf_coop.hub.convert import read_torch_file\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); print([read_torch_file(path) for path in {paths!r}])\n"
        "assert 'hostile_module' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("_Placeholder") == 6
    assert not mark.exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    rebuild = b"ctorch._utils\n_rebuild_parameter\n"
    state = b"N}X\x0c\x00\x00\x00__defaults__(K\x01K\x02ts\x86b."  # BUILD with (None, {"__defaults__": (1, 2)})
    read_torch_file(hostile_file(tmp_path / "build.pth", rebuild + state))
    tensors = read_prompt_learner(COOP)
    assert tensors["ctx"].shape == (4, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"epoch": 3}), "no state_dict with ctx, token_prefix and token_suffix"),
        (pickle.dumps([1, 2]), "is no checkpoint of a prompt learner"),
        (pickle.dumps({"state_dict": dict.fromkeys(("ctx", "token_prefix", "token_suffix"), 1)}), "ctx does not hold"),
        (b"\x80\x02", "cannot be read as a checkpoint"),
        (b"garbage", "cannot be read as a checkpoint"),
    ],
    ids=range(5),
)
def test_other_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompt_learner(hostile_file(tmp_path / "model.pth", content))


def test_tensors_stay_inside_their_storage(tmp_path):
    stored = io.BytesIO()
    torch.save({"state_dict": {"ctx": torch.zeros(4)}}, stored)
    for attack in (torch.zeros(1).expand(10**6), torch.zeros(1).expand(10**12)):
        torch.save(attack, tmp_path / "big.pth")
        with pytest.raises(ValueError, match=r"in a storage of 1 values"):
            read_torch_file(tmp_path / "big.pth")


def test_files_that_torch_did_not_write(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Runs(print, "x")))
    with pytest.raises(ValueError, match=r"not in the format of torch.save since PyTorch 1.6"):
        read_torch_file(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "zipped.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"a" * 10**6)
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(tmp_path / "zipped.pth")
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "missing.pth")


def test_values_that_are_not_finite(tmp_path):
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4)
    model.prompt_layer.active_learner.ctx.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="ctx holds values that are not finite numbers"):
        HFCoOp.from_published(save_as_published(tmp_path / "nan.pth", model, torch.float32), PARITY, CLASSNAMES)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]r\xff\xff\xff\x0f.",  # a memo of 2^28 entries
        b"\x80\x02]r\x00\xca\x9a\x3b.",
        b"\x80\x02}(K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u.",  # a key that takes for ever to hash
        b"\x80\x02" + b"\x96" + b"\xff" * 6 + b"\x00\x00.",  # a byte array of 2^48 bytes
    ],
)
def test_pickles_that_cost(pickled, tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
    with pytest.raises(ValueError, match=r"model.pth.* (is no|cannot be read as a) checkpoint"):
        HFCoOp.from_published(path, PARITY, CLASSNAMES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("token_prefix", torch.tensor(1.0), r"token_prefix has shape \(\)"),
        ("token_suffix", torch.zeros(12, 64), r"token_suffix has shape \(12, 64\)"),
        ("ctx", torch.full((4, 64), 3e38), "ctx holds the value 3e"),
        ("meta_net.\x1b[31m", torch.zeros(1), "which is not what CoCoOp, CoOp, KgCoOp, ProGrad learns"),
    ],
)
def test_tensors_of_other_shapes_and_names(name, tensor, message, tmp_path):
    content = torch.load(COOP, weights_only=False)
    content["state_dict"][name] = tensor
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message) as refusal:
        HFCoOp.from_published(tmp_path / "model.pth", PARITY, CLASSNAMES)
    assert "model.pth" in str(refusal.value)
    assert str(refusal.value).isprintable()
