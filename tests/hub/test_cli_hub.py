"""`hf-coop push, info, predict, convert` against the Hub on loopback."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import CLASSNAMES, PARITY
from loopback_hub import READ_TOKEN, TOKEN, HubServer
from PIL import Image
from test_convert import CLASSNAMES as PUBLISHED_CLASSNAMES
from test_convert import COOP
from typer.testing import CliRunner

from hf_coop import CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.evaluation import CardFigures, Guesses
from hf_coop.evaluation.card_figures import FIGURE_FILES
from hf_coop.hub.model_card import CardDetails
from hf_coop.serving import classify_files
from hf_coop_cli import app

TRAIN = Path(__file__).parents[2] / "examples" / "train.py"
CLI = ("-m", "hf_coop_cli")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add("tester/tiny-clip", PARITY)
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prompt whose base model is on the Hub, in a folder with other files."""
    folder = tmp_path_factory.mktemp("adapter") / "flowers"
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4)
    model.prompt_config.base_model_name_or_path = "tester/tiny-clip"
    labels, guesses = np.arange(5), Guesses(np.zeros(5, int), np.full(5, 0.5))
    figures = CardFigures.of("5 test images", CLASSNAMES, labels, guesses, guesses)
    model.card_details = CardDetails(figures=figures)
    model.save_pretrained(folder)
    (folder / "metrics.json").write_text("{}")
    (folder / "checkpoint-3").mkdir()
    return folder


@pytest.fixture(scope="module")
def pushed(hub: HubServer, home: Path, adapter: Path) -> subprocess.CompletedProcess:
    return hub.run(
        home, *CLI, "push", str(adapter), "tester/flowers", "--private", "--commit_message", "From the shell"
    )


def run_here(*arguments: object) -> Result:
    """The command in this process, which spares the imports."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path: Path, images: list[Image.Image]) -> Path:
    """`a.png`, `deep/b.jpg`, a broken `deep/c.png` and a text."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    images[0].save(folder / "a.png")
    images[1].save(folder / "deep" / "b.jpg")
    (folder / "deep" / "c.png").write_bytes(b"\x89PNG broken")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_push(hub, pushed, adapter):
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["tester/flowers"]
    assert repo.private
    assert [row["summary"] for row in repo.log] == ["initial commit", "From the shell"]
    names = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", *FIGURE_FILES}
    assert set(repo.files()) == names
    assert pushed.stdout.split() == [f"{hub.endpoint}/tester/flowers/commit/{repo.branches['main']}"]


def test_predict_takes_urls(adapter, pictures):
    url = "data:image/png;base64," + base64.b64encode((pictures / "a.png").read_bytes()).decode()
    options = ("--base_model_name_or_path", PARITY, "--json")
    done = run_here("predict", adapter, pictures / "a.png", url, "http://127.0.0.1:9/gone.png", *options)
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["image"] for row in rows] == [str(pictures / "a.png"), url, "http://127.0.0.1:9/gone.png"]
    labels = [[found["label"] for found in row["predictions"]] for row in rows[:2]]
    assert labels[0] == labels[1]
    assert "cannot read 'http://127.0.0.1:9/gone.png'" in rows[2]["error"]


def test_files_are_classified_in_batches_of_whole_numbers(adapter, pictures):
    model = HFCoOp.from_pretrained(adapter, PARITY)
    for options, error in (((5, -1), ValueError), ((0, 64), ValueError), ((5, 2.5), TypeError)):
        with pytest.raises(error, match="must be"):
            next(classify_files(model, [pictures / "a.png"], *options))


def test_push_checks_first(hub, tmp_path):
    hub.calls.clear()
    done = run_here("push", tmp_path, "tester/nothing")
    assert done.exit_code == 1
    assert done.output.startswith(f"error: no adapter_config.json in {str(tmp_path)!r}")
    assert hub.calls == []


def test_info_downloads_the_adapter_alone(hub, pushed, home):
    hub.calls.clear()
    done = hub.run(home, *CLI, "info", "tester/flowers")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(("base", "c")))
    assert lines["method"] == "CoOp"
    assert f"5: {', '.join(CLASSNAMES)}" in done.stdout
    assert "tester/tiny-clip" in done.stdout
    assert not [call for call in hub.calls if "tiny-clip" in call]
    assert [call for call in hub.calls if "flowers" not in call] == ["HEAD /"], "once for all files"


