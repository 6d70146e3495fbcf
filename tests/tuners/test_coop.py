"""CoOp as a PEFT method: what the published code computes, and what PEFT users expect, on a plain CLIPModel."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import peft
import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, SiglipConfig, SiglipModel

from hf_coop import CoOpConfig, HFCoOp

CASES = {path.stem: path for path in sorted(PARITY.glob("coop_*.safetensors"))}
CONFIG_FIELDS = ("classnames", "n_ctx", "ctx_init", "class_specific_context", "class_token_position")


def adapted(clip: CLIPModel, classnames=CLASSNAMES, n_ctx: int | None = 4, **kwargs) -> PeftModel:
    return get_peft_model(clip, CoOpConfig(classnames=classnames, n_ctx=n_ctx, **kwargs))


def learned(model: PeftModel, adapter: str = "default") -> torch.nn.Parameter:
    return model.get_base_model().text_model.prompt_learner[adapter].ctx


def adapter_file(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def saved(clip, tmp_path) -> Path:
    """A folder with an adapter of 5 classes."""
    torch.manual_seed(0)
    adapted(clip).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class TestParity:
    """The published code's recorded numbers, `parity/README.md`."""

    @pytest.fixture(params=CASES, ids=str)
    def case(self, request) -> tuple[dict, dict[str, torch.Tensor]]:
        with safe_open(CASES[request.param], "pt") as file:
            return json.loads(file.metadata()["case"]), load_file(CASES[request.param])

    def test_there_are_cases(self):
        assert len(CASES) == 5

    @pytest.mark.parametrize("way", ["peft", "hf_coop"])
    def test_features_logits_loss_and_gradients(self, clip, case, way):
        options, tensors = case
        config = CoOpConfig(**{name: options[name] for name in CONFIG_FIELDS if name != "n_ctx"}, n_ctx=None)
        if options["ctx_init"] is None:
            config.n_ctx = options["n_ctx"]
        model = get_peft_model(clip, config) if way == "peft" else HFCoOp(clip, config)
        ctx = learned(model)
        assert ctx.shape == tensors["ctx"].shape
        if options["ctx_init"] is not None:
            assert torch.equal(ctx, tensors["ctx_initial"])
        with torch.no_grad():
            ctx.copy_(tensors["ctx"])

        features = clip.text_projection(clip.text_model().pooler_output)
        if way == "peft":
            logits = model(pixel_values=tensors["pixel_values"]).logits_per_image
            loss = F.cross_entropy(logits, tensors["labels"])
        else:
            output = model(pixel_values=tensors["pixel_values"], labels=tensors["labels"])
            logits, loss = output.logits, output.loss
        loss.backward()
        assert relative_error(features, tensors["text_features"]) < 1e-5
        assert relative_error(logits, tensors["logits"]) < 1e-5
        assert relative_error(loss, tensors["loss"]) < 1e-5
        assert relative_error(ctx.grad, tensors["ctx_grad"]) < 1e-5

    @pytest.mark.parametrize("way", ["peft", "hf_coop"])
    def test_training_run(self, clip, way):
        """The published recipe by hand: SGD over the batches, a constant first epoch, then cosine."""
        path = CASES["coop_end_unified_init_train"]
        with safe_open(path, "pt") as file:
            options = json.loads(file.metadata()["case"])
        tensors = load_file(path)
        config = CoOpConfig(classnames=options["classnames"], ctx_init=options["ctx_init"])
        model = get_peft_model(clip, config) if way == "peft" else HFCoOp(clip, config)
        with torch.no_grad():
            learned(model).copy_(tensors["ctx"])
        optimizer = torch.optim.SGD([learned(model)], lr=options["train"]["lr"], momentum=0.9, weight_decay=5e-4)
        losses = []
        for lr in tensors["train_lr_per_epoch"].tolist():
            optimizer.param_groups[0]["lr"] = lr
            for pixel_values, labels in zip(tensors["train_pixel_values"], tensors["train_labels"], strict=True):
                if way == "peft":
                    loss = F.cross_entropy(model(pixel_values=pixel_values).logits_per_image, labels)
                else:
                    loss = model(pixel_values=pixel_values, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        assert relative_error(torch.stack(losses), tensors["train_loss_per_step"]) < 1e-5
        moved = tensors["ctx_trained"] - tensors["ctx"]
        assert relative_error(learned(model) - tensors["ctx"], moved) < 1e-3
        assert relative_error(learned(model), tensors["ctx_trained"]) < 1e-5


class TestInitialContext:
    def test_random_is_normal_with_the_published_deviation_and_follows_the_seed(self):
        clips = [CLIPModel.from_pretrained(PARITY) for _ in range(3)]
        contexts = []
        for clip, seed in zip(clips, (0, 0, 1), strict=True):
            torch.manual_seed(seed)
            contexts.append(learned(adapted(clip, n_ctx=16, class_specific_context=True)).detach())
        assert torch.equal(contexts[0], contexts[1])
        assert not torch.equal(contexts[0], contexts[2])
        assert contexts[0].shape == (5, 16, 64)
        assert 0.019 < contexts[0].std() < 0.021
        assert abs(contexts[0].mean()) < 0.001

    def test_words(self, clip, tokenizer):
        ids = tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
        model = adapted(clip, n_ctx=None, ctx_init="a photo of a")
        assert torch.equal(learned(model), clip.text_model.embeddings.token_embedding.weight[ids])
        assert model.peft_config["default"].n_ctx == len(ids)

    def test_words_for_each_class(self, clip):
        ctx = learned(adapted(clip, n_ctx=None, ctx_init="a_photo  of a", class_specific_context=True))
        assert ctx.shape == (5, 4, 64)
        assert (ctx == ctx[0]).all()

    def test_n_ctx_defaults_to_16(self, clip):
        assert learned(adapted(clip, n_ctx=None)).shape == (16, 64)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_stays_in_fp32_on_a_half_precision_tower(self, dtype, tmp_path, pixel_values):
        model = adapted(CLIPModel.from_pretrained(PARITY, dtype=dtype))
        model(pixel_values=pixel_values).logits_per_image.float().sum().backward()
        assert learned(model).dtype == learned(model).grad.dtype == torch.float32
        model.save_pretrained(tmp_path)
        (tensor,) = adapter_file(tmp_path).values()
        assert tensor.dtype == torch.float32
        loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY, dtype=dtype), tmp_path)
        assert torch.equal(learned(loaded), learned(model))


