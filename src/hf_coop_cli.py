"""The `hf-coop` command.

It lies beside the package, not in it, because importing the package imports PEFT and transformers: `--help` answers
at once, and each command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

_UsageError: Any = typer.BadParameter.__base__  # of click, which newer versions of typer bring with them


class OneLineErrors(TyperGroup):
    """A wrong option or value is told on one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**kwargs, "prog_name": "hf-coop", "standalone_mode": False}))
        except _UsageError as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # which has shown the help
                command = error.ctx.command_path if error.ctx else "hf-coop"
                message = " ".join(error.format_message().split())
                typer.echo(f"error: {message} (`{command} --help` lists what there is)", err=True)
            sys.exit(error.exit_code)


app = typer.Typer(
    cls=OneLineErrors,
    help="Few-shot prompt learning for CLIP: learn, share and use prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


LEARN, USE, SHARE = "Learn", "Use", "Share"  # the groups of commands in --help


class OutputFormat(StrEnum):
    """Of `hf-coop predict`."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


Adapter = Annotated[str, typer.Argument(metavar="REPO_OR_FOLDER", help="Adapter on the Hub or in a folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
Token = Annotated[str | None, typer.Option(help="Access token; default: that of `hf auth login`.")]
BaseModel = Annotated[
    str | None, typer.Option("--base_model_name_or_path", help="Another CLIP than the one the adapter records.")
]


MAX_SHOWN = 20_000  # characters of one fact about an adapter

data_app = typer.Typer(help="The papers' image sets: which are there, and getting more.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=LEARN)
DataDir = Annotated[
    Path | None, typer.Option("--data_dir", help="Folder of the sets; default: $HF_COOP_DATA, else one in the cache.")
]


cache_app = typer.Typer(help="The image features that are kept on this machine.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel=LEARN)


def _of_images(name: str, text: str) -> Any:
    """An option that says which images to take."""
    return typer.Option(f"--{name}", help=text, rich_help_panel="Images")


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """What a user can mend is told on one line, without a traceback; nothing where nobody reads on, as with `head`."""
    from hf_coop_onnx import one_line

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(128 + 13)  # as a shell tells of SIGPIPE
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"error: {one_line(str(error))}")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-coop {version('hf-coop')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Few-shot prompt learning for CLIP: learn, share and use prompts."""
    # PEFT reads a property that transformers has just renamed: nothing that a user of the command could mend.
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)


@app.command(rich_help_panel=LEARN)
def demo(
    shots: Annotated[int, typer.Option(help="Labelled images a class to learn from.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images and of the context.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for adapter, metrics.json and demo.png.")] = Path("demo-output"),
) -> None:
    """Learn a prompt on the embedded images and model, offline, and compare it with hand-written prompts."""
    from hf_coop.experiments import run_demo

    if shots < 1:
        raise typer.BadParameter(f"{shots} is less than 1", param_hint="--shots")
    with _errors_as_messages():
        run_demo(shots, seed, output)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    rich_help_panel=LEARN,
)
def train(context: typer.Context) -> None:
    """Learn a prompt from a folder of images or a Hub data set (`hf-coop train --help` lists the options)."""
    _run_example("train", context)


