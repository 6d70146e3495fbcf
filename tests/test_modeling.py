"""`HFCoOp`: forward, predict, class names, the cache of class embeddings, saving and loading."""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from hf_coop import CoOpConfig, HFCoOp
from hf_coop.hub import describe_adapter


@pytest.fixture
def model() -> HFCoOp:
    torch.manual_seed(0)
    return HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4).eval()


@pytest.fixture
def encodings(model) -> list[int]:
    """Grows by the number of tokens at each run of the text tower."""
    runs: list[int] = []
    layer = model.clip.text_model.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda module, args, output: runs.append(output.shape[1]))
    return runs


def learned(model: HFCoOp) -> torch.nn.Parameter:
    return model.prompt_layer.active_learner.ctx


class TestFromClip:
    def test_from_a_folder(self, model):
        assert model.classnames == CLASSNAMES
        assert model.prompt_config.base_model_name_or_path == str(PARITY)
        assert learned(model).requires_grad
        assert sum(p.requires_grad for p in model.parameters()) == 1

    def test_from_a_loaded_model(self, clip, pixel_values):
        model = HFCoOp.from_clip(clip, ["cat", "dog"], ctx_init="a photo of a", class_token_position="front")
        assert model.clip is clip
        assert model.prompt_config.n_ctx == 4
        assert model(pixel_values=pixel_values).logits.shape == (4, 2)

    def test_the_constructor_takes_a_config(self, clip, pixel_values):
        model = HFCoOp(clip, CoOpConfig(classnames=["cat", "dog"], n_ctx=2))
        assert model(pixel_values=pixel_values).logits.shape == (4, 2)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype, model, pixel_values):
        half = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4, dtype=dtype)
        with torch.no_grad():
            learned(half).copy_(learned(model))
        output = half(pixel_values=pixel_values.to(dtype), labels=torch.tensor([0, 1, 2, 3]))
        exact = model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3]))
        assert half.clip.dtype == dtype
        assert output.logits.dtype == learned(half).dtype == torch.float32
        assert relative_error(output.logits, exact.logits) < 0.05
        output.loss.backward()
        exact.loss.backward()
        assert relative_error(learned(half).grad, learned(model).grad) < 0.2

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"classnames": []}, ValueError, "classnames is empty"),
            ({"classnames": None}, TypeError, "list of strings"),
            ({"classnames": ["cat", ""]}, ValueError, "class name 1 is blank"),
            ({"classnames": ["cat", None]}, TypeError, "class name 1 is None"),
            ({"n_ctx": 0}, ValueError, "got 0"),
            ({"class_token_position": "back"}, ValueError, "got 'back'"),
            ({"ctx_init": "  "}, ValueError, "ctx_init must hold words"),
            ({"method": "maple"}, ValueError, "method must be one of .*coop.*, got 'maple'"),
            ({"method": "lora"}, ValueError, "got 'lora'"),
        ],
    )
    def test_bad_options_are_refused_before_anything_is_loaded(self, arguments, error, message):
        with pytest.raises(error, match=message):
            HFCoOp.from_clip(**{"model": "/no/such/folder", "classnames": CLASSNAMES} | arguments)

    def test_no_such_folder(self):
        with pytest.raises(OSError, match="cannot load the model '/no/such/folder': a folder that is not on"):
            HFCoOp.from_clip("/no/such/folder", CLASSNAMES)

    def test_a_folder_of_another_kind_of_model(self, tmp_path):
        CLIPVisionModel.from_pretrained(PARITY).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="'clip_vision_model' model: hf-coop needs a CLIP"):
            HFCoOp.from_clip(tmp_path, CLASSNAMES)


