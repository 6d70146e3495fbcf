"""Experiments on real tiny models and images: rows, going on, failures, and what stands in the folder at the end."""

from __future__ import annotations

import json
import random
import resource
import time
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import PARITY
from filelock import FileLock
from loopback_hub import HubServer
from PIL import Image
from transformers import set_seed
from typer.testing import CliRunner

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data import classnames_of, few_shot_splits, load_benchmark, load_image_splits, subsample_classes
from hf_coop.experiments import Experiment, Run, read_rows, run_experiment
from hf_coop.files import LOCK_FILE
from hf_coop.hub import METRICS
from hf_coop_cli import app

CLASSNAMES = ["aeroplane", "bird", "cat", "dog", "pink primrose"]
BASELINES = ("zero_shot", "linear_probe")
QUICK = {"max_text_passes": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, str]:
    """Folders of training and test images: five classes, each of its own colour."""
    root, generator = tmp_path_factory.mktemp("images") / "colours", np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 6)):
        for label, name in enumerate(CLASSNAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(50 * label, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return {"train_dir": str(root / "train"), "test_dir": str(root / "test")}


def make(images: dict[str, str], output: Path, **options) -> Experiment:
    defaults = {"protocol": "few-shot", "methods": BASELINES, "shots": [1, 2], "seeds": [1, 2], "training": {}}
    return Experiment(output_dir=str(output), images=images, model_name_or_path=str(PARITY), **defaults | options)


def measured(folder: Path) -> dict[Run, list]:
    """What the rows of a folder say, without how long it took; each run once.

    Without the calibration error, whose last digits hang on where in memory scikit-learn finds its arrays.
    """
    rows = read_rows(folder)
    results = [[{k: v for k, v in result.items() if k != "ece"} for result in row["results"]] for row in rows]
    found = {Run.of_row(row): [kept, row["error"], row["settings"]] for row, kept in zip(rows, results, strict=True)}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """The results of a few-shot experiment that nobody disturbed."""
    folder = tmp_path_factory.mktemp("results") / "undisturbed"
    methods = [*BASELINES, "coop", "kgcoop_csc"]
    return run_experiment(make(images, folder, methods=methods, training=QUICK, save_prompts=True, ci95=True))


class TestAFinishedExperiment:
    def test_a_row_for_each_run(self, finished, images):
        runs = make(images, finished, methods=[*BASELINES, "coop", "kgcoop_csc"]).runs
        rows = {Run.of_row(row): row for row in read_rows(finished)}
        assert rows.keys() == {*runs}
        assert len(runs) == 1 + 3 * 4
        for row in rows.values():
            assert row["error"] is None
            assert row["seconds"] > 0
            assert row["base_model"] == str(PARITY)
            assert row["versions"].keys() >= {"hf_coop", "torch", "transformers", "peft", "python"}
            (result,) = row["results"]
            assert result["num_samples"] == 30
            assert result["accuracy"] == pytest.approx(np.mean(result["per_class_accuracy"]))
            assert {*METRICS} <= result.keys()
        settings = json.loads(rows[Run("few-shot", "colours", "kgcoop_csc", 2, 1)]["settings"])
        assert (settings["recipe"], settings["max_text_passes"]) == ("fast", 3)

    def test_rows_are_what_the_trainer_gives(self, finished, images, tmp_path):
        """The same draw, seed and recipe through the images themselves."""
        splits = few_shot_splits(load_image_splits(**images), 2, 1)
        args = CoOpTrainingArguments(str(tmp_path), seed=1, save_strategy="no", **QUICK)
        set_seed(1)
        model = HFCoOp.from_clip(PARITY, classnames_of(splits["train"]), ctx_init="a photo of a")
        trainer = CoOpTrainer(model, args, splits["train"])
        trainer.train()
        expected = trainer.evaluate(splits["test"])
        rows = {Run.of_row(row): row for row in read_rows(finished)}
        (result,) = rows[Run("few-shot", "colours", "coop", 2, 1)]["results"]
        assert {name: result[name] for name in METRICS} == pytest.approx({name: expected[name] for name in METRICS})

    def test_datasets_loads_the_rows(self, finished):
        loaded = datasets.load_dataset("json", data_files=str(finished / "results.jsonl"), split="train")
        assert len(loaded) == 13
        assert loaded[0]["results"][0]["accuracy"] == read_rows(finished)[0]["results"][0]["accuracy"]

    def test_tables_and_curves(self, finished):
        table = (finished / "tables.md").read_text(encoding="utf-8")
        assert "mean ± half of the 95 % confidence interval over seeds 1, 2." in table
        for row in ("zero-shot", "linear probe", "CoOp", "KgCoOp csc"):
            assert f"\n| {row} | " in table
        assert r"\begin{tabular}{lrr}" in (finished / "tables.tex").read_text(encoding="utf-8")
        for kind in ("png", "svg"):
            assert (finished / f"curves.{kind}").stat().st_size > 5000
        assert not (finished / ".features").exists()

    def test_prompts_are_kept_with_their_cards(self, finished):
        folder = finished / "prompts" / "colours" / "coop-2shots-seed1"
        model = HFCoOp.from_pretrained(folder)
        assert model.classnames == CLASSNAMES
        card = (folder / "README.md").read_text(encoding="utf-8")
        rows = {Run.of_row(row): row for row in read_rows(finished)}
        (result,) = rows[Run("few-shot", "colours", "coop", 2, 1)]["results"]
        (zero_shot,) = rows[Run("few-shot", "colours", "zero_shot", 0, 0)]["results"]
        assert f"| Accuracy | {zero_shot['accuracy']:.2%} | {result['accuracy']:.2%} |" in card
        index = (finished / "prompts" / "README.md").read_text(encoding="utf-8")
        assert index.count("](colours/") == 8
        assert 'subfolder="colours/coop-1shots-seed1"' in index

    def test_prompts_are_pushed_as_one_repository(self, finished, tmp_path):
        """In one commit, with a sub-folder and a card for each, whose example loads it from there."""
        script = (
            "import sys; from hf_coop.hub import push_folder; from hf_coop import HFCoOp\n"
            "push_folder(sys.argv[1], 'tester/sweep')\n"
            "model = HFCoOp.from_pretrained('tester/sweep', subfolder='colours/kgcoop_csc-1shots-seed2')\n"
            "print(model.prompt_config.label)"
        )
        with HubServer(tmp_path / "hub") as hub:
            done = hub.run(tmp_path / "home", "-c", script, str(finished / "prompts"))
            assert done.returncode == 0, done.stderr[-2000:]
            assert done.stdout.split()[-1] == "KgCoOp"
            repo = hub.repos["tester/sweep"]
            assert [entry["summary"] for entry in repo.log][1:] == ["Upload prompt with hf-coop"]
            files = repo.files()
            assert sum(name.endswith("adapter_model.safetensors") for name in files) == 8
            card = files["colours/coop-2shots-seed1/README.md"].read_text(encoding="utf-8")
            assert 'HFCoOp.from_pretrained("tester/sweep", subfolder="colours/coop-2shots-seed1")' in card
            assert 'from_pretrained("tester/sweep", subfolder=' in files["README.md"].read_text(encoding="utf-8")

    def test_the_same_again_does_nothing(self, finished, images, capsys):
        before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
        methods = [*BASELINES, "coop", "kgcoop_csc"]
        run_experiment(make(images, finished, methods=methods, training=QUICK, save_prompts=True, ci95=True))
        assert "13 runs, of which 13 ended before: 0 to do" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_folder_grows_but_keeps_its_settings(images, tmp_path, capsys):
    run_experiment(make(images, tmp_path, shots=[1], seeds=[1]))
    first = measured(tmp_path)
    run_experiment(make(images, tmp_path, shots=[2], seeds=[1]))
    assert measured(tmp_path).items() > first.items()
    assert "1 shot | 2 shots" in (tmp_path / "tables.md").read_text(encoding="utf-8")  # of all rows that are there
    with pytest.raises(ValueError, match=r"another experiment \(training was \{\}, now .*choose another output_dir"):
        run_experiment(make(images, tmp_path, training=QUICK))
    with pytest.raises(ValueError, match="protocol was 'few-shot', now 'context'"):
        run_experiment(make(images, tmp_path, protocol="context", methods=["coop"]))
    other = {**images, "test_dir": images["train_dir"]}
    with pytest.raises(ValueError, match="images of colours was"):
        run_experiment(make(other, tmp_path))
    capsys.readouterr()
    before = (tmp_path / "results.jsonl").read_bytes()
    run_experiment(make(images, tmp_path), dry_run=True)
    assert "linear_probe: 4 runs, 2 to do" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_no_test_images(images, tmp_path, capsys):
    """Refused, or taken from the training images."""
    train = {"train_dir": images["train_dir"]}
    with pytest.raises(ValueError, match="colours has no test images: give test_dir, test_size"):
        run_experiment(make(train, tmp_path / "out"))
    run_experiment(make({**train, "test_size": 0.4}, tmp_path / "out"), dry_run=True)
    assert "5 classes; images: 15 train, 10 test" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(images, tmp_path, capsys):
    run_experiment(make(images, tmp_path / "out"), dry_run=True)
    assert "5 runs, of which 0 ended before: 5 to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_failed_runs_are_rows_and_the_others_go_on(images, tmp_path, capsys):
    """A name too long for the text tower fails every prompt; the linear probe of another set does not mind it."""
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*CLASSNAMES[:4], "very " * 80 + "long"]))
    long_name = {**images, "classnames_file": str(names)}
    out = tmp_path / "out"
    run_experiment(make(long_name, out, methods=["coop"], shots=[1], seeds=[1, 2]))
    assert all("ValueError" in error for _, error, _ in measured(out).values())
    assert "2 runs failed" in capsys.readouterr().err
    assert not (out / "tables.md").exists()
    run_experiment(make(long_name, out, methods=["coop"], shots=[1], seeds=[1, 2]))
    assert "0 to do" in capsys.readouterr().out
    run_experiment(make(long_name, out, methods=["coop"], shots=[1], seeds=[1, 2], retry_failed=True))
    assert "2 to do" in capsys.readouterr().out
    assert len(measured(out)) == 2


