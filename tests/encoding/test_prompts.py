"""The token layout of class prompts: what is shared, what each class adds, and where everything sits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_coop.encoding.prompts import (
    CLASS_TOKEN_POSITIONS,
    MAX_CLASSES,
    PromptLayout,
    TokenizedClassnames,
    check_classnames,
    clean_classname,
    distinct_classnames,
    tokenize_classnames,
    warn_of_equal_prompts,
)

SOS, STOP, EOS = 900, 901, 902


def tokenized(*lengths: int) -> TokenizedClassnames:
    """Made-up names of these numbers of tokens; class k's are k * 10, k * 10 + 1 …"""
    names = [[k * 10 + i for i in range(length)] for k, length in enumerate(lengths)]
    return TokenizedClassnames([[SOS, *name, STOP, EOS] for name in names], list(lengths))


def written_out(layout: PromptLayout) -> dict[int, list[int | tuple[str, int]]]:
    """Every class's whole prompt, read from the layout: token ids, and ("ctx", number) for context vectors."""
    prompts = {k: layout.prefix + tail for k, tail in zip(layout.order, layout.tails, strict=True)}
    return {k: [("ctx", ~i) if i < 0 else i for i in prompt] for k, prompt in prompts.items()}


class TestClassnames:
    def test_underscores_become_spaces_and_white_space_is_single(self):
        assert clean_classname(" English__marigold\tflower ") == "English marigold flower"

    def test_any_iterable_of_strings_is_taken_as_it_is(self):
        assert check_classnames(("b", "a_b", "Cat")) == ["b", "a_b", "Cat"]

    @pytest.mark.parametrize("names", [None, "cat", b"cat", 3])
    def test_not_a_list(self, names):
        with pytest.raises(TypeError, match=f"list of strings.*got {names!r}"):
            check_classnames(names)

    def test_empty(self):
        with pytest.raises(ValueError, match="classnames is empty"):
            check_classnames([])

    @pytest.mark.parametrize("blank", ["", "  ", "_", "\n\t_ "])
    def test_blank(self, blank):
        with pytest.raises(ValueError, match="class name 1 is blank") as error:
            check_classnames(["cat", blank])
        assert repr(blank) in str(error.value)

    @pytest.mark.parametrize("name", [None, 7, 1.5, ["cat"], b"cat"])
    def test_not_a_string(self, name):
        with pytest.raises(TypeError, match="class name 1 is") as error:
            check_classnames(["cat", name])
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize(("one", "other"), [("cat", "cat"), ("tiger_cat", "tiger cat"), ("Cat", "cat ")])
    def test_equal_prompts_are_warned_of_by_name_and_label(self, tokenizer, one, other):
        names = check_classnames([one, "dog", other])
        token_ids = tokenize_classnames(tokenizer, names).token_ids
        assert token_ids[0] == token_ids[2]
        with pytest.warns(UserWarning, match="make the same prompt") as caught:
            warn_of_equal_prompts(names, token_ids)
        assert len(caught) == 1
        assert str(caught[0].message).endswith(f"{one!r} (label 0) and {other!r} (label 2)")

    def test_other_prompts_are_not_warned_of(self, recwarn, tokenizer):
        names = ["cat", "tiger cat", "cat tiger"]
        warn_of_equal_prompts(names, tokenize_classnames(tokenizer, names).token_ids)
        assert not recwarn.list

    def test_the_warning_of_many_names_stays_short(self):
        with pytest.warns(UserWarning, match="same prompt") as caught:
            warn_of_equal_prompts(["cat"] * MAX_CLASSES, [[1, 2, 3]] * MAX_CLASSES)
        assert len(str(caught[0].message)) < 3000

    def test_equal_names_as_keys_have_their_labels(self):
        assert distinct_classnames(["a", "b", "a"]) == ["a (label 0)", "b", "a (label 2)"]
        awkward = ["a", "a", "a (label 0)"]
        assert len(set(distinct_classnames(awkward))) == 3

    def test_too_many(self):
        with pytest.raises(ValueError, match=f"{MAX_CLASSES + 1} class names"):
            check_classnames(str(i) for i in range(MAX_CLASSES + 1))


class TestTokenizing:
    @pytest.mark.parametrize("context", ["a photo of a", "X X X"])
    @pytest.mark.parametrize("name", ["cat", "forget-me-not", "boeing 737-800", "St._Bernard", "it's", "1,234!"])
    def test_tokens_are_those_of_the_whole_prompt_without_its_context(self, tokenizer, name, context):
        ((ids,), (length,)) = tokenize_classnames(tokenizer, [name])
        words = name.replace("_", " ")
        n_ctx = len(tokenizer(context, add_special_tokens=False)["input_ids"])
        whole = tokenizer(f"{context} {words}.")["input_ids"]
        assert whole[:1] + whole[1 + n_ctx :] == ids
        assert length == len(tokenizer(words, add_special_tokens=False)["input_ids"])

    @pytest.mark.parametrize("name", ["a <|endoftext|> b", "naïve 猫"])
    def test_the_end_token_inside_a_name(self, tokenizer, name):
        """CLIP would pool there and ignore the rest; this tokenizer also uses it for characters it does not know."""
        with pytest.raises(ValueError, match=r"<\|endoftext\|> or has characters") as error:
            tokenize_classnames(tokenizer, ["cat", name])
        assert repr(name) in str(error.value)


