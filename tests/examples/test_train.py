"""`examples/train.py` as people run it: real processes, killed and resumed, one and two of them."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PARITY
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from hf_coop import HFCoOp
from hf_coop.data import load_benchmark, load_image_splits
from hf_coop.evaluation.card_figures import FIGURE_FILES
from hf_coop.training import check_output_dir
from hf_coop_cli.train_options import TRAIN_OPTIONS

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "examples" / "train.py")
NAMES = ("cat", "red_bus", "tiger")


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1", **extra}


def command(output: Path, data: Path, *options: object) -> list[str]:
    return [
        *("--model_name_or_path", str(PARITY), "--train_dir", str(data / "train"), "--test_dir", str(data / "test")),
        *("--output_dir", str(output), "--n_ctx", "2", "--num_shots", "4", "--per_device_train_batch_size", "4"),
        *("--num_train_epochs", "30", "--learning_rate", "0.05", "--image_views", "2"),
        *map(str, options),
    ]


def run(arguments: list[str], *launcher: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    launcher = launcher or (sys.executable, TRAIN)
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def adapter(output: Path) -> bytes:
    return (output / "adapter_model.safetensors").read_bytes()


def metrics(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of flat colours with noise: five training images each, and eleven test images in all."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, counts in (("train", (5, 5, 5)), ("test", (4, 4, 3))):
        for label, (name, count) in enumerate(zip(NAMES, counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (36, 40, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(command(output, data))
    return output


class TestOutput:
    def test_files(self, whole):
        names = {path.name for path in whole.iterdir()}
        assert names == {
            *("README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json", "training_curves.png"),
            *("checkpoint-87", "checkpoint-90", "run.yaml", "figures"),
        }
        card = (whole / "README.md").read_text()
        assert "on 11 test images." in card
        for figure in FIGURE_FILES:
            assert f"]({figure})" in card
            assert Image.open(whole / figure).width == 576
        assert not list(whole.glob("checkpoint-*/figures"))
        assert Image.open(whole / "training_curves.png").width > 600
        assert HFCoOp.from_pretrained(whole).classnames == list(NAMES)

    def test_metrics(self, whole):
        found = metrics(whole)
        assert found["zero_shot"]["num_samples"] == found["learned"]["num_samples"] == 11
        assert found["learned"]["accuracy"] > max(0.8, found["zero_shot"]["accuracy"])
        assert set(found["learned"]) >= {"accuracy", "top5_accuracy", "macro_f1", "ece", "per_class_accuracy"}
        assert set(found["seconds"]) == {"loading", "features", "training", "evaluation"}
        assert found["settings"]["data"]["num_shots"] == 4
        assert found["settings"]["data"]["zero_shot_template"] == "a photo of a {}."
        assert found["settings"]["training"]["learning_rate"] == 0.05

    def test_the_script_is_short(self):
        assert len(Path(TRAIN).read_text().splitlines()) < 150

    def test_hf_coop_train_is_the_same_thing(self, data, tmp_path, whole):
        out = tmp_path / "out"
        run(command(out, data), sys.executable, "-m", "hf_coop_cli", "train")
        assert adapter(out) == adapter(whole)
        help_text = run(["--help"], sys.executable, "-m", "hf_coop_cli", "train").stdout
        assert help_text.startswith("usage: hf-coop train [options]")
        assert "\nbatches and views:\n" in help_text
        assert "--class_token_position" in help_text
        assert "--peft_type" not in help_text  # PEFT's own fields are no options
        assert "--gradient_accumulation_steps" in help_text
        assert re.findall(r"^  (?:-h, )?(--\w+)", help_text, re.MULTILINE) == TRAIN_OPTIONS  # which shells complete

    def test_demo_and_other_options(self, tmp_path):
        """The embedded model and images, half of the classes, fresh crops, Adam, TensorBoard."""
        options = "--model_name_or_path demo --dataset_name demo --num_shots 1 --subsample_classes new --n_ctx 3"
        options += " --class_token_position middle --class_specific_context --image_views online --optim adam"
        options += " --num_train_epochs 2 --report_to tensorboard --save_strategy no --learn_temperature True"
        run([*options.split(), "--output_dir", str(tmp_path)])
        assert metrics(tmp_path)["classnames"] == ["five", "six", "seven", "eight", "nine"]
        weights = {
            name.rsplit(".", 1)[1]: value for name, value in load_file(tmp_path / "adapter_model.safetensors").items()
        }
        assert weights["ctx"].shape[:2] == (5, 3)
        assert "logit_scale" in weights
        assert list(tmp_path.rglob("events.out.tfevents.*"))

    def test_a_benchmark(self, trees, tmp_path):
        options = ["--model_name_or_path", PARITY, "--benchmark", "oxford_flowers", "--data_dir", trees, "--n_ctx", 2]
        options += ["--num_shots", 1, "--num_train_epochs", 1, "--save_strategy", "no", "--output_dir", tmp_path]
        run([*map(str, options)])
        found, expected = metrics(tmp_path), load_benchmark("oxford_flowers", trees)
        assert found["classnames"] == expected.classnames
        assert found["settings"]["data"]["zero_shot_template"] == "a photo of a {}, a type of flower."
        assert found["validation"]["num_samples"] == len(expected.classnames)
        assert found["learned"]["num_samples"] == len(expected.splits["test"])
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.eval_results[0].dataset_name == "oxford_flowers"

    def test_the_card_names_the_split_that_was_measured(self, data, tmp_path):
        """Many sets of the Hub have no labelled test split."""
        loaded = load_image_splits(train_dir=data / "train", test_dir=data / "test")
        renamed = {"train": loaded["train"], "validation": loaded["test"]}
        DatasetDict({name: Dataset(rows.data, split=name) for name, rows in renamed.items()}).save_to_disk(
            tmp_path / "set"
        )
        options = ["--model_name_or_path", PARITY, "--dataset_name", tmp_path / "set", "--num_train_epochs", "1"]
        run([*map(str, options), "--save_strategy", "no", "--output_dir", str(tmp_path / "out")])
        (entry,) = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["model-index"]
        assert {result["dataset"]["split"] for result in entry["results"]} == {"validation"}


def test_without_a_test_folder(data, tmp_path, monkeypatch, capsys):
    """A part is held out, and the shots are cross-validated. In this process, to save time."""
    options = command(tmp_path, data, "--num_train_epochs", 2, "--save_strategy", "no", "--cv_folds", 2)
    place = options.index("--test_dir")
    options[place : place + 2] = ["--test_size", "0.2"]
    monkeypatch.setattr(sys, "argv", [TRAIN, *options])
    runpy.run_path(TRAIN, run_name="__main__")
    found, told = metrics(tmp_path), capsys.readouterr().out
    assert found["learned"]["num_samples"] == 3
    assert len(found["cross_validation"]["folds"]) == 2
    assert "cross_validation" in found["seconds"]
    assert f"learned accuracy: {found['learned']['accuracy']:.2%} of 3 test images" in told
    assert f"cross-validated accuracy: {found['cross_validation']['accuracy']:.2%} ± " in told


def test_equal_class_names(data, tmp_path):
    """As in ImageNet's own list: trained all the same, with one warning, and each class has its accuracy."""
    names = tmp_path / "names.txt"
    names.write_text("missile\nred bus\nmissile\n")
    out = tmp_path / "out"
    done = run(command(out, data, "--classnames_file", names, "--num_train_epochs", 2, "--save_strategy", "no"))
    assert done.stderr.count("class names that make the same prompt") == 1
    assert "'missile' (label 0) and 'missile' (label 2)" in done.stderr
    found = metrics(out)
    assert found["classnames"] == ["missile", "red bus", "missile"]
    for name in ("zero_shot", "learned"):
        assert found[name]["per_class_accuracy"].keys() == {"missile (label 0)", "red bus", "missile (label 2)"}
    predictions = HFCoOp.from_pretrained(out).predict(data / "test" / "cat" / "0.png")
    assert sorted(row["label"] for row in predictions) == ["missile", "missile", "red bus"]
    info = run([str(out)], sys.executable, "-m", "hf_coop_cli", "info")
    assert "3: missile, red bus, missile" in info.stdout
    assert "same prompt" not in info.stderr


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The script in this process, to save time."""
    monkeypatch.setattr(sys, "argv", [TRAIN, *map(str, arguments)])
    runpy.run_path(TRAIN, run_name="__main__")


def test_the_configuration_of_a_run_repeats_it(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_here(monkeypatch, "--config", whole / "run.yaml", "--output_dir", out, "--save_strategy", "no")
    assert adapter(out) == adapter(whole)
    before, after = ((folder / "run.yaml").read_text().splitlines() for folder in (whole, out))
    assert {line.split(":")[0] for line in set(before) ^ set(after)} == {"output_dir", "save_strategy"}


def test_several_seeds(data, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ("--num_train_epochs", 2, "--save_strategy", "no", "--validation_dir", data / "train")
    run_here(monkeypatch, *command(out, data, *options, "--seeds", 1, 3))
    told = capsys.readouterr().out
    single = tmp_path / "single"
    run_here(monkeypatch, *command(single, data, *options, "--seed", 3))
    assert adapter(out / "seed3") == adapter(single)
    assert adapter(out / "seed1") != adapter(single)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == [1, 3]
    for name in ("zero_shot", "validation", "learned"):
        values = [metrics(out / f"seed{seed}")[name]["accuracy"] for seed in (1, 3)]
        assert summary["mean"][name]["accuracy"] == pytest.approx(np.mean(values))
        assert summary["std"][name]["accuracy"] == pytest.approx(np.std(values))
    mean, std = (100 * summary[name]["learned"]["accuracy"] for name in ("mean", "std"))
    assert f"learned accuracy: {mean:.2f} ± {std:.2f} % over the seeds [1, 3]" in told
    assert yaml.safe_load((out / "run.yaml").read_text())["seeds"] == [1, 3]
    assert yaml.safe_load((out / "seed3" / "run.yaml").read_text())["seed"] == 3


class TestInterruption:
    def test_killed_at_any_moment_and_resumed(self, data, tmp_path, whole):
        """SIGKILL while checkpoints are written at each step, again and again, until a run comes through."""
        self.check_kills(command(tmp_path / "out", data), tmp_path / "out", whole, targets=(1, 25, 60))

    def test_lbfgs_killed_at_any_moment_and_resumed(self, data, tmp_path):
        options = ["--model_name_or_path", PARITY, "--train_dir", data / "train", "--num_shots", 4, "--output_dir"]
        run([*map(str, options), str(tmp_path / "whole")])
        out = tmp_path / "out"
        self.check_kills([*map(str, options), str(out)], out, tmp_path / "whole", targets=(1, 20, 50))

    @staticmethod
    def check_kills(arguments: list[str], out: Path, whole: Path, targets: tuple[int, ...]) -> None:
        kills, step = 0, 0
        saving = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1"]
        resume = [*arguments, *saving, "--resume_from_checkpoint", "True"]
        for target in targets:
            process = subprocess.Popen(
                [sys.executable, TRAIN, *resume], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL
            )
            while process.poll() is None and step < target:
                steps = [
                    int(path.name.split("-")[1]) for path in out.glob("checkpoint-*") if not path.name.endswith("old")
                ]
                step = max(steps, default=0)
                time.sleep(0.001)
            kills += process.poll() is None
            process.kill()
            process.wait()
        assert kills >= 2
        assert not (out / "adapter_model.safetensors").exists()
        run(resume)
        assert adapter(out) == adapter(whole)
        assert not list(out.glob(".*"))

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_ctrl_c_saves_and_says_how_to_go_on(self, data, tmp_path, whole, number):
        out = tmp_path / "out"
        arguments = command(out, data, "--save_strategy", "epoch")
        process = subprocess.Popen(
            [sys.executable, TRAIN, *arguments], env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not list(out.glob("checkpoint-*")):
            time.sleep(0.001)
        process.send_signal(number)
        _, message = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in message
        assert "stopped after step " in message
        assert "--resume_from_checkpoint True" in message
        run([*arguments, "--resume_from_checkpoint", "True"])
        assert adapter(out) == adapter(whole)

    def test_ctrl_c_while_images_are_encoded(self, tmp_path):
        options = "--model_name_or_path demo --dataset_name demo --num_shots 0 --image_views 99 --output_dir"
        process = subprocess.Popen(
            [sys.executable, TRAIN, *options.split(), str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(HF_DATASETS_CACHE=str(tmp_path / "cache")),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' background jobs ignore it
        )
        assert process.stderr is not None
        seen = ""
        while "Encoding images" not in seen:
            assert process.poll() is None
            seen += process.stderr.read(20)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors.strip().endswith("stopped; to go on, run it again with --resume_from_checkpoint True")


class TestTwoProcesses:
    @pytest.fixture(scope="class")
    @staticmethod
    def launched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Batches of 4 + 1 images here and of 2 + 2, 1 + 0 images there."""
        root = tmp_path_factory.mktemp("launched")
        options = ("--num_shots", 3, "--dataloader_drop_last", "False", "--num_train_epochs", 10)
        run(command(root / "one", data, *options))
        # With --cpu, accelerate leaves starting more than one process to MPI; --multi_gpu starts them itself, and
        # ACCELERATE_USE_CPU keeps them on CPUs.
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--main_process_port", "0", TRAIN]
        two = command(root / "two", data, *options, "--per_device_train_batch_size", 2)
        done = run(two, *launcher)
        (root / "stdout").write_text(done.stdout)
        return root

    def test_the_same_result_as_one(self, launched):
        one, two = (load_file(launched / name / "adapter_model.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-5)

    def test_evaluation_counts_each_image_once(self, launched):
        one, two = metrics(launched / "one"), metrics(launched / "two")
        for name in ("zero_shot", "learned"):
            assert two[name]["num_samples"] == 11
            assert two[name]["per_class_accuracy"] == one[name]["per_class_accuracy"]
        assert two["training"]["train_loss"] == pytest.approx(one["training"]["train_loss"], rel=1e-5)

    def test_only_the_main_process_speaks(self, launched):
        assert (launched / "stdout").read_text().count("learned accuracy:") == 1


class TestBadInput:
    """What goes wrong stops with one line, before any training."""

    @pytest.fixture
    def refused(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Runs the script, in this process to save time, and gives the error it ends with."""

        def refused(*arguments: object) -> str:
            monkeypatch.setattr(sys, "argv", [TRAIN, *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                runpy.run_path(TRAIN, run_name="__main__")
            assert "epoch 1" not in capsys.readouterr().out
            return str(stop.value.code)

        return refused

    def test_a_broken_test_image_is_found_before_training_and_can_be_skipped(self, refused, data, tmp_path):
        broken = tmp_path / "data"
        shutil.copytree(data, broken)
        path = broken / "test" / "cat" / "0.png"
        path.write_bytes(path.read_bytes()[:300])
        message = refused(*command(tmp_path / "out", broken))
        assert message.startswith("error: cannot read")
        assert str(path) in message
        assert not (tmp_path / "out").exists()
        done = run(command(tmp_path / "out", broken, "--skip_broken_images", "--num_train_epochs", 2))
        assert "1 of 11 test images skipped" in done.stderr
        assert metrics(tmp_path / "out")["learned"]["num_samples"] == 10

    @pytest.mark.slow
    def test_a_folder_in_use(self, refused, data, tmp_path):
        out = tmp_path / "out"
        arguments = command(out, data, "--save_strategy", "no", "--num_train_epochs", 100_000)
        process = subprocess.Popen(
            [sys.executable, TRAIN, *arguments], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not (out / ".lock").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        assert f"'{out}' is in use: another run writes to it now" in refused(*arguments)
        assert process.poll() is None
        process.kill()
        process.wait()
        check_output_dir(out, None, False)  # what a killed run leaves is in nobody's way
        assert not list(out.iterdir())

    def test_one_line_each(self, refused, data, tmp_path, whole):
        assert "holds another run" in refused(*command(whole, data))
        assert "say where the images are" in refused("--output_dir", tmp_path / "out")
        long = tmp_path / "names.txt"
        long.write_text("cat\nbus\n" + "very " * 80 + "long\n")
        out = tmp_path / "out"
        assert "the text tower has 77" in refused(*command(out, data, "--classnames_file", long))
        assert "num_shots" in refused(*command(out, data, "--num_shots", -1))
        assert "must have {}" in refused(*command(out, data, "--zero_shot_template", "a photo"))
        assert "is no checkpoint" in refused(*command(out, data, "--resume_from_checkpoint", tmp_path))
        assert "\n" not in refused(*command(out, data, "--model_name_or_path", "no/model"))
        assert not out.exists()

    def test_zeros_are_refused(self, refused, data, tmp_path):
        """0 was taken for an option that was not given, and the default used."""
        out = command(tmp_path / "out", data)
        for option in (
            *("n_ctx", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("gradient_accumulation_steps", "save_steps", "save_total_limit", "image_views", "max_text_passes"),
        ):
            assert option in refused(*out, f"--{option}", 0)
        assert "max_prompts_per_chunk" in refused(*out, "--method", "cocoop", "--max_prompts_per_chunk", 0)
        assert "prograd_temperature" in refused(*out, "--method", "prograd", "--prograd_temperature", 0)
        assert not (tmp_path / "out").exists()

    def test_zeros_that_mean_something_are_kept(self, data, tmp_path, monkeypatch):
        options = ["--method", "kgcoop", "--kgcoop_weight", "0", "--recipe", "fast", "--max_text_passes", "2"]
        options += ["--model_name_or_path", PARITY, "--train_dir", data / "train", "--output_dir", tmp_path / "out"]
        options += ["--num_shots", 0, "--seed", 0, "--label_smoothing_factor", 0, "--anchor_weight", 0]
        monkeypatch.setattr(sys, "argv", [TRAIN, *map(str, options)])
        runpy.run_path(TRAIN, run_name="__main__")
        found = HFCoOp.from_pretrained(tmp_path / "out")
        assert found.prompt_config.kgcoop_weight == 0
        recipe = found.card_details.training
        assert (recipe["seed"], recipe["label_smoothing_factor"], recipe["anchor_weight"]) == (0, 0, 0)
        assert found.card_details.train_images == 15

    def test_options_that_would_be_ignored(self, refused, data, trees, tmp_path):
        out = tmp_path / "out"
        for name in ("train_split", "validation_split", "test_split", "image_column_name", "dataset_config_name"):
            message = refused(*command(out, data, f"--{name}", "train"))
            told = f"error: {name} goes with dataset_name, not with train_dir: leave {name}='train' out"
            assert message == told
            found = refused("--output_dir", out, "--benchmark", "dtd", "--data_dir", trees, f"--{name}", "train")
            assert found == message.replace("train_dir", "benchmark")
        demo = ("--output_dir", out, "--model_name_or_path", "demo", "--dataset_name", "demo")
        assert "test_dir goes with train_dir, not with dataset_name: leave test_dir='x' out" in refused(
            *demo, "--test_dir", "x"
        )
        assert "are both 'test'" in refused(*demo, "--validation_split", "test", "--test_split", "test")
        assert "has no validation images" in refused(*command(out, data, "--eval_strategy", "epoch"))
        twice = command(out, data, "--eval_strategy", "epoch", "--validation_dir", data / "test")
        assert "validation_dir and test_dir are both" in refused(*twice)
        for options in (["--seed", 2], ["--push_to_hub"]):
            assert "is of one run" in refused(*command(out, data, "--seeds", 1, 2, *options))
        assert "one of them twice" in refused(*command(out, data, "--seeds", 1, 1))
        assert not out.exists()

    def test_the_best_epoch_is_not_chosen_by_test_images(self, refused, trees, tmp_path):
        """ImageNet's validation images are its test images."""
        options = ["--model_name_or_path", PARITY, "--benchmark", "imagenet", "--data_dir", trees, "--n_ctx", 2]
        options += ["--eval_strategy", "epoch", "--load_best_model_at_end", "--output_dir", tmp_path / "out"]
        assert "load_best_model_at_end=True would choose by the test images" in refused(*options)

    def test_a_seed_that_has_run_is_told_before_another_runs(self, refused, data, tmp_path):
        (tmp_path / "out" / "seed2").mkdir(parents=True)
        (tmp_path / "out" / "seed2" / "metrics.json").write_text("{}")
        assert "seed2' holds another run" in refused(*command(tmp_path / "out", data, "--seeds", 1, 2))
        assert not (tmp_path / "out" / "seed1").exists()

    def test_benchmarks(self, refused, trees, tmp_path):
        out = ("--output_dir", tmp_path / "out", "--data_dir", trees)
        assert "no benchmark 'flowers'; there are caltech101" in refused(*out, "--benchmark", "flowers")
        assert "got train_dir and benchmark" in refused(*out, "--benchmark", "dtd", "--train_dir", trees)
        assert "got dataset_name and benchmark" in refused(*out, "--benchmark", "dtd", "--dataset_name", "demo")
        assert "has test images alone" in refused(*out, "--benchmark", "imagenet_r")
        message = refused(*out[:2], "--benchmark", "dtd", "--data_dir", tmp_path)
        assert message.startswith(f"error: dtd is not there: no '{tmp_path / 'dtd'}'; `hf-coop data get dtd` fetches")
        assert not (tmp_path / "out").exists()

    def test_a_full_disk_at_the_last_save_is_named(self, data, tmp_path):
        """A limit on the size of files makes a larger write fail, as a full disk does: here that of the curves."""
        out = tmp_path / "out"
        limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        limit += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        arguments = command(out, data, "--save_strategy", "no", "--num_train_epochs", 1)
        done = run(arguments, sys.executable, "-c", limit, TRAIN, check=False)
        assert done.returncode == 1
        assert f"error: cannot write to '{out}': [Errno 27] File too large" in done.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