def test_a_broken_image_fails_the_runs_of_its_set(images, tmp_path):
    """The runs on the other set go on."""
    broken = tmp_path / "broken" / "test"
    (broken / "cat").mkdir(parents=True)
    (broken / "cat" / "1.png").write_bytes(b"no image")
    options = {"protocol": "cross-dataset", "benchmark": ["demo", "demo_faint"], "methods": ["zero_shot"]}
    targets = ["demo_noisy", str(broken)]
    experiment = Experiment(output_dir=str(tmp_path / "out"), targets=targets, **options)
    run_experiment(experiment)
    assert all("1.png" in error for _, error, _ in measured(tmp_path / "out").values())
    good = Experiment(output_dir=str(tmp_path / "good"), targets=targets[:1], **options)
    run_experiment(good)
    accuracies = {
        run.dataset: [r["accuracy"] for r in found] for run, (found, _, _) in measured(tmp_path / "good").items()
    }
    assert accuracies["demo"][1] == accuracies["demo_faint"][1] < accuracies["demo"][0]


def test_base_to_new(images, tmp_path):
    """Learned on the first classes as the trainer does it by hand, then put before the names of the others."""
    options = {"protocol": "base-to-new", "methods": ["zero_shot", "kgcoop"], "shots": [2], "seeds": [1]}
    run_experiment(make(images, tmp_path / "out", training=QUICK, prompt={"template": "the {}."}, **options))
    (results, error, _) = measured(tmp_path / "out")[
        Run("base-to-new", "colours", "kgcoop", 2, 1, ctx_init="a photo of a")
    ]
    assert error is None
    assert [result["classes"] for result in results] == ["base", "new"]
    assert [result["num_samples"] for result in results] == [18, 12]
    sampled = few_shot_splits(load_image_splits(**images), 2, 1)
    base, new = subsample_classes(sampled, "base"), subsample_classes(sampled, "new")
    set_seed(1)
    model = HFCoOp.from_clip(
        PARITY, classnames_of(base["train"]), "kgcoop", ctx_init="a photo of a", template="the {}."
    )
    trainer = CoOpTrainer(
        model, CoOpTrainingArguments(str(tmp_path / "t"), save_strategy="no", **QUICK), base["train"]
    )
    trainer.train()
    expected = [trainer.evaluate(base["test"])["accuracy"]]
    model.set_classnames(classnames_of(new["test"]))
    expected.append(trainer.evaluate(new["test"])["accuracy"])
    assert [result["accuracy"] for result in results] == pytest.approx(expected)
    assert "| base | new | H |" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")


