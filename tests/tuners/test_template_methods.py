"""KgCoOp and ProGrad, the methods that compare with a hand-written template: the recorded numbers and all ways in."""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSNAMES, PARITY, relative_error
from datasets import Dataset
from peft import PeftModel, get_peft_model
from recorded_methods import (
    METHODS,
    VARIANTS,
    expected_gradient,
    image_embeds,
    plain,
    recorded,
    recorded_model,
    trained_gradient,
)
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel, HfArgumentParser, Trainer, TrainingArguments
from typer.testing import CliRunner

from hf_coop import CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp, ProGradConfig
from hf_coop.training.recipes import fill_in
from hf_coop.tuners import config_class_of, make_prompt_arguments
from hf_coop_cli import app

ROOT = Path(__file__).parents[2]
# Logits near zero-shot CLIP's leave a small gradient, 0.02 here, which ProGrad divides by its norm: rounding in fp32
# counts for more, and any order of the same operations moves it by 0.5 to 4e-5. In double precision it is within 1e-5.
PROGRAD_ROUNDING = 6e-5
OWN = {"kgcoop": {"kgcoop_weight": 8.0}, "prograd": {"prograd_lambda": 1.0, "prograd_temperature": 1.0}}
DEMO = ("--model_name_or_path", "demo", "--dataset_name", "demo", "--num_shots", "1")
methods = pytest.mark.parametrize("method", METHODS)
variants = pytest.mark.parametrize(("method", "specific"), VARIANTS)


