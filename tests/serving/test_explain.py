"""`hf-coop explain`: the page of real prompts on the embedded images."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import torch
from click.testing import Result
from datasets import Dataset
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.data import class_label
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.evaluation import nearest_words
from hf_coop.serving import explain
from hf_coop.serving.explain import compare_prompts, match_labels
from hf_coop_cli import app


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits_dataset()["test"].select(range(60))


@pytest.mark.parametrize(
    ("method", "options"),
    [("coop", {"n_ctx": 2}), ("coop", {"n_ctx": 2, "class_specific_context": True}), ("cocoop", {"n_ctx": 2})],
)
def test_the_page_of_each_kind_of_prompt(method, options, digits, tmp_path):
    torch.manual_seed(0)
    model = HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, method, **options)
    page = explain(model, digits, tmp_path / "out", facts={"data set": "digits & more"}).read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert page.count("<svg") == 11
    assert "digits &amp; more" in page
    assert ("class embeddings depend on the image" in page) == (method == "cocoop")
    assert page.count("<details>") == (10 if "class_specific_context" in options else 0)


def test_numbers_are_those_of_the_model(digits):
    torch.manual_seed(0)
    model = HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, n_ctx=2, class_specific_context=True)
    found = compare_prompts(model, digits, np.asarray(digits["label"][:]), "a photo of a {}.")
    predictions = model.predict(digits, top_k=1)
    assert [CLASSNAMES[k] for k in found.predicted[1]] == [row[0]["label"] for row in predictions]
    np.testing.assert_allclose(found.probabilities[1].max(1), [row[0]["score"] for row in predictions], rtol=1e-3)
    np.testing.assert_allclose(found.class_embeds[1], model.class_embeddings().detach(), rtol=1e-6)
    every = nearest_words(model.clip, model.tokenizer, top_k=5)
    assert found.words[3] == every[2 * 3 : 2 * 3 + 2]


def labelled(names: list[str], labels: list[int]) -> Dataset:
    rows = Dataset.from_dict({"row": range(len(labels))})
    return rows.add_column("label", labels, feature=class_label(names))


def test_labels_are_matched_by_name():
    assert match_labels(labelled(["b", "c", "a"], [0, 1, 2, 0]), ["a", "b"])[0] == [0, 2, 3]
    assert match_labels(labelled(["b", "c", "a"], [0, 1, 2, 0]), ["a", "b"])[1].tolist() == [1, 0, 1]
    assert match_labels(labelled(["a", "b"], [0, 1]), ["a", "b"])[1].tolist() == [0, 1]
    assert match_labels(labelled(["m", "m"], [0, 1]), ["m", "m"])[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match="none of the prompt's classes: the data set has x, the prompt a, b"):
        match_labels(labelled(["x"], [0]), ["a", "b"])


def test_from_the_command(tmp_path):
    HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES[:5], n_ctx=2).save_pretrained(tmp_path / "prompt")

    def run(data_set: str) -> Result:
        options = ["--dataset_name", data_set, "--output_dir", str(tmp_path)]
        return CliRunner().invoke(app, ["explain", str(tmp_path / "prompt"), *options])

    done = run("demo")
    assert done.exit_code == 0, done.output
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"\d+ images of other classes than the prompt's are left out", page)
    assert str(tmp_path) not in page
    missing = run("no/where.parquet")
    assert missing.exit_code == 1
    assert "no such file" in str(missing.exception) or "cannot load the data set" in str(missing.exception)