class TestOrdinaryEncoding:
    """Text and images through an adapted model are, bit for bit, what they are without it."""

    @pytest.fixture
    def ordinary(self, tokenizer, pixel_values):
        texts = tokenizer(["a photo of a cat.", "a dog"], padding=True, return_tensors="pt")

        def encode(model) -> list[torch.Tensor]:
            with torch.no_grad():
                joint = model(**texts, pixel_values=pixel_values)
                base = model.get_base_model() if isinstance(model, PeftModel) else model
                return [
                    joint.logits_per_image,
                    joint.text_embeds,
                    joint.image_embeds,
                    base.get_text_features(**texts).pooler_output,
                    base.get_image_features(pixel_values).pooler_output,
                ]

        return encode

    @staticmethod
    def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, found, expected))

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_on_off_and_after_unload(self, ordinary, attention, pixel_values):
        clip = CLIPModel.from_pretrained(PARITY, attn_implementation=attention)
        expected = ordinary(clip)
        model = adapted(clip)
        assert self.same(ordinary(model), expected)
        model(pixel_values=pixel_values).logits_per_image.sum().backward()
        assert self.same(ordinary(model), expected)
        with model.disable_adapter():
            assert self.same(ordinary(model), expected)
        unloaded = model.unload()
        assert isinstance(unloaded, CLIPModel)
        assert type(unloaded.text_model).__name__ == "CLIPTextModel"
        assert self.same(ordinary(unloaded), expected)

    def test_with_a_learned_temperature(self, clip, ordinary):
        """The learned temperature is of the class prompts; logits of ordinary texts keep CLIP's own."""
        expected = ordinary(clip)
        model = adapted(clip, learn_temperature=True)
        with torch.no_grad():
            clip.text_model.prompt_learner["default"].logit_scale.add_(1)
        assert self.same(ordinary(model), expected)

    def test_after_unloading_the_weights_are_as_they_were(self, clip, pixel_values):
        before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
        model = adapted(clip)
        model(pixel_values=pixel_values).logits_per_image.sum().backward()
        after = model.unload().state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_unloaded_model_takes_a_new_adapter(self, clip, pixel_values):
        adapted(clip, learn_temperature=True).unload()
        model = adapted(clip, ["cat", "dog"])
        assert model(pixel_values=pixel_values).logits_per_image.shape == (4, 2)