def learner(model: HFCoOp):
    return model.prompt_layer.active_learner


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """A script of examples/ in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


class TestParity:
    @staticmethod
    def distance(model: HFCoOp) -> float:
        """KgCoOp's own term, from a batch whose cross-entropy is 0."""
        logits = torch.tensor([[200.0, 0, 0, 0]])
        (loss,) = learner(model).losses(model, logits, torch.tensor([0]), torch.ones(1, 48), model.class_embeddings())
        return loss.item() / 8

    def test_kgcoop_equals_what_was_recorded(self):
        case, tensors = recorded("kgcoop")
        model = recorded_model("kgcoop")
        assert model.prompt_config.kgcoop_weight == case["weight"]
        output = model(pixel_values=tensors["pixel_values"], labels=tensors["labels"])
        output.loss.backward()
        assert relative_error(output.logits, tensors["logits"]) < 1e-5
        assert relative_error(output.loss, tensors["loss"]) < 1e-5
        assert relative_error(F.cross_entropy(output.logits, tensors["labels"]), tensors["cross_entropy"]) < 1e-5
        # 0.0004 was recorded as 1 minus a cosine in fp32, whose steps near 1 are 6e-8
        assert self.distance(model) == pytest.approx(tensors["distance"].item(), abs=2**-22)
        learned, written = model.class_embeddings(), model.template_embeddings(case["template"])
        exact = 1 - F.cosine_similarity(learned.double(), written.double()).mean().item()
        assert self.distance(model) == pytest.approx(exact, rel=1e-5)
        assert relative_error(learner(model).ctx.grad, tensors["ctx_grad"]) < 1e-5

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, PROGRAD_ROUNDING)])
    def test_prograd_equals_what_was_recorded(self, dtype, tolerance):
        case, tensors = recorded("prograd")
        model = recorded_model("prograd")
        model.clip.to(dtype)
        ctx = learner(model).to(dtype).ctx
        assert model.prompt_config.prograd_lambda == case["lambda"]
        inputs = {"pixel_values": tensors["pixel_values"].to(dtype), "labels": tensors["labels"]}
        _, losses = model.logits_and_losses(**inputs)
        for loss, name in zip(losses, ("ce", "kl"), strict=True):
            (gradient,) = torch.autograd.grad(loss, [ctx], retain_graph=True)
            assert relative_error(gradient, tensors[f"{name}_grad"]) < (1e-5 if name == "ce" else tolerance)
        assert relative_error(losses[1], tensors["kl"]) < 1e-5
        output = model(**inputs)
        output.loss.backward()
        assert relative_error(output.logits, tensors["logits"]) < 1e-5
        assert relative_error(output.loss, tensors["cross_entropy"]) < 1e-5
        assert relative_error(ctx.grad, tensors["ctx_grad"]) < tolerance
        torch.testing.assert_close(ctx.grad.float(), tensors["ctx_grad"], rtol=0, atol=1e-5)
        assert relative_error(ctx.grad, tensors["ce_grad"]) > 1e-2

    @methods
    def test_starts_from_the_recorded_context(self, method):
        case, _ = recorded(method)
        model = HFCoOp.from_clip(PARITY, case["classnames"], method, ctx_init=case["ctx_init"])
        assert torch.equal(learner(model).ctx, recorded("kgcoop")[1]["ctx_initial"])
        assert model.prompt_config.template == case["template"]

    @variants
    def test_forward_and_trainer_equal_the_plain_way(self, method, specific, tmp_path):
        """Generic and class-specific; one batch, and the same batch in three parts."""
        model, tensors = recorded_model(method, specific), recorded(method)[1]
        inputs = {"pixel_values": tensors["pixel_values"], "labels": tensors["labels"]}
        terms = plain(model, **inputs)
        expected = expected_gradient(method, terms)
        if not specific:
            assert relative_error(expected, tensors["ctx_grad"]) < 1e-5
        output = model(**inputs)
        output.loss.backward()
        loss = terms["cross_entropy"] + (8 * terms["distance"] if method == "kgcoop" else 0)
        assert relative_error(output.loss, loss) < 1e-5
        found = {
            "forward": learner(model).ctx.grad,
            "one batch": trained_gradient(method, specific, str(tmp_path / "1"), per_device_train_batch_size=5),
            "accumulated": trained_gradient(
                method, specific, str(tmp_path / "3"), per_device_train_batch_size=2, gradient_accumulation_steps=3
            ),
        }
        for way, gradient in found.items():
            tolerance = 1e-5 if method == "kgcoop" else PROGRAD_ROUNDING
            assert relative_error(gradient, expected) < tolerance, way
            assert specific or relative_error(gradient, tensors["ctx_grad"]) < tolerance, way
        parts = torch.stack([found["accumulated"], found["one batch"]])
        assert relative_error(*parts) < (2e-6 if method == "kgcoop" else 1e-5)

    def test_prograd_merged_part_by_part_would_be_another_gradient(self):
        """So that the tests of accumulation and of processes can fail."""
        model, tensors = recorded_model("prograd"), recorded("prograd")[1]
        for image, label in zip(tensors["pixel_values"], tensors["labels"], strict=True):
            (model(pixel_values=image[None], labels=label[None]).loss / 5).backward()
        assert relative_error(learner(model).ctx.grad, tensors["ctx_grad"]) > 1e-2

    def test_two_processes_equal_one(self, tmp_path):
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--main_process_port", "0", str(Path(__file__).with_name("recorded_methods.py")), str(tmp_path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
        done = subprocess.run(launcher, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        found = load_file(tmp_path / "gradients.safetensors")
        assert found.pop("processes") == 2
        for method, specific in VARIANTS:
            tensors = recorded(method)[1]
            terms = plain(recorded_model(method, specific), tensors["pixel_values"], tensors["labels"])
            gradient, tolerance = found[f"{method}_{specific}"], 1e-5 if method == "kgcoop" else PROGRAD_ROUNDING
            assert relative_error(gradient, expected_gradient(method, terms)) < tolerance
            assert specific or relative_error(gradient, tensors["ctx_grad"]) < tolerance

    @methods
    def test_transformers_trainer_takes_the_same_step(self, method, tmp_path):
        model, tensors = recorded_model(method), recorded(method)[1]
        rows = [
            {"pixel_values": pixels, "labels": label}
            for pixels, label in zip(tensors["pixel_values"], tensors["labels"], strict=True)
        ]
        options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0, "save_strategy": "no"}
        args = TrainingArguments(
            str(tmp_path),
            report_to="none",
            use_cpu=True,
            per_device_train_batch_size=5,
            label_names=["labels"],
            **options,
        )
        trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        assert relative_error((tensors["ctx"] - learner(model).ctx) / 0.1, tensors["ctx_grad"]) < 1e-4
        assert trainer.evaluate()["eval_loss"] > 0


