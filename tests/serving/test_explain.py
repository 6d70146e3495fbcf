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
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.evaluation import nearest_words
from hf_coop.serving import explain
from hf_coop.serving.explain import compare_prompts
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
    found = compare_prompts(model, digits, "a photo of a {}.")
    predictions = model.predict(digits, top_k=1)
    assert [CLASSNAMES[k] for k in found.predicted[1]] == [row[0]["label"] for row in predictions]
    np.testing.assert_allclose(found.probabilities[1].max(1), [row[0]["score"] for row in predictions], rtol=1e-3)
    np.testing.assert_allclose(found.class_embeds[1], model.class_embeddings().detach(), rtol=1e-6)
    every = nearest_words(model.clip, model.tokenizer, top_k=5)
    assert found.words[3] == every[2 * 3 : 2 * 3 + 2]


def test_labels_are_matched_as_by_evaluate(digits, tmp_path, caplog):
    model = HFCoOp.from_clip(DEMO_CLIP, [name.upper() for name in CLASSNAMES[:9]], n_ctx=2)
    page = explain(model, digits, tmp_path).read_text(encoding="utf-8")
    nines = digits["label"][:].count(9)
    assert f"{nines} images of other classes than the prompt" in html.unescape(page)
    assert f"{nines} of 60 images are left out, of classes that the prompt does not have: nine." in caplog.text
    with pytest.raises(ValueError, match="the images have none of the prompt's classes"):
        explain(HFCoOp.from_clip(DEMO_CLIP, ["cat"], n_ctx=2), digits, tmp_path)


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
