"""L-BFGS over all images at once, the recipes, and classes shared by processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSNAMES
from test_trainer import arguments, context, embeds_dataset, image_dataset, make_model, trained
from torch.nn import functional as F

from hf_coop import CoCoOpConfig, CoOpConfig, CoOpTrainer, CoOpTrainingArguments
from hf_coop.training import gradients, starting_prompt
from hf_coop.training.checkpoints import list_checkpoints
from hf_coop.training.gradients import BatchGradients
from hf_coop.training.processes import make_accelerator
from hf_coop.training.recipes import fill_in

ROOT = Path(__file__).parents[2]


def lbfgs(output_dir: Path | str, **options) -> CoOpTrainingArguments:
    """L-BFGS without the recipe's own terms."""
    plain = {"optim": "lbfgs", "label_smoothing_factor": 0, "anchor_weight": 0, "use_cpu": True}
    return CoOpTrainingArguments(output_dir=str(output_dir), **{**plain, **options})


def learned(output_dir: Path | str, model=None, dataset=None, **options) -> CoOpTrainer:
    trainer = CoOpTrainer(model or make_model(), lbfgs(output_dir, **options), dataset or embeds_dataset())
    trainer.train()
    return trainer


class TestOptimizer:
    def test_the_same_as_torch_alone(self, tmp_path):
        """In one call of many iterations, over the model's own loss; but without evaluating a point twice."""
        model, data = make_model(), embeds_dataset()
        embeds, labels = torch.tensor(data["image_embeds"][:]), torch.tensor(data["label"][:])
        parameters = [p for p in model.parameters() if p.requires_grad]
        plain = torch.optim.LBFGS(
            parameters, max_iter=8, max_eval=1000, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def closure() -> torch.Tensor:
            plain.zero_grad()
            loss = model(image_embeds=embeds, labels=labels).loss
            loss.backward()
            return loss

        plain.step(closure)
        state = plain.state[parameters[0]]
        rows = learned(tmp_path, max_text_passes=60).state.log_history
        expected = model(image_embeds=embeds, labels=labels).loss.item()
        assert rows[7]["loss"] == pytest.approx(expected, rel=1e-3)
        assert rows[7]["step"] <= state["func_evals"]

    @pytest.mark.parametrize("passes", [2, 3, 7, 20])
    def test_no_more_passes_than_asked_for(self, tmp_path, passes):
        start = make_model()
        data = embeds_dataset()
        inputs = {"image_embeds": torch.tensor(data["image_embeds"][:]), "labels": torch.tensor(data["label"][:])}
        first = start(**inputs).loss.item()
        calls = []
        model = make_model()
        model.clip.text_model.base_layer.final_layer_norm.register_forward_hook(lambda *_: calls.append(1))
        trainer = CoOpTrainer(model, lbfgs(tmp_path, max_text_passes=passes, save_strategy="no"), data)
        metrics = trainer.train().metrics
        assert metrics["text_passes"] == passes == trainer.state.global_step
        assert metrics["train_ended"] == f"all {passes} text passes are done"
        assert len(calls) == passes + 1  # the check at the end looks at the prompt once
        assert trainer.model(**inputs).loss.item() == pytest.approx(metrics["train_loss"], rel=1e-5)
        assert metrics["train_loss"] < first

    def test_it_ends_where_nothing_lower_is_found(self, tmp_path, capsys):
        """A strong weight decay has its minimum nearby."""
        trainer = CoOpTrainer(make_model(), lbfgs(tmp_path, max_text_passes=400, weight_decay=1e4), embeds_dataset())
        metrics = trainer.train().metrics
        assert metrics["text_passes"] < 400
        assert metrics["train_ended"].startswith(f"converged after {metrics['text_passes']} text passes")
        assert f"training ended: {metrics['train_ended']}\n" in capsys.readouterr().out

    @pytest.mark.parametrize("options", [{"class_specific_context": True}, {"learn_temperature": True}])
    def test_options_of_the_prompt(self, tmp_path, options):
        losses = [
            row["loss"] for row in learned(tmp_path, make_model(**options), max_text_passes=15).state.log_history
        ]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.9 * losses[0]

    def test_all_views_are_one_batch(self, tmp_path):
        data = image_dataset()
        trainer = learned(tmp_path, dataset=data, image_views="3", max_text_passes=6)
        embeds = trainer.image_embeds(data, 3).flatten(0, 1)
        labels = torch.tensor(data["label"][:]).repeat_interleave(3)
        loss = trainer.model(image_embeds=embeds, labels=labels).loss.item()
        assert trainer.state.log_history[-1]["loss"] == pytest.approx(loss, rel=1e-5)

    def test_bf16(self, tmp_path):
        trainer = learned(tmp_path, max_text_passes=10, bf16=True)
        assert trainer.model.prompt_layer.active_learner.ctx.dtype == torch.float32
        assert trainer.state.losses[-1] < trainer.state.losses[0]


class TestLoss:
    @pytest.fixture
    def inputs(self) -> dict[str, torch.Tensor]:
        data = embeds_dataset(23)
        return {"image_embeds": torch.tensor(data["image_embeds"][:]), "labels": torch.tensor(data["label"][:])}

    @pytest.mark.parametrize(
        ("shares_images", "logits_at_a_time"), [(False, 2**23), (False, 1), (False, 25), (True, 2**23)]
    )
    def test_smoothing_and_anchor(self, inputs, tmp_path, monkeypatch, shares_images, logits_at_a_time):
        """Loss and gradients are those of the formula, in however many blocks the images come.

        Also where processes share the images, as they do when the image tower is trained.
        """
        monkeypatch.setattr(gradients, "LOGITS_AT_A_TIME", logits_at_a_time)
        model = make_model(learn_temperature=True)
        args = lbfgs(tmp_path, label_smoothing_factor=0.2, anchor_weight=0.3, anchor_template="a {}.")
        batch = BatchGradients(model, make_accelerator(args), args)
        batch.shares_images = shares_images
        found = batch.add(inputs, 23)
        batch.merge()
        gradients_found = [parameter.grad.clone() for parameter in batch.parameters]

        logits, classes = model(**inputs).logits, model.class_embeddings()
        cosines = (classes * model.template_embeddings("a {}.")).sum(-1)
        loss = F.cross_entropy(logits, inputs["labels"], label_smoothing=0.2)
        loss = loss + 0.3 * model.clip.logit_scale.detach().exp() * (1 - cosines.mean())
        expected = torch.autograd.grad(loss, batch.parameters)
        assert found[1].item() == pytest.approx((logits.argmax(-1) == inputs["labels"]).float().mean().item())
        for ours, theirs in zip(gradients_found, expected, strict=True):
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()

    def test_weight_decay_is_in_the_loss(self, tmp_path):
        free, held = (learned(tmp_path / str(w), max_text_passes=20, weight_decay=w) for w in (0.0, 10.0))
        assert context(held).norm() < context(free).norm()
        measured = held.model(
            image_embeds=torch.tensor(embeds_dataset()["image_embeds"][:]),
            labels=torch.tensor(embeds_dataset()["label"][:]),
        ).loss.item()
        assert held.state.losses[-1] == pytest.approx(measured + 5 * context(held).square().sum().item(), rel=1e-4)

    @pytest.mark.parametrize("value", [0.5, 0.0])
    def test_sgd_has_the_terms_too(self, tmp_path, value):
        given = trained(tmp_path / "given", anchor_weight=value, label_smoothing_factor=value)
        both = [given, trained(tmp_path / "plain")]
        assert torch.equal(context(both[0]), context(both[1])) == (value == 0)


class TestRecipes:
    def test_fast_is_the_default(self):
        args = fill_in(CoOpTrainingArguments(), CoOpConfig(classnames=["cat"]), 4)
        assert (args.recipe, args.optim, args.max_text_passes) == ("fast", "lbfgs", 100)
        assert args.anchor_weight == pytest.approx(0.15 / 4)
        assert (args.weight_decay, args.label_smoothing_factor, args.learning_rate) == (0, 0.1, None)

    @pytest.mark.parametrize(
        "options",
        [{"recipe": "paper"}, {"optim": "sgd"}, {"num_train_epochs": 3}, {"image_views": "online"}, {"momentum": 0.5}],
    )
    def test_the_papers_where_it_is_asked_for(self, options):
        args = fill_in(CoOpTrainingArguments(**options), CoOpConfig(classnames=["cat"]), 16)
        assert (args.recipe, args.optim, args.learning_rate, args.weight_decay) == ("paper", "sgd", 0.002, 5e-4)
        assert args.num_train_epochs == options.get("num_train_epochs", 200)
        assert (args.anchor_weight, args.label_smoothing_factor, args.max_text_passes) == (0, 0, None)

    def test_what_is_given_wins(self):
        args = fill_in(CoOpTrainingArguments(anchor_weight=0, max_text_passes=7), CoOpConfig(classnames=["cat"]), 16)
        assert (args.recipe, args.anchor_weight, args.max_text_passes) == ("fast", 0, 7)

    def test_cocoop_keeps_the_papers(self):
        config = CoCoOpConfig(classnames=["cat"])
        assert fill_in(CoOpTrainingArguments(), config, 16).recipe == "paper"
        with pytest.raises(ValueError, match="recipe='fast' does not go with CoCoOp: its prompts depend"):
            fill_in(CoOpTrainingArguments(recipe="fast"), config, 16)
        with pytest.raises(ValueError, match="optim='lbfgs' does not go with CoCoOp"):
            fill_in(CoOpTrainingArguments(optim="lbfgs"), config, 16)

    def test_an_anchor_needs_embeddings_that_images_share(self):
        with pytest.raises(ValueError, match=r"anchor_weight=0.5 holds class embeddings .* those of CoCoOp depend"):
            fill_in(CoOpTrainingArguments(anchor_weight=0.5), CoCoOpConfig(classnames=["cat"]), 16)

    def test_where_the_context_starts(self):
        fast, paper = CoOpTrainingArguments(), CoOpTrainingArguments(recipe="paper")
        assert starting_prompt(fast, CoOpConfig, {}) == {"ctx_init": "a photo of a"}
        assert starting_prompt(fast, CoOpConfig, {"n_ctx": 4}) == {"n_ctx": 4}
        assert starting_prompt(paper, CoOpConfig, {}) == {}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_views": "online"}, "optim='lbfgs' needs the same loss at every evaluation"),
            ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 means nothing to optim='lbfgs'"),
            ({"per_device_train_batch_size": 32}, "per_device_train_batch_size=32 means nothing to optim='lbfgs'"),
            ({"max_text_passes": 1}, "max_text_passes must be 2 or more, got 1"),
            ({"fp16": True}, "no loss scale, which fp16 needs"),
            ({"label_smoothing_factor": 1.0}, "label_smoothing_factor must be below 1, got 1.0"),
            ({"anchor_weight": -1.0}, "anchor_weight must be 0 or more, got -1.0"),
            ({"anchor_template": "a photo"}, "'a photo' must have {}"),
        ],
    )
    def test_bad_input(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            CoOpTrainer(make_model(), lbfgs(tmp_path / "out", **options), embeds_dataset())
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "way_on"),
        [
            ({"optim": "lbfgs", "gradient_accumulation_steps": 2}, "or use optim='sgd'"),
            ({"optim": "lbfgs", "image_views": "online"}, "or optim='sgd'"),
            ({"recipe": "fast", "num_train_epochs": 5}, "or use recipe='paper'"),
            ({"recipe": "paper", "max_text_passes": 5}, "give num_train_epochs instead"),
        ],
    )
    def test_what_is_refused_before_anything_is_loaded(self, options, way_on):
        with pytest.raises(ValueError, match=way_on):
            starting_prompt(CoOpTrainingArguments(**options), CoOpConfig, {})

    def test_passes_without_lbfgs(self, tmp_path):
        with pytest.raises(ValueError, match="max_text_passes=9 is of optim='lbfgs'"):
            CoOpTrainer(make_model(), arguments(tmp_path, max_text_passes=9), embeds_dataset())

    def test_a_loss_that_is_no_number(self, tmp_path):
        embeds = torch.tensor(embeds_dataset()["image_embeds"][:])
        embeds[3] = math.nan
        with pytest.raises(FloatingPointError, match=r"the loss is nan after \d+ text passes.*no checkpoint"):
            learned(tmp_path, dataset=embeds_dataset(embeds=embeds))