class TestProGrad:
    def merged(self, g: list[float], h: list[float], **options) -> list[float]:
        model = HFCoOp.from_clip(PARITY, ["cat", "dog"], "prograd", **options)
        return learner(model).merge_gradients(torch.tensor(g), torch.tensor(h)).tolist()

    def test_the_opposing_part_is_taken_off(self):
        assert self.merged([1.0, -2.0], [0.0, 5.0]) == [1.0, 0.0]
        assert self.merged([1.0, -2.0], [0.0, 5.0], prograd_lambda=0.5) == [1.0, -1.0]
        assert self.merged([1.0, -2.0], [0.0, 5.0], prograd_lambda=0) == [1.0, -2.0]

    def test_what_does_not_oppose_stays(self):
        assert self.merged([1.0, -2.0], [1.0, 0.0]) == [1.0, -2.0]
        assert self.merged([1.0, -2.0], [0.0, 0.0]) == [1.0, -2.0]

    def test_an_overflow_is_not_hidden(self):
        """A `GradScaler` must see it, to leave the step out."""
        assert not torch.tensor(self.merged([1.0, -2.0], [torch.inf, 5.0])).isfinite().all()

    def test_a_zero_gradient_of_the_divergence(self):
        """Where the learned prompt is the hand-written one, in words and in logits."""
        model = HFCoOp.from_clip(PARITY, ["cat"], "prograd", ctx_init="a photo of a")  # one class: no divergence
        model(image_embeds=torch.randn(3, 48), labels=torch.zeros(3, dtype=torch.long)).loss.backward()
        assert learner(model).ctx.grad.isfinite().all()

    def test_temperature(self, pixel_values):
        model = recorded_model("prograd", prograd_temperature=2.0)
        logits, losses = model.logits_and_losses(pixel_values, labels=torch.tensor([0, 1, 2, 3]))
        zero_shot = model.zero_shot_logits(image_embeds(model, pixel_values))
        expected = -4 * ((zero_shot / 2).softmax(-1) * (logits / 2).log_softmax(-1)).sum(-1).mean()
        assert relative_error(losses[1], expected) < 1e-5

    def test_a_learned_temperature(self, pixel_values):
        model = recorded_model("prograd", learn_temperature=True)
        model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        assert learner(model).logit_scale.grad.isfinite()

    def test_defaults_are_coops(self, clip):
        config = HFCoOp.from_clip(clip, ["cat", "dog"], "prograd").prompt_config
        assert (config.n_ctx, config.ctx_init) == (16, None)
        assert ProGradConfig.default_recipe(4) == CoOpConfig.default_recipe(4)


