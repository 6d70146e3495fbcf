"""The figures of the model card: small, readable in light and dark, and drawn whatever classes are called."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hostile_names import HOSTILE
from PIL import Image
from test_prompt_figures import made

from hf_coop.evaluation import CardFigures, Guesses
from hf_coop.evaluation.card_figures import CARD_FIGURES, PNG_START


def drawn(names: list[str], per_class: int = 4) -> dict[str, bytes]:
    explanation = made(names, per_class)
    guesses = map(Guesses.of, explanation.probabilities)
    return CardFigures.of("", names, explanation.labels, *guesses).files


@pytest.mark.parametrize("names", [HOSTILE, ["one"], [f"number {k} of a thousand" for k in range(1000)]])
def test_they_are_small_and_on_white(names):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph|.*not applied")  # letters that the font lacks, text without room
        files = drawn(names)
    assert files.keys() == CARD_FIGURES.keys()
    for content in files.values():
        assert len(content) < 60_000
        image = Image.open(io.BytesIO(content))
        assert image.width == 576
        assert image.height < 1000
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_they_are_drawn_once_and_only_when_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_coop.evaluation.card_figures.to_png", lambda figure: calls.append(figure) or b"")
    labels, guesses = np.array([0, 1]), Guesses(np.array([0, 0]), np.array([0.5, 0.9]))
    figures = CardFigures.of("2 test images", ["cat", "dog"], labels, guesses, guesses)
    assert calls == []
    assert figures.files == figures.files
    assert len(calls) == 3


def test_reading_takes_all_or_none(tmp_path):
    figures = CardFigures("", lambda: dict.fromkeys(CARD_FIGURES, PNG_START))
    assert CardFigures.read(tmp_path, "") is None
    figures.write(tmp_path)
    assert CardFigures.read(tmp_path, "").files == figures.files
    for content in (b"<script>", PNG_START + bytes(2**18)):
        (tmp_path / "figures" / "reliability.png").write_bytes(content)
        assert CardFigures.read(tmp_path, "") is None
    (tmp_path / "figures" / "reliability.png").unlink()
    assert CardFigures.read(tmp_path, "") is None