class SpacedLists(TyperCommand):
    """A command whose options take several values behind one name, as in `--shots 1 2 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = None  # the option whose values these are
        for argument in args:
            name, given, _ = argument.partition("=")
            if argument.startswith("--"):
                current = name if name in several else None
                spread += [] if current and not given else [argument]
            else:
                spread += [current, argument] if current else [argument]
        return super().parse_args(ctx, spread)


OWN = "Your own images instead of a benchmark"
RUNNING = "Running"
SHOWN = "What is shown"


@app.command(
    cls=SpacedLists, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, no_args_is_help=True
)
def experiment(
    context: typer.Context,
    protocol: Annotated[
        str,
        typer.Argument(help="few-shot, base-to-new, cross-dataset, domain-generalization or context (its length)."),
    ],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder of the results; it goes on, and may grow.")],
    benchmark: Annotated[
        list[str], typer.Option(help="Image sets to learn on: oxford_flowers dtd …; demo: the embedded images.")
    ] = [],  # noqa: B006 - typer never changes it
    data_dir: Annotated[str | None, typer.Option("--data_dir", help="Folder of the benchmarks.")] = None,
    targets: Annotated[
        list[str], typer.Option(help="Other sets to test on: benchmarks, folders, data sets. Default: the papers'.")
    ] = [],  # noqa: B006
    methods: Annotated[
        list[str],
        typer.Option(help="zero_shot ensemble_7 linear_probe … coop coop_csc coop_middle cocoop kgcoop prograd."),
    ] = [],  # noqa: B006
    shots: Annotated[list[int], typer.Option(help="Training images a class; default: the protocol's.")] = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="One run of each method and shots a seed.")] = [1, 2, 3],  # noqa: B006
    n_ctx: Annotated[list[int], typer.Option("--n_ctx", help="Context vectors; several with context.")] = [],  # noqa: B006
    ctx_init: Annotated[list[str], typer.Option("--ctx_init", help="Words to start from; several with context.")] = [],  # noqa: B006
    model_name_or_path: Annotated[
        str | None,
        typer.Option("--model_name_or_path", help="CLIP on the Hub or in a folder; demo: the embedded one."),
    ] = None,
    model_revision: Annotated[str | None, typer.Option("--model_revision", help="Its branch, tag or commit.")] = None,
    zero_shot_template: Annotated[
        str | None, typer.Option("--zero_shot_template", help="The hand-written prompt; default: the set's own.")
    ] = None,
    train_dir: Annotated[
        str | None, typer.Option("--train_dir", help="One sub-folder of images a class.", rich_help_panel=OWN)
    ] = None,
    test_dir: Annotated[
        str | None, typer.Option("--test_dir", help="The same, of test images.", rich_help_panel=OWN)
    ] = None,
    dataset_name: Annotated[
        str | None, typer.Option("--dataset_name", help="Data set on the Hub or here.", rich_help_panel=OWN)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Print the plan alone.", rich_help_panel=RUNNING)] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry_failed", help="Do failed runs again.", rich_help_panel=RUNNING)
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes of this machine.", rich_help_panel=RUNNING)] = 1,
    backend: Annotated[
        str, typer.Option(help="loky: this machine; dask: a cluster.", rich_help_panel=RUNNING)
    ] = "loky",
    scheduler: Annotated[
        str | None, typer.Option(help="Address of dask's scheduler, tcp://HOST:8786.", rich_help_panel=RUNNING)
    ] = None,
    save_prompts: Annotated[
        bool, typer.Option("--save_prompts", help="Keep the learned prompts.", rich_help_panel=SHOWN)
    ] = False,
    ci95: Annotated[
        bool, typer.Option("--ci95", help="95 % intervals instead of deviations.", rich_help_panel=SHOWN)
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="The papers' averages beside (ViT-B/16).", rich_help_panel=SHOWN)
    ] = False,
) -> None:
    """Run a protocol of the papers: methods by image sets, shots and seeds, with tables and curves.

    Interrupted, the same command goes on where it stopped. All other options are those of `hf-coop train`, for all
    runs: --recipe, --num_train_epochs, --image_views, --classnames_file, --test_split, ….
    """
    given = dict(context.params)
    own = {name: given.pop(name) for name in ("train_dir", "test_dir", "dataset_name")}
    dry_run = given.pop("dry_run")
    from hf_coop.experiments import Experiment, parse_options, run_experiment

    with _errors_as_messages():
        passed_on = parse_options(context.args)
        images = {name: value for name, value in own.items() if value is not None} | passed_on.pop("images")
        try:
            run_experiment(Experiment(**given, images=images, **passed_on), dry_run=dry_run)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            sys.exit(130)


@app.command(
    name="base-to-new",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    rich_help_panel=LEARN,
)
def base_to_new(context: typer.Context) -> None:
    """Learn on half of the classes, test on both halves: `hf-coop experiment base-to-new`."""
    app(["experiment", "base-to-new", *context.args], prog_name="hf-coop")


@app.command(cls=SpacedLists, rich_help_panel=LEARN)
def results(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `hf-coop experiment`.")],
    by: Annotated[
        str, typer.Option(help="Columns to compare by, with commas: method,shots,dataset.")
    ] = "method,shots",
    ci95: Annotated[bool, typer.Option("--ci95", help="95 % intervals instead of deviations.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="As a LaTeX table.")] = False,
) -> None:
    """Compare the results of experiments."""
    from hf_coop.experiments import compare_results

    with _errors_as_messages():
        table = compare_results(folders, by.split(","))
    typer.echo(table.latex(ci95) if latex else table.markdown(ci95))


@app.command(rich_help_panel=USE)
def evaluate(
    adapter: Adapter,
    test_dir: Annotated[str | None, _of_images("test_dir", "Folder with one sub-folder of images a class.")] = None,
    dataset_name: Annotated[
        str | None, _of_images("dataset_name", "Hub id, folder or .parquet; demo: embedded.")
    ] = None,
    benchmark: Annotated[str | None, _of_images("benchmark", "An image set of the papers: dtd, sun397, ….")] = None,
    data_dir: Annotated[
        str | None, _of_images("data_dir", "Folder of the benchmarks; default: $HF_COOP_DATA.")
    ] = None,
    dataset_config_name: Annotated[
        str | None, _of_images("dataset_config_name", "Configuration of the data set.")
    ] = None,
    test_split: Annotated[
        str | None, _of_images("test_split", "Of the data set's splits; default: test, else validation.")
    ] = None,
    image_column_name: Annotated[
        str | None, _of_images("image_column_name", "Of the data set; default: image.")
    ] = None,
    label_column_name: Annotated[
        str | None, _of_images("label_column_name", "Of the data set; default: label.")
    ] = None,
    classnames_file: Annotated[
        str | None, _of_images("classnames_file", "The data's class names, one a line, in label order.")
    ] = None,
    skip_broken_images: Annotated[
        bool, _of_images("skip_broken_images", "Leave out images that cannot be read.")
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
    adapter's, of which they may be some, in any order.
    """
    from hf_coop import HFCoOp
    from hf_coop.data import classnames_of, hand_crafted_template, load_test_images, match_classes
    from hf_coop.files import whole_file
    from hf_coop.hub import fetch_adapter, read_adapter_config
    from hf_coop.serving import evaluate_adapter, metrics_table

    with _errors_as_messages(), nullcontext() if output is None else whole_file(output) as file:
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
    with _errors_as_messages():
        paths = find_images(images)
        if sort_into is not None:
            check_sortable(paths)
        model: Any
        if is_onnx:
            model = OnnxClassifier(adapter)
        else:
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
    """Show what a prompt learned: figures, images and words beside the hand-written prompt's, on one page."""
    from hf_coop import HFCoOp
    from hf_coop.data import hand_crafted_template, load_benchmark, load_image_splits
    from hf_coop.serving import explain as write_report
    from hf_coop.serving import name_of

    with _errors_as_messages():
        template = zero_shot_template or hand_crafted_template(benchmark)
        if benchmark is not None and test_dir is None and dataset_name is None:
            splits = load_benchmark(benchmark, data_dir).splits  # some have test images alone
        else:
            splits = load_image_splits(
                test_dir,
                None,
                dataset_name,
                benchmark=benchmark,
                data_dir=data_dir,
                test_split=test_split,
                token=token,
            )
        if test_dir is None and "test" not in splits:
            raise ValueError(f"{dataset_name!r} has no test images: name their split by --test_split")
        images = splits["train" if test_dir is not None else "test"]
        model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token, device=device)
        facts = {"prompt": name_of(adapter), "data set": benchmark or name_of(dataset_name or test_dir)}
        path = write_report(model, images, output_dir, template, facts)
    typer.echo(f"{path}: open it in a browser")