class TestKgCoOp:
    def test_defaults_are_the_papers(self, clip):
        config = HFCoOp.from_clip(clip, ["cat", "dog"], "kgcoop").prompt_config
        assert (config.n_ctx, config.ctx_init, config.kgcoop_weight) == (4, "a photo of a", 8.0)
        for shots in (1, 4, 16):
            args = fill_in(CoOpTrainingArguments(recipe="paper"), config, shots)
            assert (args.num_train_epochs, args.per_device_train_batch_size) == (100, 128)
            assert (args.optim, args.learning_rate) == ("sgd", 0.002)

    def test_the_words_of_the_template_are_at_no_distance(self, pixel_values):
        model = HFCoOp.from_clip(PARITY, ["cat", "dog"], "kgcoop")
        labels = torch.tensor([0, 1, 0, 1])
        output = model(pixel_values=pixel_values, labels=labels)
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels), atol=1e-5, rtol=0)

    def test_the_template_follows_the_class_names(self, pixel_values):
        model = HFCoOp.from_clip(PARITY, ["cat", "dog"], "kgcoop")
        labels = torch.tensor([0, 1, 0, 1])
        model(pixel_values=pixel_values, labels=labels).loss.backward()
        model.set_classnames(["pink primrose", "tiger"])
        output = model(pixel_values=pixel_values, labels=labels)
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels), atol=1e-5, rtol=0)

    def test_weight_and_template_count(self, pixel_values):
        labels = torch.tensor([0, 1, 2, 3])
        losses = [
            recorded_model("kgcoop", **options)(pixel_values=pixel_values, labels=labels).loss.item()
            for options in ({}, {"kgcoop_weight": 0}, {"template": "art of the {}."})
        ]
        assert len(set(losses)) == 3
        plain_coop = recorded_model("kgcoop", kgcoop_weight=0)(pixel_values=pixel_values, labels=labels)
        assert losses[1] == F.cross_entropy(plain_coop.logits, labels).item()


