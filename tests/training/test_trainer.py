"""`CoOpTrainer`: the published numbers, exact resuming, and what is refused."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSNAMES, PARITY
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from filelock import FileLock, Timeout
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Trainer, TrainingArguments

from hf_coop import CoCoOpConfig, CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.files import LOCK_FILE
from hf_coop.training.checkpoints import list_checkpoints
from hf_coop.training.recipes import fill_in

DIM = 48


def make_model(seed: int = 0, classnames: Sequence[str] = CLASSNAMES, **options) -> HFCoOp:
    torch.manual_seed(seed)
    return HFCoOp.from_clip(CLIPModel.from_pretrained(PARITY), classnames, **{"n_ctx": 2, **options})


def embeds_dataset(count: int = 20, seed: int = 0, embeds: torch.Tensor | None = None, labels=None) -> Dataset:
    if embeds is None:
        embeds = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    features = Features(
        {"image_embeds": List(Value("float32"), length=DIM), "label": ClassLabel(names=list(CLASSNAMES))}
    )
    labels = [k % len(CLASSNAMES) for k in range(len(embeds))] if labels is None else labels
    return Dataset.from_dict({"image_embeds": embeds.tolist(), "label": labels}, features=features)


def image_dataset(count: int = 8) -> Dataset:
    rng = np.random.default_rng(0)
    photos = [PILImage.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)) for _ in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSNAMES))})
    return Dataset.from_dict({"image": photos, "label": [k % 5 for k in range(count)]}, features=features)


def arguments(output_dir: Path | str, **options) -> CoOpTrainingArguments:
    defaults = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.02, "use_cpu": True}
    return CoOpTrainingArguments(output_dir=str(output_dir), **{**defaults, **options})


def trained(output_dir: Path | str, dataset: Dataset | None = None, model: HFCoOp | None = None, **options):
    trainer = CoOpTrainer(model or make_model(), arguments(output_dir, **options), dataset or embeds_dataset())
    trainer.train()
    return trainer


def context(trainer: CoOpTrainer) -> torch.Tensor:
    return trainer.model.prompt_layer.active_learner.ctx.detach().clone()


def test_the_output_folder_is_its_own_while_it_trains(tmp_path):
    out, tried = tmp_path / "out", []

    def another_run(trainer: CoOpTrainer, row: dict) -> None:
        with pytest.raises(Timeout):
            FileLock(out / LOCK_FILE, timeout=0).acquire()
        tried.append(row)

    CoOpTrainer(make_model(), arguments(out), embeds_dataset(), callbacks=[another_run]).train()
    assert len(tried) == 3
    assert not list(out.glob(".*"))
    with FileLock(out / LOCK_FILE), pytest.raises(ValueError, match=f"'{out}' is in use: another run writes to it"):
        trained(out, overwrite_output_dir=True)
    assert len(list_checkpoints(out)) == 2  # nothing of the other one was removed
    trained(out, overwrite_output_dir=True)


class TestParity:
    """The published code's training run: learning rates, losses, and the context it ended with."""

    def test_learning_rates_losses_and_context(self, tmp_path):
        path = PARITY / "coop_end_unified_init_train.safetensors"
        with safe_open(path, "pt") as file:
            case, tensors = json.loads(file.metadata()["case"]), load_file(path)
        recipe = case["train"]
        model = make_model(classnames=case["classnames"], n_ctx=None, ctx_init=case["ctx_init"])
        torch.testing.assert_close(model.prompt_layer.active_learner.ctx.data, tensors["ctx_initial"])
        model.prompt_layer.active_learner.ctx.data.copy_(tensors["ctx"])
        with torch.no_grad():
            pixels = tensors["train_pixel_values"].flatten(0, 1)
            embeds = model.clip.get_image_features(pixel_values=pixels).pooler_output
        labels = tensors["train_labels"].flatten().tolist()
        dataset = Dataset.from_dict({"image_embeds": embeds.tolist(), "label": labels})

        class InOrder(CoOpTrainer):
            def epoch_order(self, epoch: int) -> list[int]:
                return list(range(len(dataset)))

        args = arguments(
            tmp_path,
            learning_rate=recipe["lr"],
            num_train_epochs=recipe["epochs"],
            per_device_train_batch_size=recipe["bs"],
        )
        trainer = InOrder(model, args, dataset)
        trainer.train()

        rates = [row["learning_rate"] for row in trainer.state.log_history]
        np.testing.assert_allclose(rates, tensors["train_lr_per_epoch"].numpy(), rtol=1e-5)
        np.testing.assert_allclose(trainer.state.losses, tensors["train_loss_per_step"].numpy(), rtol=1e-5)
        torch.testing.assert_close(context(trainer), tensors["ctx_trained"], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(context(trainer), tensors["ctx"], atol=1e-2)


class TestArguments:
    def test_defaults_are_the_papers(self):
        args = fill_in(CoOpTrainingArguments(recipe="paper"), CoOpConfig(classnames=["cat"]), 16)
        assert (args.optim, args.learning_rate, args.momentum, args.weight_decay) == ("sgd", 0.002, 0.9, 5e-4)
        assert (args.per_device_train_batch_size, args.warmup_epochs, args.warmup_learning_rate) == (32, 1, 1e-5)
        assert args.dataloader_drop_last
        assert not args.learn_temperature

    @pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
    def test_epochs_by_shots(self, shots, epochs, tmp_path):
        assert CoOpConfig.default_recipe(shots)["num_train_epochs"] == epochs
        assert CoCoOpConfig.default_recipe(shots)["num_train_epochs"] == 10
        dataset = embeds_dataset(5 * shots)
        assert (
            CoOpTrainer(
                make_model(), arguments(tmp_path, num_train_epochs=None, recipe="paper"), dataset
            ).num_train_epochs
            == epochs
        )

    def test_cocoops_defaults_are_the_papers_schedule_in_fewer_steps(self):
        """8 images at 8 times the rate of 1: as many epochs, and the same learning rate for each image."""
        args = fill_in(CoOpTrainingArguments(), CoCoOpConfig(classnames=["cat"]), 16)
        batch = args.per_device_train_batch_size
        assert (args.recipe, args.optim, args.num_train_epochs) == ("paper", "sgd", 10)
        assert 1 < batch <= 8
        assert args.learning_rate / batch == pytest.approx(0.002)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"optim": "adamw_8bit"}, "optim must be one of sgd, adam, adamw, lbfgs, got 'adamw_8bit'"),
            ({"image_views": "0"}, "image_views must be 1 or more, or 'online', got '0'"),
            ({"image_views": "many"}, "got 'many'"),
            ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be 1 or more, got 0"),
            ({"learning_rate": math.nan}, "learning_rate must be 0 or more, got nan"),
            ({"learning_rate": "0.1"}, "learning_rate must be 0 or more, got '0.1'"),
            ({"num_train_epochs": -3}, "num_train_epochs must be 1 or more, got -3"),
            ({"save_strategy": "best"}, "save_strategy must be one of no, steps, epoch"),
            ({"bf16": True, "fp16": True}, "choose one"),
            ({"output_dir": ""}, "output_dir is empty"),
        ],
    )
    def test_bad_values_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            CoOpTrainingArguments(**options)

    def test_the_token_stays_out_of_records(self):
        assert "hf_secret" not in str(CoOpTrainingArguments(hub_token="hf_secret").to_dict())


