"""What PEFT's own tests ask of every tuner, of each method, as a plain PeftModel and as HFCoOp.

The list is `testing_common.py` of PEFT's tests. What makes no sense for prompts is refused with a clear error.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from datasets.fingerprint import Hasher
from packaging.version import parse
from peft import (
    PeftConfig,
    PeftModel,
    get_base_model_state_dict,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel
from transformers.integrations import peft as transformers_peft

from hf_coop import HFCoOp
from hf_coop.tuners.config import PromptConfig, registered_configs
from hf_coop.tuners.layer import PromptLayer

LABELS = torch.tensor([0, 1, 2, 3])
PREFIX = "base_model.model.text_model.prompt_learner"
WAYS: dict[str, Callable[..., PeftModel]] = {"peft": get_peft_model, "hf_coop": HFCoOp}


@pytest.fixture(params=registered_configs(), ids=lambda config: config.label)
def method(request) -> type[PromptConfig]:
    return request.param


@pytest.fixture(params=WAYS)
def way(request) -> str:
    return request.param


@pytest.fixture
def config(method) -> PromptConfig:
    return method(classnames=CLASSNAMES, learn_temperature=True)


@pytest.fixture
def model(clip, config, way) -> PeftModel:
    """A model whose adapter is far from where adapters start."""
    model = WAYS[way](clip, config)
    scatter(clip.text_model)
    return model


@pytest.fixture
def saved(clip, config, tmp_path) -> Path:
    """The folder of an adapter."""
    model = HFCoOp(clip, config)
    scatter(model.prompt_layer)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def fresh_clip(**kwargs) -> CLIPModel:
    return CLIPModel.from_pretrained(PARITY, **kwargs)


@torch.no_grad()
def scatter(layer: PromptLayer, seed: int = 0, adapter: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.prompt_learner[adapter].parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


@torch.no_grad()
def features(model: torch.nn.Module) -> torch.Tensor:
    """What the active adapter makes of the class names: `(2, K, dim)` for two images, or `(K, dim)`."""
    clip = model.get_base_model() if isinstance(model, PeftModel) else model
    images = torch.randn(2, clip.config.projection_dim, generator=torch.Generator().manual_seed(1))
    return clip.text_model.encode_classes(F.normalize(images, dim=-1).to(clip.dtype))


def learned(model: torch.nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    clip = model.get_base_model() if isinstance(model, PeftModel) else model
    return dict(clip.text_model.prompt_learner[adapter].named_parameters())


def assert_same_learned(found: torch.nn.Module, folder: Path, adapter: str = "default") -> None:
    file = load_file(folder / "adapter_model.safetensors")
    expected = {name.removeprefix(f"{PREFIX}."): tensor for name, tensor in file.items()}
    tensors = learned(found, adapter)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


class TestSavingAndLoading:
    def test_round_trip(self, model, way, tmp_path, recwarn):
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            *("adapter_config.json", "adapter_model.safetensors", "README.md")
        }
        loaded = PeftModel.from_pretrained(fresh_clip(), tmp_path)
        assert torch.equal(features(loaded), features(model))
        assert not [warning for warning in recwarn if "missing adapter keys" in str(warning.message)]

    def test_selected_adapters_whose_names_are_alike(self, model, config, tmp_path):
        names = ["default2", "other_default", "efaul"]
        for name in names:
            model.add_adapter(name, copy.deepcopy(config))
        model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
        assert not [path for path in (tmp_path / "one").iterdir() if path.is_dir()]
        assert_same_learned(model, tmp_path / "one")
        model.save_pretrained(tmp_path / "all")
        for name in names:
            assert_same_learned(model, tmp_path / "all" / name, name)

    def test_several_are_loaded(self, saved, way):
        if way == "peft":
            model = PeftModel.from_pretrained(fresh_clip(), saved, torch_device="cpu")
        else:
            model = HFCoOp.from_pretrained(saved, torch_device="cpu")
        for name in ("other", "yet-another"):
            assert model.load_adapter(saved, adapter_name=name).missing_keys == []
            model.set_adapter(name)
            assert_same_learned(model, saved, name)

    def test_low_cpu_mem_usage(self, saved, way):
        if way == "peft":
            model = PeftModel.from_pretrained(fresh_clip(), saved, low_cpu_mem_usage=True)
        else:
            model = HFCoOp.from_pretrained(saved, low_cpu_mem_usage=True)
        model.load_adapter(saved, "other", low_cpu_mem_usage=True)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        assert_same_learned(model, saved, "other")

    def test_a_config_is_taken_instead_of_the_file(self, saved, way):
        config = PeftConfig.from_pretrained(saved)
        if way == "peft":
            model = PeftModel.from_pretrained(fresh_clip(), saved, config=config)
        else:
            config.base_model_name_or_path = None  # then the file's
            model = HFCoOp.from_pretrained(saved, config=config)
        assert model.peft_config["default"] is config
        assert config.inference_mode
        assert_same_learned(model, saved)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_without_autocast_the_adapter_has_the_models_dtype(self, config, saved, way, dtype):
        model = WAYS[way](fresh_clip(dtype=dtype), config, autocast_adapter_dtype=False)
        model.add_adapter("added", copy.deepcopy(config), autocast_adapter_dtype=False)
        model.load_adapter(saved, "loaded", autocast_adapter_dtype=False)
        for name in ("default", "added", "loaded"):
            assert {parameter.dtype for parameter in learned(model, name).values()} == {dtype}
        if way == "hf_coop":
            loaded = HFCoOp.from_pretrained(saved, dtype=dtype, autocast_adapter_dtype=False)
            assert {parameter.dtype for parameter in learned(loaded).values()} == {dtype}

    def test_state_dict_functions(self, model, config, way):
        other = WAYS[way](fresh_clip(), copy.deepcopy(config))
        assert not torch.equal(features(other), features(model))
        tensors = get_peft_model_state_dict(model)
        assert {name.rpartition("prompt_learner.")[2] for name in tensors} == learned(model).keys()
        assert not set_peft_model_state_dict(other, tensors).unexpected_keys
        assert torch.equal(features(other), features(model))

    def test_base_model_state_dict_functions(self, model):
        plain = fresh_clip().state_dict()
        with torch.no_grad():
            for parameter in model.get_base_model().text_model.base_layer.parameters():
                parameter.add_(1)
        result = set_base_model_state_dict(model, plain)
        assert not result.missing_keys
        assert not result.unexpected_keys
        found = get_base_model_state_dict(model)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)

    def test_hotswap_is_refused(self, model, saved, method):
        with pytest.raises(ValueError, match=f"only supports LORA but {method.label.upper()} was passed"):
            hotswap_adapter(model, str(saved), "default")


@pytest.mark.skipif(
    parse(peft.__version__) < parse(getattr(transformers_peft, "MIN_PEFT_VERSION", "0")),
    reason="this transformers asks for a PEFT that was not yet released",  # 5.24 for 0.22
)
class TestTransformersOwnWays:
    """`CLIPModel.load_adapter`, `from_pretrained` of an adapter folder and the rest of its PEFT mixin."""

    def test_load_adapter(self, clip, saved):
        clip.load_adapter(str(saved))
        clip.load_adapter(str(saved), adapter_name="other")
        assert_same_learned(clip, saved)
        assert_same_learned(clip, saved, "other")
        with pytest.raises(ValueError, match="default already exists"):
            clip.load_adapter(str(saved))

    @pytest.mark.parametrize("auto_class", [CLIPModel, AutoModel])
    def test_from_pretrained_of_an_adapter_folder(self, saved, auto_class):
        model = auto_class.from_pretrained(saved)
        assert model.active_adapters() == ["default"]
        assert_same_learned(model, saved)
        assert torch.equal(features(model), features(HFCoOp.from_pretrained(saved)))
        tensors = model.get_adapter_state_dict()
        assert {name.removeprefix("text_model.prompt_learner.") for name in tensors} == learned(model).keys()

    def test_the_learned_temperature_counts_once(self, clip, config, pixel_values):
        """Though each adapter that is injected makes a tuner."""
        if config.depends_on_image:
            pytest.skip("CLIPModel.forward cannot make class prompts for each image")
        clip.add_adapter(config, "one")
        clip.add_adapter(copy.deepcopy(config), "two")
        with torch.no_grad():
            before = clip(pixel_values=pixel_values).logits_per_image
            learned(clip, "two")["logit_scale"].add_(1)
            after = clip(pixel_values=pixel_values).logits_per_image
        assert relative_error(after, before * torch.tensor(1.0).exp()) < 1e-6

    def test_a_temperature_that_is_learned_later_counts_too(self, clip, method, pixel_values):
        if method.depends_on_image:
            pytest.skip("CLIPModel.forward cannot make class prompts for each image")
        clip.add_adapter(method(classnames=CLASSNAMES))
        with torch.no_grad():
            before = clip(pixel_values=pixel_values).logits_per_image
            clip.text_model.active_learner.learn_temperature(clip)
            learned(clip)["logit_scale"].add_(1)
            after = clip(pixel_values=pixel_values).logits_per_image
        assert relative_error(after, before * torch.tensor(1.0).exp()) < 1e-6

    def test_add_disable_enable_delete(self, clip, config, pixel_values, tokenizer):
        texts = tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = clip(**texts, pixel_values=pixel_values).logits_per_image
            clip.add_adapter(config, "one")
            clip.add_adapter(copy.deepcopy(config), "two")
            assert clip.active_adapters() == ["two"]
            clip.disable_adapters()
            with pytest.raises(ValueError, match="input_ids"):
                clip(pixel_values=pixel_values)
            clip.enable_adapters()
            features(clip)
            clip.delete_adapter(["one", "two"])
            assert not hasattr(clip, "peft_config")
            with pytest.raises(ValueError, match="no learned prompt"):
                clip(pixel_values=pixel_values)
            assert torch.equal(clip(**texts, pixel_values=pixel_values).logits_per_image, expected)
            clip.add_adapter(copy.deepcopy(config), "three")
            assert features(clip).shape[-2] == len(CLASSNAMES)

    def test_hotswap_is_refused(self, clip, saved):
        clip.load_adapter(str(saved))
        with pytest.raises(ValueError, match="only supported for LoRA"):
            clip.load_adapter(str(saved), adapter_name="default", hotswap=True)

    def test_low_level_injection(self, config):
        clip = inject_adapter_in_model(config, fresh_clip())
        assert features(clip).shape[-2] == len(CLASSNAMES)
        on_meta = inject_adapter_in_model(copy.deepcopy(config), fresh_clip(), low_cpu_mem_usage=True)
        assert {parameter.device.type for parameter in learned(on_meta).values()} == {"meta"}


class TestAdapters:
    def test_status(self, model, method):
        status = model.get_model_status()
        assert status.peft_types == {"default": method.label.upper()}
        assert status.enabled
        assert status.active_adapters == status.available_adapters == ["default"]
        assert status.requires_grad == {"default": True}
        assert status.merged_adapters == []
        assert status.trainable_params == sum(parameter.numel() for parameter in learned(model).values())
        (layer,) = model.get_layer_status()
        assert layer.module_type == "PromptLayer"
        assert get_model_status(model.get_base_model()).active_adapters == ["default"]

    def test_mixed_models_are_refused(self, clip, config, method):
        with pytest.raises(ValueError, match=f"'{method.label.upper()}' is not compatible with the `PeftMixedModel`"):
            get_peft_model(clip, config, mixed=True)
        assert not isinstance(clip.text_model, BaseTunerLayer)

    def test_merging_and_adding_up_are_refused(self, model):
        before = features(model)
        for merge in (model.merge_adapter, model.merge_and_unload, model.unmerge_adapter):
            with pytest.raises(ValueError, match=r"cannot be merged.*unload\(\)"):
                merge()
        with pytest.raises(ValueError, match="cannot be added up"):
            model.add_weighted_adapter(["default"], [1.0], "sum")
        assert torch.equal(features(model), before)

    def test_unload(self, model):
        plain = model.unload()
        assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
        assert not hasattr(plain, "peft_config")
        assert plain.state_dict().keys() == fresh_clip().state_dict().keys()
        assert not plain._forward_hooks

    def test_disabling_may_be_nested(self, model):
        before = features(model)
        with model.disable_adapter():
            with model.disable_adapter(), pytest.raises(ValueError, match="they are disabled"):
                features(model)
            with pytest.raises(ValueError, match="they are disabled"):
                features(model)
        assert torch.equal(features(model), before)

    @pytest.mark.parametrize("active", [True, False])
    def test_delete(self, model, config, way, active, pixel_values, images, tmp_path):
        model.add_adapter("delete_me", copy.deepcopy(config))
        if active:
            model.set_adapter("delete_me")
        before = None if active else features(model)
        model.delete_adapter("delete_me")
        assert model.active_adapters == ["default"]
        assert list(model.peft_config) == ["default"]
        assert not [name for name in model.state_dict() if "delete_me" in name]
        assert before is None or torch.equal(features(model), before)
        with pytest.raises(ValueError, match="Adapter unknown does not exist"):
            model.delete_adapter("unknown")
        model.delete_adapter("default")
        assert model.active_adapters == []
        with pytest.raises(ValueError, match=r"no learned prompt.*load_adapter or add_adapter"):
            model.base_model(pixel_values=pixel_values)
        if way == "hf_coop":
            for ask in (
                lambda: model(pixel_values=pixel_values),
                lambda: model.predict(images[0]),
                lambda: model.save_pretrained(tmp_path),
                lambda: model.disable_adapter().__enter__(),
                lambda: model.classnames,
            ):
                with pytest.raises(ValueError, match=r"no learned prompt.*load_adapter or add_adapter"):
                    ask()
            assert model.get_model_status().peft_types == {}
            assert list(tmp_path.iterdir()) == []
        model.add_adapter("new", copy.deepcopy(config))
        model.set_adapter("new")
        assert features(model).shape[-2] == len(CLASSNAMES)

    def test_several_with_other_classes_and_lengths(self, model, method):
        before = features(model)
        model.add_adapter("pets", method(classnames=["cat", "dog"], n_ctx=3))
        assert torch.equal(features(model), before)
        model.set_adapter("pets")
        assert features(model).shape[-2] == 2
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {f"{PREFIX}.pets.{name}" for name in learned(model, "pets")}
        model.set_requires_grad("pets", False)
        assert model.get_nb_trainable_parameters()[0] == 0
        model.set_adapter("default", inference_mode=True)
        assert model.get_nb_trainable_parameters()[0] == 0
        assert torch.equal(features(model), before)
        model.base_model.set_adapter(["default", "pets"])
        with pytest.raises(ValueError, match=r"exactly one.*\['default', 'pets'\]"):
            features(model)

    def test_names_that_are_in_use_or_unknown(self, model, config):
        with pytest.raises(ValueError, match="'default' already exists"):
            model.add_adapter("default", copy.deepcopy(config))
        with pytest.raises(ValueError, match="unknown not found"):
            model.set_adapter("unknown")

    def test_one_adapter_for_a_batch(self, model, pixel_values):
        with pytest.raises((TypeError, ValueError), match="adapter_names"):
            model(pixel_values=pixel_values, adapter_names=["default"] * 4)

    def test_repr_names_the_learner(self, model):
        modules = repr(model.base_model)
        assert "PromptLayer" in modules
        assert "PromptLearner" in modules


class TestTraining:
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, clip, config, pixel_values, use_reentrant):
        model = HFCoOp(clip, config).train()

        def gradients() -> dict[str, torch.Tensor]:
            model.zero_grad()
            model(pixel_values=pixel_values, labels=LABELS).loss.backward()
            assert [p.grad for name, p in model.named_parameters() if PREFIX not in name] == [None] * 94
            return {name: parameter.grad for name, parameter in learned(model).items()}

        scatter(model.prompt_layer)
        plain = gradients()
        model.prepare_model_for_gradient_checkpointing(model)
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        if use_reentrant and len(model.logits_and_losses(pixel_values, None, LABELS)[1]) > 1:
            with pytest.raises(RuntimeError, match="set use_reentrant=False"):  # what torch says of several gradients
                gradients()
            return
        for name, gradient in gradients().items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)

    def test_on_a_clip_with_gradient_checkpointing_on(self, clip, config):
        clip.gradient_checkpointing_enable()
        assert features(HFCoOp(clip, config)).shape[-2] == len(CLASSNAMES)


class TestCopies:
    def test_deep_copies_and_pickles(self, model):
        expected = features(model)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(features(copied), expected)
            scatter(copied.get_base_model().text_model, seed=1)
            assert not torch.equal(features(copied), expected)
            assert torch.equal(features(model), expected)
            assert not copied.unload()._forward_hooks

    def test_a_prediction_leaves_the_pickle_and_the_hash_as_they_were(self, tmp_path, images):
        """So that `datasets` finds again what it computed with a model, in another process too."""
        folders = [str(tmp_path / method.label) for method in registered_configs()]
        for method, folder in zip(registered_configs(), folders, strict=True):
            HFCoOp(fresh_clip(), method(classnames=CLASSNAMES)).save_pretrained(folder)
        code = (
            "import sys; from datasets.fingerprint import Hasher; from hf_coop import HFCoOp\n"
            "for folder in sys.argv[1:]: print(Hasher.hash(HFCoOp.from_pretrained(folder)))"
        )
        run = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
        for folder, elsewhere in zip(folders, run.stdout.split(), strict=True):
            model = HFCoOp.from_pretrained(folder)
            before, fingerprint = pickle.dumps(model), Hasher.hash(model)
            expected = model.predict(images)
            assert pickle.dumps(model) == before
            assert Hasher.hash(model) == fingerprint == elsewhere
            assert pickle.loads(before).predict(images) == expected

    def test_a_fresh_models_prediction_too(self, config, images):
        model = HFCoOp(fresh_clip(), config)
        before = pickle.dumps(model)
        model.predict(images)
        model.template_embeddings()
        assert pickle.dumps(model) == before

    def test_files_that_were_set_travel(self, clip, config):
        model = HFCoOp(clip, config)
        model.image_processor.image_mean = [0.1, 0.2, 0.3]
        assert pickle.loads(pickle.dumps(model)).image_processor.image_mean != [0.1, 0.2, 0.3]
        model.image_processor = model.image_processor
        assert pickle.loads(pickle.dumps(model)).image_processor.image_mean == [0.1, 0.2, 0.3]

    def test_kept_features_follow_casts(self, model):
        """Also there and back again, where rounded weights may come to lie at the old addresses."""
        exact = features(model)
        model.to(torch.bfloat16)
        assert features(model).dtype == torch.bfloat16
        model.to(torch.float32)
        rounded = features(model)
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert relative_error(rounded, exact) < 0.05
        assert torch.equal(rounded, features(copy.deepcopy(model)))


class TestForward:
    @pytest.fixture
    def model(self, clip, config) -> HFCoOp:
        model = HFCoOp(clip, config)
        scatter(model.prompt_layer)
        return model

    def test_a_tuple_where_asked(self, model, pixel_values):
        output = model(pixel_values=pixel_values, labels=LABELS)
        loss, logits = model(pixel_values=pixel_values, labels=LABELS, return_dict=False)
        assert torch.equal(loss, output.loss)
        assert torch.equal(logits, output.logits)
        (logits,) = model(pixel_values=pixel_values, return_dict=False)
        assert torch.equal(logits, output.logits)

    def test_options_of_the_image_tower(self, clip, config):
        clip.set_attn_implementation("eager")
        model = HFCoOp(clip, config)
        pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="48"):
            model(pixel_values=pixels)
        options = {"interpolate_pos_encoding": True, "output_hidden_states": True, "output_attentions": True}
        output = model(pixel_values=pixels, **options)
        embeds = clip.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        assert torch.equal(output.logits, model(image_embeds=embeds).logits)
        layers = clip.config.vision_config.num_hidden_layers
        assert len(output.hidden_states) == layers + 1
        assert len(output.attentions) == layers
        assert output.attentions[0].shape[-1] == output.hidden_states[0].shape[1]

    def test_unknown_keywords(self, model, pixel_values):
        with pytest.raises(TypeError, match=r"forward.. takes no label, pixels: .* pixel_values, image_embeds"):
            model(pixel_values=pixel_values, label=LABELS, pixels=None)


class TestFilesOfHFCoOp:
    def test_another_methods_adapter(self, saved, method, clip):
        for other in registered_configs():
            if other is method:
                continue
            model = HFCoOp(clip, other(classnames=CLASSNAMES))
            with pytest.raises(ValueError, match=f"adapter 'new' is {method.label}, those of this model are") as error:
                model.load_adapter(saved, "new")
            assert str(saved) in str(error.value)
            assert other.label in str(error.value)
            assert list(model.peft_config) == ["default"]
            clip = model.unload()

    def test_a_name_in_use(self, saved):
        model = HFCoOp.from_pretrained(saved)
        with pytest.raises(ValueError, match="'default' is in use"):
            model.load_adapter(saved, "default")
        assert_same_learned(model, saved)

    def test_unknown_options(self, saved):
        with pytest.raises(TypeError, match=r"from_pretrained.. takes no low_cpu_memory; its options are "):
            HFCoOp.from_pretrained(saved, low_cpu_memory=True)
        model = HFCoOp.from_pretrained(saved)
        with pytest.raises(TypeError, match=r"load_adapter.. takes no config"):
            model.load_adapter(saved, "other", config=None)
        with pytest.raises(TypeError, match="config must be the config of a method"):
            HFCoOp.from_pretrained(saved, config={"n_ctx": 4})
        with pytest.raises(TypeError, match="folder or repository first"):
            HFCoOp.from_pretrained(fresh_clip(), saved)
        with pytest.raises(TypeError, match="give one name, got"):
            model.set_adapter(["default"])

    def test_offloading_that_prompts_have_no_use_for(self, saved):
        with pytest.warns(UserWarning, match="offloading is not supported"):
            model = HFCoOp.from_pretrained(saved, ephemeral_gpu_offload=True)
        model.load_adapter(saved, "other", ephemeral_gpu_offload=False)
        assert_same_learned(model, saved, "other")

    def test_pickled_weights_are_not_written(self, saved, tmp_path):
        model = HFCoOp.from_pretrained(saved)
        with pytest.raises(ValueError, match=r"safe_serialization=False.*safetensors only"):
            model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
        assert not (tmp_path / "pickled").exists()


class TestCompiling:
    """`torch.compile` and `torch.export` give what the model gives, and leave it as it is."""

    @pytest.fixture
    def expected(self, model, pixel_values) -> torch.Tensor:
        if isinstance(model, HFCoOp):
            return model(pixel_values=pixel_values).logits.detach()
        if model.active_peft_config.depends_on_image:
            pytest.skip("CLIPModel.forward cannot make class prompts for each image")
        return model(pixel_values=pixel_values).logits_per_image.detach()

    @staticmethod
    def logits(output) -> torch.Tensor:
        return output["logits"] if "logits" in output else output["logits_per_image"]

    @pytest.mark.parametrize("grad", [True, False])
    def test_export(self, model, expected, pixel_values, grad):
        if not grad:
            model = copy.deepcopy(model)  # nothing is kept yet
        with torch.set_grad_enabled(grad):
            program = torch.export.export(model, (), {"pixel_values": pixel_values}, strict=False)
        assert relative_error(self.logits(program.module()(pixel_values=pixel_values)), expected) < 1e-5
        assert relative_error(self.logits(model(pixel_values=pixel_values)), expected) < 1e-6

    def test_export_for_any_number_of_images(self, clip, config, pixel_values):
        model = HFCoOp(clip, config)
        expected = model(pixel_values=pixel_values).logits.detach()
        size = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}

        def export() -> torch.export.ExportedProgram:
            images = {"pixel_values": pixel_values}
            return torch.export.export(model, (), images, dynamic_shapes=size, strict=False)

        if config.depends_on_image:
            with pytest.raises(ValueError, match="one batch size only"):
                export()
        else:
            found = export().module()(pixel_values=pixel_values[:2]).logits
            assert relative_error(found, expected[:2]) < 1e-5
        assert relative_error(model(pixel_values=pixel_values).logits, expected) < 1e-6

    def test_a_failed_export_leaves_the_model_as_it_was(self, clip, config, pixel_values):
        model = HFCoOp(clip, config).requires_grad_(False)
        expected = copy.deepcopy(model)(pixel_values=pixel_values).logits

        class Broken(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
                logits = self.model(pixel_values=pixel_values).logits
                return logits[torch.tensor(float(logits.sum())).nonzero().tolist()]

        with pytest.raises(Exception, match=r"\w"):
            torch.export.export(Broken(), (pixel_values,), strict=False)
        assert type(model(pixel_values=pixel_values).logits) is torch.Tensor
        assert torch.equal(model(pixel_values=pixel_values).logits, expected)

    def check_compiled(self, clip, config, pixel_values, backend: str) -> None:
        model = HFCoOp(clip, config)
        compiled = torch.compile(model, backend=backend)

        def step(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            model.zero_grad()
            output = model(pixel_values=pixel_values, labels=LABELS)
            output.loss.backward()
            return output.logits.detach(), {name: x.grad.clone() for name, x in learned(clip).items()}

        for seed in (0, 1):  # other values of the prompt must not find what was compiled or kept before
            scatter(model.prompt_layer, seed)
            logits, gradients = step(model)
            with torch.no_grad():
                assert relative_error(compiled(pixel_values=pixel_values).logits, logits) < 1e-5
            compiled_logits, compiled_gradients = step(compiled)
            assert relative_error(compiled_logits, logits) < 1e-5
            for name, gradient in gradients.items():
                torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6)

    def test_compile(self, clip, config, pixel_values):
        self.check_compiled(clip, config, pixel_values, "eager")

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_with_a_backend_that_rewrites(self, clip, config, pixel_values, backend):
        self.check_compiled(clip, config, pixel_values, backend)
