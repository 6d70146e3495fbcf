"""A Hub that misbehaves: pushed whole or not at all, pulled right or an error, and the cache never poisoned."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSNAMES, PARITY
from loopback_hub import FAULTS, HubServer

from hf_coop import HFCoOp

STATUSES = (401, 403, 404, 409, 412, 500, 503)
PULLED = (
    *("adapter_config.json", "adapter_model.safetensors", "README.md", "config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"),
)
PUSHED = ("repos/create", "preupload", "lfs/objects/batch", "lfs/[0-9a-f]", "/commit/")
PULL_FAULTS = [
    *({"pattern": f"GET .*/resolve/.*{name}", "fault": fault} for name in PULLED for fault in FAULTS),
    *({"pattern": f"HEAD .*/resolve/.*{name}", "status": status} for name in PULLED[:2] for status in STATUSES),
]
PUSH_FAULTS = [
    *(
        {"pattern": f"(POST|PUT) .*{call}", "fault": fault}
        for call in PUSHED
        for fault in ("reset", "web page", "redirect")
    ),
    *({"pattern": f"(POST|PUT) .*{call}", "status": status} for call in PUSHED for status in STATUSES[:5]),
]
ALL_FAULTS = [*(("pull", fault) for fault in PULL_FAULTS), *(("push", fault) for fault in PUSH_FAULTS)]
SCRIPT = """
import json, sys, tempfile, time, urllib.request
import huggingface_hub.utils._http as http
http.time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))  # retries, but not their waits
from PIL import Image
from hf_coop import HFCoOp
from hf_coop.hub import push_folder

image, faults, endpoint, folder = Image.new("RGB", (40, 40), "teal"), *map(json.loads, sys.argv[1:])

def misbehave(*faults):
    request = urllib.request.Request(endpoint + "/faults", json.dumps(faults).encode(), method="POST")
    return json.loads(urllib.request.urlopen(request).read())

def attempt(call):
    start = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    return [result, time.monotonic() - start]

def pull(cache):
    return HFCoOp.from_pretrained("tester/flowers", cache_dir=cache).predict(image)

def push(name):
    push_folder(folder, name)
    return "pushed"

report = []
for number, (way, fault) in enumerate(faults):
    misbehave(fault)
    if way == "pull":
        with tempfile.TemporaryDirectory() as cache:
            first = attempt(lambda: pull(cache))
            misbehave()
            report.append([first, attempt(lambda: pull(cache))])
    else:
        name = f"tester/pushed-{number}"
        first = attempt(lambda: push(name))
        between = misbehave().get(name)
        report.append([first, between, attempt(lambda: push(name)), misbehave()[name]])
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prompt whose base model is on the Hub."""
    folder = tmp_path_factory.mktemp("adapter") / "flowers"
    model = HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4)
    model.prompt_config.base_model_name_or_path = "tester/tiny-clip"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add("tester/tiny-clip", PARITY)
        server.add("tester/flowers", folder)
        yield server


def check_faults(hub: HubServer, home: Path, folder: Path, faults: list[tuple[str, dict[str, Any]]]) -> None:
    done = hub.run(home, "-c", SCRIPT, *map(json.dumps, (faults, hub.endpoint, str(folder))))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    right = next(later[0] for (way, _), (*_, later) in zip(faults, rows, strict=True) if way == "pull")
    for (way, fault), row in zip(faults, rows, strict=True):
        first, seconds = row[0]
        error = isinstance(first, str) and first.startswith(("OSError: ", "ValueError: "))
        assert seconds < 10, (fault, row)
        if way == "pull":
            assert error or first == right, (fault, row)
            assert row[1][0] == right, (fault, row)
        else:
            whole = [2, ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"]
            assert error or first == "pushed", (fault, row)
            assert row[1] in (None, [1, ".gitattributes"], whole), (fault, row)
            assert row[2][0] == "pushed", (fault, row)
            assert row[3] == whole, (fault, row)


def test_some_faults(hub, folder, tmp_path):
    check_faults(hub, tmp_path, folder, ALL_FAULTS[::15])


@pytest.mark.slow
def test_every_fault(hub, folder, tmp_path):
    assert len(ALL_FAULTS) >= 40
    check_faults(hub, tmp_path, folder, ALL_FAULTS)


@pytest.mark.slow
def test_two_pushers_at_once(hub, folder, tmp_path):
    """The repository is then of one of them, whole."""
    HFCoOp.from_clip(PARITY, CLASSNAMES[:2], n_ctx=2).save_pretrained(tmp_path / "other")
    script = "import sys; from hf_coop.hub import push_folder; push_folder(*sys.argv[1:])"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(prompt), "tester/two"],
            env=hub.environment(tmp_path / f"home-{number}"),
            stderr=subprocess.PIPE,
        )
        for number, prompt in enumerate((folder, tmp_path / "other"))
    ]
    errors = [run.communicate(timeout=100)[1].decode() for run in runs]
    assert any(run.returncode == 0 for run in runs), errors
    there = {name: path.read_bytes() for name, path in hub.repos["tester/two"].files().items() if "adapter" in name}
    assert there in [
        {path.name: path.read_bytes() for path in prompt.glob("adapter*")} for prompt in (folder, tmp_path / "other")
    ]


def test_without_a_network_errors_come_at_once(folder, tmp_path, hub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import sys, time; from hf_coop import HFCoOp; from hf_coop.hub import push_folder\n"
        "for call in (lambda: HFCoOp.from_pretrained('tester/flowers'), "
        "lambda: HFCoOp.from_clip('tester/clip', ['a']), "
        f"lambda: push_folder({str(folder)!r}, 'tester/none')):\n"
        "    start = time.monotonic()\n"
        "    try:\n        call()\n"
        "    except OSError as error:\n        print(f'{time.monotonic() - start:.1f} {error}')\n"
    )
    done = hub.run(tmp_path, "-c", script, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    for line, name in zip(lines, ("tester/flowers", "tester/clip", "tester/none"), strict=True):
        assert name in line
        assert float(line.split()[0]) < 8, line
