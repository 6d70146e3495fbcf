"""What `import hf_coop` costs beside the import of peft and transformers' CLIP, which it needs.

    python benchmarks/import_time.py

Each import is a new Python process; the two take turns, so that noise on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

IMPORTS = {
    "peft and CLIPModel": "import peft; from transformers import CLIPModel",
    "hf_coop": "import hf_coop",
}


def seconds(statement: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of a statement in a new process, without Python's own start."""
    code = f"import time; w, p = time.perf_counter(), time.process_time(); {statement}; "
    code += "print(time.perf_counter() - w, time.process_time() - p)"
    output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, processor = map(float, output.split())
    return wall, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="processes of each, after one to warm up")
    repeats = parser.parse_args().repeats
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for number in range(repeats + 1):
        for name, statement in IMPORTS.items():
            measured = seconds(statement)
            if number > 0:
                runs[name].append(measured)
    medians = {name: [statistics.median(values) for values in zip(*runs[name], strict=True)] for name in IMPORTS}
    for name, (wall, processor) in medians.items():
        print(f"{name:20} {wall:6.2f} s, of it {processor:5.2f} s of processor time")
    base, package = medians.values()
    print(f"{'ratio':20} {package[0] / base[0]:6.2f}    {package[1] / base[1]:13.2f}")


if __name__ == "__main__":
    main()