class TestResume:
    def adapter(self, folder: Path) -> bytes:
        return (folder / "adapter_model.safetensors").read_bytes()

    @pytest.mark.parametrize("options", [{}, {"class_specific_context": True}, {"learn_temperature": True}])
    @pytest.mark.parametrize("iteration", [1, 2, 9])
    def test_stopped_and_resumed_it_ends_with_the_same_bytes(self, tmp_path, options, iteration):
        whole = learned(tmp_path / "whole", make_model(**options), max_text_passes=25)
        whole.save_model()

        class Killed(Exception):
            pass

        def kill(trainer: CoOpTrainer, row: dict) -> None:
            if row["epoch"] == iteration + 1:  # its checkpoint is not written any more
                raise Killed

        args = lbfgs(tmp_path / "cut", max_text_passes=25)
        with pytest.raises(Killed):
            CoOpTrainer(make_model(**options), args, embeds_dataset(), callbacks=[kill]).train()
        again = CoOpTrainer(make_model(seed=7, **options), args, embeds_dataset())
        again.train(resume_from_checkpoint=True)
        again.save_model()
        assert self.adapter(tmp_path / "cut") == self.adapter(tmp_path / "whole")
        assert again.state.log_history == whole.state.log_history

    def test_what_has_ended_stays_as_it_is(self, tmp_path):
        first = learned(tmp_path, max_text_passes=400, weight_decay=1e4)
        again = learned(tmp_path, max_text_passes=400, weight_decay=1e4, resume_from_checkpoint="True")
        assert torch.equal(context(again), context(first))
        assert again.state.global_step == first.state.global_step

    def test_more_passes_go_on(self, tmp_path, caplog):
        first = learned(tmp_path, max_text_passes=10)
        again = learned(tmp_path, max_text_passes=30, resume_from_checkpoint="True")
        assert "max_text_passes was 10, is 30" in caplog.text
        assert again.state.losses[-1] < first.state.losses[-1]
        assert again.state.global_step == 30

    def test_another_loss_is_evaluated_anew(self, tmp_path):
        """Beside what was found of the old one, nothing lower was found, and it ended as if it had converged."""
        first = learned(tmp_path, max_text_passes=10)
        again = learned(tmp_path, max_text_passes=30, weight_decay=1, resume_from_checkpoint="True")
        losses = again.state.losses[len(first.state.losses) :]
        assert losses[0] > first.state.losses[-1]
        assert losses == sorted(losses, reverse=True)
        assert again.state.global_step == 30

    def test_checkpoints_by_passes(self, tmp_path):
        learned(tmp_path, max_text_passes=20, save_strategy="steps", save_steps=8, save_total_limit=None)
        steps = sorted(int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path))
        assert len(steps) == 2
        assert steps[0] // 8 == 1
        assert steps[1] // 8 == 2

    def test_another_optimizer_is_refused(self, tmp_path):
        learned(tmp_path, max_text_passes=5)
        with pytest.raises(ValueError, match="was trained with optim='lbfgs', whose state is of no use to 'sgd'"):
            trained(tmp_path, resume_from_checkpoint="True")

    def test_damaged(self, tmp_path):
        from safetensors.torch import load_file, save_file

        learned(tmp_path, max_text_passes=5)
        path = list_checkpoints(tmp_path)[-1] / "trainer_state.safetensors"
        tensors = load_file(path)
        save_file({k: v for k, v in tensors.items() if k != "lbfgs.gradient"}, path)
        with pytest.raises(ValueError, match=r"checkpoint-5' is damaged: its L-BFGS state lacks 'gradient'"):
            learned(tmp_path, max_text_passes=5, resume_from_checkpoint="True")

    def test_validation_each_iteration(self, tmp_path):
        args = lbfgs(tmp_path, max_text_passes=8, eval_strategy="epoch")
        trainer = CoOpTrainer(make_model(), args, embeds_dataset(), embeds_dataset(10, seed=3))
        trainer.train()
        assert all("eval_accuracy" in row for row in trainer.state.log_history)


