"""The prompts of a sweep in one folder, and so in one repository on the Hub: a sub-folder with its card for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData

from ..escaping import markdown_text
from ..files import staged_folder
from ..hub.adapter_files import CARD_FILE, CONFIG_FILE
from ..hub.card_file import REPO_PLACEHOLDER
from ..hub.model_card import hub_id
from .methods import find_method
from .protocols import Run
from .run import prompt_folder

INDEX = """---
{metadata}
---
# {title}

{count} prompts for CLIP, learned by hf-coop, each in a folder of its own with its card:

```python
from hf_coop import HFCoOp

model = HFCoOp.from_pretrained("{repo}", subfolder={example})
model.predict("image.jpg")
```

| Prompt | Method | Shots | Seed | Tested on | Accuracy |
| --- | --- | ---: | ---: | --- | ---: |
{rows}
"""


def write_index(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the `README.md` of a folder of prompts: what is in it, and how good each is.

    Args:
        folder (`Path`): of the prompts; without any, nothing is written.
        rows: of `results.jsonl`; those whose prompt is in the folder are listed.
    """
    kept = {
        place: row
        for row in rows
        if (folder / (place := prompt_folder(Run.of_row(dict(row)))) / CONFIG_FILE).is_file()
    }
    if not kept:
        return
    first = next(iter(kept.values()))
    base = hub_id(first["base_model"])
    labels = {row["method"]: find_method(row["method"]).label for row in kept.values()}
    metadata = ModelCardData(
        library_name="peft",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="zero-shot-image-classification",
        tags=["hf-coop", *sorted({label.split()[0].lower() for label in labels.values()}), "clip", "prompt-learning"],
    )
    lines = []
    for place, row in kept.items():
        for result in row["results"]:
            tested = f"{result['tested_on']}, {result['classes']} classes"
            cells = [
                f"[{markdown_text(place)}]({quote(place)})",
                labels[row["method"]],
                row["shots"],
                row["seed"],
                markdown_text(tested),
            ]
            lines.append("| " + " | ".join(map(str, cells)) + f" | {result['accuracy']:.2%} |")
    card = INDEX.format(
        metadata=metadata.to_yaml(),
        title=markdown_text(f"Prompts of {first['protocol']}"),
        count=len(kept),
        repo=REPO_PLACEHOLDER,
        example=json.dumps(next(iter(kept))),
        rows="\n".join(lines),
    )
    with staged_folder(folder) as staging:
        ModelCard(card).save(Path(staging, CARD_FILE))
