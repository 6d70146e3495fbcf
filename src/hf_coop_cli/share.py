"""Sharing prompts: `hf-coop push`, `convert` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command import SHARE, Adapter, BaseModel, Revision, Token, app, errors_as_messages, say


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

    with errors_as_messages():
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
    say(commit.pr_url or commit.commit_url)


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

    with errors_as_messages():
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
    say(f"{len(names)} classes, {converted.prompt_config.n_ctx} context vectors: saved to {output}")


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

    with errors_as_messages():
        check_export(output, int8)
        if push and Path(adapter).is_dir():
            raise ValueError(f"{adapter!r} is a folder: push it (hf-coop push), then export its repository")
        model = HFCoOp.from_pretrained(adapter, base_model, revision=revision, token=token)
        say(str(export_model(model, output, int8)))
        if push:
            commit = push_file(output, adapter, token=token, revision=revision)
            say(commit.commit_url)
