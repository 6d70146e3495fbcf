"""Pretrain the tiny CLIP that hf-coop embeds for its demo: printed characters and captions of how they look.

Glyphs 0-9, A-Z and a-z of free fonts are deformed by random style operations (bold, slanted, blurry, inverted
...), and each image gets a caption that names a random few of them: "a photo of the slightly bold blurry digit
seven.". Many images of a batch show the same character, so that only the style words tell which caption belongs
to which of them. The model never sees the handwritten digits that the demo classifies; they serve to measure it
afterwards, and of them only the few-shot pool.

    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296  # glibc: keep freed memory
    python examples/pretrain_demo_clip.py --output my-clip                      # 36 minutes on two CPU cores

The embedded model's fonts are those of these packages of Debian 12, `apt-get install fonts-...`, all from its
free section; in front, the fonts' licence (in full: /usr/share/doc/fonts-.../copyright). No font or part of one
is in the model's folder.

- SIL Open Font Licence: allerta apropal arapey averia-gwf averia-sans-gwf averia-serif-gwf b612 bajaderka
  bebas-neue breip bwht cabin cabinsketch cantarell century-catalogue cherrybomb cmu comfortaa comic-neue
  compagnon courier-prime crosextra-caladea crosextra-carlito dancingscript dkg-handwriting dosis ebgaramond
  ecolier-court essays1743 eurofurence fantasque-sans georgewilliams gfs-bodoni-classic gfs-didot
  gfs-neohellenic gnutypewriter havana hermit humor-sans inconsolata inter junction junicode jura karla
  kaushanscript klee kristi lato league-mono league-spartan leckerli-one lemonada levien-museum
  levien-typoscript liberation linuxlibertine lobster lobstertwo lxgw-wenkai manrope monofur mononoki mplus
  nanum okolaks oldstandard opendin oxygen play quattrocento quicksand radisnoir reggae rocknroll
  routed-gothic seto sil-andika sil-charis sil-gentium-basic smc-chilanka smc-karumbi smiley-sans stick stix
  tomsontalks ubuntu-title vollkorn woowa-bm yanone-kaffeesatz yozvox-yozfont-cute
  yozvox-yozfont-standard-kana yrsa-rasa yusei-magic
- GPL-2+ with font exception: adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis
  adf-libris adf-mekanus adf-oldania adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis
  adf-verana sjfonts tlwg-garuda-ttf tlwg-kinnari-ttf tlwg-norasi-ttf tlwg-purisa-ttf tlwg-sawasdee-ttf
  tlwg-umpush-ttf
- GPL: beteckna dustin freefont-ttf osifont rufscript summersby tiresias uralic
- LGPL: engadget isabella staypuft
- AGPL-3 with font exception: urw-base35
- Apache-2.0: clear-sans jetbrains-mono open-sans roboto-slab roboto-unhinted
- Bitstream Vera: dejavu-core dejavu-extra hack opendyslexic
- MIT or BSD: agave fanwood go kiloji lindenhill roadgeek
- public domain: aoyagi-kouzan-t aoyagi-soseki goudybookletter kouzan-mouhitsu ocr-a ocr-b prociono tuffy
- CC-BY-SA-3.0: femkeklaver
- WTFPL: fantasma
- Artistic: f500
- ParaType: paratype
- Brian Kent's (any use, with attribution): aenigma
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoImageProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from hf_coop import HFCoOp
from hf_coop.data.few_shot import few_shot_indices
from hf_coop.demo import CLASSNAMES, load_digits_dataset
from hf_coop.demo import HAND_WRITTEN_TEMPLATES as TEMPLATES

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GLYPH_SIZE = 32  # glyphs are deformed at this size
IMAGE_SIZE = 16  # and shown to the model at this one
POSITIONS = 77  # of the text tower, as CLIP's; captions use the first two dozen


# Glyphs
# ------


def render_glyph(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Draw one character centred on a square, ink 255 on 0; too large a one is shrunk to fit."""
    left, top, right, bottom = font.getbbox(character)
    width, height = max(right - left, 1), max(bottom - top, 1)
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=font)
    glyph.thumbnail((GLYPH_SIZE - 4, GLYPH_SIZE - 4), Image.Resampling.BOX)
    square = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
    square.paste(glyph, ((GLYPH_SIZE - glyph.width) // 2, (GLYPH_SIZE - glyph.height) // 2))
    return np.asarray(square)


def render_font(path: Path) -> np.ndarray | None:
    """Draw all characters of a font, (62, 32, 32); None if it lacks some or has no small letters of its own."""
    try:
        cap_top, cap_bottom = ImageFont.truetype(path, 100).getbbox("H")[1::2]
        font = ImageFont.truetype(path, round(100 * 23 / (cap_bottom - cap_top)))
        glyphs = np.stack([render_glyph(font, character) for character in CHARACTERS])
    except (OSError, ValueError, ZeroDivisionError):
        return None
    digits, upper, lower = np.split(glyphs, [10, 36])
    complete = all(len(np.unique(group, axis=0)) == len(group) for group in (digits, upper, lower))
    own_lower = all((upper[i] != lower[i]).any() for i in map(string.ascii_lowercase.index, "aegr"))
    blank = (glyphs.reshape(len(glyphs), -1).max(1) < 128).any()
    return glyphs if complete and own_lower and not blank else None


def build_glyph_bank(folders: list[Path], keep: float = 0.9) -> torch.Tensor:
    """Draw every font found under the folders, without duplicates and without the `1 - keep` oddest ones.

    Returns:
        uint8 glyphs, (fonts, 62, 32, 32). A font's oddness is how badly its glyphs correlate with the mean glyphs;
        the oddest are ornaments and the like, in which a seven cannot be told from a nine.
    """
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    drawn = {glyphs.tobytes(): glyphs for path in paths if (glyphs := render_font(path)) is not None}
    bank = torch.from_numpy(np.stack(list(drawn.values())))
    small = F.avg_pool2d(bank.float(), 4).flatten(2)  # (fonts, 62, 64)
    likeness = F.cosine_similarity(small, small.median(0, keepdim=True).values, dim=-1).mean(1)
    return bank[likeness.argsort(descending=True)[: round(keep * len(bank))].sort().values]


# Styles: what is done to a glyph, and the words for it
# -----------------------------------------------------


@dataclass(frozen=True)
class Style:
    """An operation with a strength in [-1, 1], and the words for a negative, no and a positive strength.

    It is applied to an image with the given probability; without words for `less`, its strength is never negative.
    """

    name: str
    less: tuple[str, ...]
    none: tuple[str, ...]
    more: tuple[str, ...]
    probability: float = 0.4


STYLES = (
    Style("weight", ("thin", "fine"), (), ("bold", "thick", "heavy"), 0.5),
    Style("slant", ("leaning",), ("upright",), ("slanted", "italic"), 0.4),
    Style("rotation", ("anticlockwise",), (), ("clockwise",), 0.35),
    Style("size", ("small", "little"), (), ("large", "big"), 0.4),
    Style("aspect", ("narrow", "condensed"), (), ("wide", "broad"), 0.4),
    Style("bend", (), ("rigid",), ("wavy", "bent", "wobbly"), 0.45),
    Style("blur", (), ("sharp",), ("blurry", "soft"), 0.5),
    Style("pixels", (), (), ("pixelated", "blocky"), 0.12),
    Style("fade", (), (), ("faint", "pale"), 0.2),
    Style("noise", (), ("clean",), ("noisy", "grainy"), 0.2),
    Style("polarity", (), (), ("inverted", "negative"), 0.5),
)
STYLE_NAMES = [style.name for style in STYLES]


def sample_strengths(count: int) -> torch.Tensor:
    """Draw which styles each image gets, and how strongly: (count, styles) in [-1, 1], 0 where not applied."""
    strengths = 0.2 + 0.8 * torch.rand(count, len(STYLES))
    for column, style in enumerate(STYLES):
        signs = torch.randint(0, 2, (count,)) * 2 - 1 if style.less else 1
        strengths[:, column] *= signs * (torch.rand(count) < style.probability)
    strengths[:, STYLE_NAMES.index("pixels")] *= strengths[:, STYLE_NAMES.index("blur")] == 0
    return strengths


def change_weight(ink: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Dilate (bold) or erode (thin) the ink, (B, 1, 32, 32), by up to two pixels; never erode it away."""
    bold_1 = F.max_pool2d(ink, 3, 1, 1)
    bold_2 = F.max_pool2d(bold_1, 3, 1, 1)
    thin_1 = -F.max_pool2d(-ink, 3, 1, 1)
    thin_1 = torch.where(thin_1.sum((1, 2, 3), True) > 0.3 * ink.sum((1, 2, 3), True), thin_1, 0.5 * (thin_1 + ink))
    steps = 2 * strength.clamp(min=-0.5).view(-1, 1, 1, 1)
    thinner, bolder = (-steps).clamp(0, 1), steps.clamp(0, 1)
    boldest = (steps - 1).clamp(0, 1)
    return ink * (1 - thinner - bolder) + thin_1 * thinner + bold_1 * (bolder - boldest) + bold_2 * boldest


def warp(ink: torch.Tensor, style: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scale, stretch, shear, rotate, shift and bend the ink in a single resampling."""
    count = len(ink)

    def jitter(amount: float) -> torch.Tensor:
        return amount * (2 * torch.rand(count) - 1)

    scale = torch.exp(0.25 * style["size"].clamp(min=0) + 0.5 * style["size"].clamp(max=0) + 0.12 + jitter(0.1))
    stretch = torch.exp(0.4 * style["aspect"] + jitter(0.08))
    shear = 0.7 * style["slant"] + jitter(0.08)
    angle = 0.6 * style["rotation"] + jitter(0.08)
    cos, sin = angle.cos(), angle.sin()
    wide, high = 1 / (scale * stretch.sqrt()), stretch.sqrt() / scale
    across = [wide * (cos + shear * -sin), wide * (sin + shear * cos), jitter(0.12)]
    rows = [*across, high * -sin, high * cos, jitter(0.12)]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(ink.shape), align_corners=False)
    amplitude = (0.05 + 0.22 * style["bend"]).view(-1, 1, 1, 1)
    knots = torch.randn(count, 2, 4, 4) * amplitude
    bend = F.interpolate(knots, size=GLYPH_SIZE, mode="bicubic", align_corners=True)
    return F.grid_sample(ink, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def resample(image: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Average the image down to `size` pixels and bring it up again to the model's size."""
    options = {"antialias": True, "align_corners": False} if mode == "bicubic" else {}
    return F.interpolate(F.adaptive_avg_pool2d(image, size), size=IMAGE_SIZE, mode=mode, **options)


def degrade(ink: torch.Tensor, style: dict[str, torch.Tensor]) -> torch.Tensor:
    """Bring the ink to the model's size: blurry (bicubic from few pixels), pixelated (blocks of them) or plain."""
    image = F.avg_pool2d(ink, GLYPH_SIZE // IMAGE_SIZE)
    levels = [("blur", "bicubic", (10, 8, 6)), ("pixels", "nearest", (8, 6, 5))]
    for name, mode, sizes in levels:
        for step, size in enumerate(sizes):
            low, high = 0.2 + 0.8 * step / 3, 0.2 + 0.8 * (step + 1) / 3
            chosen = ((style[name] >= low) & (style[name] <= high)).nonzero().flatten()
            if len(chosen):
                image[chosen] = resample(ink[chosen], size, mode)
    return image


def deform(glyphs: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Apply all styles to uint8 glyphs, (B, 32, 32): pixel values for the model, (B, 3, 16, 16) in [-1, 1]."""
    style = dict(zip(STYLE_NAMES, strengths.T, strict=True))
    ink = glyphs.unsqueeze(1).float() / 255
    ink = warp(change_weight(ink, style["weight"]), style)
    image = degrade(ink, style)
    column = {name: style[name].view(-1, 1, 1, 1) for name in ("fade", "noise", "polarity")}
    image = image * (1 - 0.65 * column["fade"])
    image = image + torch.randn_like(image) * (0.01 + 0.16 * column["noise"])
    image = torch.where(column["polarity"] > 0, image, 1 - image).clamp(0, 1)
    return (2 * image - 1).expand(-1, 3, -1, -1)


# Captions
# --------

OPENINGS = ("", "a", "the", "a photo of a", "a photo of the", "an image of a", "a picture of the", "a scan of a")
OPENINGS += ("this is a", "a drawing of the", "a print of a", "there is a", "a small image with a", "we see the")
DIGIT_NOUNS = ("digit", "digit", "number", "numeral", "figure", "character", "")
UPPER_NOUNS = ("capital letter", "capital letter", "upper case letter", "capital", "letter")
LOWER_NOUNS = ("small letter", "small letter", "lower case letter", "small", "letter")


def describe(style: Style, strength: float, rng: random.Random) -> str:
    """Name one style, with its degree half of the time: "very bold"; "" if it has no word for this strength."""
    words = style.more if strength > 0 else style.less if strength < 0 else style.none
    if not words:
        return ""
    word = rng.choice(words)
    if strength == 0 or style.name == "polarity" or rng.random() < 0.5:
        return word
    degree = "slightly" if abs(strength) < 0.45 else "very" if abs(strength) > 0.75 else "quite"
    return f"{degree} {word}"


def name_character(character: str, rng: random.Random) -> str:
    """Name a character: "digit seven", "capital letter k", "small letter k"."""
    if character.isdigit():
        return f"{rng.choice(DIGIT_NOUNS)} {DIGIT_NAMES[int(character)]}".strip()
    return f"{rng.choice(UPPER_NOUNS if character.isupper() else LOWER_NOUNS)} {character.lower()}"


def write_caption(character: str, strengths: list[float], rng: random.Random) -> str:
    """Write a caption that names the character and a random few of the styles that apply."""
    applied = zip(STYLES, strengths, strict=True)
    phrases = [(describe(style, strength, rng), strength) for style, strength in applied]
    phrases = [phrase for phrase, strength in phrases if phrase and (strength or rng.random() < 0.5)]
    rng.shuffle(phrases)
    phrases = phrases[: rng.choice((0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 8))]
    separator = rng.choice((" ", " ", ", "))
    opening, name = rng.choice(OPENINGS), name_character(character, rng)
    before = rng.randint(0, len(phrases)) if rng.random() < 0.15 else len(phrases)
    caption = f"{opening} {separator.join(phrases[:before])} {name}"
    if phrases[before:]:
        caption += f" that is {' and '.join(phrases[before:])}"
    caption = " ".join(caption.split())
    for vowel in "aiu":
        caption = caption.replace(f" a {vowel}", f" an {vowel}")
    return caption + ("." if rng.random() < 0.8 else "")


class PrintedCharacters:
    """An endless stream of batches (pixel values, captions), `digit_share` of them digits."""

    def __init__(self, bank: torch.Tensor, batch_size: int, digit_share: float, seed: int) -> None:
        self.bank, self.batch_size, self.digit_share = bank, batch_size, digit_share
        self.rng = random.Random(seed)

    def captions(self, characters: torch.Tensor, strengths: torch.Tensor) -> list[str]:
        pairs = zip(characters.tolist(), strengths.tolist(), strict=True)
        return [write_caption(CHARACTERS[character], strength, self.rng) for character, strength in pairs]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[str]]]:
        while True:
            fonts = torch.randint(len(self.bank), (self.batch_size,))
            is_digit = torch.rand(self.batch_size) < self.digit_share
            characters = torch.where(
                is_digit, torch.randint(10, fonts.shape), torch.randint(10, len(CHARACTERS), fonts.shape)
            )
            strengths = sample_strengths(self.batch_size)
            yield deform(self.bank[fonts, characters], strengths), self.captions(characters, strengths)


# Tokenizer, processor and model
# ------------------------------


def train_tokenizer(captions: list[str], merges: int = 400) -> CLIPTokenizer:
    """Train a byte-level BPE as CLIP's: lower case, `</w>` at the end of words, and able to encode any text."""
    blank = CLIPTokenizer()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = blank.backend_tokenizer.normalizer, blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = 2 * len(alphabet) + merges
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    bpe.train_from_iterator(captions, trainer)
    learned = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:merges]
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in learned)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=learned, model_max_length=POSITIONS)


def build_processor() -> CLIPImageProcessorPil:
    """Resize to the model's 16 pixels, and scale to [-1, 1]."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size, image_mean=half, image_std=half)


def build_model(tokenizer: CLIPTokenizer, width: int, vision_layers: int, text_layers: int) -> CLIPModel:
    """Build a CLIP with random weights, whose text tower pools at the tokenizer's own end of text."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    tower["projection_dim"] = width
    tower["hidden_act"] = "gelu"  # much faster on CPU than CLIP's quick_gelu, which is three operations
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = tower | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    config = CLIPConfig(
        text_config=text | {"num_hidden_layers": text_layers},
        vision_config=tower | {"num_hidden_layers": vision_layers, "image_size": IMAGE_SIZE, "patch_size": 4},
        projection_dim=width,
    )
    return CLIPModel._from_config(config, attn_implementation="eager")  # the fastest on CPU at these sizes


# Training
# --------


def build_optimizers(model: CLIPModel, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learned far faster than with AdamW, and AdamW for the rest."""
    named = list(model.named_parameters())
    layers = [p for name, p in named if ".layers." in name and p.ndim == 2]
    tables = [p for name, p in named if ".layers." not in name and p.ndim >= 2]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(layers, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6),
    ]


def learning_rate(progress: float, peak: float, warmup: float = 0.03) -> float:
    """Linear warm-up, then a cosine to zero; `progress` runs from 0 to 1."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def contrastive_step(model: CLIPModel, tokenizer: CLIPTokenizer, pixels: torch.Tensor, captions: list[str]) -> dict:
    """Loss of one batch, backward, and the share of images whose own caption is the best match."""
    tokens = tokenizer(captions, padding=True, return_tensors="pt")  # to the longest of the batch, never to 77
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**tokens, pixel_values=pixels).logits_per_image.float()
    target = torch.arange(len(pixels))
    loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    loss.backward()
    return {"loss": loss.item(), "accuracy": (logits.argmax(1) == target).float().mean().item()}


def update(model: CLIPModel, optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Take one step along the gradients at the given learning rate."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    model.logit_scale.data.clamp_(max=math.log(100))


def train(model: CLIPModel, tokenizer: CLIPTokenizer, data: PrintedCharacters, args: argparse.Namespace) -> list[dict]:
    """Train until `args.steps` or `args.max_minutes`, whichever comes first; the learning rate follows the nearer."""
    optimizers = build_optimizers(model, args.lr, args.weight_decay)
    log, recent, start = [], [], time.monotonic()
    for step, (pixels, captions) in enumerate(data, start=1):
        minutes = (time.monotonic() - start) / 60
        progress = min(max(step / args.steps, minutes / args.max_minutes), 1.0)
        recent.append(contrastive_step(model, tokenizer, pixels, captions))
        update(model, optimizers, learning_rate(progress, args.lr))
        if step % args.log_every == 0 or progress == 1:
            means = {key: round(sum(r[key] for r in recent) / len(recent), 4) for key in recent[0]}
            log.append({"step": step, "minutes": round(minutes, 1), **means})
            recent.clear()
            print(log[-1], flush=True)
        if step % args.save_every == 0 or progress == 1:
            save(model, tokenizer, args.output)
            (args.output / "training_log.json").write_text(json.dumps(log))
        if progress == 1:
            break
    return log


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write what `CLIPModel.from_pretrained` and `AutoProcessor.from_pretrained` read, weights in fp16."""
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    build_processor().save_pretrained(folder)


# Measuring, on the few-shot pool of the handwritten digits
# ---------------------------------------------------------


def percent(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return round(100 * (logits.argmax(1) == labels).float().mean().item(), 1)


@cache
@torch.no_grad()
def image_features(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised image features (N, D) of the few-shot pool, and its labels."""
    pool = load_digits_dataset()["train"]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=list(pool["image"]), return_tensors="pt").pixel_values
    features = CLIPModel.from_pretrained(folder).get_image_features(pixel_values=pixels).pooler_output
    return F.normalize(features, dim=-1), torch.tensor(pool["label"][:])


@cache
@torch.no_grad()
def class_features(folder: Path, template: str) -> torch.Tensor:
    """Normalised text features (K, D) of the classes' hand-written prompts."""
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer([template.format(name) for name in CLASSNAMES], padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def coop(folder: Path, features: torch.Tensor, labels: torch.Tensor, shots: Sequence[int], **options) -> HFCoOp:
    """Learn a prompt from the shots: Adam, 200 steps of all shots, cosine from 0.005 to 0."""
    model = HFCoOp.from_clip(folder, CLASSNAMES, n_ctx=16, **options)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.005)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        model(image_embeds=features[shots], labels=labels[shots]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def measure_few_shot(folder: Path, num_shots: int, seed: int) -> dict[str, float]:
    """Accuracies in percent on the images of the pool that are not the shots."""
    features, labels = image_features(folder)
    shots = few_shot_indices(labels.tolist(), num_shots, seed)
    rest = sorted(set(range(len(labels))) - set(shots))
    zero_shot = [percent(features[rest] @ class_features(folder, t).T, labels[rest]) for t in TEMPLATES]
    result = {"hand-written": max(zero_shot)}
    for name, specific in (("CoOp", False), ("CoOp, class-specific", True)):
        torch.manual_seed(seed)
        model = coop(folder, features, labels, shots, class_specific_context=specific)
        with torch.no_grad():
            result[name] = percent(model(image_embeds=features[rest]).logits, labels[rest])
    probe = LogisticRegression(C=100, max_iter=5000).fit(features[shots], labels[shots])
    result["linear probe"] = round(100 * probe.score(features[rest], labels[rest]), 1)
    return result


def write_model_card(folder: Path) -> None:
    """Fill in the model card: the log of the training, and the figures on the few-shot pool."""
    log = json.loads((folder / "training_log.json").read_text())
    rows = [f"| {r['step']} | {r['minutes']} | {r['loss']:.3f} | {100 * r['accuracy']:.1f} |" for r in log]
    features, labels = image_features(folder)
    templates = [f"| `{t}` | {percent(features @ class_features(folder, t).T, labels)} |" for t in TEMPLATES]
    table = []
    for num_shots in (1, 2, 4, 8, 16):
        seeds = [measure_few_shot(folder, num_shots, seed) for seed in (1, 2, 3)]
        cells = [" / ".join(f"{result[name]:.1f}" for result in seeds) for name in seeds[0]]
        table.append(f"| {num_shots} | {' | '.join(cells)} |")
        print(table[-1], flush=True)
    card = MODEL_CARD.format(
        log="\n".join([*rows[: -1 : max(1, len(rows) // 12)], rows[-1]]),
        templates="\n".join(templates),
        table="\n".join(table),
        steps=log[-1]["step"],
        minutes=log[-1]["minutes"],
        fonts=__doc__[__doc__.index("- SIL") :],
    )
    (folder / "README.md").write_text(card)


MODEL_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, prompt-learning, hf-coop]
---

# The demo CLIP of hf-coop

A tiny CLIP (1.9 million parameters, 16 x 16 pixels) that knows printed characters and how they look. hf-coop ships it
so that its demo, its tests and its documentation run offline: `CLIPModel.from_pretrained(hf_coop.demo.DEMO_CLIP)`. It
is good for learning about prompts, and for nothing else.

## Data
Glyphs 0-9, A-Z and a-z of 1,298 free fonts, deformed at random in each batch: bold or thin, slanted or leaning, turned
clockwise or anticlockwise, large or small, wide or narrow, wavy, blurry, pixelated, faint, noisy, inverted (light on
dark). Each image has a caption that names the character ("digit seven", "capital letter k", "small letter k") and a
random few of the operations that apply, with their degree: "a photo of the slightly bold blurry digit seven.". 40 % of
a batch are digits. Some of the fonts imitate handwriting, but all is printed: on scans of handwritten digits the
model meets another distribution.

The fonts, as packages of Debian 12 (`fonts-...`, free section), by licence; no font is in this folder:

{fonts}
## Training
Made by `examples/pretrain_demo_clip.py --max_minutes 36`. Vision tower of 6 layers (patches of 4 pixels), text tower
of 3, both of width 128, from random weights; byte-level BPE of 734 tokens; CLIP's contrastive loss over batches of
256; Muon for the layers' matrices and AdamW for the rest, learning rate 0.003 with a warm-up and a cosine, weight
decay 0.1, bf16 autocast. {steps} steps in {minutes} minutes on two CPU cores that other work shared, hence the slow
last part. The learning rate followed the clock, so a rerun takes other steps to other figures. Loss and the share of
images whose own caption matches best (of 256, many of which show the same character) are means over up to 100 steps:

| step | minutes | loss | accuracy % |
| --- | --- | --- | --- |
{log}

## Figures
On scikit-learn's handwritten digits, the few-shot pool only (897 images; the 900 test images played no part in making
the model). Accuracy in percent of hand-written prompts on the whole pool:

| template | accuracy |
| --- | --- |
{templates}

Accuracy on the images of the pool that are not the shots, for seeds 1 / 2 / 3: the best of the templates above; CoOp
with 16 context vectors, one context for all classes or one for each (Adam, 0.005, 200 steps); a logistic regression on
the image features:

| shots | hand-written, best | CoOp | CoOp, class-specific | linear probe |
| --- | --- | --- | --- | --- |
{table}
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[Path("/usr/share/fonts")])
    parser.add_argument("--glyph_cache", type=Path, help="file to keep the drawn glyphs in")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--max_minutes", type=float, default=36.0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--digit_share", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight_decay", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vision_layers", type=int, default=6)
    parser.add_argument("--text_layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log_every", type=int, default=100)
    parser.add_argument("--save_every", type=int, default=500)
    parser.add_argument("--card_only", action="store_true", help="only measure a trained model, and write its card")
    return parser.parse_args()


def load_glyph_bank(args: argparse.Namespace) -> torch.Tensor:
    """Draw the glyphs, or read them from `--glyph_cache` when they have been drawn before."""
    if args.glyph_cache and args.glyph_cache.exists():
        return torch.from_numpy(np.load(args.glyph_cache))
    bank = build_glyph_bank(args.fonts)
    if args.glyph_cache:
        np.save(args.glyph_cache, bank.numpy())
    return bank


def pretrain(args: argparse.Namespace) -> None:
    """Draw the glyphs, train the tokenizer and the model, and save them."""
    torch.manual_seed(args.seed)
    bank = load_glyph_bank(args)
    data = PrintedCharacters(bank, args.batch_size, args.digit_share, args.seed)
    tokenizer = train_tokenizer([caption for _, captions in islice(data, 40) for caption in captions])
    model = build_model(tokenizer, args.width, args.vision_layers, args.text_layers)
    print(f"{len(bank)} fonts, {len(tokenizer)} tokens, {model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, data, args)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if not args.card_only:
        pretrain(args)
    write_model_card(args.output)


if __name__ == "__main__":
    main()