class TestForward:
    def test_is_softmax_of_scaled_cosines(self, model, pixel_values):
        labels = torch.tensor([4, 0, 2, 2])
        output = model(pixel_values=pixel_values, labels=labels)
        images = model.clip.get_image_features(pixel_values).pooler_output
        classes = model.clip.text_projection(model.prompt_layer().pooler_output)
        cosines = F.cosine_similarity(images[:, None], classes[None], dim=-1)
        assert relative_error(output.logits, model.clip.logit_scale.exp() * cosines) < 1e-6
        assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))
        assert model(pixel_values=pixel_values).loss is None

    def test_equals_plain_clip(self, model, pixel_values):
        logits = model(pixel_values=pixel_values).logits
        assert relative_error(logits, model.clip(pixel_values=pixel_values).logits_per_image) < 1e-6

    def test_image_embeds_normalised_or_not(self, model, pixel_values):
        expected = model(pixel_values=pixel_values).logits
        embeds = model.clip.get_image_features(pixel_values).pooler_output
        assert torch.equal(model(image_embeds=embeds).logits, expected)
        for scaled in (F.normalize(embeds, dim=-1), embeds * 7, embeds.double()):
            assert relative_error(model(image_embeds=scaled).logits, expected) < 1e-6

    def test_gradients_reach_the_context_only(self, model, pixel_values):
        model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is not None] == [
            "base_model.model.text_model.prompt_learner.default.ctx"
        ]

    def test_input_ids_are_clips_own_forward(self, model, clip, pixel_values, tokenizer):
        texts = tokenizer(["a photo of a cat", "a dog"], padding=True, return_tensors="pt")
        expected = clip(**texts, pixel_values=pixel_values)
        assert torch.equal(model(**texts, pixel_values=pixel_values).logits_per_image, expected.logits_per_image)
        with model.disable_adapter():
            found = model(**texts, pixel_values=pixel_values)
        assert torch.equal(found.logits_per_image, expected.logits_per_image)

    def test_learned_temperature(self, pixel_values):
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4, learn_temperature=True)
        before = model(pixel_values=pixel_values).logits
        with torch.no_grad():
            model.logit_scale.add_(1)
        assert relative_error(model(pixel_values=pixel_values).logits, before * torch.tensor(1.0).exp()) < 1e-6
        assert relative_error(model.clip(pixel_values=pixel_values).logits_per_image, before * torch.e) < 1e-6

    def test_nothing_to_classify(self, model):
        with pytest.raises(ValueError, match="pixel_values or image_embeds"):
            model()
        with pytest.raises(ValueError, match=r"no images.*\(0, 3, 32, 32\)"):
            model(pixel_values=torch.zeros(0, 3, 32, 32))


