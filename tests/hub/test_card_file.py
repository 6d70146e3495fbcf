"""`README.md` written again: what hf-coop wrote is renewed, what people wrote stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSNAMES, PARITY
from huggingface_hub import ModelCard

from hf_coop import HFCoOp
from hf_coop.evaluation import CardFigures, Guesses
from hf_coop.evaluation.card_figures import FIGURE_FILES
from hf_coop.hub import CardDetails
from hf_coop.hub.card_file import GENERATED, REPO_PLACEHOLDER, for_repository, without_figures
from hf_coop.hub.publishing import files_to_push

NOTE = "\n## Where they grow\n\nTaken by the sea | in May.\n"


@pytest.fixture(scope="module")
def model() -> HFCoOp:
    return HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2)


def save(model: HFCoOp, folder: Path, accuracy: float | None = None) -> str:
    model.card_details = CardDetails() if accuracy is None else CardDetails(learned={"accuracy": accuracy})
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_a_generated_card_is_renewed(model, tmp_path):
    first = save(model, tmp_path, 0.25)
    assert save(model, tmp_path, 0.25) == first
    second = save(model, tmp_path, 0.75)
    assert "75.00%" in second
    assert "25.00%" not in second
    assert ModelCard(second).data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    third = save(model, tmp_path)
    assert "75.00%" not in third
    assert not {"model-index", "hf_coop"} & ModelCard(third).data.to_dict().keys()


@pytest.mark.parametrize("metadata", ["", "---\nlicense: mit\ntags:\n- flowers\n---\n"])
def test_a_readme_of_somebody_elses_keeps_its_text(model, tmp_path, metadata):
    text = "# My project\n\nSee <b>there</b>.\n"
    (tmp_path / "README.md").write_text(metadata + text)
    content = save(model, tmp_path, 0.5)
    assert content.endswith(f"---\n{text}")
    assert "Nearest words" not in content
    data = ModelCard(content).data
    assert data.library_name == "peft"
    assert {"hf-coop", "coop"} <= set(data.tags)
    if metadata:
        assert data.license == "mit"
        assert "flowers" in data.tags
    assert CardDetails.from_card(tmp_path / "README.md").learned == {"accuracy": 0.5}
    assert save(model, tmp_path, 0.5) == content


def test_text_around_the_generated_part_stays_and_the_part_is_renewed(model, tmp_path):
    card = save(model, tmp_path, 0.25)
    start = card.index("<!-- hf-coop")
    (tmp_path / "README.md").write_text(card[:start] + "# Flowers of the coast\n\n" + card[start:] + NOTE)
    renewed = save(model, tmp_path, 0.75)
    assert renewed.endswith(NOTE)
    assert "# Flowers of the coast\n\n<!-- hf-coop" in renewed
    assert "75.00%" in renewed
    assert "25.00%" not in renewed


def test_edits_inside_the_generated_part_stay(model, tmp_path):
    card = save(model, tmp_path, 0.25)
    edited = card.replace("## Limits\n", "## Limits\n\n- Never tried at night.\n")
    (tmp_path / "README.md").write_text(edited)
    again = save(model, tmp_path, 0.75)
    assert again.split("---\n", 2)[2] == edited.split("---\n", 2)[2]
    assert CardDetails.from_card(tmp_path / "README.md").learned == {"accuracy": 0.75}


@pytest.mark.parametrize("content", [b"---\n[: {\n---\n# x\n", b"---\n- 1\n---\n# x\n", b"# caf\xe9\n"])
def test_metadata_that_cannot_be_read_cost_no_adapter(model, tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.warns(UserWarning, match=r"README.md stays as it is"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == content
    assert HFCoOp.from_pretrained(tmp_path).classnames == CLASSNAMES


class TestFigures:
    """They go with the card, and no card points to figures that are not there."""

    @pytest.fixture
    def saved(self, model, tmp_path) -> Path:
        guesses = Guesses(np.zeros(5, int), np.full(5, 0.5))
        figures = CardFigures.of("5 test images", CLASSNAMES, np.arange(5), guesses, guesses)
        model.card_details = CardDetails(figures=figures)
        model.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    def test_they_travel_with_the_prompt(self, saved, tmp_path):
        card = (saved / "README.md").read_text()
        for file in FIGURE_FILES:
            assert f"]({file})\n" in card
        assert {*FIGURE_FILES} < {*files_to_push(saved)}
        loaded = HFCoOp.from_pretrained(saved)
        assert loaded.card_details.figures.images == "5 test images"
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "README.md").read_text() == card
        for file in FIGURE_FILES:
            assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()

    def test_other_class_names_have_none(self, saved, tmp_path):
        loaded = HFCoOp.from_pretrained(saved)
        loaded.set_classnames(["cat", "dog"])
        loaded.save_pretrained(saved)
        assert "figures" not in (saved / "README.md").read_text()
        assert files_to_push(saved) == ["adapter_config.json", "adapter_model.safetensors", "README.md"]

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"<svg>")])
    def test_without_the_files_there_are_no_links(self, saved, tmp_path, damage):
        damage(saved / FIGURE_FILES[1])
        HFCoOp.from_pretrained(saved).save_pretrained(tmp_path / "again")
        assert "figures" not in (tmp_path / "again" / "README.md").read_text()
        assert not (tmp_path / "again" / "figures").exists()

    def test_a_card_that_is_pushed_without_them(self, saved):
        card = (saved / "README.md").read_text()
        without = without_figures(card)
        assert "](figures/" not in without
        assert "## Training\n" in without
        assert without_figures(without) == without
        edited = card.replace("## Limits\n", "## Limits\n\n- Never tried at night.\n")
        assert without_figures(edited) == edited


class TestForRepository:
    def test_a_generated_card_takes_the_name_and_stays_generated(self, model, tmp_path):
        card = save(model, tmp_path)
        pushed = for_repository(card, "user/flowers", None)
        assert REPO_PLACEHOLDER not in pushed
        (tmp_path / "README.md").write_text(pushed)
        assert "75.00%" in save(model, tmp_path, 0.75)
        assert for_repository(save(model, tmp_path), "user/flowers", pushed) == pushed

    def test_text_on_the_hub_stays(self, model, tmp_path):
        on_hub = for_repository(save(model, tmp_path, 0.25), "user/flowers", None) + NOTE
        pushed = for_repository(save(model, tmp_path, 0.75), "user/flowers", on_hub)
        assert pushed.endswith(NOTE)
        assert "75.00%" in pushed
        assert "25.00%" not in pushed
        assert for_repository(save(model, tmp_path), "user/flowers", "# Mine\n").endswith("---\n# Mine\n")

    def test_text_from_here_wins(self, model, tmp_path):
        card = save(model, tmp_path) + NOTE
        pushed = for_repository(card, "user/flowers", "# Another\n")
        assert pushed == GENERATED.sub(GENERATED.search(pushed)[0].replace("\\", r"\\"), card)
        assert for_repository("# Mine\n", "user/flowers", "# Another\n") == "# Mine\n"

    def test_metadata_on_the_hub_that_are_no_use(self, model, tmp_path):
        card = save(model, tmp_path)
        assert for_repository(card, "a/b", "---\n[: {\n---\n") == for_repository(card, "a/b", None)
