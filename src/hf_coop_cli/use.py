"""Using prompts: `hf-coop evaluate`, `predict`, `explain`, `app` and `info`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import (
    USE,
    Adapter,
    BaseModel,
    DataDir,
    Revision,
    Token,
    app,
    errors_as_messages,
    of_images,
    quick_imports,
    say,
)

MAX_SHOWN = 20_000  # characters of one fact about an adapter


class OutputFormat(StrEnum):
    """Of `hf-coop predict`."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


@app.command(rich_help_panel=USE)
def evaluate(
    adapter: Adapter,
    test_dir: Annotated[str | None, of_images("test_dir", "Folder with one sub-folder of images a class.")] = None,
    dataset_name: Annotated[
        str | None, of_images("dataset_name", "Hub id, folder or .parquet; demo: embedded.")
    ] = None,
    benchmark: Annotated[str | None, of_images("benchmark", "An image set of the papers: dtd, sun397, ….")] = None,
    data_dir: Annotated[str | None, of_images("data_dir", "Folder of the benchmarks; default: $HF_COOP_DATA.")] = None,
    dataset_config_name: Annotated[
        str | None, of_images("dataset_config_name", "Configuration of the data set.")
    ] = None,
    test_split: Annotated[
        str | None, of_images("test_split", "Of the data set's splits; default: test, else validation.")
    ] = None,
    image_column_name: Annotated[
        str | None, of_images("image_column_name", "Of the data set; default: image.")
    ] = None,
    label_column_name: Annotated[
        str | None, of_images("label_column_name", "Of the data set; default: label.")
    ] = None,
    classnames_file: Annotated[
        str | None, of_images("classnames_file", "The data's class names, one a line, in label order.")
    ] = None,
    skip_broken_images: Annotated[
        bool, of_images("skip_broken_images", "Leave out images that cannot be read.")
    ] = False,
    set_classnames: Annotated[
        bool, typer.Option("--set_classnames", help="Put the prompt in front of the images' class names, as new ones.")
    ] = False,
    zero_shot_template: Annotated[
        str | None,
        typer.Option("--zero_shot_template", help="Compared with; default: that of the run, by its card."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write the metrics to, as JSON.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Images at a time.")] = 128,
    use_cpu: Annotated[bool, typer.Option("--use_cpu", help="Leave a GPU alone.")] = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Measure an adapter on labelled test images, beside a hand-written prompt.

    The images are those of --test_dir, --dataset_name or --benchmark. Their classes are found by name among the
    adapter's, in any case and order; images of other classes are left out, with a warning.
    """
    from hf_coop import HFCoOp
    from hf_coop.data import classnames_of, hand_crafted_template, load_test_images, match_classes
    from hf_coop.files import whole_file
    from hf_coop.hub import fetch_adapter, read_adapter_config
    from hf_coop.serving import evaluate_adapter, metrics_table

    with errors_as_messages(), nullcontext() if output is None else whole_file(output) as file:
        test = load_test_images(
            test_dir,
            dataset_name,
            dataset_config_name,
            benchmark=benchmark,
            data_dir=data_dir,
            test_split=test_split,
            image_column_name=image_column_name,
            label_column_name=label_column_name,
            classnames_file=classnames_file,
            skip_broken_images=skip_broken_images,
            token=token,
        )
        if not set_classnames:
            config = read_adapter_config(fetch_adapter(adapter, revision=revision, token=token))
            test = match_classes(test, config.classnames)
        model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token)
        template = zero_shot_template or model.card_details.zero_shot_template or hand_crafted_template(benchmark)
        if set_classnames:
            model.set_classnames(classnames_of(test))
        metrics = evaluate_adapter(model, test, template, batch_size=batch_size, use_cpu=use_cpu)
        typer.echo(metrics_table(metrics))
        if file is not None:
            content = {"adapter": adapter, "images": test_dir or dataset_name or benchmark, **metrics}
            file.write(json.dumps(content, indent=2) + "\n")


@app.command(rich_help_panel=USE)
def predict(
    adapter: Annotated[
        str, typer.Argument(metavar="REPO_OR_FOLDER", help="Adapter on the Hub or in a folder; or an .onnx file.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files, folders (searched throughout), globs and URLs.")],
    top_k: Annotated[int, typer.Option("--top_k", min=1, help="Classes to give for each image.")] = 5,
    output_format: Annotated[
        OutputFormat, typer.Option("--output_format", help="A line of text, of JSON or of a CSV table for each image.")
    ] = OutputFormat.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output_format json.")] = False,
    min_score: Annotated[
        str | None,
        typer.Option("--min_score", help="Below it, from 0 to 1, a class is left out. auto: found in validation."),
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option("--sort_into", help="Copy each image into a sub-folder of its class.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Move the images instead, with --sort_into.")] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Images at a time.")] = 64,
    base_model: BaseModel = None,
    revision: Revision = None,
    token: Token = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: cpu.")] = None,
) -> None:
    """Classify images. A broken one is reported and the others go on; the exit code is then 1."""
    from tqdm import tqdm

    from hf_coop_onnx import OnnxClassifier, PhotoSorter, check_sortable, classify_files, csv_header, find_images

    is_onnx = adapter.endswith(".onnx")  # run without PyTorch
    if is_onnx and (base_model or revision or token or device):
        raise typer.BadParameter("an .onnx file is run on the CPU as it is: leave out other options of the model")
    if move and sort_into is None:
        raise typer.BadParameter("it goes with --sort_into", param_hint="--move")
    if as_json and output_format == OutputFormat.CSV:
        raise typer.BadParameter("it is in conflict with --output_format csv", param_hint="--json")
    output_format = OutputFormat.JSON if as_json else output_format
    options = {} if min_score is None else {"min_score": _score(min_score)}
    broken, sorter = 0, None
    with errors_as_messages():
        paths = find_images(images)
        if sort_into is not None:
            check_sortable(paths)
        model: Any
        if is_onnx:
            model = OnnxClassifier(adapter)
        else:
            with quick_imports():
                from hf_coop import HFCoOp

            model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token, device=device)
        top_k = min(top_k, len(model.classnames))
        if sort_into is not None:
            sorter = PhotoSorter(sort_into, model.classnames, move)
        if output_format == OutputFormat.CSV:
            typer.echo(csv_header(top_k))
        results = classify_files(model, paths, top_k, batch_size, **options)
        for path, result in tqdm(results, total=len(paths), unit="image", disable=None):  # None: on a terminal alone
            failed = isinstance(result, ValueError)
            broken += failed
            file = sys.stderr if failed and output_format == OutputFormat.TEXT else sys.stdout
            tqdm.write(_prediction_line(output_format, path, result, top_k), file=file)
            if sorter is not None and not failed:
                sorter.sort(path, result)
    if broken:
        sys.exit(f"{broken} of {len(paths)} images could not be read")


@app.command(rich_help_panel=USE)
def explain(
    adapter: Adapter,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder for report.html.")],
    dataset_name: Annotated[
        str | None, typer.Option("--dataset_name", help="Test images: Hub id, folder or .parquet; demo: embedded.")
    ] = None,
    test_dir: Annotated[
        Path | None, typer.Option("--test_dir", help="Or a folder with one sub-folder of images a class.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="Or an image set of the papers: dtd, sun397, ….")] = None,
    data_dir: DataDir = None,
    test_split: Annotated[
        str | None, typer.Option("--test_split", help="Split of the data set; default: test, else validation.")
    ] = None,
    zero_shot_template: Annotated[
        str | None, typer.Option("--zero_shot_template", help="Hand-written prompt; default: the benchmark's.")
    ] = None,
    base_model: BaseModel = None,
    revision: Revision = None,
    token: Token = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: cpu.")] = None,
) -> None:
    """Show what a prompt learned: figures, images and words beside the hand-written prompt's, on one page.

    Images are matched with the prompt's classes as by `hf-coop evaluate`.
    """
    from hf_coop import HFCoOp
    from hf_coop.data import hand_crafted_template, load_test_images
    from hf_coop.serving import explain as write_report
    from hf_coop.serving import name_of

    with errors_as_messages():
        template = zero_shot_template or hand_crafted_template(benchmark)
        images = load_test_images(
            test_dir, dataset_name, benchmark=benchmark, data_dir=data_dir, test_split=test_split, token=token
        )
        model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token, device=device)
        facts = {"prompt": name_of(adapter), "data set": benchmark or name_of(dataset_name or test_dir)}
        path = write_report(model, images, output_dir, template, facts)
    say(f"{path}: open it in a browser")


@app.command(rich_help_panel=USE)
def info(adapter: Adapter, revision: Revision = None, token: Token = None) -> None:
    """Print what an adapter is, without loading CLIP."""
    from hf_coop.errors import short
    from hf_coop.hub import describe_adapter

    with errors_as_messages():
        for name, value in describe_adapter(adapter, revision=revision, token=token).items():
            typer.echo(f"{name:<16} {short(value, MAX_SHOWN)}")


@app.command(name="app", rich_help_panel=USE)
def web_app(
    adapters: Annotated[
        list[str], typer.Argument(metavar="REPO_OR_FOLDER…", help="Adapters for one CLIP, on the Hub or in folders.")
    ],
    examples_dir: Annotated[Path | None, typer.Option("--examples_dir", help="Folder of images to pick from.")] = None,
    space: Annotated[
        Path | None, typer.Option("--export_space", help="Write a Hugging Face Space into this folder instead.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: the first from 7860 that is free.")] = None,
    mcp: Annotated[bool, typer.Option("--mcp", help="Be a server of the Model Context Protocol too.")] = False,
    base_model: BaseModel = None,
    token: Token = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: cpu.")] = None,
) -> None:
    """Start a web app: learned prompts beside hand-written ones, and learning from one's own images."""
    with errors_as_messages():
        with quick_imports():
            from hf_coop.serving.app import launch_app
            from hf_coop.serving.space import export_space

        images: dict[str, Any] = {"examples_dir": examples_dir, "token": token}
        if space is not None:
            export_space(space, adapters, base_model, **images)
            say(f"a Space in {space}: hf upload user/name {space} . --repo-type space")
        else:
            launch_app(adapters, base_model, **images, device=device, host=host, port=port, mcp=mcp)


def _score(text: str) -> float | str:
    """A score as `HFCoOp.predict` takes it."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto", param_hint="--min_score") from None


def _prediction_line(output_format: OutputFormat, path: Path | str, result: Any, top_k: int) -> str:
    """What `hf-coop predict` writes of an image, given its predictions or what is wrong with it."""
    from hf_coop_onnx import NO_CLASS, csv_line, json_line, one_line

    if output_format == OutputFormat.JSON:
        return json_line(path, result)
    if output_format == OutputFormat.CSV:
        return csv_line(path, result, top_k)
    if isinstance(result, ValueError):
        return f"error: {one_line(str(result))}"
    scores = ", ".join(f"{one_line(row['label'])} {row['score']:.1%}" for row in result)
    return f"{one_line(str(path))}: {scores or NO_CLASS}"