def test_a_benchmark_with_equal_names_and_its_variants(trees, tmp_path):
    """ImageNet's "missile" twice; the variants have test images alone, two of them of some classes only."""
    experiment = Experiment(
        "domain-generalization",
        str(tmp_path / "out"),
        benchmark=["imagenet"],
        data_dir=str(trees),
        methods=["zero_shot", "coop"],
        shots=[1],
        seeds=[1],
        model_name_or_path=str(PARITY),
        training=QUICK,
    )
    run_experiment(experiment)
    for results, error, _ in measured(tmp_path / "out").values():
        assert error is None
        names = [result["tested_on"] for result in results]
        assert names == ["imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
        classes = [len(result["per_class_accuracy"]) for result in results]
        assert classes == [len(load_benchmark(name, trees).classnames) for name in names]
        assert len({*classes}) > 2
    with pytest.raises(ValueError, match="imagenet_a has test images alone"):
        run_experiment(
            Experiment(
                "few-shot", str(tmp_path / "a"), benchmark=["imagenet_a"], data_dir=str(trees), methods=["coop"]
            )
        )
    with pytest.raises(ValueError, match="dtd is not there"):
        run_experiment(Experiment("few-shot", str(tmp_path / "a"), benchmark=["dtd"], data_dir=str(tmp_path)))


def test_training_on_crops(images, tmp_path):
    """Several random views come from the images themselves, not from the features of their centre crops."""
    options = {"methods": ["coop"], "shots": [2], "seeds": [1], "training": {**QUICK, "image_views": "3"}}
    run_experiment(make(images, tmp_path / "out", **options))
    splits = few_shot_splits(load_image_splits(**images), 2, 1)
    set_seed(1)
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, ctx_init="a photo of a")
    args = CoOpTrainingArguments(str(tmp_path / "t"), save_strategy="no", image_views="3", **QUICK)
    trainer = CoOpTrainer(model, args, splits["train"])
    trainer.train()
    (row,) = read_rows(tmp_path / "out")
    assert row["error"] is None
    expected = trainer.evaluate(splits["test"])
    assert {name: row["results"][0][name] for name in METRICS} == pytest.approx(
        {name: expected[name] for name in METRICS}
    )


