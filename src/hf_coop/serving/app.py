"""The web app of `hf-coop app`: learned prompts beside hand-written ones, and learning one's own, by Gradio."""

from __future__ import annotations

import base64
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.images import load_image
from ..encoding import DEFAULT_TEMPLATE
from ..escaping import html_text, one_line
from ..hub import METRICS
from ..modeling import HFCoOp
from .prompt_shelf import PromptShelf
from .space import TITLE, find_examples
from .uploads import MAX_ARCHIVE_BYTES, read_archive, read_upload

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the app needs Gradio: pip install 'hf-coop[app]'") from error

YOURS = "learned here"
MAX_IMAGES = 64  # at a time
MAX_SHOTS = 16
TOP_K, THUMBNAIL = 5, 160  # pixels
KEPT_SECONDS = 3600  # uploads, and prompts that were learned
INTRODUCTION = """# {title}
Scores of a learned prompt beside those of a hand-written one. Drop images or pick an example; other class names give
other scores."""
LEARNING = f"""Upload a `.zip` of a folder with one sub-folder of images for each class, named as the class is called.
At most {MAX_ARCHIVE_BYTES // 2**20} MiB; 1 to {MAX_SHOTS} images of a class are learned from, the others measured
on."""
CSS = """
.results {display: grid; gap: 1rem}
.result {display: grid; grid-template-columns: minmax(5rem, 10rem) 1fr; gap: .75rem; align-items: start}
.result img {width: 100%; border-radius: .4rem}
.sides {display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem}
.bar {display: grid; grid-template-columns: 1fr auto; gap: .1rem .5rem; font-size: .9rem; overflow-wrap: anywhere;
      margin-bottom: .4rem}
.bar i {grid-column: 1 / -1; height: .35rem; border-radius: .2rem; background: var(--primary-500)}
.hand i {background: var(--neutral-400)}
.error {color: var(--error-text-color, #b91c1c)}
"""


@dataclass(frozen=True)
class Shown:
    """An image that somebody wants classified, or what is wrong with it."""

    name: str
    error: str = ""
    thumbnail: str = ""
    pixels: torch.Tensor | None = None  # (1, 3, H, W)


class PromptApp:
    """What the app does with what its users give it.

    Args:
        shelf ([`PromptShelf`]): the prompts.
        examples (`Sequence[Path | str]`): images to pick from.
    """

    def __init__(self, shelf: PromptShelf, examples: Sequence[Path | str]) -> None:
        self.shelf, self.examples = shelf, examples

    def classify(
        self, files: list[str] | None, prompt: str, classnames: str, template: str, learned: HFCoOp | None
    ) -> tuple[str, list[dict[str, Any]]]:
        """Classify images by a learned prompt and by a hand-written one.

        Args:
            files: the images.
            prompt: which learned prompt.
            classnames: names to choose from, one a line; empty: those that the prompt was learned with.
            template: the hand-written prompt, with {} where the class name goes; empty: the usual one.
        """
        if len(files or []) > MAX_IMAGES:
            raise gr.Error(f"{len(files or [])} images: at most {MAX_IMAGES} go at a time.")
        shown = [self._look_at(Path(file).name, read_upload, file) for file in files or []]
        return self._scored(shown, prompt, classnames, template, learned)

    def pick(
        self, prompt: str, classnames: str, template: str, learned: HFCoOp | None, event: gr.SelectData
    ) -> tuple[str, list[dict[str, Any]]]:
        """Classify an example."""
        example = self.examples[event.index]
        shown = [self._look_at(Path(example).name, load_image, str(example))]
        return self._scored(shown, prompt, classnames, template, learned)

    def choose(self, prompt: str, learned: HFCoOp | None) -> tuple[str, str]:
        """The class names and the hand-written prompt to begin with."""
        model = self._model_of(prompt, learned)
        return _lines(model), model.card_details.zero_shot_template or DEFAULT_TEMPLATE

    def learn(self, archive: str | None, shots: float) -> Iterator[tuple[Any, ...]]:
        """Learn a prompt from the images in a .zip file with one folder for each class."""
        if archive is None:
            raise gr.Error("Upload a .zip of a folder with one sub-folder of images for each class.")
        yield "Reading the images …", None, gr.skip(), None
        try:
            images = read_archive(archive)
            for news in self.shelf.learn(images, max(1, min(MAX_SHOTS, int(shots)))):
                if isinstance(news, dict):
                    yield _progress(news), None, gr.skip(), None
                else:
                    choices = gr.Dropdown(choices=[*self.shelf.models, YOURS], value=YOURS)
                    yield _outcome(news), news, choices, _zipped(news)
        except (ValueError, TypeError, OSError, FloatingPointError) as error:
            raise _told(error) from error

    def push(self, repository: str, user_token: str, learned: HFCoOp | None) -> tuple[str, str]:
        """Push the prompt that was learned here; the second result empties the field of the token."""
        if learned is None:
            raise gr.Error("Learn a prompt first.")
        if not user_token.strip():
            raise gr.Error("Give a token of yours that may write: the app's own is never used.")
        try:
            commit = learned.push_to_hub(repository.strip(), token=user_token.strip())
        except (OSError, ValueError) as error:
            raise _told(error) from error
        return f"Pushed: {html_text(commit.commit_url)}", ""

    def _model_of(self, prompt: str, learned: HFCoOp | None) -> HFCoOp:
        if prompt == YOURS and learned is not None:
            return learned
        if prompt not in self.shelf.models:
            raise gr.Error("There is no such prompt.")
        return self.shelf.models[prompt]

    def _look_at(self, name: str, read: Callable[[str], Image.Image], file: str) -> Shown:
        try:
            image = read(file)
            return Shown(name, thumbnail=_thumbnail(image), pixels=self.shelf.pixels(image))
        except ValueError as error:
            return Shown(name, error=str(error))

    def _scored(
        self, shown: Sequence[Shown], prompt: str, classnames: str, template: str, learned: HFCoOp | None
    ) -> tuple[str, list[dict[str, Any]]]:
        """The results as a page and as rows."""
        model = self._model_of(prompt, learned)
        chosen = [line.strip() for line in classnames.splitlines() if line.strip()]
        if not chosen or chosen == _lines(model).splitlines():
            chosen = model.classnames
        pixels = [one.pixels for one in shown if one.pixels is not None]
        try:
            sides = self.shelf.scores(model, torch.cat(pixels), chosen, template.strip() or None) if pixels else ()
        except (ValueError, TypeError) as error:
            raise _told(error) from error
        best = zip(*[_top(side, chosen) for side in sides], strict=True)
        rows: list[dict[str, Any]] = []
        for one in shown:
            if one.pixels is None:
                rows.append({"image": one.name, "error": one.error})
            else:
                by_prompt, by_hand = next(best)
                rows.append({"image": one.name, "learned": by_prompt, "hand_written": by_hand})
        return _results_page(rows, [one.thumbnail for one in shown]), rows