class TestClassEmbeddings:
    def test_are_normalised(self, model):
        embeds = model.class_embeddings()
        assert embeds.shape == (5, 48)
        assert embeds.dtype == torch.float32
        assert torch.allclose(embeds.norm(dim=-1), torch.ones(5))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_are_computed_once_in_inference(self, model, encodings, images, pixel_values, mode):
        with mode():
            first = model.class_embeddings()
            assert len(encodings) == 1
            assert model.class_embeddings() is first
            model(pixel_values=pixel_values)
            model.clip(pixel_values=pixel_values)
            assert len(encodings) == 1

    def test_are_computed_once_over_many_predictions(self, model, encodings, images):
        for image in images:
            model.predict(image)
        model.predict(images, batch_size=1)
        assert len(encodings) == 1

    def test_of_a_loaded_model_need_no_context_manager(self, model, tmp_path, pixel_values):
        """An adapter loaded for inference has nothing to train, so the mode does not matter."""
        model.save_pretrained(tmp_path)
        loaded = HFCoOp.from_pretrained(tmp_path)
        runs = []
        loaded.clip.text_model.encoder.register_forward_hook(lambda *a: runs.append(1))
        assert torch.equal(loaded(pixel_values=pixel_values).logits, loaded(pixel_values=pixel_values).logits)
        assert loaded.class_embeddings() is loaded.class_embeddings()
        assert len(runs) == 1

    def test_carry_gradients_in_training(self, model, encodings):
        for _ in range(2):
            assert model.class_embeddings().requires_grad
        assert len(encodings) == 2

    def refreshed(self, model: HFCoOp) -> bool:
        """Whether inference now gives what a fresh computation gives."""
        with torch.no_grad():
            found = model.class_embeddings()
        return relative_error(found, model.class_embeddings()) < 1e-6

    def test_follow_an_optimizer_step(self, model, pixel_values):
        optimizer = torch.optim.SGD([learned(model)], lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                before = model.class_embeddings()
            model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
            optimizer.step()
            assert self.refreshed(model)
            assert not torch.equal(model.class_embeddings(), before)

    def test_follow_every_way_of_changing_the_context(self, model):
        with torch.no_grad():
            model.class_embeddings()
        learned(model).data = torch.randn(4, 64)
        assert self.refreshed(model)
        learned(model).data[0, 0] += 1
        assert self.refreshed(model)
        learned(model).data.mul_(2)
        assert self.refreshed(model)
        model.load_state_dict({name: x + 0.1 if name.endswith("ctx") else x for name, x in model.state_dict().items()})
        assert self.refreshed(model)

    def test_follow_class_names_and_adapters(self, model):
        with torch.no_grad():
            old = model.class_embeddings()
            model.set_classnames([*CLASSNAMES[:-1], "dog"])
            new = model.class_embeddings()
            assert torch.equal(new[:-1], old[:-1])
            assert not torch.allclose(new[-1], old[-1])
            model.set_classnames(["dog"])
            assert model.class_embeddings().shape == (1, 48)
            model.add_adapter("pets", CoOpConfig(classnames=["cat", "dog"], n_ctx=2))
            assert model.class_embeddings().shape == (1, 48)
            model.set_adapter("pets")
            assert model.classnames == ["cat", "dog"]
            assert model.class_embeddings().shape == (2, 48)
            model.set_adapter("default")
            assert model.class_embeddings().shape == (1, 48)

    def test_follow_the_dtype(self, model):
        with torch.no_grad():
            exact = model.class_embeddings()
            model.to(torch.bfloat16)
            rounded = model.class_embeddings()
            assert 0 < relative_error(rounded, exact) < 0.05
            model.to(torch.float32)
            assert 0 < relative_error(model.class_embeddings(), rounded) < 0.05
            learned(model).data = learned(model).data.double()
            assert relative_error(model.class_embeddings(), exact) < 0.05

    def test_follow_autocast(self, model):
        with torch.no_grad():
            exact = model.class_embeddings()
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.class_embeddings()
            assert 0 < relative_error(rounded, exact) < 0.05
            assert torch.equal(model.class_embeddings(), exact)

    def test_of_inference_mode_do_for_training_afterwards(self, model, images, pixel_values):
        with torch.inference_mode():
            model.predict(images)
            cached = model.class_embeddings().clone()
        with torch.no_grad():
            targets = model.class_embeddings()
        assert torch.equal(targets, cached)
        (model.class_embeddings() * targets).sum().backward()
        loss = model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss
        loss.backward()
        assert learned(model).grad.abs().max() > 0


class TestSetClassnames:
    def test_the_learned_context_on_other_classes(self, model, pixel_values, tmp_path):
        names = ["a very long name of a dog", "cow"]
        model.set_classnames(names)
        assert model.classnames == names
        fresh = HFCoOp.from_clip(PARITY, names, n_ctx=4)
        with torch.no_grad():
            learned(fresh).copy_(learned(model))
        expected = fresh(pixel_values=pixel_values).logits
        assert torch.equal(model(pixel_values=pixel_values).logits, expected)
        model.save_pretrained(tmp_path)
        loaded = HFCoOp.from_pretrained(tmp_path)
        assert loaded.classnames == names
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)

    def test_words_as_initial_context_stay_learned(self, pixel_values):
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, ctx_init="a photo of a")
        with torch.no_grad():
            learned(model).add_(1)
        before = learned(model).clone()
        model.set_classnames(["dog"])
        assert torch.equal(learned(model), before)

    @pytest.mark.parametrize(
        ("names", "error", "message"),
        [
            ([], ValueError, "empty"),
            (["dog", " "], ValueError, "class name 1 is blank"),
            (["dog", 3], TypeError, "class name 1 is 3"),
            ("dog", TypeError, "'dog'"),
            (["dog", "very " * 80 + "long"], ValueError, r"takes \d+ positions"),
        ],
    )
    def test_bad_names_leave_the_model_as_it_was(self, model, pixel_values, names, error, message):
        expected, config = model(pixel_values=pixel_values).logits, model.prompt_config.to_dict()
        with pytest.raises(error, match=message):
            model.set_classnames(names)
        assert model.prompt_config.to_dict() == config
        assert torch.equal(model(pixel_values=pixel_values).logits, expected)

    def test_a_class_specific_context_belongs_to_its_classes(self, pixel_values):
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4, class_specific_context=True)
        expected, config = model(pixel_values=pixel_values).logits, model.prompt_config.to_dict()
        with pytest.raises(ValueError, match=r"class_specific_context=True.*generic context"):
            model.set_classnames(["dog", "cow", "cat", "bird", "fish"])
        assert model.classnames == CLASSNAMES
        assert model.prompt_config.to_dict() == config
        assert torch.equal(model(pixel_values=pixel_values).logits, expected)

    def test_only_the_active_adapter_changes(self, model):
        model.add_adapter("pets", CoOpConfig(classnames=["cat", "dog"], n_ctx=2))
        model.set_adapter("pets")
        model.set_classnames(["cow", "pig", "hen"])
        model.set_adapter("default")
        assert model.classnames == CLASSNAMES

    def test_the_list_given_out_is_a_copy(self, model):
        model.classnames.append("dog")
        assert model.classnames == CLASSNAMES