# Forked workers of one process that has imported everything: many of them cost little.
PROCESSES = """
import json, os, sys
sys.path[:0] = ['tests', 'tests/training']
from pathlib import Path
from test_trainer import *
from test_lbfgs import lbfgs
import torch.multiprocessing as mp

class Killed(Exception):
    pass

def kill(trainer, row):
    if row['epoch'] == 2:
        raise Killed

def work(rank, count, port, out, method, kind, names):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), ACCELERATE_USE_CPU='1',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    torch.set_num_threads(1)
    model = make_model(method=method, seed=rank, learn_temperature=method != 'cocoop')  # each draws another context
    if kind == 'lbfgs':
        args = lbfgs(out, max_text_passes=6, anchor_weight=0.1, resume_from_checkpoint='True')
        trainer = CoOpTrainer(model, args, embeds_dataset(), callbacks=[kill])
        try:
            trainer.train()
        except Killed:
            trainer.accelerator.wait_for_everyone()
    else:
        batch = 12 // count
        args = arguments(out, per_device_train_batch_size=batch, save_strategy='no', dataloader_drop_last=False,
                         image_views='online' if kind == 'online' else '1')
    data = image_dataset(10) if kind == 'online' else embeds_dataset()
    trainer = CoOpTrainer(model, args, data)
    trainer.train()
    scores = trainer.predict(embeds_dataset(7, seed=5)).predictions
    Path(out).mkdir(exist_ok=True)
    torch.save({'losses': trainer.state.losses, 'scores': torch.from_numpy(scores), 'learned':
        [p.detach() for p in trainer._gradients.parameters]}, f'{out}/{rank}.pt')

if __name__ == '__main__':
    counts, port, out, method, kind = json.loads(sys.argv[1])
    for number, count in enumerate(counts):
        mp.start_processes(work, (count, port + number, f'{out}-{count}', method, kind, None), nprocs=count,
                           start_method='fork')
"""