class TestLearnedTemperature:
    def test_scales_the_logits_of_the_unmodified_forward_and_is_trained(self, clip, pixel_values, tmp_path):
        model = adapted(clip, learn_temperature=True)
        scale = clip.text_model.prompt_learner["default"].logit_scale
        before = model(pixel_values=pixel_values).logits_per_image
        with torch.no_grad():
            scale.add_(0.5)
        output = model(pixel_values=pixel_values)
        assert relative_error(output.logits_per_image, before * torch.tensor(0.5).exp()) < 1e-6
        assert torch.equal(output.logits_per_text, output.logits_per_image.T)
        F.cross_entropy(output.logits_per_image, torch.tensor([0, 1, 2, 3])).backward()
        assert scale.grad.abs() > 0
        assert clip.logit_scale.grad is None
        model.save_pretrained(tmp_path)
        assert {name.rsplit(".", 1)[-1] for name in adapter_file(tmp_path)} == {"ctx", "logit_scale"}
        loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path)
        assert torch.equal(loaded(pixel_values=pixel_values).logits_per_image, output.logits_per_image)

    def test_belongs_to_its_adapter(self, clip, pixel_values):
        model = adapted(clip, learn_temperature=True)
        with torch.no_grad():
            clip.text_model.prompt_learner["default"].logit_scale.add_(1)
        model.add_adapter("plain", CoOpConfig(classnames=CLASSNAMES, n_ctx=4))
        with torch.no_grad():
            learned(model, "plain").copy_(learned(model))
        hot = model(pixel_values=pixel_values).logits_per_image
        model.set_adapter("plain")
        plain = model(pixel_values=pixel_values).logits_per_image
        assert relative_error(hot, plain * torch.tensor(1.0).exp()) < 1e-6


class TestPeftBehaviour:
    def test_print_trainable_parameters(self, clip, capsys):
        adapted(clip).print_trainable_parameters()
        assert "trainable params: 256 ||" in capsys.readouterr().out

    def test_only_the_context_is_trained(self, clip):
        model = adapted(clip)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "base_model.model.text_model.prompt_learner.default.ctx"
        ]

    def test_several_adapters_with_different_classes(self, clip, pixel_values):
        model = adapted(clip)
        first = model(pixel_values=pixel_values).logits_per_image
        model.add_adapter("pets", CoOpConfig(classnames=["cat", "dog"], n_ctx=3))
        assert model.active_adapters == ["default"]
        assert torch.equal(model(pixel_values=pixel_values).logits_per_image, first)
        model.set_adapter("pets")
        assert model(pixel_values=pixel_values).logits_per_image.shape == (4, 2)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "base_model.model.text_model.prompt_learner.pets.ctx"
        ]
        model.set_adapter("default")
        assert torch.equal(model(pixel_values=pixel_values).logits_per_image, first)
        model.delete_adapter("pets")
        assert "pets" not in clip.text_model.prompt_learner
        assert not any("pets" in name for name in model.state_dict())
        assert torch.equal(model(pixel_values=pixel_values).logits_per_image, first)

    def test_deleting_the_active_adapter_activates_another(self, clip, pixel_values):
        model = adapted(clip)
        model.add_adapter("pets", CoOpConfig(classnames=["cat", "dog"], n_ctx=3))
        with pytest.warns(UserWarning, match="default"):
            model.delete_adapter("default")
        assert model(pixel_values=pixel_values).logits_per_image.shape == (4, 2)

    def test_disabled_adapter_gives_no_class_prompts(self, clip, pixel_values, tokenizer):
        model = adapted(clip)
        expected = model(pixel_values=pixel_values).logits_per_image
        texts = tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
        with model.disable_adapter():
            assert model(**texts, pixel_values=pixel_values).logits_per_image.shape == (4, 2)
            with pytest.raises(ValueError, match="input_ids"):
                model(pixel_values=pixel_values)
        assert torch.equal(model(pixel_values=pixel_values).logits_per_image, expected)

    def test_load_adapter(self, saved, pixel_values):
        fresh = CLIPModel.from_pretrained(PARITY)
        expected = PeftModel.from_pretrained(fresh, saved)(pixel_values=pixel_values).logits_per_image
        model = adapted(CLIPModel.from_pretrained(PARITY), ["cat", "dog"])
        model.load_adapter(saved, "flowers")
        model.set_adapter("flowers")
        assert torch.equal(model(pixel_values=pixel_values).logits_per_image, expected)

    def test_merging_is_refused(self, clip):
        model = adapted(clip)
        with pytest.raises(ValueError, match=r"cannot be merged.*unload\(\)"):
            model.merge_and_unload()
        with pytest.raises((ValueError, NotImplementedError)):
            model.merge_adapter()
        assert model.get_base_model().text_model.prompt_learner["default"].ctx.requires_grad

    def test_copies_are_independent(self, clip, pixel_values):
        model = adapted(clip, learn_temperature=True)
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).logits_per_image
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                assert torch.equal(copied(pixel_values=pixel_values).logits_per_image, expected)
                copied.get_base_model().text_model.prompt_learner["default"].logit_scale.add_(1)
                learned(copied).zero_()
                assert not torch.equal(copied(pixel_values=pixel_values).logits_per_image, expected)
                assert torch.equal(model(pixel_values=pixel_values).logits_per_image, expected)

    def test_another_peft_method_beside_it(self, clip, pixel_values):
        """A LoRA on CLIP's vision tower trains under the prompts of the text tower."""
        lora = LoraConfig(r=2, target_modules=r"vision_model.*q_proj")
        clip = get_peft_model(clip, lora).merge_and_unload()
        assert adapted(clip)(pixel_values=pixel_values).logits_per_image.shape == (4, 5)