@app.command(rich_help_panel=USE)
def info(adapter: Adapter, revision: Revision = None, token: Token = None) -> None:
    """Print what an adapter is, without loading CLIP."""
    from hf_coop.errors import short
    from hf_coop.hub import describe_adapter

    with _errors_as_messages():
        for name, value in describe_adapter(adapter, revision=revision, token=token).items():
            typer.echo(f"{name:<16} {short(value, MAX_SHOWN)}")


@app.command(rich_help_panel=SHARE)
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved prompt, or of the prompts of an experiment.")],
    repo: Annotated[str, typer.Argument(help="user/name; made if needed.")],
    private: Annotated[bool | None, typer.Option(help="Whether a repository that is made is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if needed.")] = None,
    create_pr: Annotated[bool, typer.Option("--create_pr", help="Open a pull request instead.")] = False,
    commit_message: Annotated[
        str, typer.Option("--commit_message", help="Of the one commit.")
    ] = "Upload prompt with hf-coop",
    token: Token = None,
) -> None:
    """Check a saved prompt, or all those of an experiment, and push to one repository on the Hub, in one commit."""
    from hf_coop.hub import push_folder

    with _errors_as_messages():
        if not folder.is_dir():
            raise OSError(f"no such folder: {str(folder)!r}")
        commit = push_folder(
            folder,
            repo,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
    typer.echo(commit.pr_url or commit.commit_url)


@app.command(rich_help_panel=SHARE)
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="prompt_learner/model.pth.tar-N of the published code.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the adapter to.")],
    model: Annotated[str, typer.Option("--model_name_or_path", help="The CLIP it was trained with.")],
    classnames: Annotated[Path, typer.Option("--classnames_file", help="Class names, one a line, in label order.")],
    method: Annotated[
        str | None, typer.Option(help="The method it is of; default: CoOp or CoCoOp, by what it holds.")
    ] = None,
    class_token_position: Annotated[
        str, typer.Option("--class_token_position", help="Where the class name stood: end, middle or front.")
    ] = "end",
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Turn a checkpoint of the published CoOp or CoCoOp code into an adapter; nothing in it is executed."""
    from hf_coop import HFCoOp
    from hf_coop.data import read_classnames

    with _errors_as_messages():
        names = read_classnames(classnames)
        converted = HFCoOp.from_published(
            checkpoint,
            model,
            names,
            method=method,
            class_token_position=class_token_position,
            revision=revision,
            token=token,
        )
        converted.save_pretrained(output)
    typer.echo(f"{len(names)} classes, {converted.prompt_config.n_ctx} context vectors: saved to {output}")


@app.command(rich_help_panel=SHARE)
def export(
    adapter: Adapter,
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="model.onnx; or model.pt2, a program of torch.export.")
    ],
    int8: Annotated[bool, typer.Option("--int8", help="Hold the image tower's matrices in 8 bits (ONNX).")] = False,
    push: Annotated[bool, typer.Option("--push", help="Put the file beside the adapter on the Hub.")] = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write image tower and learned prompt as one file, checked against PyTorch before it is kept."""
    from hf_coop import HFCoOp
    from hf_coop.hub import push_file
    from hf_coop.serving import check_export, export_model

    with _errors_as_messages():
        check_export(output, int8)
        if push and Path(adapter).is_dir():
            raise ValueError(f"{adapter!r} is a folder: push it (hf-coop push), then export its repository")
        model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token)
        typer.echo(export_model(model, output, int8))
        if push:
            commit = push_file(output, adapter, token=token, revision=revision)
            typer.echo(commit.commit_url)


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
    with _errors_as_messages():
        from hf_coop.serving.app import launch_app
        from hf_coop.serving.space import export_space

        images: dict[str, Any] = {"examples_dir": examples_dir, "token": token}
        if space is not None:
            export_space(space, adapters, base_model, **images)
            typer.echo(f"a Space in {space}: hf upload user/name {space} . --repo-type space")
        else:
            launch_app(adapters, base_model, **images, device=device, host=host, port=port, mcp=mcp)


