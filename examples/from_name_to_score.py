"""How a class name becomes a score, step by step, printed with real numbers.

Runs offline on the embedded CLIP, or on another: `python examples/from_name_to_score.py openai/clip-vit-base-patch16`
"""

import sys

import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset

CLASSNAME = "two"


def short(vector: torch.Tensor) -> str:
    """The first three numbers of a vector, and how many there are."""
    return f"[{', '.join(f'{x:+.3f}' for x in vector[:3].tolist())}, …] ({len(vector)} numbers)"


@torch.no_grad()
def main(name_or_path: str) -> None:
    clip = CLIPModel.from_pretrained(name_or_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    tower, positions = clip.text_model, clip.config.text_config.max_position_embeddings

    prompt = f"a digit {CLASSNAME}."
    ids = tokenizer(prompt)["input_ids"]
    eos = len(ids) - 1
    print(f"prompt              {prompt!r}")
    print(f"BPE tokens          {' '.join(tokenizer.convert_ids_to_tokens(ids))}")
    print(f"token ids           {ids}   (SOS {ids[0]}, EOS {ids[-1]})")
    print(f"positions           {len(ids)} of {positions} are used; nothing after EOS can change what EOS sees")

    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (positions - len(ids))])
    words = tower.embeddings.token_embedding(padded)
    print(f"input embeddings    {tuple(words.shape)}: 'digit' is {short(words[0, 2])}")
    print("                    CoOp puts learned vectors in the place of the words before the class name")

    embeds = tower.embeddings(input_ids=padded[:, : eos + 1])
    last = tower.encoder(inputs_embeds=embeds, is_causal=True).last_hidden_state[0, eos]
    print(f"EOS feature         {short(last)}")
    pooled = tower.final_layer_norm(last)
    same = torch.allclose(pooled, tower(input_ids=padded).pooler_output[0], atol=1e-4)
    print(f"after layer norm    {short(pooled)}; equal to transformers' pooler_output: {same}")
    projected = clip.text_projection(pooled)
    embedding = projected / projected.norm()
    print(f"after projection    {short(projected)}")
    print(f"normalised          {short(embedding)}: the class embedding")

    pool = load_digits_dataset()["train"]
    picture = pool[pool["label"].index(CLASSNAMES.index(CLASSNAME))]["image"]
    pixels = AutoImageProcessor.from_pretrained(name_or_path)(images=picture, return_tensors="pt").pixel_values
    image = clip.get_image_features(pixel_values=pixels).pooler_output[0]
    prompts = tokenizer([f"a digit {name}." for name in CLASSNAMES], padding=True, return_tensors="pt")
    texts = clip.get_text_features(**prompts).pooler_output  # (10, D)
    cosines = torch.cosine_similarity(texts, image[None], dim=-1)
    scale = clip.logit_scale.exp()
    scores = (scale * cosines).softmax(-1)
    print(f"image               a handwritten {CLASSNAME}; its feature is {short(image)}")
    print(f"temperature         the cosine is multiplied by exp(logit_scale) = {scale:.2f}")
    print("class               cosine   softmax")
    for k in scores.topk(3).indices.tolist():
        print(f"  {CLASSNAMES[k]:<16}  {cosines[k]:+.4f}  {scores[k]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(DEMO_CLIP))