@pytest.mark.parametrize(
    ("method", "kind", "counts"),
    [
        ("coop", "lbfgs", [1, 2, 7]),
        pytest.param("coop", "sgd", [1, 2, 3], marks=pytest.mark.slow),
        ("cocoop", "sgd", [1, 2]),
        pytest.param("coop", "online", [1, 2], marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_learns_the_same(tmp_path, method, kind, counts):
    """Also more processes than the five classes, with partly empty shares; with L-BFGS also killed and resumed."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = json.dumps([counts, port, str(tmp_path / "out"), method, kind])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, options], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = torch.load(tmp_path / "out-1" / "0.pt")
    assert len(expected["losses"]) > 2
    for count in counts[1:]:
        for rank in range(count):
            found = torch.load(tmp_path / f"out-{count}" / f"{rank}.pt")
            torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-4)
            for ours, theirs in zip(found["learned"], expected["learned"], strict=True):
                assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_shares_of_a_layout_hold_each_class_once(count):
    layout = make_model().prompt_layer.active_learner.layout
    shares = layout.shares(count)
    assert len(shares) == count
    assert sorted(k for share in shares for k in share.order) == list(range(len(CLASSNAMES)))
    assert max(share.n_tail_tokens for share in shares) <= layout.n_tail_tokens / count + len(layout.tails[-1])


def test_methods_with_terms_of_their_own(tmp_path):
    """KgCoOp's distance takes the anchor's place; ProGrad says why it cannot."""
    args = fill_in(CoOpTrainingArguments(), make_model(method="kgcoop", n_ctx=None).prompt_config, 4)
    assert (args.optim, args.anchor_weight, args.label_smoothing_factor) == ("lbfgs", 0, 0.1)
    losses = learned(tmp_path, make_model(method="kgcoop"), max_text_passes=12).state.losses
    assert losses[-1] < losses[0]
    prograd = make_model(method="prograd").prompt_config
    assert fill_in(CoOpTrainingArguments(), prograd, 4).recipe == "paper"
    with pytest.raises(ValueError, match="optim='lbfgs' does not go with ProGrad: its gradient is merged from two"):
        fill_in(CoOpTrainingArguments(optim="lbfgs"), prograd, 4)