class TestFiles:
    def test_round_trip_is_exact(self, clip, tmp_path, pixel_values):
        model = adapted(clip, class_token_position="middle")
        expected = model(pixel_values=pixel_values).logits_per_image
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path)
        assert torch.equal(loaded(pixel_values=pixel_values).logits_per_image, expected)
        assert not learned(loaded).requires_grad
        trainable = PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path, is_trainable=True)
        assert learned(trainable).requires_grad

    @pytest.mark.parametrize("csc", [False, True])
    def test_low_cpu_mem_usage(self, clip, tmp_path, pixel_values, csc):
        model = adapted(clip, class_specific_context=csc, learn_temperature=True)
        expected = model(pixel_values=pixel_values).logits_per_image
        model.save_pretrained(tmp_path)
        base = CLIPModel.from_pretrained(PARITY)
        loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=True)
        assert learned(loaded).device.type == "cpu"
        assert torch.equal(loaded(pixel_values=pixel_values).logits_per_image, expected)

    def test_the_file_holds_what_was_learned_and_no_more(self, saved):
        tensors = adapter_file(saved)
        assert [name.rsplit(".", 1)[-1] for name in tensors] == ["ctx"]
        assert sum(path.stat().st_size for path in saved.glob("*.safetensors")) < 4 * 64 * 4 + 1024
        assert not list(saved.glob("*.bin"))

    def test_the_config_says_all_that_is_needed_without_a_tokenizer(self, saved, tokenizer, pixel_values):
        config = json.loads((saved / "adapter_config.json").read_text())
        assert config["peft_type"] == "COOP"
        assert config["classnames"] == CLASSNAMES
        assert config["base_model_name_or_path"] == str(PARITY)
        assert config["token_ids"] == tokenizer([f"{name.replace('_', ' ')}." for name in CLASSNAMES])["input_ids"]
        nameless = CLIPModel(CLIPConfig.from_pretrained(PARITY)).eval()
        assert not nameless.name_or_path
        assert PeftModel.from_pretrained(nameless, saved)(pixel_values=pixel_values).logits_per_image.shape == (4, 5)

    def test_saving_twice_gives_the_same_bytes(self, clip, tmp_path):
        model = adapted(clip, learn_temperature=True)
        model.save_pretrained(tmp_path / "one")
        model.save_pretrained(tmp_path / "two")
        names = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names)
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: {}, r"missing tensors \['base_model.model.text_model.prompt_learner.ctx'\]"),
            (lambda t: t | {"base_model.model.logit_scale": torch.ones(())}, "unknown tensors.*logit_scale"),
            (lambda t: {name: x[:3].clone() for name, x in t.items()}, r"shape \(3, 64\).*make it \(4, 64\)"),
            (lambda t: {name: x * float("nan") for name, x in t.items()}, "not finite"),
            (lambda t: {name: x.to(torch.int32) for name, x in t.items()}, "is of int32: adapters hold"),
        ],
        ids=["missing", "unknown", "shape", "nan", "integers"],
    )
    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_tensors_that_do_not_fit(self, saved, change, message, low_cpu_mem_usage):
        save_file(change(adapter_file(saved)), saved / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), saved, low_cpu_mem_usage=low_cpu_mem_usage)

    def test_base_model_of_another_width(self, saved):
        config = CLIPConfig.from_pretrained(PARITY)
        config.text_config.hidden_size = 32
        with pytest.raises(ValueError, match=r"shape \(4, 64\).*make it \(4, 32\)"):
            PeftModel.from_pretrained(CLIPModel(config), saved)

    def test_base_model_with_another_tokenizer(self, saved):
        config = CLIPConfig.from_pretrained(PARITY)
        config.text_config.vocab_size = 100
        with pytest.raises(ValueError, match=r"up to 190.*100 tokens.*another tokenizer"):
            PeftModel.from_pretrained(CLIPModel(config), saved)


