"""Plans: which runs a protocol is made of, what methods are called, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from hf_coop.experiments import PROTOCOLS, Experiment, Run, parse_options
from hf_coop.experiments.image_sets import own_images
from hf_coop.experiments.methods import find_method
from hf_coop.experiments.run import prompt_folder


def plan(protocol: str, **options) -> list[Run]:
    return Experiment(protocol, "nowhere", benchmark=["demo"], **options).runs


def test_few_shot_plan():
    runs = plan("few-shot", methods=["zero_shot", "linear_probe", "coop_csc"], shots=[4, 1], seeds=[2, 1])
    assert runs[0] == Run("few-shot", "demo", "zero_shot", 0, 0)  # looks at no image, so it is done once
    drawn = [(shots, seed) for shots in (1, 4) for seed in (2, 1)]
    assert runs[1:5] == [Run("few-shot", "demo", "linear_probe", *draw) for draw in drawn]
    assert runs[5:] == [Run("few-shot", "demo", "coop_csc", *draw) for draw in drawn]
    assert len({*runs}) == len(runs)


def test_every_protocol_has_a_plan_for_the_embedded_images():
    for protocol in PROTOCOLS:
        runs = plan(protocol)
        assert {run.dataset for run in runs} == {"demo"}
        assert {run.shots for run in runs} - {0} == {*PROTOCOLS[protocol].shots}


def test_contexts():
    """The protocol that compares contexts has several; the others start as their papers do unless told."""
    found = [(run.n_ctx, run.ctx_init) for run in plan("context", seeds=[1])]
    assert found == [(4, None), (8, None), (16, None), (None, "a photo of a")]
    runs = plan("context", methods=["linear_probe", "coop"], n_ctx=[2], ctx_init=["a digit"], seeds=[1])
    assert [(run.n_ctx, run.ctx_init) for run in runs] == [(None, None), (2, None), (None, "a digit")]
    assert {run.ctx_init for run in plan("base-to-new", methods=["coop"])} == {"a photo of a"}
    assert {run.n_ctx for run in plan("base-to-new", methods=["coop"], n_ctx=[8])} == {8}
    assert {(run.n_ctx, run.ctx_init) for run in plan("few-shot", methods=["coop"])} == {(None, None)}


def test_targets_of_the_papers():
    for protocol, count, name in (("cross-dataset", 10, "ucf101"), ("domain-generalization", 4, "imagenet_a")):
        experiment = Experiment(protocol, "nowhere", benchmark=["imagenet"], data_dir="data")
        (targets,) = experiment.tested_on.values()
        assert len(targets) == count
        assert name in [target.name for target in targets]
        assert experiment.model_name_or_path == "openai/clip-vit-base-patch16"
        assert len({target.template for target in targets}) > 1 or count == 4  # each set has its own prompt


def test_names_of_methods():
    assert find_method("coop_csc_middle").options == {
        "class_specific_context": True,
        "class_token_position": "middle",
    }
    assert find_method("kgcoop_front").label == "KgCoOp front"
    assert find_method("kgcoop").prompt_options({"n_ctx": 4}, "the digit {}.") == {
        "template": "the digit {}.",
        "n_ctx": 4,
    }
    assert "template" not in find_method("coop").prompt_options({}, "the digit {}.")
    assert [find_method(name).learns for name in ("zero_shot", "ensemble_7", "linear_probe", "coop")] == [
        False,
        False,
        True,
        True,
    ]


def test_names_of_image_sets(tmp_path):
    assert own_images({"train_dir": "data/flowers/train", "test_dir": "data/flowers/test"}).name == "flowers"
    assert own_images({"train_dir": "data/flowers", "test_dir": "x"}).name == "flowers"
    assert own_images({"dataset_name": "user/birds"}).name == "birds"


def test_names_of_prompt_folders():
    runs = plan("context", shots=[1, 16], seeds=[1, 2])
    folders = [prompt_folder(run) for run in runs]
    assert len({*folders}) == len(runs)
    assert folders[-1] == "demo/coop-a-photo-of-a-16shots-seed2"
    assert not any(" " in folder for folder in folders)
    long = [prompt_folder(Run("context", "demo", "coop", 16, seed, ctx_init="long " * 60)) for seed in (1, 2)]
    assert long[0] != long[1]  # the end of a long name, which is cut, is what tells prompts apart
    assert all(len(name.split("/")[1]) < 255 for name in long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "few-shots"}, "no protocol 'few-shots'; there are few-shot, base-to-new, cross-dataset"),
        ({"benchmark": ["flowers"]}, "no benchmark 'flowers'; there are demo, .*oxford_flowers"),
        ({"methods": ["maple"]}, "no method 'maple'; there are cocoop, coop, .*_csc.*zero_shot"),
        ({"methods": ["coop_end"]}, "no method 'coop_end'"),
        ({"methods": ["cocoop_csc"]}, "CoCoOp has no class_specific_context"),
        ({"shots": [0]}, "shots must be 1 or more"),
        ({"seeds": [-1]}, "seeds 0 or more"),
        ({"benchmark": []}, "say what to learn on"),
        ({"images": {"dataset_name": "demo"}}, "say what to learn on"),
        ({"targets": ["dtd"]}, "targets go with the protocols"),
        ({"n_ctx": [4, 8]}, "the protocol that compares them is context"),
        ({"n_ctx": [0]}, "n_ctx must be a whole number"),
        ({"jobs": 0}, "jobs must be 1 or more"),
        ({"backend": "spark"}, "backend must be one of loky, dask"),
        ({"backend": "dask"}, "needs the address of its scheduler"),
        ({"scheduler": "tcp://x:1"}, "goes with backend='dask'"),
        ({"zero_shot_template": "a photo"}, "{}"),
        ({"prompt": {"kgcoop_weight": 3.0}}, "kgcoop_weight.*is an option of KgCoOp, not of CoOp"),
        ({"methods": ["coop_front"], "prompt": {"class_token_position": "end"}}, "leave it out"),
        ({"methods": ["cocoop"], "training": {"recipe": "fast"}}, "does not go with CoCoOp"),
        ({"training": {"learning_rate": -1.0}}, "learning_rate must be 0 or more"),
        ({"protocol": "base-to-new", "methods": ["linear_probe"]}, "linear_probe knows only the classes"),
        ({"protocol": "base-to-new", "methods": ["coop_csc"]}, "coop_csc knows only the classes"),
        ({"protocol": "base-to-new", "prompt": {"class_specific_context": True}, "methods": ["coop"]}, "no context"),
        ({"protocol": "cross-dataset", "benchmark": ["dtd"]}, "name them by targets"),
        ({"protocol": "cross-dataset", "targets": ["nowhere"]}, "no image set 'nowhere' to test on"),
    ],
)
def test_what_is_refused(options, message):
    """Before anything is loaded, with what there is instead."""
    with pytest.raises((ValueError, TypeError), match=message):
        Experiment(**{"protocol": "few-shot", "output_dir": "nowhere", "benchmark": ["demo"], **options})


def test_options_that_are_passed_on():
    given = ["--recipe", "paper", "--num_train_epochs=3", "--kgcoop_weight", "4", "--use_cpu", "--test_split", "val"]
    assert parse_options(given) == {
        "images": {"test_split": "val"},
        "prompt": {"kgcoop_weight": 4.0},
        "training": {"recipe": "paper", "num_train_epochs": 3, "use_cpu": True},
    }
    assert parse_options([]) == {"images": {}, "prompt": {}, "training": {}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "--seeds names those of the runs"),
        (["--method=coop"], "--methods names"),
        (["--push_to_hub"], "hf-coop push"),
        (["--eval_strategy", "epoch"], "trained to their end"),
    ],
)
def test_options_that_are_not_here(options, message):
    with pytest.raises(ValueError, match=message):
        parse_options(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kgcoop_wait", "4"], "unknown option '--kgcoop_wait': did you mean --kgcoop_weight?"),
        (["--recipe", "slow"], "invalid choice: 'slow'"),
        (["demo"], "unknown option 'demo'"),
        (["--subsample_classes", "new"], "unknown option '--subsample_classes'"),
    ],
)
def test_options_that_are_wrong(options, message, capsys):
    """On one line, as everywhere in the command."""
    with pytest.raises(SystemExit):
        parse_options(options)
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_published_numbers_agree_with_themselves():
    """Of the papers' table: the harmonic mean is that of the averages."""
    from hf_coop.experiments.published import published_table
    from hf_coop.experiments.tables import harmonic_mean

    table = published_table("base-to-new")
    for row in table.rows.values():
        assert harmonic_mean(row["base"].mean, row["new"].mean) == pytest.approx(row["H"].mean, abs=0.02)
    assert published_table("few-shot").rows["CoOp"]["16 shots"].mean == 79.0
    assert published_table("context") is None
    assert "arXiv 2203.05557" in table.notes[0]