def test_predict_goes_on_past_a_broken_image(hub, pushed, home, pictures):
    places = [str(pictures), str(pictures / "deep" / "*.jpg")]
    done = hub.run(home, *CLI, "predict", "tester/flowers", *places, "--json", "--top_k", "2", "--batch_size", "2")
    assert done.returncode == 1
    rows = {Path(row["image"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == ["a.png", "b.jpg", "c.png"]
    assert "cannot read" in rows["c.png"]["error"]
    assert "1 of 3 images could not be read" in done.stderr
    expected = HFCoOp.from_pretrained(hub.repos["tester/flowers"].resolve("main"), PARITY).predict(
        [pictures / "a.png", pictures / "deep" / "b.jpg"], top_k=2
    )
    for name, row in zip(("a.png", "b.jpg"), expected, strict=True):
        assert [(p["label"], pytest.approx(p["score"], rel=1e-5)) for p in row] == [
            (p["label"], p["score"]) for p in rows[name]["predictions"]
        ]


def test_predict_from_a_folder_as_text(adapter, pictures):
    done = run_here("predict", adapter, pictures / "a.png", "--base_model_name_or_path", PARITY)
    assert done.exit_code == 0, done.output
    path, scores = done.stdout.strip().split(": ")
    assert path == str(pictures / "a.png")
    assert len(scores.split(", ")) == 5
    assert scores.endswith("%")


def test_predict_says_what_is_missing_before_it_loads():
    done = run_here("predict", "tester/nothing", "nothing/*.png")
    assert done.exit_code == 1
    assert done.output.strip() == "error: no such file, folder or match of a pattern: 'nothing/*.png'"


def test_a_terminal_obeys_no_class_name(adapter, tmp_path):
    hostile = shutil.copytree(adapter, tmp_path / "hostile")
    config = json.loads((hostile / "adapter_config.json").read_text())
    config["classnames"][0] = "\x1b[2J\x07cat"
    (hostile / "adapter_config.json").write_text(json.dumps(config))
    done = run_here("info", hostile)
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "cat, Tiger_Cat" in done.stdout


def test_convert(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(PUBLISHED_CLASSNAMES) + "\n")
    options = ["--model_name_or_path", PARITY, "--classnames_file", names]
    done = run_here("convert", COOP, tmp_path / "out", *options, "--class_token_position", "end")
    assert done.exit_code == 0, done.output
    assert HFCoOp.from_pretrained(tmp_path / "out").classnames == PUBLISHED_CLASSNAMES


@pytest.mark.parametrize("method", ["kgcoop", "prograd"])
def test_convert_takes_the_method_of_which_the_tensors_do_not_tell(method, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(PUBLISHED_CLASSNAMES) + "\n")
    options = ["--model_name_or_path", PARITY, "--classnames_file", names, "--method", method]
    done = run_here("convert", COOP, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    converted = HFCoOp.from_pretrained(tmp_path / "out")
    assert converted.prompt_config.peft_type == method.upper()
    coop = HFCoOp.from_published(COOP, PARITY, PUBLISHED_CLASSNAMES)
    assert coop.prompt_config.peft_type == "COOP"
    assert converted.class_embeddings().equal(coop.class_embeddings())


def test_convert_refuses_a_wrong_order(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(reversed(PUBLISHED_CLASSNAMES)) + "\n")
    done = run_here("convert", COOP, tmp_path / "out", "--model_name_or_path", PARITY, "--classnames_file", names)
    assert done.exit_code == 1
    assert f"class 0 is not {PUBLISHED_CLASSNAMES[-1]!r} in the checkpoint" in done.output
    assert not (tmp_path / "out").exists()


def test_training_pushes_what_it_measured(hub, home, tmp_path):
    options = ["--model_name_or_path", "tester/tiny-clip", "--dataset_name", "demo", "--num_shots", "1"]
    options += ["--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1", "--use_cpu", "True"]
    done = hub.run(home, str(TRAIN), *options, "--push_to_hub", "True", "--hub_model_id", "tester/digits")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    files = hub.repos["tester/digits"].files()
    assert {*FIGURE_FILES} < {*files}
    assert all(f"]({figure})" in files["README.md"].read_text() for figure in FIGURE_FILES)
    details = CardDetails.from_card(files["README.md"])
    assert details.learned["accuracy"] == metrics["learned"]["accuracy"]
    assert details.zero_shot["accuracy"] == metrics["zero_shot"]["accuracy"]
    assert (details.dataset_name, details.split, details.shots, details.seed) == ("demo", "test", 1, 1)
    assert details.training["num_train_epochs"] == 1


def test_what_a_stranger_wrote_stays_on_its_line(adapter, tmp_path, pictures):
    """Control characters, escape sequences, right-to-left marks and long words of an adapter's config."""
    folder = shutil.copytree(adapter, tmp_path / "strange")
    config = json.loads((folder / "adapter_config.json").read_text())
    hostile = "\x1b[31mred\x1b]0;title\x07\u202egnirts\u2066\r\nmethod           Evil"
    names = [hostile, "x" * 200, *CLASSNAMES[2:]]
    words = {"classnames": names, "token_ids": None, "name_lengths": None, "base_model_name_or_path": str(PARITY)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **words, "hf_coop_version": hostile}))
    shown = run_here("info", folder)
    assert shown.exit_code == 0, shown.output
    assert all(line.isprintable() for line in shown.output.splitlines())
    assert [line for line in shown.output.splitlines() if line.startswith("method")] == ["method           CoOp"]
    strange = pictures / "\x1b[2Jx.png"
    shutil.copy(pictures / "a.png", strange)
    told = run_here("predict", folder, strange)
    assert all(line.isprintable() for line in told.output.splitlines())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": hostile}))
    for command in (("info", folder), ("predict", folder, pictures / "a.png")):
        told = run_here(*command)
        assert told.exit_code == 1
        assert "task" in told.output
        assert len([line for line in told.output.splitlines() if line.startswith("error: ")]) == 1
        assert all(line.isprintable() for line in told.output.splitlines())


CHECK_PUSH = """
import sys
from hf_coop.hub import check_push
for name, token in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        check_push(name, token)
        print("may be pushed")
    except (OSError, ValueError) as error:
        print(error)
"""


def test_what_could_not_be_pushed_is_known_before_training(hub, home):
    """In a process of its own, since the Hub's address is read at import; nothing is made there."""
    before = dict(hub.repos)
    cases = {
        ("tester/a--b", TOKEN): "'tester/a--b' can be no repository to push to: ",
        ("somebody/digits", TOKEN): "'somebody/digits': the token is of tester, botanists; choose a name of theirs",
        ("botanists/digits", READ_TOKEN): "'botanists/digits': the token may only read",
        ("tester/digits", "hf_wrong"): "cannot push to 'tester/digits': Invalid user token.",
        ("botanists/digits", TOKEN): "may be pushed",
        ("digits", TOKEN): "may be pushed",
    }
    done = hub.run(home, "-c", CHECK_PUSH, *(value for case in cases for value in case))
    for found, message in zip(done.stdout.splitlines(), cases.values(), strict=True):
        assert message in found
    assert hub.repos == before


def test_the_trainer_asks_before_it_starts(adapter, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("hf_coop.training.run.check_push", lambda *arguments: asked.append(arguments))
    model = HFCoOp.from_pretrained(adapter, PARITY)
    CoOpTrainer(model, CoOpTrainingArguments(output_dir=str(tmp_path / "digits"), use_cpu=True))
    assert asked == []
    CoOpTrainer(model, CoOpTrainingArguments(output_dir=str(tmp_path / "digits"), use_cpu=True, push_to_hub=True))
    assert asked == [("digits", None)]


def test_info_says_what_was_measured(adapter, tmp_path):
    assert "accuracy" not in run_here("info", adapter).stdout
    model = HFCoOp.from_pretrained(adapter, PARITY)
    model.card_details = CardDetails(
        dataset_name="Flowers",
        split="test",
        shots=16,
        train_images=60,
        learned={"accuracy": 0.951},
        zero_shot={"accuracy": 0.712},
        min_score=0.43,
    )
    model.save_pretrained(tmp_path)
    facts = [line.split(maxsplit=1) for line in run_here("info", tmp_path).stdout.splitlines()]
    assert ["accuracy", "95.10%, zero-shot 71.20% (on test of Flowers)"] in facts
    assert ["learned", "from     up to 16 images a class (60 in all)"] in facts
    assert ["none", "of these    below a score of 0.43"] in facts


def test_cache(adapter, datasets_cache):
    folder = datasets_cache / "hf_coop_features"
    shutil.rmtree(folder, ignore_errors=True)
    assert run_here("cache", "show").stdout == f"{folder}: features of 0 sets of images, 0.0 MiB\n"
    folder.mkdir()
    (folder / "abc.arrow").write_bytes(bytes(3 * 2**20))
    assert run_here("cache", "show").stdout == f"{folder}: features of 1 sets of images, 3.0 MiB\n"
    assert run_here("cache", "clear").stdout == f"{folder}: 3.0 MiB deleted\n"
    assert not folder.exists()
    assert run_here("cache", "clear").exit_code == 0