def make_app(
    adapters: Sequence[str],
    base_model_name_or_path: str | None = None,
    *,
    examples_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    device: str | None = None,
) -> gr.Blocks:
    """The app, to be launched by [`launch_app`].

    Args:
        adapters, base_model_name_or_path, token, device: as in [`PromptShelf`].
        examples_dir: a folder of images to pick from.

    Raises:
        ValueError, OSError: as [`PromptShelf`], or there are no images in `examples_dir`.
    """
    examples = find_examples(examples_dir)
    app = PromptApp(PromptShelf(adapters, base_model_name_or_path, token=token, device=device), examples)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        mine = gr.State(None, time_to_live=KEPT_SECONDS)  # the prompt that this session has learned
        gr.Markdown(INTRODUCTION.format(title=TITLE))
        with gr.Tab("Classify"), gr.Row():
            prompt = _classify_tab(app, mine)
        with gr.Tab("Learn"):
            _learn_tab(app, mine, prompt)
    blocks.queue(max_size=64, default_concurrency_limit=4)
    return blocks


def _classify_tab(app: PromptApp, mine: gr.State) -> gr.Dropdown:
    """Images, prompt and class names on the one side, the scores on the other; gives the choice of a prompt."""
    names = list(app.shelf.models)
    own_names, own_template = app.choose(names[0], None)
    with gr.Column():
        prompt = gr.Dropdown(names, value=names[0], label="Learned prompt", elem_id="prompt")
        files = gr.File(label="Images", file_count="multiple", file_types=["image"], elem_id="images")
        gallery = gr.Gallery(
            [str(path) for path in app.examples],
            label="Examples",
            show_label=False,
            columns=6,
            height=120,
            allow_preview=False,
            visible=bool(app.examples),
            interactive=False,
            elem_id="examples",
        )
        classnames = gr.Textbox(own_names, label="Class names, one a line", lines=4, max_lines=12, elem_id="names")
        template = gr.Textbox(own_template, label="Hand-written prompt")
        button = gr.Button("Classify", variant="primary", elem_id="classify")
    with gr.Column():
        page = gr.HTML(elem_id="results")
        with gr.Accordion("As JSON", open=False):
            rows = gr.JSON(show_label=False)
    inputs, outputs = [prompt, classnames, template, mine], [page, rows]
    gr.on(
        [button.click, files.upload, classnames.submit, template.submit],
        app.classify,
        [files, *inputs],
        outputs,
        api_name="classify",
    )
    gallery.select(app.pick, inputs, outputs, api_visibility="private")
    prompt.change(app.choose, [prompt, mine], [classnames, template], api_visibility="private")
    return prompt