@data_app.command("list")
def data_list(data_dir: DataDir = None) -> None:
    """The image sets of the papers, and which of them are in the data folder."""
    from hf_coop.data import benchmark_states

    for name, state in benchmark_states(data_dir).items():
        typer.echo(f"{name:<16} {state}")


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="As `hf-coop data list` has it.")],
    data_dir: DataDir = None,
    token: Token = None,
) -> None:
    """Fetch an image set from the Hub, unpack and check it; interrupted, it goes on where it stopped."""
    from hf_coop.data import download_benchmark

    with _errors_as_messages():
        classnames, _, splits = download_benchmark(name, data_dir, token=token)
    counts = ", ".join(f"{len(split)} {split_name}" for split_name, split in splits.items())
    typer.echo(f"{name}: {len(classnames)} classes; images: {counts}")


@cache_app.command("show")
def cache_show() -> None:
    """Where image features are kept, and how much room they take."""
    from hf_coop.data import cached_features, feature_cache

    files = cached_features()
    size = sum(path.stat().st_size for path in files) / 2**20
    typer.echo(f"{feature_cache()}: features of {len(files)} sets of images, {size:,.1f} MiB")


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete them; they are computed again when they are wanted."""
    from hf_coop.data import clear_feature_cache, feature_cache

    with _errors_as_messages():
        typer.echo(f"{feature_cache()}: {clear_feature_cache() / 2**20:,.1f} MiB deleted")


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


def _run_example(name: str, context: typer.Context) -> None:
    """Run a script of examples/, which lies in the installed package or in the repository it is developed in."""
    here = Path(__file__).parent
    installed = here / "hf_coop" / "examples"
    sys.path.insert(0, str(installed if installed.exists() else here.parent / "examples"))
    sys.argv = [context.command_path, *context.args]
    importlib.import_module(name).main()


if __name__ == "__main__":
    app()