def test_more_shots_than_images(images, tmp_path, caplog):
    """One warning for all the runs of a set."""
    run_experiment(make(images, tmp_path, methods=["linear_probe"], shots=[2, 8], seeds=[1, 2]))
    warned = [record.getMessage() for record in caplog.records if "fewer than" in record.getMessage()]
    assert len(warned) == 1
    assert "5 of 5 classes have fewer than 8 training images" in warned[0]


class TestTheFolder:
    def test_half_a_line_is_dropped(self, images, tmp_path):
        run_experiment(make(images, tmp_path))
        whole = measured(tmp_path)
        path = tmp_path / "results.jsonl"
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        assert len(measured(tmp_path)) == len(whole) - 1
        run_experiment(make(images, tmp_path))
        assert measured(tmp_path) == whole
        lines = content.splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[2:]]))
        with pytest.raises(ValueError, match=r"line 3 of .*results.jsonl' is no JSON"):
            run_experiment(make(images, tmp_path))
        path.write_bytes(b'{"accuracy": 1}\n')
        with pytest.raises(ValueError, match=r"line 1 of .* is no row of results"):
            run_experiment(make(images, tmp_path))

    def test_one_process_at_a_time(self, images, tmp_path):
        with (
            FileLock(tmp_path / LOCK_FILE),
            pytest.raises(ValueError, match="is in use: another run writes to it now"),
        ):
            run_experiment(make(images, tmp_path))
        run_experiment(make(images, tmp_path, methods=["zero_shot"]))
        assert not list(tmp_path.glob(".*"))

    def test_a_file_in_its_place(self, images, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(OSError, match="it is a file, not a folder"):
            run_experiment(make(images, tmp_path / "out"))

    def test_a_full_disk(self, finished, tmp_path):
        """A limit on the size of files makes a larger write fail, as a full disk does; whole rows stay."""
        from hf_coop.experiments.results import ResultsFolder

        rows = read_rows(finished)
        with ResultsFolder(tmp_path) as results:
            results.add(rows[0])
            size = (tmp_path / "results.jsonl").stat().st_size
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
            try:
                with pytest.raises(OSError, match=r"the 1 runs that ended are in it\. Make room"):
                    results.add(rows[1])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert read_rows(tmp_path) == rows[:1]
            results.add(rows[1])
        assert read_rows(tmp_path) == rows[:2]


def killed_again_and_again(experiment: Experiment, kills: int, longest: float, seed: int) -> None:
    """Start it, kill it after a random time, and check that what had ended stays as it was; then let it end."""
    chance, path = random.Random(seed), Path(experiment.output_dir, "results.jsonl")
    context = get_context("forkserver")  # its processes start with everything imported, and without threads
    context.set_forkserver_preload(["hf_coop.experiments"])
    ended: list[bytes] = []
    for kill in range(kills + 1):
        process = context.Process(target=run_experiment, args=[experiment])
        process.start()
        process.join(chance.uniform(0, longest) if kill < kills else None)
        process.kill()
        process.join()
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        assert lines[: len(ended)] == ended
        ended = [line for line in lines if line.endswith(b"\n")]
    assert process.exitcode == 0


def test_killed_at_any_moment(images, tmp_path):
    """The final table is that of an undisturbed run, and no run that had ended is done twice."""
    options = {"shots": [1, 2, 3, 4], "seeds": [1, 2, 3]}
    start = time.monotonic()
    run_experiment(make(images, tmp_path / "undisturbed", **options))
    seconds = time.monotonic() - start
    killed_again_and_again(make(images, tmp_path / "killed", **options), kills=6, longest=seconds, seed=0)
    check_the_same(tmp_path / "killed", tmp_path / "undisturbed")


def check_the_same(killed: Path, undisturbed: Path) -> None:
    """Both folders have the same files, tables and prompts, and the same rows but for their seconds."""
    assert measured(killed) == measured(undisturbed)
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (killed, undisturbed)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.name in ("tables.md", "tables.tex", "adapter_model.safetensors"):
            assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills(tmp_path):
    """On the embedded images, prompts among the methods."""
    options = {"benchmark": ["demo"], "methods": ["zero_shot", "linear_probe", "coop"], "shots": [1, 2, 4]}
    options["save_prompts"] = True
    for name in ("undisturbed", "killed"):
        experiment = Experiment("few-shot", str(tmp_path / name), training={"max_text_passes": 50}, **options)
        if name == "undisturbed":
            run_experiment(experiment)
        else:
            killed_again_and_again(experiment, kills=50, longest=2.0, seed=1)
    check_the_same(tmp_path / "killed", tmp_path / "undisturbed")


def test_two_jobs_give_the_rows_of_one(images, finished, tmp_path):
    """Through the command, with options that are passed on to the prompts."""
    own = [f"--{name}={value}" for name, value in images.items()]
    plan = "--methods zero_shot linear_probe coop kgcoop_csc --shots 1 2 --seeds 1 2 --jobs 2 --max_text_passes 3"
    options = [*own, *plan.split(), f"--model_name_or_path={PARITY}", f"--output_dir={tmp_path}"]
    done = CliRunner().invoke(app, ["experiment", "few-shot", *options])
    assert done.exit_code == 0, done.output
    assert "[13/13] colours: " in done.output
    assert measured(tmp_path) == measured(finished)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("base-to-new --seed 1", "error: hf-coop experiment has no --seed: --seeds names those of the runs"),
        ("experiment few-shots", "error: no protocol 'few-shots'; there are few-shot, base-to-new"),
        ("experiment few-shot --shots 1 2 --methods maple", "error: no method 'maple'"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, message):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*arguments.split(), "--benchmark", "demo", "--output_dir", str(out)])
    assert done.exit_code == 1
    assert done.output.startswith(message)
    assert done.output.count("\n") == 1
    assert not out.exists()


def test_results_by_the_command(finished):
    """A table of the columns that are asked for, here as LaTeX."""
    done = CliRunner().invoke(app, ["results", str(finished), "--by", "method", "--latex"])
    assert done.exit_code == 0
    assert r"kgcoop\_csc & " in done.output
    done = CliRunner().invoke(app, ["results", str(finished), "--by", "colour"])
    assert (done.exit_code, done.output[:26]) == (1, "error: no column 'colour' ")