class TestBadConfig:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"classnames": []}, ValueError, "classnames is empty"),
            ({"classnames": "cat"}, TypeError, "list of strings.*'cat'"),
            ({"classnames": ["cat", " "]}, ValueError, "class name 1 is blank"),
            ({"classnames": ["cat", 3]}, TypeError, "class name 1 is 3 of type int"),
            ({"n_ctx": 0}, ValueError, r"n_ctx must be a whole number from 1 .*got 0"),
            ({"n_ctx": -4}, ValueError, "got -4"),
            ({"n_ctx": 2.5}, ValueError, "got 2.5"),
            ({"n_ctx": "4"}, ValueError, "got '4'"),
            ({"n_ctx": True}, ValueError, "got True"),
            ({"ctx_init": ""}, ValueError, "ctx_init must hold words.*got ''"),
            ({"ctx_init": " _ "}, ValueError, "got ' _ '"),
            ({"ctx_init": 4}, ValueError, "ctx_init must hold words.*got 4"),
            ({"class_token_position": "start"}, ValueError, "end, middle, front, got 'start'"),
            ({"class_token_position": None}, ValueError, "got None"),
            ({"class_specific_context": "yes"}, TypeError, "class_specific_context must be true or false, got 'yes'"),
            ({"learn_temperature": 1}, TypeError, "learn_temperature must be true or false, got 1"),
        ],
    )
    def test_at_construction(self, options, error, message):
        with pytest.raises(error, match=message):
            CoOpConfig(**{"classnames": CLASSNAMES} | options)

    def test_no_classnames(self, clip):
        with pytest.raises(ValueError, match="no classnames"):
            get_peft_model(clip, CoOpConfig(n_ctx=4))

    def test_n_ctx_in_conflict_with_ctx_init(self, clip):
        with pytest.raises(ValueError, match="n_ctx=16 is in conflict with ctx_init='a photo of a', which is 4"):
            adapted(clip, n_ctx=16, ctx_init="a photo of a")
        assert type(clip.text_model).__name__ == "CLIPTextModel"

    @pytest.mark.parametrize(("n_ctx", "name"), [(4, "cat " * 90), (74, "boeing 737-800"), (1000, "boeing 737-800")])
    def test_too_long(self, clip, n_ctx, name):
        with pytest.raises(ValueError, match=r"takes \d+ positions.*has 77: shorten the name or lower n_ctx") as error:
            adapted(clip, ["cat", name], n_ctx=n_ctx)
        assert repr(name)[:80] in str(error.value)
        assert type(clip.text_model).__name__ == "CLIPTextModel"

    def test_not_a_clip(self):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision = sizes | {"image_size": 16, "patch_size": 8}
        siglip = SiglipModel(SiglipConfig(text_config=sizes | {"vocab_size": 50}, vision_config=vision))
        with pytest.raises(ValueError, match=r"causal text tower.*got SiglipModel"):
            adapted(siglip)
        with pytest.raises(ValueError, match="got CLIPVisionModel"):
            adapted(CLIPVisionModel.from_pretrained(PARITY))

    def test_no_tokenizer(self):
        nameless = CLIPModel(CLIPConfig.from_pretrained(PARITY))
        with pytest.raises(ValueError, match=r"no tokenizer found at ''.*tokenizer_name_or_path"):
            adapted(nameless)
        assert learned(adapted(nameless, tokenizer_name_or_path=str(PARITY))).shape == (4, 64)

    def test_a_folder_without_a_tokenizer(self, clip, tmp_path):
        clip.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="no tokenizer found at") as error:
            adapted(CLIPModel.from_pretrained(tmp_path))
        assert repr(str(tmp_path)) in str(error.value)

    def test_a_tokenizer_of_another_model(self):
        config = CLIPConfig.from_pretrained(PARITY)
        config.text_config.vocab_size = 60
        with pytest.raises(ValueError, match="60 tokens"):
            adapted(CLIPModel(config), tokenizer_name_or_path=str(PARITY))

    def test_two_active_adapters(self, clip, pixel_values):
        model = adapted(clip)
        model.add_adapter("other", CoOpConfig(classnames=["cat", "dog"]))
        model.base_model.set_adapter(["default", "other"])
        with pytest.raises(ValueError, match=r"exactly one.*\['default', 'other'\]"):
            model(pixel_values=pixel_values)

    def test_registered_under_its_own_name(self):
        assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["COOP"] is CoOpConfig