@methods
class TestWaysIn:
    def test_options_of_the_base_method(self, method, pixel_values):
        for position in ("end", "middle", "front"):
            model = recorded_model(method, class_token_position=position)
            model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
            assert learner(model).ctx.grad.abs().sum() > 0

    def test_plain_peft(self, method, clip, tmp_path, pixel_values):
        model = get_peft_model(clip, config_class_of(method)(classnames=CLASSNAMES))
        logits = model(pixel_values=pixel_values).logits_per_image
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(PARITY), tmp_path)
        assert torch.equal(loaded(pixel_values=pixel_values).logits_per_image, logits)

    def test_the_file_holds_the_template_but_not_its_features(self, method, tmp_path):
        model = recorded_model(method, template="art of the {}.", **dict.fromkeys(OWN[method], 2))
        model(image_embeds=torch.randn(3, 48), labels=torch.tensor([0, 1, 2])).loss.backward()
        model.save_pretrained(tmp_path)
        assert [name.rsplit(".", 1)[1] for name in load_file(tmp_path / "adapter_model.safetensors")] == ["ctx"]
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["template"] == "art of the {}."
        loaded = HFCoOp.from_pretrained(tmp_path).prompt_config
        assert {name: getattr(loaded, name) for name in ("template", *OWN[method])} == {
            "template": "art of the {}.",
            **dict.fromkeys(OWN[method], 2),
        }
        card = (tmp_path / "README.md").read_text()
        assert "| Hand-written template | art of the " in card
        assert config_class_of(method).citation in card
        for name in OWN[method]:
            assert f"| {name} | 2 |" in card
        told = CliRunner().invoke(app, ["info", str(tmp_path)]).output.splitlines()
        facts = dict(line.split(maxsplit=1) for line in told if line.split()[0] in ("template", *OWN[method]))
        assert facts == {"template": "art of the {}.", **dict.fromkeys(OWN[method], "2")}

    def test_the_command_trains(self, method, tmp_path, monkeypatch, capsys):
        options = [f"--{name}=0.5" for name in OWN[method]]
        arguments = [
            "--model_name_or_path",
            "demo",
            "--dataset_name",
            "demo",
            "--num_shots",
            "1",
            "--num_train_epochs",
            "2",
        ]
        arguments += ["--method", method, "--template", "the digit {}.", *options, "--output_dir", str(tmp_path)]
        run_example(monkeypatch, "train.py", *arguments)
        assert "learned accuracy" in capsys.readouterr().out
        config = HFCoOp.from_pretrained(tmp_path).prompt_config
        assert config.peft_type == method.upper()
        assert config.template == "the digit {}."
        assert {getattr(config, name) for name in OWN[method]} == {0.5}

    def test_the_options_are_in_the_help(self, method):
        text = " ".join(HfArgumentParser(make_prompt_arguments()).format_help().split())
        label = config_class_of(method).label
        for name in OWN[method]:
            assert f"--{name}" in text
        assert f"({label})" in text
        assert "Hand-written prompt that training keeps to. (KgCoOp, ProGrad)" in text
        assert method in text

    def test_and_refused_for_other_methods(self, method, tmp_path, monkeypatch):
        label, name = config_class_of(method).label, next(iter(OWN[method]))
        arguments = f"--model_name_or_path demo --dataset_name demo --output_dir {tmp_path / 'out'} --{name} 2".split()
        with pytest.raises(SystemExit, match=f"error: {name}=2.0 is an option of {label}, not of CoOp"):
            run_example(monkeypatch, "train.py", *arguments)
        with pytest.raises(ValueError, match=f"{name}=2 is an option of {label}, not of CoCoOp"):
            HFCoOp.from_clip(PARITY, CLASSNAMES, "cocoop", **{name: 2})
        with pytest.raises(ValueError, match=r"template='a {}' is an option of KgCoOp, ProGrad, not of CoOp"):
            CoOpConfig(classnames=CLASSNAMES, template="a {}")

    def test_resumed_it_ends_with_the_same_bytes(self, method, tmp_path):
        tensors = recorded(method)[1]

        def trainer(folder: str, **options) -> CoOpTrainer:
            model = recorded_model(method, **options)
            embeds = image_embeds(model, tensors["pixel_values"])
            rows = {"image_embeds": embeds.tolist(), "label": tensors["labels"].tolist()}
            args = CoOpTrainingArguments(
                str(tmp_path / folder),
                num_train_epochs=4,
                per_device_train_batch_size=2,
                learning_rate=0.05,
                save_total_limit=None,
                use_cpu=True,
            )
            return CoOpTrainer(model, args, Dataset.from_dict(rows))

        whole = trainer("whole")
        whole.train()
        checkpoint = tmp_path / "whole" / "checkpoint-4"
        again = trainer("again")
        again.train(resume_from_checkpoint=checkpoint)
        assert torch.equal(learner(again.model).ctx, learner(whole.model).ctx)
        assert again.state.losses == whole.state.losses
        with pytest.raises(ValueError, match=r"was trained with template='a photo of a \{\}\.', now it is 'the \{\}"):
            trainer("other", template="the {}").train(resume_from_checkpoint=checkpoint)

    def test_training_after_inference_mode_and_autocast(self, method):
        """What was kept of the template must be of use, and of full precision, whoever asked for it first."""
        model, embeds = recorded_model(method), torch.randn(4, 48)
        labels = torch.tensor([0, 1, 2, 3])
        expected = recorded_model(method).template_embeddings("a photo of a {}.")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            model.zero_shot_logits(embeds)
        model(image_embeds=embeds, labels=labels).loss.backward()
        assert learner(model).ctx.grad.isfinite().all()
        torch.testing.assert_close(model.template_embeddings("a photo of a {}."), expected)

    def test_a_copy_trains_too(self, method):
        model = copy.deepcopy(recorded_model(method))
        model(image_embeds=torch.randn(4, 48), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        assert learner(model).ctx.grad.abs().sum() > 0


class TestBadInput:
    @methods
    @pytest.mark.parametrize(
        ("template", "error", "message"),
        [
            ("a photo", ValueError, r"the template 'a photo' must have \{\} where the class name goes"),
            ("", ValueError, "the template '' must have"),
            ("a {name} {}", ValueError, "no other braces"),
            ("a {0}", ValueError, r"'a \{0\}' must have \{\}"),
            ("{{}} {}", ValueError, "no other braces"),
            (None, TypeError, "a template must be a string, got None of type NoneType"),
            (["a {}"], TypeError, r"a template must be a string, got \['a {}'\] of type list"),
        ],
    )
    def test_templates(self, method, template, error, message):
        with pytest.raises(error, match=message):
            config_class_of(method)(classnames=CLASSNAMES, template=template)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (-1, ValueError, "must be a finite number .*, got -1"),
            (float("nan"), ValueError, "must be a finite number .*, got nan"),
            (float("inf"), ValueError, "must be a finite number .*, got inf"),
            ("8", TypeError, "must be a number, got '8' of type str"),
            (True, TypeError, "must be a number, got True of type bool"),
            (None, TypeError, "must be a number, got None"),
        ],
    )
    @pytest.mark.parametrize(("method", "name"), [(method, name) for method in METHODS for name in OWN[method]])
    def test_weights(self, method, name, value, error, message):
        with pytest.raises(error, match=f"{name} {message}"):
            config_class_of(method)(classnames=CLASSNAMES, **{name: value})

    def test_a_temperature_of_zero(self):
        with pytest.raises(ValueError, match="prograd_temperature must be a finite number above 0, got 0"):
            ProGradConfig(classnames=CLASSNAMES, prograd_temperature=0)

    @methods
    @pytest.mark.parametrize("template", ["very " * 80 + "{}.", "{} " * 40])
    def test_a_template_too_long_for_the_tower(self, method, template, clip, tmp_path):
        message = r"template='.* makes a prompt of \d+ tokens for class name .*has 77 positions: shorten the template"
        with pytest.raises(ValueError, match=message):
            HFCoOp.from_clip(clip, CLASSNAMES, method, template=template)
        assert type(clip.text_model).__name__ == "CLIPTextModel"
        recorded_model(method).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "template": template}))
        with pytest.raises(ValueError, match=r"adapter_config\.json: " + message):
            HFCoOp.from_pretrained(tmp_path)

    @methods
    def test_the_longest_template_that_fits(self, method, tokenizer, clip):
        """The check and the encoding agree to a token."""
        length = len(tokenizer("pink primrose.")["input_ids"])
        fits = "a " * (77 - length) + "{}."
        labels = torch.tensor([0])
        model = HFCoOp.from_clip(clip, ["pink primrose"], method, template=fits)
        model(image_embeds=torch.randn(1, 48), labels=labels).loss.backward()
        with pytest.raises(ValueError, match="makes a prompt of 78 tokens"):
            HFCoOp.from_clip(PARITY, ["pink primrose"], method, template=f"a {fits}")

    @methods
    def test_no_tokenizer(self, method, tmp_path, images):
        """Loading and predicting work; training says what is missing, before any work, and then works with it."""
        model = recorded_model(method)
        model.save_pretrained(tmp_path / "adapter")
        CLIPModel.from_pretrained(PARITY).save_pretrained(tmp_path / "clip")
        shutil.copy(PARITY / "preprocessor_config.json", tmp_path / "clip")
        loaded = HFCoOp.from_pretrained(tmp_path / "adapter", tmp_path / "clip", is_trainable=True)
        assert loaded.predict(images[0]) == model.predict(images[0])

        inputs = {"image_embeds": torch.randn(2, 48), "labels": torch.tensor([0, 1])}
        message = r"template 'a photo of a \{\}\.' must be encoded, which needs a tokenizer: no tokenizer found at "
        message += r".*/clip'.*set model\.prompt_config\.tokenizer_name_or_path"
        with pytest.raises(ValueError, match=message):
            loaded(**inputs)
        rows = {"image_embeds": inputs["image_embeds"].tolist(), "label": inputs["labels"].tolist()}
        args = CoOpTrainingArguments(str(tmp_path / "out"), num_train_epochs=1, use_cpu=True)
        with pytest.raises(ValueError, match=message):
            CoOpTrainer(loaded, args, Dataset.from_dict(rows))
        assert not (tmp_path / "out").exists()

        loaded.prompt_config.tokenizer_name_or_path = str(PARITY)
        CoOpTrainer(loaded, args, Dataset.from_dict(rows)).train()
        assert not torch.equal(learner(loaded).ctx, learner(model).ctx)