class TestEqualClassnames:
    """Two names that make the same prompt are two equal columns; a warning tells of them when the prompt is made."""

    NAMES = ("missile", "cat", "missile", "Tiger_Cat", "tiger cat")

    @pytest.fixture
    def warned(self) -> HFCoOp:
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="same prompt") as caught:
            model = HFCoOp.from_clip(PARITY, self.NAMES, n_ctx=4).eval()
        (warning,) = [row for row in caught if "same prompt" in str(row.message)]
        for words in (
            "'missile' (label 0) and 'missile' (label 2)",
            "'Tiger_Cat' (label 3) and 'tiger cat' (label 4)",
        ):
            assert words in str(warning.message)
        return model

    def test_are_equal_columns(self, warned, pixel_values):
        for logits in (
            warned(pixel_values=pixel_values).logits,
            warned.clip(pixel_values=pixel_values).logits_per_image,
        ):
            assert logits.shape == (4, 5)
            assert relative_error(logits[:, 0], logits[:, 2]) < 1e-6
            assert relative_error(logits[:, 3], logits[:, 4]) < 1e-6
            assert relative_error(logits[:, 0], logits[:, 1]) > 1e-3

    def test_a_context_of_their_own_tells_them_apart(self, pixel_values):
        with pytest.warns(UserWarning, match="same prompt"):
            model = HFCoOp.from_clip(PARITY, self.NAMES, n_ctx=4, class_specific_context=True)
        logits = model(pixel_values=pixel_values).logits
        assert relative_error(logits[:, 0], logits[:, 2]) > 1e-3

    def test_predictions_hold_both(self, warned, images):
        found = [row["label"] for row in warned.predict(images[0])]
        assert sorted(found) == sorted(self.NAMES)
        assert warned.config.id2label == dict(enumerate(self.NAMES))
        assert warned.config.label2id == {"missile": 0, "cat": 1, "Tiger_Cat": 3, "tiger cat": 4}

    @pytest.mark.filterwarnings("error:class names that make the same prompt")
    def test_saving_loading_and_copies_do_not_warn_again(self, warned, images, tmp_path):
        warned.save_pretrained(tmp_path)
        loaded = HFCoOp.from_pretrained(tmp_path)
        assert loaded.classnames == list(self.NAMES)
        assert loaded.predict(images) == warned.predict(images)
        assert PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path).peft_config
        assert copy.deepcopy(loaded).classnames == list(self.NAMES)
        assert describe_adapter(tmp_path)["classes"] == f"5: {', '.join(self.NAMES)}"
        card = (tmp_path / "README.md").read_text()
        assert "| 0 | missile |\n| 1 | cat |\n| 2 | missile |" in card

    def test_the_card_tells_vectors_of_equal_names_apart(self, tmp_path):
        with pytest.warns(UserWarning, match="same prompt"):
            HFCoOp.from_clip(PARITY, self.NAMES, n_ctx=1, class_specific_context=True).save_pretrained(tmp_path)
        card = (tmp_path / "README.md").read_text()
        for owner in (r"missile \(label 0\)", "cat", r"missile \(label 2\)"):
            assert f"| {owner}, 1 |" in card

    def test_other_names_warn_of_their_own(self, model):
        with pytest.warns(UserWarning, match=r"'dog' \(label 0\) and 'Dog' \(label 1\)"):
            model.set_classnames(["dog", "Dog"])
        assert model.classnames == ["dog", "Dog"]

    def test_plain_peft_warns_too(self, clip):
        with pytest.warns(UserWarning, match=r"'dog' \(label 0\) and 'dog' \(label 1\)"):
            get_peft_model(clip, CoOpConfig(classnames=["dog", "dog"], n_ctx=2))


