"""Names of classes, folders, data sets and models in every output: shown as text, whatever they hold."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from conftest import PARITY
from datasets import Dataset, DatasetDict, Features, Image
from evaluation.test_prompt_figures import made, report_of
from hostile_names import (
    HOSTILE,
    Page,
    check_markdown,
    check_terminal,
    front_matter,
    latex_cells,
    latex_shown,
    rendered,
    table_cells,
)
from PIL import Image as PILImage
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from hf_coop import CoOpConfig, HFCoOp
from hf_coop.data import class_label
from hf_coop.escaping import csv_text, figure_text, file_name, html_text, latex_text, one_line
from hf_coop.evaluation import plot_training_curves
from hf_coop.experiments.curves import plot_tables
from hf_coop.experiments.protocols import Run
from hf_coop.experiments.run import prompt_folder
from hf_coop.experiments.tables import Cell, Table
from hf_coop.hub.card_file import for_repository
from hf_coop.hub.model_card import CardDetails, create_model_card
from hf_coop.serving import PhotoSorter
from hf_coop_cli import app

PLACE, CONTROL = "$x$_[b]|&%{}~^#`*'<i>", "\x1b[31m$x$\u202e\u2066[/b]"
SHOWN = [one_line(name) for name in HOSTILE]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hostile name that holds a CLIP, images, and a prompt whose classes have hostile names."""
    place = tmp_path_factory.mktemp("names") / PLACE
    shutil.copytree(PARITY, place / "clip", ignore=shutil.ignore_patterns("published", "*_*.safetensors"))
    tokenizer = json.loads((place / "clip" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    for byte in sorted(ByteLevel.alphabet()):  # which the large CLIPs have all, and the tiny one has not
        for token in (byte, f"{byte}</w>"):
            vocab.setdefault(token, len(vocab))
    (place / "clip" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = CLIPConfig.from_pretrained(PARITY)
    config.text_config.vocab_size = len(vocab)
    CLIPModel(config).save_pretrained(place / "clip")
    pixels = np.random.default_rng(0).integers(0, 256, (2 * len(HOSTILE), 32, 32, 3), dtype=np.uint8)
    images = [PILImage.fromarray(row) for row in pixels]
    features = Features({"image": Image(), "label": class_label(HOSTILE)})
    rows = Dataset.from_dict({"image": images, "label": [*range(len(HOSTILE))] * 2}, features=features)
    DatasetDict(train=rows, test=rows).save_to_disk(str(place / "set <b>$y$"))
    model = HFCoOp.from_clip(place / "clip", HOSTILE, n_ctx=2)
    with torch.no_grad():  # so that other classes than one are predicted
        model.prompt_layer.active_learner.ctx.mul_(30)
    model.save_pretrained(place / "prompt")
    photos = place / "photos"
    photos.mkdir()
    for number, name in enumerate(HOSTILE):
        if "/" not in name and "\x00" not in name and name != "..":
            images[number].save(photos / f"{name}.png")
    return place


def run(*arguments: object) -> str:
    """The output of a command that succeeds; nothing in it is what a terminal obeys."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    check_terminal(done.output)
    return done.stdout


class TestTerminal:
    def test_info(self, place):
        lines = run("info", place / "prompt").splitlines()
        assert [line for line in lines if line.startswith("method")] == ["method           CoOp"]
        assert lines[-1].startswith(f"classes          {len(HOSTILE)}: <script>alert(1)</script>, ")

    def test_predict(self, place):
        lines = run("predict", place / "prompt", place / "photos", "--top_k", 1).splitlines()
        assert len(lines) == len(list((place / "photos").iterdir()))

    def test_predict_as_csv_and_json(self, place):
        count = len(list((place / "photos").iterdir()))
        shown = run("predict", place / "prompt", place / "photos", "--output_format", "csv")
        rows = list(csv.DictReader(io.StringIO(shown)))
        assert len(rows) == len(shown.splitlines()) - 1 == count
        assert all(row["label"] in [csv_text(name) for name in HOSTILE] for row in rows)
        lines = [
            json.loads(line) for line in run("predict", place / "prompt", place / "photos", "--json").splitlines()
        ]
        assert {line["image"] for line in lines} == {str(path) for path in (place / "photos").iterdir()}
        assert {row["label"] for line in lines for row in line["predictions"]} <= {*HOSTILE}

    def test_names_of_files_that_are_no_text(self, place, tmp_path):
        """A name in Latin-1 was an error of encoding that ended the whole command."""
        shutil.copy(next((place / "photos").iterdir()), os.fsencode(tmp_path) + b"/caf\xe9.png")
        for output_format in ("text", "csv", "json"):
            assert "caf" in run("predict", place / "prompt", tmp_path, "--output_format", output_format)

    def test_evaluate(self, place):
        options = ["--dataset_name", place / "set <b>$y$", "--zero_shot_template", "\x1b[31m {}", "--use_cpu"]
        assert f"of {len(HOSTILE)} classes" in run("evaluate", place / "prompt", *options)

    def test_images_of_other_classes(self, place, tmp_path, caplog):
        """A warning of logging names the classes of the data, which nobody else puts on one line."""
        HFCoOp.from_clip(place / "clip", HOSTILE[:5], n_ctx=2).save_pretrained(tmp_path)
        run("evaluate", tmp_path, "--dataset_name", place / "set <b>$y$", "--use_cpu")
        assert "images are left out" in caplog.text
        check_terminal(caplog.text)

    def test_errors(self, place):
        for command in (
            ("info", place / "none"),
            ("predict", place / "prompt", place / "none.png"),
            ("predict", place / "prompt", place, "--min_score", CONTROL),
            ("evaluate", place / "prompt", "--test_dir", place / "none"),
            ("train", "--train_dir", place / "none", "--output_dir", place / "x"),
            ("train", f"--{CONTROL}"),
            ("info", f"--{CONTROL}"),
            ("results", place),
            ("results", place, "--by", CONTROL),
            ("experiment", CONTROL, "--output_dir", place / "x"),
            ("convert", place / "none", place / "x", "--model_name_or_path", CONTROL, "--classnames_file", place),
            ("export", place / "prompt", place / "none.txt"),
            ("app", place / "none"),
        ):
            done = CliRunner().invoke(app, [*map(str, command)])
            message = done.output + str(done.exception)
            assert done.exit_code, command
            assert "error: " in message, command
            check_terminal(message)

    def test_the_data_folder(self, place):
        assert f" {place / 'caltech-101'}: not there" in run("data", "list", "--data_dir", place)
        run("data", "list", "--data_dir", place / CONTROL)

    def test_repr(self, place):
        check_terminal(repr(HFCoOp.from_pretrained(place / "prompt")))


@pytest.fixture(scope="module")
def experiment(place: Path) -> tuple[Path, str]:
    """The folder of an experiment on the images with hostile names, and what it printed."""
    folder = place / "results|$z$"
    shown = run(
        *("experiment", "context", "--output_dir", folder, "--dataset_name", place / "set <b>$y$"),
        *("--model_name_or_path", place / "clip", "--methods", "zero_shot", "coop", "--shots", 1, "--seeds", 1),
        *("--max_text_passes", 2, "--ctx_init", "a ../$b$", "--save_prompts", "--use_cpu", "True"),
    )
    return folder, shown


class TestTrainingAndExperiments:
    def test_training(self, place):
        folder = place / "trained {}"
        code = "import sys; from hf_coop_cli import app; app(sys.argv[1:])"
        options = ["--model_name_or_path", place / "clip", "--dataset_name", place / "set <b>$y$", "--use_cpu", "True"]
        options += ["--max_text_passes", 2, "--num_shots", 1, "--output_dir", folder]
        command = [sys.executable, "-c", code, "train", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=100)
        assert done.returncode == 0, done.stderr
        check_terminal(done.stdout + done.stderr)
        assert yaml.safe_load((folder / "run.yaml").read_text())["dataset_name"] == str(place / "set <b>$y$")
        assert json.loads((folder / "metrics.json").read_text())["classnames"] == HOSTILE
        metadata = front_matter((folder / "README.md").read_text(encoding="utf-8"))
        assert metadata["hf_coop"]["dataset_name"] == "set <b>$y$"

    def test_experiment_and_results(self, experiment):
        folder, shown = experiment
        assert r"## set \<b\>\$y\$" in shown
        tables = (folder / "tables.md").read_text(encoding="utf-8")
        check_markdown(tables, "strong_open")
        assert "## set <b>$y$" in "".join(f"## {text}" for _, text in rendered(tables))
        assert "CoOp, from 'a ../$b$'" in table_cells(tables)
        latex = (folder / "tables.tex").read_text(encoding="utf-8")
        assert "CoOp, from 'a ../$b$'" in [row[0] for row in latex_cells(latex)]
        ElementTree.parse(folder / "curves.svg")
        cells = table_cells(run("results", folder, "--by", "method,ctx_init,dataset"))
        assert "coop, a ../$b$, set <b>$y$" in cells
        rows = latex_cells(run("results", folder, "--by", "dataset", "--latex"))
        assert rows[0][1] == one_line(folder.name)
        assert rows[1][0] == "set <b>$y$"

    def test_prompts_stay_in_their_folder(self, experiment):
        folder, _ = experiment
        (kept,) = (folder / "prompts").rglob("adapter_config.json")
        assert len(kept.relative_to(folder / "prompts").parts) == 3
        index = (folder / "prompts" / "README.md").read_text(encoding="utf-8")
        check_markdown(index, "link_open", "code_inline")
        front_matter(index)
        assert f'subfolder="{kept.parent.relative_to(folder / "prompts").as_posix()}"' in index

    def test_a_set_is_never_called_as_the_folder_above(self, place, monkeypatch, tmp_path):
        """The results were deleted: the features of a set are written into a new folder of its name."""
        (place / "set <b>$y$" / "inside").mkdir(exist_ok=True)
        monkeypatch.chdir(place / "set <b>$y$" / "inside")
        shown = run("experiment", "few-shot", "--output_dir", tmp_path, "--dataset_name", "..", "--dry_run")
        assert "set <b>$y$, learned on" in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_a_folder_of_its_own(name, tmp_path):
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in" / "photo.png"
    photo.write_text("photo")
    found = PhotoSorter(tmp_path / "out", [name]).sort(photo, [{"label": name, "score": 1.0}])
    assert found.parent.parent == tmp_path / "out"
    assert found.parent.name == file_name(name)
    place = prompt_folder(Run("context", name, "coop", 16, 1, ctx_init=name))
    assert len(Path(place).parts) == 2
    assert ".." not in Path(place).parts


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_table(name):
    table = Table(name, [name, "b"], {name: {name: Cell(50.0), "b": Cell(40.0, 1.0, 3)}, "other": {"b": Cell(30.0)}})
    markdown = table.markdown()
    check_markdown(markdown, "strong_open")
    assert table_cells(markdown)[1] == table_cells(markdown)[3] == one_line(name)
    rows = latex_cells(table.latex())
    assert rows == [["", one_line(name), "b"], [one_line(name), "50.0", "40.0 ± 1.0"], ["other", "--", "30.0"]]
    caption = table.latex().split("\\caption{")[1].split("}\n\\begin")[0]
    assert latex_shown(caption) == one_line(f"{name}.")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_on_a_card(name):
    config = CoOpConfig(classnames=[name, "cat"], base_model_name_or_path="x ``` # {{ 1 }} <b>")
    details = CardDetails(
        dataset_name=name,
        split=name,
        learned={"accuracy": 1.0},
        zero_shot_template=name,
        training={name: name},
        license=name,
    )
    content = for_repository(create_model_card(config, details, [[(name, 1.0)]]).content, "user/name")
    metadata = front_matter(content)
    assert metadata["license"] == metadata["hf_coop"]["dataset_name"] == one_line(name)
    assert metadata.keys() <= {"library_name", "license", "pipeline_tag", "tags", "model-index", "hf_coop"}
    body = content.split("---\n", 2)[2]
    check_markdown(body, "code_inline")
    assert table_cells(content, "Classes")[3] == one_line(name)
    assert len([kind for kind, _ in rendered(body) if kind == "fence"]) == 4


class TestHtml:
    def test_report(self):
        for names in (HOSTILE[:20], HOSTILE[20:]):
            page = Page(report_of(made(names)))
            page.check_harmless()
            assert all(one_line(name)[:16] in page.text for name in names)

    def test_explain(self, place):
        run("explain", place / "prompt", "--output_dir", place / "out", "--dataset_name", place / "set <b>$y$")
        page = Page((place / "out" / "report.html").read_text(encoding="utf-8"))
        page.check_harmless()
        assert "set <b>$y$" in page.text

    def test_app(self):
        pytest.importorskip("gradio")
        from hf_coop.serving.app import _results_page

        side = [{"label": name, "score": 0.5} for name in HOSTILE]
        rows = [{"image": name, "learned": side, "hand_written": side} for name in HOSTILE]
        rows += [{"image": name, "error": name} for name in HOSTILE]
        page = Page(_results_page(rows, ["data:image/jpeg;base64,"] * len(rows)))
        page.check_harmless()
        assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == SHOWN

    def test_text_in_an_attribute(self):
        for name in HOSTILE:
            page = Page(f'<p title="{html_text(name)}">{html_text(name)}</p>')
            page.check_harmless()
            assert page.tags == [("p", {"title": one_line(name)})]
            assert page.text == one_line(name)


class TestFigures:
    def test_curves(self, tmp_path):
        for columns in (HOSTILE[:3], ["1 shot", "2 shots"]):
            rows = {name: {column: Cell(50.0, 1.0, 2) for column in columns} for name in HOSTILE}
            tables = [Table(name, columns, rows) for name in HOSTILE[:8]]
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Glyph|The label|No artists")  # names that would not be shown
                plot_tables(tables, " ".join(HOSTILE), False, [tmp_path / "a.png", tmp_path / "a.svg"])
            ElementTree.parse(tmp_path / "a.svg")
            PILImage.open(tmp_path / "a.png").verify()

    def test_training_curves(self, tmp_path):
        log = [{"epoch": 1, "step": 1, "loss": 1.0, "accuracy": 0.5}]
        plot_training_curves(log, tmp_path / "a.png", dict.fromkeys(HOSTILE[:3], 0.5))
        PILImage.open(tmp_path / "a.png").verify()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_text_is_drawn_as_it_is(self, name):
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure, file = Figure(), io.StringIO()
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.plot([1], [1], label=figure_text(name))
        legend = axes.legend(*axes.get_legend_handles_labels())
        with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.savefig(file, format="svg")
        assert len(legend.get_texts()) == 1
        texts = [
            element.text for element in ElementTree.fromstring(file.getvalue()).iter() if element.tag.endswith("text")
        ]
        assert one_line(name) in [" ".join((text or "").split()) for text in texts]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\u200b=1"])
def test_no_cell_is_a_formula(name):
    assert csv_text(name).startswith("'")
    assert csv_text(f"a{name}").startswith("a")


def test_names_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match=r"class name 1 is blank \('\\u200b\\x1b'\)"):
        CoOpConfig(classnames=["cat", "\u200b\x1b"])


def test_latex_has_no_ligatures():
    assert latex_text("a -- b''") == "a -{}- b'{}'"
