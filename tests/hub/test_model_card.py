"""The model card: what it says, and that names of any kind come out as plain text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CLASSNAMES, PARITY
from hostile_names import rendered, table_cells
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_coop import CoCoOpConfig, CoOpConfig, HFCoOp
from hf_coop.encoding.prompts import clean_classname
from hf_coop.errors import short
from hf_coop.escaping import markdown_text, one_line
from hf_coop.evaluation.nearest_words import nearest_words
from hf_coop.hub.adapter_files import CONFIG_FILE
from hf_coop.hub.card_file import REPO_PLACEHOLDER
from hf_coop.hub.model_card import MAX_NAME, CardDetails, create_model_card

DETAILS = CardDetails(
    dataset_name="Flowers 102",
    dataset_id="user/flowers",
    split="test",
    shots=16,
    train_images=70,
    seed=2,
    min_score=0.43,
    learned={"accuracy": 0.951, "top5_accuracy": 0.99, "macro_f1": 0.94, "ece": 0.031},
    zero_shot={"accuracy": 0.712, "macro_f1": 0.69},
    zero_shot_template="a photo of a {}.",
    training={"Optimizer": "sgd", "Learning rate": 0.002, "Epochs": 200},
    license="apache-2.0",
)
any_text = st.text(st.sampled_from("<>[](){}|`*_~$&#%!\\:/-+=.1 \n\tab") | st.characters(exclude_categories=["Cs"]))
class_names = st.lists(
    any_text.filter(lambda name: one_line(clean_classname(name))),
    min_size=1,
    max_size=6,
    unique_by=lambda name: clean_classname(name).casefold(),
)
plain_values = st.one_of(any_text, st.integers(), st.booleans(), st.floats(allow_nan=False))


def test_metadata():
    config = CoOpConfig(classnames=CLASSNAMES, base_model_name_or_path="openai/clip-vit-base-patch16")
    data = create_model_card(config, DETAILS).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "openai/clip-vit-base-patch16"
    assert data["base_model_relation"] == "adapter"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert data["tags"] == ["hf-coop", "coop", "clip", "prompt-learning", "few-shot"]
    assert data["datasets"] == ["user/flowers"]
    assert data["license"] == "apache-2.0"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {
        "name": "Flowers 102",
        "type": "user/flowers",
        "split": "test",
        "args": {"shots": 16, "seed": 2},
    }
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "Accuracy": 0.951,
        "Top-5 accuracy": 0.99,
        "Macro F1": 0.94,
        "Expected calibration error": 0.031,
    }


def test_results_stand_beside_zero_shot():
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES), DETAILS).content
    assert table_cells(card, "Results")[3:] == [
        *("Accuracy", "71.20%", "95.10%"),
        *("Top-5 accuracy", "", "99.00%"),
        *("Macro F1", "69.00%", "94.00%"),
        *("Expected calibration error", "", "0.0310"),
    ]
    assert table_cells(card, "Training")[-6:] == ["Optimizer", "sgd", "Learning rate", "0.002", "Epochs", "200"]


@pytest.mark.parametrize(
    ("shots", "images", "text"),
    [
        (16, None, "Learned from 16 images a class, seed 2."),
        (16, 80, "Learned from 16 images a class, seed 2."),
        (1, 5, "Learned from 1 image a class, seed 2."),
        (16, 70, "Learned from up to 16 images a class (70 in all), seed 2."),
    ],
)
def test_shots_are_those_that_were_used(shots, images, text):
    details = CardDetails(shots=shots, train_images=images, seed=2)
    assert f"\n{text}\n" in create_model_card(CoOpConfig(classnames=CLASSNAMES), details).content


def test_a_local_base_model_is_said_to_be_local():
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES, base_model_name_or_path=str(PARITY))).content
    assert "a folder on its author's machine: elsewhere pass `base_model_name_or_path` too" in card
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES, base_model_name_or_path="user/clip")).content
    assert "machine" not in card


def test_a_score_for_none_of_these():
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES), CardDetails(min_score=0.43)).content
    assert '95 % of the validation images scored 0.43 or more: `model.predict("image.jpg", min_score="auto")`' in card


def test_what_was_not_measured_is_left_out():
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES))
    assert not {"model-index", "datasets", "license", "base_model", "hf_coop"} & card.data.to_dict().keys()
    for heading in ("## Results", "## Nearest words"):
        assert heading not in card.content
    assert "%" not in card.content


def test_a_local_base_model_is_not_in_the_metadata():
    card = create_model_card(CoOpConfig(classnames=CLASSNAMES, base_model_name_or_path=str(PARITY)))
    assert "base_model" not in card.data.to_dict()  # the Hub refuses what is no repository


def test_cocoop_says_that_plain_peft_cannot_run_it():
    card = create_model_card(CoCoOpConfig(classnames=CLASSNAMES))
    assert "PeftModel" not in card.content
    assert card.data.tags[1] == "cocoop"
    assert "zhou2022cocoop" in card.content


def test_many_classes_are_folded():
    names = [f"class {number}" for number in range(1200)]
    card = create_model_card(CoOpConfig(classnames=names)).content
    assert "<summary>All 1200 classes</summary>" in card
    assert "| 999 | class 999 |" in card
    assert "| 1000 |" not in card
    assert "The other 200 are in `adapter_config.json`." in card
    assert "<details>" not in create_model_card(CoOpConfig(classnames=names[:5])).content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=class_names, dataset=any_text, training=st.dictionaries(any_text, plain_values, max_size=3))
def test_any_names_make_a_card_that_shows_them(names, dataset, training):
    details = CardDetails(dataset_name=dataset, learned={"accuracy": 0.5}, training=training)
    content = create_model_card(CoOpConfig(classnames=names), details).content
    assert table_cells(content, "Classes")[3::2] == [one_line(short(name, MAX_NAME)) for name in names]
    assert not [text for kind, text in rendered(content) if kind in ("html_inline", "html_block", "link_open")]
    metadata = yaml.safe_load(content.split("---\n")[1])
    assert metadata["hf_coop"].get("dataset_name", "") == one_line(dataset)
    assert ModelCard(content).content == content


@settings(max_examples=300, deadline=None)
@given(text=any_text)
@example(text="*a* `b` <i>c</i> [d](e) ~~f~~ \\* &amp; ![g](h)")
def test_markdown_text_is_one_line_that_renders_as_itself(text):
    shown = markdown_text(text)
    assert "\n" not in shown
    pieces = rendered(f"x {shown} x")
    assert {kind for kind, _ in pieces} <= {"text", "text_special"}
    assert "".join(content for _, content in pieces) == f"x {one_line(text)} x"


@settings(max_examples=60, deadline=None)
@given(names=class_names, n_ctx=st.integers(1, 77), position=st.sampled_from(["end", "middle", "front"]))
def test_any_config_survives_saving(tmp_path_factory, names, n_ctx, position):
    folder = tmp_path_factory.mktemp("config")
    config = CoOpConfig(classnames=names, n_ctx=n_ctx, class_token_position=position)
    config.save_pretrained(str(folder))
    assert CoOpConfig.from_pretrained(str(folder)) == config
    assert json.loads((folder / CONFIG_FILE).read_text())["classnames"] == names


def test_details_survive_the_card(tmp_path):
    create_model_card(CoOpConfig(classnames=CLASSNAMES), DETAILS).save(tmp_path / "README.md")
    assert CardDetails.from_card(tmp_path / "README.md") == DETAILS


@pytest.mark.parametrize(
    "metadata",
    [
        "hf_coop: 3",
        "hf_coop: {learned: [1]}",
        "hf_coop: {shots: many}",
        "a: [",
        "- 1",
        "hf_coop: {learned: {accuracy: x}}",
    ],
)
def test_a_strangers_card_that_cannot_be_read_is_left_out(tmp_path, metadata):
    path = tmp_path / "README.md"
    path.write_text(f"---\n{metadata}\n---\n# x\n")
    with pytest.warns(UserWarning, match=r"README.md: its metadata are not readable"):
        assert CardDetails.from_card(path) == CardDetails()


def test_yaml_that_unfolds_without_end_costs_nothing(tmp_path):
    bomb = "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9) if n else 1}]" for n in range(12))
    (tmp_path / "README.md").write_text(f"---\n{bomb}\nhf_coop: {{training: {{a: *b11}}, split: *b11}}\n---\n")
    with pytest.warns(UserWarning, match="not readable"):
        assert CardDetails.from_card(tmp_path / "README.md") == CardDetails()


def test_no_card_and_plain_cards_have_no_details(tmp_path):
    assert CardDetails.from_card(tmp_path / "README.md") == CardDetails()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert CardDetails.from_card(tmp_path / "README.md") == CardDetails()


@pytest.mark.parametrize("fields", [{"shots": "16"}, {"learned": [0.5]}, {"training": {"a": [1]}}, {"split": 3}])
def test_details_of_a_wrong_type(fields):
    with pytest.raises(TypeError, match=next(iter(fields))):
        CardDetails(**fields)


def test_new_class_names_make_results_void():
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4)
    model.card_details = DETAILS
    model.set_classnames(["sunflower", "rose"])
    assert model.card_details == CardDetails(training=DETAILS.training, license="apache-2.0")


def test_each_adapter_has_its_own_results():
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4)
    model.card_details = DETAILS
    model.add_adapter("other", CoOpConfig(classnames=["red kite"], n_ctx=2))
    model.set_adapter("other")
    assert model.card_details == CardDetails()


def test_a_context_on_a_word_is_nearest_to_it(tokenizer):
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, ctx_init="a photo of a")
    ids = tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
    found = nearest_words(model.clip, model.tokenizer, top_k=2)
    assert [row[0] for row in found] == [(tokenizer.decode([i]).strip(), pytest.approx(0, abs=1e-2)) for i in ids]
    words = model.clip.text_model.embeddings.token_embedding.weight
    distances = (words - model.prompt_layer.active_learner.ctx[1]).norm(dim=-1).sort().values
    assert [distance for _, distance in found[1]] == pytest.approx(distances[:2].tolist(), abs=1e-2)


def test_class_specific_vectors_are_listed_by_class(tmp_path):
    model = HFCoOp.from_clip(PARITY, ["cat", "red kite"], n_ctx=2, class_specific_context=True)
    model.save_pretrained(tmp_path)
    cells = table_cells((tmp_path / "README.md").read_text(), "Nearest words")
    assert cells[2::2] == ["cat, 1", "cat, 2", "red kite, 1", "red kite, 2"]


def test_a_saved_card_names_words_and_leaves_room_for_the_repository(tmp_path):
    torch.manual_seed(0)
    HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4).save_pretrained(tmp_path)
    card = Path(tmp_path, "README.md").read_text()
    assert len(table_cells(card, "Nearest words")) == 2 + 2 * 4
    assert card.count(REPO_PLACEHOLDER) == 2
