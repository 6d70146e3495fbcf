"""Seconds of a text pass, forward and backward, in one process and in several that share the classes (gloo).

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 4 --n_classes 1000 --bf16

ViT-B/16's text sizes, all images in one batch as in the recipe "fast", one thread a process. The one process and the
several take turns, pass by pass, so that noise on the machine hits both; while one works the other waits. Medians
count. Wall time means something only with a free core for each process; elsewhere `--processor_time` shows how the
work is shared, without the time of waiting for each other.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from train_step import make_model

from hf_coop import CoOpTrainingArguments
from hf_coop.training.gradients import BatchGradients
from hf_coop.training.processes import make_accelerator

SHOTS = 16


def work(rank: int, world_size: int, port: int, pipe: Connection, args: argparse.Namespace) -> None:
    """Do a pass whenever told to; tell how many seconds it took."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    options = CoOpTrainingArguments(use_cpu=True, bf16=args.bf16)
    accelerator, model = make_accelerator(options), make_model(args.n_classes, "cpu").train()
    if accelerator.num_processes != world_size:
        raise RuntimeError(f"{accelerator.num_processes} processes found each other, not {world_size}")
    gradients = BatchGradients(model, accelerator, options)
    labels = torch.arange(args.n_classes).repeat(SHOTS)
    images = {"image_embeds": torch.randn(len(labels), 512), "labels": labels}
    clock = time.process_time if args.processor_time else time.perf_counter
    pipe.send(0.0)  # ready
    while pipe.recv():
        start = clock()
        gradients.add(images, len(labels))
        gradients.merge()
        pipe.send(clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--n_classes", type=int, default=102)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=7, help="passes of each, after one to warm up")
    parser.add_argument("--processor_time", action="store_true", help="where other programs use the cores too")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = get_context("spawn")
    teams: dict[int, list[Connection]] = {}
    for size in (1, args.processes):
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=work, args=(rank, size, port, theirs, args), daemon=True).start()
            theirs.close()
            teams.setdefault(size, []).append(ours)
    for pipe in (pipe for team in teams.values() for pipe in team):
        pipe.recv()
    seconds: dict[int, list[float]] = {size: [] for size in teams}
    for _ in range(1 + args.repeats):
        for size, team in teams.items():
            for pipe in team:
                pipe.send(True)
            seconds[size].append(max(pipe.recv() for pipe in team))
    for pipe in (pipe for team in teams.values() for pipe in team):
        pipe.send(False)
    for size, values in seconds.items():
        print(f"{size} process{'es' * (size > 1)}: {statistics.median(values[1:]):.3f} s a pass")
    ratios = [one / several for one, several in zip(*(values[1:] for values in seconds.values()), strict=True)]
    print(f"{statistics.median(ratios):.2f} times faster with {args.processes} processes")


if __name__ == "__main__":
    main()
