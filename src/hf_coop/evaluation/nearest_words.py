"""What learned context vectors look like: the words of the vocabulary that lie next to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CLIPModel

VECTORS_AT_A_TIME = 256


@torch.no_grad()
def nearest_words(
    clip: CLIPModel,
    tokenizer: Any,
    top_k: int = 3,
    max_vectors: int | None = None,
    classes: Sequence[int] | None = None,
) -> list[list[tuple[str, float]]]:
    """The vocabulary's words nearest to each context vector, by Euclidean distance (CoOp, arXiv 2109.01134, table 4).

    Args:
        clip (`CLIPModel`): with learned prompts on it, [`HFCoOp.clip`]; those of the active adapter are looked at.
        tokenizer: of `clip`, [`HFCoOp.tokenizer`].
        top_k (`int`): words for each vector.
        max_vectors (`int`, *optional*): look at the first ones only.
        classes (`Sequence[int]`, *optional*): with class-specific context, those of these classes only, in this order.

    Returns:
        For each vector, `(word, distance)` with the nearest first. With class-specific context the M vectors of the
        first class come first, then those of the second.
    """
    words = clip.text_model.embeddings.token_embedding.weight.float()  # (V, dim)
    ctx = clip.text_model.active_learner.ctx.float()  # (M, dim) or (K, M, dim)
    vectors = (ctx if classes is None else ctx[list(classes)]).flatten(0, -2)[:max_vectors]  # (C, dim)
    found = []
    for part in vectors.split(VECTORS_AT_A_TIME):
        distances, ids = torch.cdist(part, words).topk(min(top_k, len(words)), largest=False)
        for row in zip(ids.tolist(), distances.tolist(), strict=True):
            found.append([(_word(tokenizer, i), distance) for i, distance in zip(*row, strict=True)])
    return found


def _word(tokenizer: Any, token_id: int) -> str:
    return tokenizer.decode([token_id]).strip() or tokenizer.convert_ids_to_tokens(token_id)
