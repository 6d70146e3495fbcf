"""The web app as a folder that is a Space of the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from ..files import staged_folder
from ..hub import fetch_adapter, read_adapter_config
from ..hub.adapter_files import ADAPTER_FILES
from ..version import __version__
from .classify_files import find_images
from .prompt_shelf import common_base

TITLE = "Learned prompts for CLIP"
MAX_EXAMPLES = 12
MODEL_FILES = ("*.json", "*.txt", "*.safetensors")  # of a base model's folder
APP = '''"""{title}: `python app.py`, or pushed to a Space as it is."""

import os
from pathlib import Path

from hf_coop.serving.app import launch_app

os.chdir(Path(__file__).parent)
launch_app({adapters!r}, {base!r}, examples_dir={examples!r})
'''
README = """---
{metadata}
---

# {title}

Prompts that were learned by [hf-coop](https://pypi.org/project/hf-coop/) from a few images, beside hand-written ones:
classify images with them, change the class names, and learn a prompt of your own.
"""


def export_space(
    folder: str | os.PathLike[str],
    adapters: Sequence[str],
    base_model_name_or_path: str | None = None,
    *,
    examples_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> None:
    """Write `app.py`, `requirements.txt` and `README.md` with a Space's metadata.

    What lies in folders of this machine (adapters, the base model, examples) is copied into it; what is on the Hub is
    named.

    Args:
        folder: to write to; made if needed.
        adapters, base_model_name_or_path, examples_dir, token: as in [`~hf_coop.serving.app.launch_app`].

    Raises:
        ValueError, OSError: the adapters are for different CLIPs, one is not found, or the folder cannot be written.
    """
    configs = {name: read_adapter_config(fetch_adapter(name, token=token)) for name in adapters}
    base, _ = common_base(configs, base_model_name_or_path)
    examples = find_examples(examples_dir)
    with staged_folder(folder) as staging:
        root = Path(staging)
        named = [_copied_adapter(name, root) for name in adapters]
        local = os.path.isdir(base)
        if local:
            shutil.copytree(base, root / "clip", ignore=_all_but_model_files)
        for example in examples:
            (root / "examples").mkdir(exist_ok=True)
            shutil.copy(example, root / "examples")
        app = APP.format(
            title=TITLE,
            adapters=named,
            base="clip" if local else base_model_name_or_path,
            examples="examples" if examples else None,
        )
        (root / "app.py").write_text(app, encoding="utf-8")
        (root / "requirements.txt").write_text(f"hf-coop[app]=={__version__}\n", encoding="utf-8")
        on_hub = [name for name in (*named, base) if not os.path.isdir(name) and not (root / name).exists()]
        metadata = SpaceCardData(
            title=TITLE,
            sdk="gradio",
            sdk_version=version("gradio"),
            app_file="app.py",
            models=on_hub or None,
            tags=["hf-coop", "clip", "prompt-learning"],
        )
        SpaceCard(README.format(metadata=metadata.to_yaml(), title=TITLE)).save(root / "README.md")


def find_examples(folder: str | os.PathLike[str] | None) -> list[Path | str]:
    """The first images of a folder, for users of the app to pick from; none without a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    return find_images([folder])[:MAX_EXAMPLES] if folder is not None else []


def _copied_adapter(name: str, root: Path) -> str:
    """What to call an adapter in the Space: its repository, or its copy there."""
    if not os.path.isdir(name):
        return name
    place = Path("adapters", Path(name).resolve().name)
    if (root / place).exists():
        raise ValueError(f"two of the adapters' folders are called {place.name!r}: rename one")
    (root / place).mkdir(parents=True)
    for file in ADAPTER_FILES:
        if os.path.isfile(os.path.join(name, file)):
            (root / place / file).parent.mkdir(exist_ok=True)
            shutil.copy(os.path.join(name, file), root / place / file)
    return place.as_posix()


def _all_but_model_files(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not any(Path(name).match(pattern) for pattern in MODEL_FILES)}