class TestFiles:
    @pytest.fixture
    def folder(self, model, tmp_path) -> Path:
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @pytest.mark.parametrize("options", [{}, {"class_specific_context": True}, {"class_token_position": "front"}])
    def test_round_trip_is_exact(self, options, tmp_path, images, pixel_values):
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=3, **options).eval()
        model.save_pretrained(tmp_path / "a" / "b")
        loaded = HFCoOp.from_pretrained(tmp_path / "a" / "b")
        assert isinstance(loaded, HFCoOp)
        assert loaded.predict(images) == model.predict(images)
        assert torch.equal(loaded(pixel_values=pixel_values).logits, model(pixel_values=pixel_values).logits)
        assert not loaded.training

    def test_files(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert [path.name for path in folder.parent.iterdir()] == ["adapter"]

    def test_others_may_read_them_as_the_umask_says(self, model, tmp_path):
        for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
            before = os.umask(umask)
            try:
                model.save_pretrained(tmp_path / str(umask))
            finally:
                os.umask(before)
            assert {path.stat().st_mode & 0o777 for path in (tmp_path / str(umask)).iterdir()} == {mode}

    def test_a_relative_base_model_is_found_from_elsewhere(self, tmp_path, monkeypatch, images):
        monkeypatch.chdir(PARITY.parent)
        model = HFCoOp.from_clip("parity", CLASSNAMES, n_ctx=2)
        plain = get_peft_model(CLIPModel.from_pretrained("parity"), CoOpConfig(classnames=CLASSNAMES, n_ctx=2))
        model.save_pretrained(tmp_path / "a")
        plain.save_pretrained(tmp_path / "b")
        monkeypatch.chdir(tmp_path)
        assert HFCoOp.from_pretrained("a").predict(images) == model.predict(images)
        for name in ("a", "b"):
            assert HFCoOp.from_pretrained(name).prompt_config.base_model_name_or_path == str(PARITY)
            assert describe_adapter(name)["base model"] == f"{PARITY} (a folder of this machine)"

    def test_goes_on_training(self, folder, pixel_values):
        loaded = HFCoOp.from_pretrained(folder, is_trainable=True)
        loaded(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        assert learned(loaded).grad is not None

    def test_another_base_model(self, folder, clip, model, images, tmp_path):
        assert HFCoOp.from_pretrained(folder, clip).clip is clip
        moved = tmp_path / "moved"
        shutil.copytree(PARITY, moved, ignore=shutil.ignore_patterns("co*.safetensors", "published"))
        assert HFCoOp.from_pretrained(folder, moved).predict(images) == model.predict(images)

    def test_saving_over_a_file(self, model, tmp_path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(ValueError, match=r"taken.*is a file"):
            model.save_pretrained(tmp_path / "taken")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"no {name} in") as error:
            HFCoOp.from_pretrained(folder)
        assert repr(str(folder)) in str(error.value)

    def test_pickled_weights_are_not_read(self, folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
        with pytest.raises(ValueError, match=r"only adapter_model\.bin: pickled weights can run code"):
            HFCoOp.from_pretrained(folder)

    @pytest.mark.parametrize("size", [0, 5, 100, -10])
    def test_truncated_weights(self, folder, size):
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*(damaged|is empty)"):
            HFCoOp.from_pretrained(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '"COOP"', "{}", "[" * 100_000, "\x00"])
    def test_damaged_config(self, folder, text):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"adapter_config\.json(:| holds no JSON object| is empty)"):
            HFCoOp.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("peft_type", "LORA", "peft_type is 'LORA'"),
            ("peft_type", ["COOP"], r"peft_type is \['COOP'\]"),
            ("classnames", [], "empty"),
            ("classnames", None, "each of the 0 class names, found 5"),
            ("classnames", CLASSNAMES[:-1], "each of the 4 class names, found 5"),
            ("classnames", [*CLASSNAMES[:-1], 3], "class name 4 is 3"),
            ("n_ctx", -1, "n_ctx.*-1"),
            ("n_ctx", None, r"ctx has shape .4, 64.* makes it .16, "),
            ("class_token_position", "top", "'top'"),
            ("token_ids", "abc", "token_ids.*'abc'"),
            ("token_ids", None, "token_ids"),
            ("name_lengths", None, "name_lengths"),
            ("token_ids", [[189, 10**9, 190]] * 5, "1000000000"),
            ("token_ids", [[189, -7, 190]] * 5, "token_ids of class name 'cat'"),
            ("token_ids", [[189, *[5] * 20, 6]] * 5, "up to 189, end token 6"),
            ("token_ids", [[189, *[5] * 20, 190]] * 4 + [[189, *[5] * 20, 6]], r"\(189, 6\), \(189, 190\)"),
            ("name_lengths", [99] * 5, "name_lengths of class name 'cat' is 99"),
            ("class_specific_context", True, r"ctx has shape .4, 64.* makes it .5, 4, "),
            ("learn_temperature", True, "missing tensors.*logit_scale"),
        ],
    )
    def test_mismatched_config(self, folder, field, value, message):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
        with pytest.raises((ValueError, TypeError), match=message):
            HFCoOp.from_pretrained(folder)

    def test_fields_of_a_later_version_are_named_and_ignored(self, folder, images, model):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"novelty": 1}))
        with pytest.warns(UserWarning, match="'novelty'"):
            assert HFCoOp.from_pretrained(folder).predict(images) == model.predict(images)

    def test_weights_that_do_not_fit(self, folder):
        path = folder / "adapter_model.safetensors"
        save_file({name: x[:2].clone() for name, x in load_file(path).items()}, path)
        with pytest.raises(ValueError, match=r"ctx has shape .2, 64.* makes it .4, "):
            HFCoOp.from_pretrained(folder)

    def test_no_such_adapter(self):
        with pytest.raises((OSError, ValueError), match="no-such-adapter"):
            HFCoOp.from_pretrained("./no-such-adapter", local_files_only=True)

    def test_base_model_that_was_local_to_the_author(self, folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/home/ann/clip"}))
        with pytest.raises(OSError, match=r"'/home/ann/clip'.*local to the author.*base_model_name_or_path"):
            HFCoOp.from_pretrained(folder)

    def test_base_model_unknown(self, tmp_path):
        nameless = CLIPModel(CLIPConfig.from_pretrained(PARITY))
        HFCoOp.from_clip(nameless, CLASSNAMES, tokenizer_name_or_path=str(PARITY)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="does not say its base model"):
            HFCoOp.from_pretrained(tmp_path)
        assert HFCoOp.from_pretrained(tmp_path, nameless).classnames == CLASSNAMES


@pytest.mark.parametrize("part", ["text_model.base_layer.encoder.layers.0.mlp.fc1", "text_projection"])
def test_class_embeddings_follow_a_change_of_clip(part):
    """They are kept between calls; other weights in the tower or the projection make others."""
    model = HFCoOp.from_clip(CLIPModel.from_pretrained(PARITY), CLASSNAMES, n_ctx=2).eval()
    with torch.no_grad():
        before = model.class_embeddings().clone()
        assert torch.equal(model.class_embeddings(), before)
        model.clip.get_submodule(part).weight.mul_(-1)
        assert not torch.allclose(model.class_embeddings(), before)


def test_print_says_what_it_is(model):
    assert repr(model).splitlines() == [
        *("HFCoOp(", "  method   CoOp", f"  classes  5: {', '.join(CLASSNAMES)}", "  context  4 vectors"),
        *(f"  base     {PARITY}", "  device   cpu, torch.float32", ")"),
    ]
    model.add_adapter("other", CoOpConfig(classnames=[f"class {k}" for k in range(1000)], n_ctx=2))
    model.set_adapter("other")
    assert "  adapters default, other; active: other" in repr(model)
    assert "class 9 … (1000)" in repr(model)
    model.delete_adapter("other")
    model.delete_adapter("default")
    assert repr(model) == f"HFCoOp(no adapter, base={str(PARITY)!r})"


def test_warnings_of_other_libraries_stay_away():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2)