class TestBatches:
    def updates(self, count: int, tmp_path: Path, **options) -> list:
        return CoOpTrainer(make_model(), arguments(tmp_path, **options), embeds_dataset(count)).epoch_updates(0)

    def sizes(self, *args, **options) -> list[list[int]]:
        return [[len(batch) for batch in update] for update in self.updates(*args, **options)]

    def test_the_last_incomplete_batch_is_dropped(self, tmp_path):
        assert self.sizes(10, tmp_path) == [[4], [4]]
        assert self.sizes(10, tmp_path, dataloader_drop_last=False) == [[4], [4], [2]]

    def test_but_not_where_it_is_the_only_one(self, tmp_path):
        assert self.sizes(3, tmp_path) == [[3]]

    def test_accumulation_groups_batches(self, tmp_path):
        assert self.sizes(20, tmp_path, gradient_accumulation_steps=2) == [[4, 4], [4, 4], [4]]

    def test_order_is_by_seed_and_epoch(self, tmp_path):
        trainer = CoOpTrainer(make_model(), arguments(tmp_path, seed=3), embeds_dataset(20))
        other = CoOpTrainer(make_model(), arguments(tmp_path, seed=4), embeds_dataset(20))
        assert trainer.epoch_order(1) == trainer.epoch_order(1) != trainer.epoch_order(2)
        assert trainer.epoch_order(1) != other.epoch_order(1)
        assert sorted(trainer.epoch_order(1)) == list(range(20))

    def test_accumulated_updates_equal_those_of_whole_batches(self, tmp_path):
        options = {"dataloader_drop_last": False}
        whole = trained(tmp_path / "a", embeds_dataset(19), per_device_train_batch_size=8, **options)
        parts = trained(tmp_path / "b", embeds_dataset(19), gradient_accumulation_steps=2, **options)
        torch.testing.assert_close(context(parts), context(whole), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(parts.state.losses, whole.state.losses, rtol=1e-5)


class TestTraining:
    def test_it_learns_and_logs(self, tmp_path):
        labels = torch.arange(20) % 5
        centres = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
        dataset = embeds_dataset(embeds=centres[labels], labels=labels.tolist())
        trainer = CoOpTrainer(make_model(), arguments(tmp_path, num_train_epochs=15, learning_rate=0.1), dataset)
        rows = []
        trainer.callbacks = [lambda trainer, row: rows.append(row)]
        output = trainer.train()
        history = trainer.state.log_history
        assert rows == history
        assert history[-1]["loss"] < history[0]["loss"] - 0.1
        assert output.global_step == len(trainer.state.losses) == 15 * 5
        assert output.training_loss == history[-1]["loss"] == pytest.approx(np.mean(trainer.state.losses[-5:]))
        assert not trainer.model.training

    def test_only_the_prompt_changes(self, tmp_path):
        model = make_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trained(tmp_path, model=model)
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert [name.rsplit(".", 1)[1] for name in changed] == ["ctx"]

    @pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
    def test_optimizers_and_their_weight_decay(self, tmp_path, optim):
        a = trained(tmp_path / "a", optim=optim, learning_rate=1e-3)
        b = trained(tmp_path / "b", optim=optim, learning_rate=1e-3, weight_decay=0.5)
        assert not torch.allclose(context(a), context(b), atol=1e-7)
        assert not torch.allclose(context(a), make_model().prompt_layer.active_learner.ctx, atol=1e-7)

    @pytest.mark.parametrize("how", ["arguments", "config"])
    def test_learned_temperature(self, tmp_path, how):
        model = make_model(learn_temperature=how == "config")
        before = model.clip.logit_scale.item()
        trainer = trained(tmp_path, model=model, learn_temperature=how == "arguments")
        trainer.save_model()
        assert model.clip.logit_scale.item() == before
        assert model.logit_scale.item() != before
        names = [name.rsplit(".", 1)[1] for name in load_file(tmp_path / "adapter_model.safetensors")]
        assert sorted(names) == ["ctx", "logit_scale"]
        loaded = HFCoOp.from_pretrained(tmp_path)
        assert loaded.logit_scale.item() == model.logit_scale.item()

    @pytest.mark.parametrize(("views", "calls_in_training"), [("1", 0), ("3", 0), ("online", 6)])
    def test_image_views(self, tmp_path, views, calls_in_training):
        model, dataset = make_model(), image_dataset()
        trainer = CoOpTrainer(model, arguments(tmp_path, image_views=views), dataset)
        if views != "online":
            assert trainer.image_embeds(dataset, int(views)).shape == (8, int(views), DIM)
        calls: list[int] = []
        model.clip.vision_model.register_forward_hook(lambda *_: calls.append(1))
        trainer.train()
        assert len(calls) == calls_in_training
        assert len(trainer.state.losses) == 6

    def test_bf16(self, tmp_path):
        # in a process of its own: Accelerate has one precision a process
        script = (
            "import sys; sys.path[:0] = ['tests', 'tests/training']\n"
            "from test_trainer import *\n"
            f"a = trained({str(tmp_path)!r}, bf16=True)\n"
            "assert a.model.prompt_layer.active_learner.ctx.dtype == torch.float32\n"
            "print(a.state.log_history[-1]['loss'])\n"
        )
        root = Path(__file__).parents[2]
        out = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
        ).stdout
        exact = trained(tmp_path / "fp32").state.log_history[-1]["loss"]
        assert float(out.splitlines()[-1]) == pytest.approx(exact, rel=2e-2)

    def test_precision_of_the_launcher(self, tmp_path, monkeypatch):
        """`accelerate launch --mixed_precision bf16` counts where the arguments ask for nothing."""
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        trainer = trained(tmp_path)
        assert trainer.model.card_details.training["mixed_precision"] == "bf16"

    def test_trainers_of_different_precision_in_one_process(self, tmp_path):
        first = CoOpTrainer(make_model(), arguments(tmp_path / "a"), embeds_dataset())
        half = trained(tmp_path / "b", bf16=True)
        first.train()
        whole = trained(tmp_path / "c")
        assert first.state.losses == whole.state.losses
        assert first.state.losses != half.state.losses

    def test_fp16_on_a_cpu_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            CoOpTrainer(make_model(), arguments(tmp_path, fp16=True), embeds_dataset())

    def test_a_learned_temperature_is_in_full_precision(self, tmp_path):
        model = make_model(dtype=torch.bfloat16)
        trainer = CoOpTrainer(model, arguments(tmp_path, learn_temperature=True), embeds_dataset())
        assert trainer.model.logit_scale.dtype == torch.float32

    def test_the_model_is_its_own_again_after_an_exception(self, tmp_path):
        def fail(trainer, row):
            raise RuntimeError("stop")

        trainer = CoOpTrainer(make_model(), arguments(tmp_path, bf16=True), embeds_dataset(), callbacks=[fail])
        with pytest.raises(RuntimeError, match="stop"):
            trainer.train()
        assert trainer.model.forward.__func__ is HFCoOp.forward
        assert not trainer.model.training

    def test_a_tracker_that_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="report_to='swanlab' is unknown or not installed"):
            CoOpTrainer(make_model(), arguments(tmp_path, report_to=["swanlab"]), embeds_dataset())

    def test_fresh_crops_of_features_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="image_views='online' makes crops of images, but train_dataset has"):
            CoOpTrainer(make_model(), arguments(tmp_path, image_views="online"), embeds_dataset())

    @pytest.mark.parametrize("views", ["1", "online"])
    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_a_broken_image_is_found_before_any_step(self, tmp_path, views, split):
        cells = [cell["image"] for cell in image_dataset().cast_column("image", Image(decode=False))]
        cells[3]["bytes"] = cells[3]["bytes"][:60]
        broken = Dataset.from_dict(
            {"image": cells, "label": image_dataset()["label"][:]}, features=image_dataset().features
        )
        train, validation = (broken, image_dataset()) if split == "train" else (image_dataset(), broken)
        steps = []
        args = arguments(tmp_path, image_views=views, eval_strategy="epoch")
        trainer = CoOpTrainer(make_model(), args, train, validation, callbacks=[lambda *row: steps.append(row)])
        with pytest.raises(ValueError, match="cannot read image 3"):
            trainer.train()
        assert not steps
        assert not list_checkpoints(tmp_path)

    def test_validation_each_epoch(self, tmp_path):
        args = arguments(tmp_path, eval_strategy="epoch")
        trainer = CoOpTrainer(make_model(), args, embeds_dataset(), embeds_dataset(10, seed=1))
        trainer.train()
        assert [row["eval_accuracy"] for row in trainer.state.log_history][-1] == trainer.evaluate()["accuracy"]

    def test_what_the_card_says_of_the_images(self, tmp_path):
        """Shots as they were, and the score that all but a twentieth of the validation images reach."""
        labels = [0, 0, 0, 1, 1, 2, 3, 4]
        validation = embeds_dataset(40, seed=1)
        trainer = CoOpTrainer(make_model(), arguments(tmp_path), embeds_dataset(8, labels=labels), validation)
        trainer.train()
        details = trainer.model.card_details
        assert (details.shots, details.train_images) == (3, 8)
        scores = torch.from_numpy(trainer.predict(validation).predictions).softmax(-1).max(-1).values.sort().values
        assert (scores >= details.min_score).sum() == 39
        assert scores[1] - details.min_score < 2e-4
        trainer.save_model()
        assert HFCoOp.from_pretrained(tmp_path).card_details == details
        assert trained(tmp_path / "none").model.card_details.min_score is None

    def test_a_readme_in_the_folder_stays(self, tmp_path):
        (tmp_path / "README.md").write_text("# My flowers\n")
        trained(tmp_path).save_model()
        assert (tmp_path / "README.md").read_text().endswith("---\n# My flowers\n")

    def test_checkpoints_may_be_read_by_others(self, tmp_path):
        before = os.umask(0o022)
        try:
            trained(tmp_path)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in list_checkpoints(tmp_path)[0].iterdir()} == {0o644}

    def test_cocoop_by_the_same_trainer(self, tmp_path):
        model = HFCoOp.from_clip(CLIPModel.from_pretrained(PARITY), CLASSNAMES, method="cocoop", n_ctx=2)
        trainer = trained(tmp_path, model=model, save_strategy="steps", save_steps=7)
        trainer.save_model()
        again = CoOpTrainer(
            HFCoOp.from_clip(CLIPModel.from_pretrained(PARITY), CLASSNAMES, method="cocoop", n_ctx=2),
            trainer.args,
            embeds_dataset(),
        )
        again.train(resume_from_checkpoint=True)
        again.save_model(tmp_path / "again")
        files = [folder / "adapter_model.safetensors" for folder in (tmp_path, tmp_path / "again")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert len(load_file(files[0])) == 5

    def test_transformers_trainer_too(self, tmp_path, pixel_values):
        model = make_model()
        before = model.prompt_layer.active_learner.ctx.detach().clone()
        rows = [{"pixel_values": pixels, "labels": k} for k, pixels in enumerate(pixel_values)]
        # label_names is what transformers asks for with any PEFT model, whose base model it looks at.
        options = {"max_steps": 3, "save_steps": 3, "learning_rate": 0.1, "label_names": ["labels"]}
        args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
        trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        assert not torch.equal(model.prompt_layer.active_learner.ctx, before)
        assert trainer.evaluate()["eval_loss"] > 0
        assert trainer.predict(rows).predictions.shape == (4, len(CLASSNAMES))
        assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").is_file()

    def test_transformers_trainer_divides_accumulated_losses(self, tmp_path, pixel_values):
        rows = [{"pixel_values": pixels, "labels": k} for k, pixels in enumerate(pixel_values)]
        contexts = []
        for size, steps in ((4, 1), (1, 4)):
            model = make_model()
            args = TrainingArguments(
                output_dir=str(tmp_path / str(size)),
                report_to="none",
                use_cpu=True,
                max_steps=1,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                label_names=["labels"],
            )
            Trainer(model=model, args=args, train_dataset=rows).train()
            contexts.append(model.prompt_layer.active_learner.ctx.detach())
        torch.testing.assert_close(*contexts)

    def test_tensorboard(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        trainer = trained(tmp_path, report_to=["tensorboard"])
        (log,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.name == "hf_coop"}
        events = EventAccumulator(str(log))
        events.Reload()
        found = [event.value for event in events.Scalars("loss")]
        np.testing.assert_allclose(found, [row["loss"] for row in trainer.state.log_history], rtol=1e-6)
        assert {"accuracy", "learning_rate"} <= set(events.Tags()["scalars"])


class TestEvaluation:
    def test_predict_and_evaluate(self, tmp_path):
        dataset = embeds_dataset(11)
        trainer = CoOpTrainer(make_model(), arguments(tmp_path, per_device_eval_batch_size=4))
        output = trainer.predict(dataset)
        with torch.no_grad():
            embeds = torch.tensor(dataset["image_embeds"][:])
            expected = trainer.model.eval()(image_embeds=embeds).logits
        torch.testing.assert_close(torch.from_numpy(output.predictions), expected, rtol=1e-5, atol=1e-5)
        assert output.label_ids.tolist() == dataset["label"][:]
        metrics = trainer.evaluate(dataset)
        hits = expected.argmax(-1) == torch.tensor(dataset["label"][:])
        assert metrics["accuracy"] == pytest.approx(hits.float().mean().item())
        assert metrics["num_samples"] == 11
        assert set(metrics["per_class_accuracy"]) == set(CLASSNAMES)

    def test_nothing_to_evaluate_or_train_on(self, tmp_path):
        trainer = CoOpTrainer(make_model(), arguments(tmp_path))
        with pytest.raises(ValueError, match="no data set to evaluate on"):
            trainer.evaluate()
        with pytest.raises(ValueError, match="no train_dataset"):
            trainer.train()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data.remove_columns("label"), "needs the columns 'image' and 'label'; it has image_embeds"),
            (lambda data: data.rename_column("image_embeds", "x"), "needs the columns 'image'"),
            (lambda data: data.select([]), "has no images"),
            (lambda data: data.cast_column("label", ClassLabel(names=CLASSNAMES[::-1])), "has other classes"),
            (lambda data: data.cast_column("label", ClassLabel(names=[*CLASSNAMES, "cow"])), "has 6 classes"),
            (
                lambda data: data.cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] + 1}),
                "image 4 has the label 5, but the model has 5 classes",
            ),
        ],
        ids=["no-label", "no-image", "empty", "order", "number", "label"],
    )
    def test_data_that_do_not_fit(self, tmp_path, change, message):
        dataset = change(embeds_dataset(6))
        with pytest.raises(ValueError, match=message):
            CoOpTrainer(make_model(), arguments(tmp_path), train_dataset=dataset)
        with pytest.raises(ValueError, match=message):
            CoOpTrainer(make_model(), arguments(tmp_path)).evaluate(dataset)


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({}, [10, 15]),
            ({"save_total_limit": None}, [5, 10, 15]),
            ({"save_total_limit": 3, "num_train_epochs": 5}, [15, 20, 25]),
            ({"save_total_limit": 10}, [5, 10, 15]),
            ({"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}, [8, 12]),
            ({"save_strategy": "no"}, []),
        ],
    )
    def test_which_are_kept(self, tmp_path, options, steps):
        trained(tmp_path, **options)
        assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in steps]
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("optim", ["sgd", "adam"])
    @pytest.mark.parametrize("views", ["3", "online"])
    def test_resumed_from_any_step_it_ends_with_the_same_bytes(self, tmp_path, optim, views):
        options = {"optim": optim, "image_views": views, "num_train_epochs": 2}
        options |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
        whole = trained(tmp_path / "whole", image_dataset(), **options)
        whole.save_model(tmp_path / "saved")
        expected = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
        checkpoints = list_checkpoints(tmp_path / "whole")
        assert len(checkpoints) == 4
        for checkpoint in checkpoints:
            args = arguments(tmp_path / "resumed", **options, overwrite_output_dir=True)
            trainer = CoOpTrainer(make_model(seed=9), args, image_dataset())
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model(tmp_path / "again")
            assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == expected
            assert trainer.state.losses == whole.state.losses
            assert trainer.state.log_history == whole.state.log_history

    def test_going_back_to_an_earlier_checkpoint(self, tmp_path):
        """The new run's checkpoints are the newest, whatever the old run's have for numbers."""
        trained(tmp_path, save_total_limit=None, num_train_epochs=6)
        back = {"resume_from_checkpoint": str(tmp_path / "checkpoint-5"), "learning_rate": 0.1}
        new = trained(tmp_path, model=make_model(), **back, num_train_epochs=3)
        assert {path.name for path in list_checkpoints(tmp_path)} == {"checkpoint-10", "checkpoint-15"}
        again = trained(tmp_path, model=make_model(), resume_from_checkpoint="True", learning_rate=0.1)
        assert torch.equal(context(again), context(new))

    def test_a_checkpoint_elsewhere_does_not_overwrite_a_run(self, tmp_path):
        trained(tmp_path / "a")
        trained(tmp_path / "b")
        with pytest.raises(ValueError, match=r"a' holds another run"):
            trained(tmp_path / "a", resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-10"))
        resumed = trained(tmp_path / "c", resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-10"))
        assert resumed.state.global_step == 15

    def test_overwriting_by_a_checkpoint_elsewhere_leaves_no_old_ones(self, tmp_path):
        trained(tmp_path / "a", num_train_epochs=5)
        trained(tmp_path / "b")
        elsewhere = {"resume_from_checkpoint": str(tmp_path / "b" / "checkpoint-10"), "overwrite_output_dir": True}
        trained(tmp_path / "a", **elsewhere)
        assert [path.name for path in list_checkpoints(tmp_path / "a")] == ["checkpoint-15"]

    def test_what_was_just_written_is_never_the_oldest(self, tmp_path):
        """Even where a clock was wrong once."""
        trained(tmp_path)
        for checkpoint in list_checkpoints(tmp_path):
            os.utime(checkpoint / "trainer_state.json", (4e9, 4e9))
        trained(tmp_path, resume_from_checkpoint="True", num_train_epochs=4)
        assert (tmp_path / "checkpoint-20").is_dir()

    def test_a_linked_checkpoint(self, tmp_path):
        whole = trained(tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "checkpoint-10").symlink_to(tmp_path / "a" / "checkpoint-10")
        assert torch.equal(context(trained(tmp_path / "b", resume_from_checkpoint="True")), context(whole))

    def test_results_without_checkpoints_are_not_overwritten_by_resuming(self, tmp_path):
        trained(tmp_path, save_strategy="no").save_model()
        with pytest.raises(ValueError, match="holds another run"):
            trained(tmp_path, resume_from_checkpoint="True")

    def test_a_checkpoint_is_an_adapter(self, tmp_path):
        trainer = trained(tmp_path)
        loaded = HFCoOp.from_pretrained(list_checkpoints(tmp_path)[-1])
        assert loaded.classnames == list(CLASSNAMES)
        assert torch.equal(loaded.prompt_layer.active_learner.ctx, context(trainer))

    def test_true_begins_anew_where_there_is_none(self, tmp_path):
        trainer = trained(tmp_path, resume_from_checkpoint="True")
        assert len(trainer.state.losses) == 15

    def test_resuming_a_finished_run_changes_nothing(self, tmp_path):
        done = trained(tmp_path)
        again = trained(tmp_path, model=make_model(seed=5), resume_from_checkpoint="True")
        assert torch.equal(context(done), context(again))
        assert again.state.log_history == done.state.log_history

    def test_leftovers_of_a_killed_write_are_swept(self, tmp_path):
        (tmp_path / ".checkpoint-5").mkdir()
        (tmp_path / ".checkpoint-5" / "half").touch()
        trained(tmp_path)
        assert not list(tmp_path.glob(".*"))

    def test_an_output_folder_with_another_run_is_refused(self, tmp_path):
        trained(tmp_path, num_train_epochs=9, save_total_limit=None)
        with pytest.raises(ValueError, match=r"holds another run \(checkpoint-5, .*overwrite_output_dir"):
            trained(tmp_path)
        trained(tmp_path, overwrite_output_dir=True, num_train_epochs=1)
        assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5"]

    def test_an_output_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(ValueError, match="is a file"):
            trained(tmp_path / "out")

    def test_other_classes_are_refused(self, tmp_path):
        trained(tmp_path)
        names = ["dog", *CLASSNAMES[1:]]
        data = embeds_dataset().cast_column("label", ClassLabel(names=names))
        with pytest.raises(ValueError, match=r"checkpoint-15' was trained on other classes .*'cat' is now 'dog'"):
            trained(tmp_path, data, make_model(classnames=names), resume_from_checkpoint="True")

    def test_another_model_is_refused(self, tmp_path):
        trained(tmp_path)
        model = make_model()
        with torch.no_grad():
            model.clip.text_model.base_layer.final_layer_norm.weight[0] += 1
        with pytest.raises(ValueError, match="checkpoint-15' was trained on another base model"):
            trained(tmp_path, model=model, resume_from_checkpoint="True")

    def test_other_options_are_refused(self, tmp_path):
        trained(tmp_path)
        with pytest.raises(ValueError, match="was trained with n_ctx=2, now it is 3"):
            trained(tmp_path, model=make_model(n_ctx=3), resume_from_checkpoint="True")

    def test_other_images_are_refused(self, tmp_path):
        trained(tmp_path)
        with pytest.raises(ValueError, match="was trained on other images"):
            trained(tmp_path, embeds_dataset(15), resume_from_checkpoint="True")

    def test_another_method_is_refused(self, tmp_path):
        trained(tmp_path)
        with pytest.raises(ValueError, match="was trained by another method, CoOp; this is CoCoOp"):
            trained(tmp_path, model=make_model(method="cocoop"), resume_from_checkpoint="True")

    def test_another_optimizer_is_refused(self, tmp_path):
        trained(tmp_path)
        with pytest.raises(ValueError, match="was trained with optim='sgd', whose state is of no use to 'adam'"):
            trained(tmp_path, optim="adam", resume_from_checkpoint="True")

    def test_another_recipe_is_warned_of(self, tmp_path, caplog):
        trained(tmp_path)
        trained(tmp_path, resume_from_checkpoint="True", learning_rate=0.01)
        assert "learning_rate was 0.02, is 0.01" in caplog.text

    def test_no_checkpoint_there(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty' is no checkpoint: it has no adapter_config\.json"):
            trained(tmp_path / "out", resume_from_checkpoint=str(tmp_path / "empty"))

    @pytest.mark.parametrize("file", ["trainer_state.json", "trainer_state.safetensors", "adapter_model.safetensors"])
    def test_damaged(self, tmp_path, file):
        trained(tmp_path)
        path = list_checkpoints(tmp_path)[-1] / file
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match="damaged"):
            trained(tmp_path, resume_from_checkpoint="True")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, "holds no JSON object"),
            ({"epoch": -1}, "epoch=-1 must be from 0"),
            ({"epoch": 3, "log_history": []}, "its history is not that of epoch 3"),
            ({"epoch": 10**30}, "epoch=1000"),
            ({"losses": [float("nan")] * 15}, "must be finite numbers"),
            ({"losses": []}, "its history is not that"),
            ({"log_history": [{"loss": 1}] * 3}, "its history is not that"),
            ({"\x1b[31m": 1}, "unknown fields"),
        ],
    )
    def test_damaged_state(self, tmp_path, change, message):
        trained(tmp_path)
        path = tmp_path / "checkpoint-15" / "trainer_state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}) if change else "[" * 100_000)
        with pytest.raises(ValueError, match=f"checkpoint-15' is damaged: .*{message}") as refusal:
            trained(tmp_path, resume_from_checkpoint="True")
        assert str(refusal.value).isprintable()

    def test_damaged_random_state(self, tmp_path):
        trained(tmp_path)
        path = tmp_path / "checkpoint-15" / "trainer_state.safetensors"
        tensors = load_file(path)
        save_file({**tensors, "random.cpu": tensors["random.cpu"][:, :-9].contiguous()}, path)
        with pytest.raises(ValueError, match=r"checkpoint-15' is damaged: .*(RNG|mt19937|state)"):
            trained(tmp_path, resume_from_checkpoint="True")

    @pytest.mark.parametrize("damage", ["{}", "run", "random.cpu", "momentum", "no config"])
    def test_damaged_inside(self, tmp_path, damage):
        trained(tmp_path)
        checkpoint = list_checkpoints(tmp_path)[-1]
        state, tensors = checkpoint / "trainer_state.json", checkpoint / "trainer_state.safetensors"
        if damage == "no config":
            (checkpoint / "adapter_config.json").unlink()
        elif damage in ("random.cpu", "momentum"):
            values = load_file(tensors)
            if damage == "momentum":
                values["optimizer.0.momentum_buffer"] = torch.zeros(1, 3)
            else:
                del values["random.cpu"]
            save_file(values, tensors)
        else:
            state.write_text(json.dumps({**json.loads(state.read_text()), "run": None} if damage == "run" else {}))
        with pytest.raises(ValueError, match=r"is damaged|has no adapter_config.json"):
            trained(tmp_path, resume_from_checkpoint="True")

    @pytest.mark.parametrize("save_strategy", ["epoch", "no"])
    def test_an_update_that_spoils_the_prompt_is_not_saved(self, tmp_path, save_strategy):
        """The loss of a step is measured before its update, so it does not tell."""
        options = {"per_device_train_batch_size": 32, "warmup_epochs": 1, "save_strategy": save_strategy}
        with pytest.raises(FloatingPointError, match=r"after step 2 |loss is nan at step 3"):
            trained(tmp_path, learning_rate=1e30, **options)
        if save_strategy == "epoch":
            assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]
            assert trained(tmp_path, resume_from_checkpoint="True", **options).state.global_step == 3

    def test_the_last_update_may_spoil_the_prompt_too(self, tmp_path):
        with pytest.raises(FloatingPointError, match=r"after step 2 "):
            trained(
                tmp_path,
                learning_rate=1e30,
                per_device_train_batch_size=32,
                num_train_epochs=2,
                save_strategy="no",
            )

    def test_a_prompt_that_nobody_could_load_is_not_saved(self, tmp_path):
        """Layer norms make finite logits of absurd vectors too, but no checkpoint that can be gone on from."""
        message = r"ctx holds the value .* far beyond what is learned.* after step 2 \(epoch 2/2\).*checkpoint-1"
        with pytest.raises(FloatingPointError, match=message):
            trained(tmp_path, learning_rate=1e10, per_device_train_batch_size=32, num_train_epochs=2)
        assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]

    def test_a_loss_that_is_no_number_stops_at_its_step(self, tmp_path):
        data = embeds_dataset(8)
        embeds = torch.tensor(data["image_embeds"][:])
        embeds[5] = math.nan

        class Spoilt(CoOpTrainer):
            def epoch_order(self, epoch: int) -> list[int]:
                return [0, 1, 2, 3] if epoch < 2 else [0, 1, 2, 3, 4, 5, 6, 7]

        trainer = Spoilt(make_model(), arguments(tmp_path), embeds_dataset(embeds=embeds))
        with pytest.raises(
            FloatingPointError, match=r"loss is nan at step 4 \(epoch 3/3\).*checkpoint-2 is the last good"
        ):
            trainer.train()
        assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
        kept = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in kept.values())

    def test_a_full_disk_leaves_the_checkpoint_before(self, tmp_path):
        """A limit on the size of files makes every larger write fail, as a full disk does."""
        script = (
            "import resource, signal, sys; sys.path[:0] = ['tests', 'tests/training']\n"
            "from test_trainer import *\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "def fill(trainer, row):\n"
            "    if row['epoch'] == 2:\n"
            "        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            f"trainer = CoOpTrainer(make_model(), arguments({str(tmp_path)!r}), embeds_dataset(), callbacks=[fill])\n"
            "trainer.train()\n"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
        assert done.returncode == 1
        assert "cannot write" in done.stderr
        assert "checkpoint-5 is whole: make room and resume from it" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
        whole = trained(tmp_path / "whole")
        resumed = trained(tmp_path, resume_from_checkpoint="True")
        assert torch.equal(context(resumed), context(whole))


class TestProgress:
    def test_plain_lines_where_there_is_no_terminal(self, tmp_path, capfd):
        trained(tmp_path, num_train_epochs=40)
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch")]
        assert 15 <= len(lines) <= 25
        assert lines[0].startswith("epoch 1/40: loss ")
        assert lines[-1].startswith("epoch 40/40: loss ")
        assert all(word in lines[0] for word in ("training accuracy", "learning rate 1e-05", "steps/s", "s left"))

    def test_a_live_bar_on_a_terminal(self, tmp_path):
        script = (
            "import sys; sys.path[:0] = ['tests', 'tests/training']\n"
            "from test_trainer import *\n"
            f"trained({str(tmp_path)!r}, num_train_epochs=4)\n"
        )
        screen, terminal = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "140"}
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=terminal, stderr=terminal, env=env, cwd=root, close_fds=True
        )
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(screen, 65536):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait() == 0
        os.close(screen)
        assert b"epoch 4/4" in shown
        assert b"steps/s" in shown
        assert b"left" in shown
        assert b"training accuracy" not in shown
