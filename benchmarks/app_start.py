"""How soon `hf-coop app` answers, beside the import of the libraries that it stands on.

    python benchmarks/app_start.py

- "libraries": importing torch, CLIP of transformers, PEFT and Gradio in a new process;
- "to the page": from the start of `hf-coop app`, a new process too, to the line that says where the app runs;
- "first answer": from that line to the scores of the first image, uploaded and classified over HTTP.

The prompt is the demo's, of the embedded CLIP. The two processes take turns, so that noise on the machine hits both
alike; medians.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradio_client import Client, handle_file

LIBRARIES = "import torch, peft, gradio; from transformers import CLIPModel"
COMMAND = [sys.executable, "-u", "-m", "hf_coop_cli"]


def import_libraries() -> float:
    """Seconds, those of Python's own start with them."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def start_app(adapter: Path, image: Path) -> tuple[float, float]:
    """Seconds to the page, and from there to the first answer."""
    start = time.perf_counter()
    command = [*COMMAND, "app", str(adapter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = re.search(r"http\S+", process.stdout.readline() if process.stdout else "")
            if url is None:
                raise SystemExit(f"the app did not start: {' '.join(command)}")
            page = time.perf_counter()
            Client(url[0], verbose=False).predict([handle_file(image)], str(adapter), "", "", api_name="/classify")
            return page - start, time.perf_counter() - page
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each, after one to warm up")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder, "demo")
        subprocess.run([*COMMAND, "demo", "--output", str(adapter)], check=True, stdout=subprocess.DEVNULL)
        runs = [(import_libraries(), *start_app(adapter, adapter / "demo.png")) for _ in range(repeats + 1)][1:]
    libraries, page, answer = (statistics.median(values) for values in zip(*runs, strict=True))
    print(f"libraries     {libraries:5.2f} s")
    print(f"to the page   {page:5.2f} s, {page / libraries:.2f} of it")
    print(f"first answer  {answer:5.2f} s")


if __name__ == "__main__":
    main()