def _learn_tab(app: PromptApp, mine: gr.State, prompt: gr.Dropdown) -> None:
    """An archive of images, how far learning is, and what to do with the prompt then."""
    gr.Markdown(LEARNING)
    archive = gr.File(label="Folder, as .zip", file_types=[".zip"], elem_id="archive")
    shots = gr.Slider(1, MAX_SHOTS, value=MAX_SHOTS, step=1, label="Images of a class to learn from")
    start = gr.Button("Learn", variant="primary", elem_id="learn")
    status = gr.HTML(elem_id="status")
    download = gr.DownloadButton("Download the prompt", elem_id="download")
    start.click(app.learn, [archive, shots], [status, mine, prompt, download], api_name="learn", concurrency_limit=1)
    with gr.Accordion("Push it to the Hub", open=False):
        repository = gr.Textbox(label="Repository", placeholder="user/name", elem_id="repository")
        user_token = gr.Textbox(label="Your token, with the right to write", type="password", elem_id="token")
        pushed = gr.HTML(elem_id="pushed")
        gr.Button("Push", elem_id="push").click(
            app.push,
            [repository, user_token, mine],
            [pushed, user_token],
            api_visibility="private",
            concurrency_limit=2,
        )


def launch_app(
    adapters: Sequence[str],
    base_model_name_or_path: str | None = None,
    *,
    examples_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    device: str | None = None,
    host: str | None = None,
    port: int | None = None,
    mcp: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Start the app of [`make_app`]; until it is stopped, or in the background.

    Args:
        adapters, base_model_name_or_path, examples_dir, token, device: as there.
        host (`str`, *optional*): address to listen on. Default: this machine alone, or as Gradio's environment says.
        port (`int`, *optional*): default: the first from 7860 that is free.
        mcp (`bool`): also be a Model Context Protocol server; its tools are `classify` and `learn`.
        block (`bool`): wait until it is stopped.

    Returns:
        The app; `local_url` is where it runs, `close()` ends it.

    Raises:
        OSError: the port is taken.
        ValueError, OSError: as [`make_app`].
    """
    blocks = make_app(adapters, base_model_name_or_path, examples_dir=examples_dir, token=token, device=device)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            mcp_server=mcp,
            max_file_size=MAX_ARCHIVE_BYTES,
            css=CSS,
            ssr_mode=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise OSError(f"cannot listen on port {port}: it is taken, or not allowed; choose another --port") from error
    print(f"the app runs at {blocks.local_url}", flush=True)
    if block:
        blocks.block_thread()
    return blocks


def _lines(model: HFCoOp) -> str:
    """Its class names, one a line."""
    return "\n".join(map(one_line, model.classnames))


def _told(error: Exception) -> gr.Error:
    """An error as the browser shows it: as text."""
    return gr.Error(html_text(str(error)), print_exception=False)


def _top(probabilities: torch.Tensor, names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The best classes of each row, best first."""
    scores, labels = probabilities.topk(min(TOP_K, len(names)))
    pairs = zip(scores.tolist(), labels.tolist(), strict=True)
    return [[{"label": names[k], "score": score} for score, k in zip(*pair, strict=True)] for pair in pairs]


def _results_page(rows: Sequence[dict[str, Any]], thumbnails: Sequence[str]) -> str:
    """The results as HTML; names are text in it, whatever they hold."""
    if not rows:
        return "<p>Drop images, or pick an example.</p>"
    parts = []
    for row, thumbnail in zip(rows, thumbnails, strict=True):
        name = html_text(row["image"])
        if "error" in row:
            error = f'<span class="error">{html_text(row["error"])}</span>'
            parts.append(f'<div class="result"><b>{name}</b>{error}</div>')
            continue
        learned, hand = _bars("learned", row["learned"]), _bars("hand-written", row["hand_written"])
        picture = f'<img alt="{name}" src="{thumbnail}">'
        sides = f'<div class="learned">{learned}</div><div class="hand">{hand}</div>'
        parts.append(f'<div class="result">{picture}<div class="sides">{sides}</div></div>')
    return f'<div class="results">{"".join(parts)}</div>'


def _bars(title: str, predictions: Sequence[dict[str, Any]]) -> str:
    bars = [
        f'<div class="bar"><span>{html_text(row["label"])}</span><span>{row["score"]:.1%}</span>'
        f'<i style="width: {max(row["score"], 0.005):.1%}"></i></div>'
        for row in predictions
    ]
    return f"<b>{title}</b>{''.join(bars)}"


def _thumbnail(image: Image.Image) -> str:
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _progress(row: dict[str, Any]) -> str:
    return f"Iteration {row['epoch']}: loss {row['loss']:.4f}, {row['accuracy']:.1%} of the training images right"


def _outcome(model: HFCoOp) -> str:
    details = model.card_details
    if not details.learned:
        return "<b>Learned,</b> and chosen on the first page. No image was left to measure on."
    cells = [
        f"<tr><td>{METRICS[name]}</td><td>{details.zero_shot[name]:.1%}</td><td>{details.learned[name]:.1%}</td></tr>"
        for name in METRICS
    ]
    head = "<tr><th>On the other images</th><th>hand-written</th><th>learned</th></tr>"
    return f"<b>Learned,</b> and chosen on the first page.<table>{head}{''.join(cells)}</table>"


def _zipped(model: HFCoOp) -> str:
    """A .zip file of the saved prompt, which Gradio moves into its cache and deletes in the end."""
    path = Path(tempfile.mkdtemp(prefix="hf-coop-"), "prompt.zip")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        model.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            archive.write(file, file.relative_to(folder))
    return str(path)