class TestLayout:
    @given(
        lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
        n_ctx=st.integers(1, 7),
        position=st.sampled_from(CLASS_TOKEN_POSITIONS),
        csc=st.booleans(),
    )
    def test_every_prompt_is_what_the_paper_writes(self, lengths, n_ctx, position, csc):
        names = tokenized(*lengths)
        layout = PromptLayout.build(names, n_ctx, position, csc)
        prompts = written_out(layout)
        for k, (_, *name, stop, eos) in enumerate(names.token_ids):
            ctx = [("ctx", m + (k * n_ctx if csc else 0)) for m in range(n_ctx)]
            half = n_ctx // 2
            words = {
                "end": [*ctx, *name],
                "middle": [*ctx[:half], *name, *ctx[half:]],
                "front": [*name, *ctx],
            }[position]
            assert prompts[k] == [SOS, *words, stop, eos]
        assert sorted(prompts) == list(range(len(lengths)))

    @pytest.mark.parametrize(
        ("position", "csc", "prefix_length"),
        [
            ("end", False, 6),
            ("middle", False, 3),
            ("front", False, 1),
            ("end", True, 1),
            ("middle", True, 1),
            ("front", True, 1),
        ],
    )
    def test_prefix_is_all_that_is_shared(self, position, csc, prefix_length):
        layout = PromptLayout.build(tokenized(1, 3), 5, position, csc)
        assert layout.prefix_length == prefix_length
        assert layout.n_tail_tokens == (1 + 5 + 1 + 2) + (1 + 5 + 3 + 2) - 2 * prefix_length
        assert layout.longest == 1 + 5 + 3 + 2

    def test_tails_are_in_order_of_length(self):
        layout = PromptLayout.build(tokenized(3, 1, 2, 1, 3, 1), 4)
        assert layout.order == [1, 3, 5, 2, 0, 4]
        assert list(map(len, layout.tails)) == [3, 3, 3, 4, 5, 5]
        assert len(layout) == 6

    @pytest.mark.parametrize(
        ("name_lengths", "size", "blocks"),
        [
            ([3, 1, 2, 1, 3, 1], 23, [(0, 6)]),
            ([2, 2], 16, [(0, 2)]),
            ([1, 1, 1, 1, 28], 30, [(0, 4), (4, 5)]),
            ([6] * 5, 16, [(0, 2), (2, 4), (4, 5)]),
            ([60, 1], 62, [(0, 1), (1, 2)]),
        ],
    )
    def test_blocks_hold_whole_tails(self, name_lengths, size, blocks):
        layout = PromptLayout.build(tokenized(*name_lengths), 4)
        assert (layout.block_size, layout.blocks) == (size, blocks)

    @pytest.mark.parametrize(
        ("names", "position", "csc", "prefix", "tails"),
        [
            ([[7, 8], [7, 9]], "end", False, [SOS, ~0, 7], [[8, STOP, EOS], [9, STOP, EOS]]),
            ([[7], [7, 9]], "end", False, [SOS, ~0, 7], [[STOP, EOS], [9, STOP, EOS]]),
            ([[7, 8]], "end", False, [SOS, ~0, 7, 8, STOP], [[EOS]]),
            ([[7, 8], [7, 9]], "front", False, [SOS, 7], [[8, ~0, STOP, EOS], [9, ~0, STOP, EOS]]),
            ([[7, 8], [7, 9]], "end", True, [SOS], [[~0, 7, 8, STOP, EOS], [~1, 7, 9, STOP, EOS]]),
            ([[7, 8]], "front", True, [SOS, 7, 8, ~0, STOP], [[EOS]]),
        ],
    )
    def test_words_that_all_names_begin_with_are_shared(self, names, position, csc, prefix, tails):
        token_ids = [[SOS, *name, STOP, EOS] for name in names]
        layout = PromptLayout.build(TokenizedClassnames(token_ids, list(map(len, names))), 1, position, csc)
        assert (layout.prefix, layout.tails) == (prefix, tails)

    @pytest.mark.parametrize("position", CLASS_TOKEN_POSITIONS)
    @pytest.mark.parametrize("csc", [False, True])
    def test_select_keeps_the_prompts_and_their_classes(self, position, csc):
        layout = PromptLayout.build(tokenized(3, 1, 2, 1), 3, position, csc)
        part = layout.select(1, 3)
        prompts = written_out(layout)
        assert written_out(part) == {k: prompts[k] for k in layout.order[1:3]}

    def test_tensors_place_positions_context_and_eos(self):
        index = PromptLayout.build(tokenized(2, 1), 2).tensors(torch.device("cpu"))
        assert index["positions"].tolist() == [*[0, 1, 2], *[3, 4, 5], *[3, 4, 5, 6]]
        assert index["context_at"].tolist() == [1, 2]
        assert index["context"].tolist() == [0, 1]
        assert index["eos"].tolist() == [2, 6]
        assert index["class_order"].tolist() == [1, 0]
        assert index["ids"][index["context_at"]].tolist() == [0, 0]

    def test_too_long_a_prompt_names_the_class_and_the_sizes(self):
        layout = PromptLayout.build(tokenized(1, 9, 2), 4)
        layout.check_fits(16, ["a", "b", "c"])
        with pytest.raises(ValueError, match=r"class name 'b' takes 16 positions.*has 15"):
            layout.check_fits(15, ["a", "b", "c"])
