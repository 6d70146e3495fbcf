"""Learning prompts: `hf-coop demo`, `train`, `experiment`, `results`, `base-to-new`, `data` and `cache`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from .command import LEARN, DataDir, SpacedLists, Token, TrainCommand, app, errors_as_messages, say

OWN, RUNNING, SHOWN = "Your own images instead of a benchmark", "Running", "What is shown"  # groups of options

data_app = typer.Typer(help="The papers' image sets: which are there, and getting more.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=LEARN)
cache_app = typer.Typer(help="The image features that are kept on this machine.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel=LEARN)


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
    with errors_as_messages():
        run_demo(shots, seed, output)


@app.command(
    cls=TrainCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    rich_help_panel=LEARN,
)
def train(context: typer.Context) -> None:
    """Learn a prompt from a folder of images or a Hub data set (`hf-coop train --help` lists the options)."""
    _run_example("train", context)


@app.command(
    cls=SpacedLists,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    no_args_is_help=True,
    rich_help_panel=LEARN,
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

    with errors_as_messages():
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

    with errors_as_messages():
        table = compare_results(folders, by.split(","))
    typer.echo(table.latex(ci95) if latex else table.markdown(ci95))


@data_app.command("list")
def data_list(data_dir: DataDir = None) -> None:
    """The image sets of the papers, and which of them are in the data folder."""
    from hf_coop.data import benchmark_states
    from hf_coop.escaping import one_line

    for name, state in benchmark_states(data_dir).items():
        typer.echo(f"{name:<16} {one_line(state)}")


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="As `hf-coop data list` has it.")],
    data_dir: DataDir = None,
    token: Token = None,
) -> None:
    """Fetch an image set from the Hub, unpack and check it; interrupted, it goes on where it stopped."""
    from hf_coop.data import download_benchmark

    with errors_as_messages():
        classnames, _, splits = download_benchmark(name, data_dir, token=token)
    counts = ", ".join(f"{len(split)} {split_name}" for split_name, split in splits.items())
    say(f"{name}: {len(classnames)} classes; images: {counts}")


@cache_app.command("show")
def cache_show() -> None:
    """Where image features are kept, and how much room they take."""
    from hf_coop.data import cached_features, feature_cache

    files = cached_features()
    size = sum(path.stat().st_size for path in files) / 2**20
    say(f"{feature_cache()}: features of {len(files)} sets of images, {size:,.1f} MiB")


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete them; they are computed again when they are wanted."""
    from hf_coop.data import clear_feature_cache, feature_cache

    with errors_as_messages():
        say(f"{feature_cache()}: {clear_feature_cache() / 2**20:,.1f} MiB deleted")


def _run_example(name: str, context: typer.Context) -> None:
    """Run a script of examples/, which lies in the installed package or in the repository it is developed in."""
    source = Path(__file__).parents[1]
    installed = source / "hf_coop" / "examples"
    sys.path.insert(0, str(installed if installed.exists() else source.parent / "examples"))
    sys.argv = [context.command_path, *context.args]
    importlib.import_module(name).main()
