"""The web app on loopback, asked by Gradio's client: `hf-coop app`."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loopback_hub import TOKEN, HubServer
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.hub.adapter_files import ADAPTER_FILES
from hf_coop_cli import app as command

pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from hf_coop.serving import app  # noqa: E402 - needs what was looked for

DIGITS, SPECIFIC = "digits", "specific"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` and `specific`, two adapters; images `0.png` to `5.png` in `examples`; `digits.zip` to learn from."""
    folder = tmp_path_factory.mktemp("app")
    torch.manual_seed(0)
    HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, n_ctx=4).save_pretrained(folder / DIGITS)
    names = [*CLASSNAMES[:8], "two\nlines"]
    HFCoOp.from_clip(DEMO_CLIP, names, n_ctx=4, class_specific_context=True).save_pretrained(folder / SPECIFIC)
    digits = load_digits_dataset()
    (folder / "examples").mkdir()
    for number in range(6):
        digits["test"][number]["image"].save(folder / "examples" / f"{number}.png")
    with zipfile.ZipFile(folder / "digits.zip", "w") as archive:
        for number, row in enumerate(digits["train"].select(range(300))):
            content = io.BytesIO()
            row["image"].save(content, "PNG")
            archive.writestr(f"digits/{CLASSNAMES[row['label']]}/{number}.png", content.getvalue())
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The app, on a port of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        blocks = app.launch_app([DIGITS, SPECIFIC], examples_dir="examples", mcp=True, block=False)
        yield blocks.local_url
        blocks.close()


@pytest.fixture
def client(url: str) -> Any:
    return gradio_client.Client(url, verbose=False)


def classify(client: Any, *files: Path, prompt: str = DIGITS, names: str = "", template: str = "") -> Any:
    """The page and its JSON."""
    images = [gradio_client.handle_file(file) for file in files]
    return client.predict(images, prompt, names, template, api_name="/classify")


def browse(url: str, session: str, function: str, *data: Any) -> dict[str, Any]:
    """Call a function of the app as its page does, in a session of its own; gives the last message."""
    httpx = pytest.importorskip("httpx")
    calls = httpx.get(f"{url}config").json()["dependencies"]
    (number,) = [call["id"] for call in calls if call["api_name"] == function]
    call = {"data": [*data, None], "fn_index": number, "session_hash": session}  # None: the state, which is kept there
    assert httpx.post(f"{url}gradio_api/queue/join", json=call).status_code == 200
    with httpx.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: ") and (message := json.loads(line[6:]))["msg"] == "process_completed":
                return message
    raise AssertionError("no answer")


def test_scores_of_both_prompts(client, folder):
    page, rows = classify(client, folder / "examples" / "0.png", folder / "examples" / "1.png")
    expected = HFCoOp.from_pretrained(folder / DIGITS).predict([folder / "examples" / f"{n}.png" for n in (0, 1)])
    for row, predictions in zip(rows, expected, strict=True):
        assert [found["label"] for found in row["learned"]] == [found["label"] for found in predictions]
        assert row["learned"][0]["score"] == pytest.approx(predictions[0]["score"], abs=1e-4)
        assert len(row["hand_written"]) == 5
    assert page.count('src="data:image/jpeg;base64,') == 2


def test_class_names_are_text_and_a_specific_prompt_says_why_not(client, folder):
    names = "one\n<img src=x onerror=alert(1)>\n"
    page, rows = classify(client, folder / "examples" / "0.png", names=names)
    assert {row["label"] for row in rows[0]["learned"]} == set(names.split("\n")) - {""}
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    with pytest.raises(gradio_client.exceptions.AppError, match="each context was learned for its own class"):
        classify(client, folder / "examples" / "0.png", prompt=SPECIFIC, names=names)
    with pytest.raises(gradio_client.exceptions.AppError, match="must have"):
        classify(client, folder / "examples" / "0.png", template="no braces")


def test_names_stand_one_a_line(client, folder):
    """One with a line break was taken for two, and a class-specific prompt knew neither."""
    names = "\n".join([*CLASSNAMES[:8], "two lines"])
    _, rows = classify(client, folder / "examples" / "0.png", prompt=SPECIFIC, names=names)
    assert rows == classify(client, folder / "examples" / "0.png", prompt=SPECIFIC)[1]


def test_files_that_are_no_images(client, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    page, rows = classify(client, tmp_path / "broken.png", folder / "examples" / "0.png", tmp_path / "bomb.png")
    assert "cannot read" in rows[0]["error"] or "not an image" in rows[0]["error"]
    assert "9000 x 9000 pixels" in rows[2]["error"]
    assert len(rows[1]["learned"]) == 5
    assert str(folder) not in page
    page, rows = classify(client)
    assert (page, rows) == ("<p>Drop images, or pick an example.</p>", [])
    with pytest.raises(gradio_client.exceptions.AppError, match="65 images: at most 64 go at a time"):
        classify(client, *[folder / "examples" / "0.png"] * 65)


def test_no_path_of_the_client_is_opened(url, folder):
    """Neither a file of this machine nor one of another user's folder, by the plain protocol."""
    httpx = pytest.importorskip("httpx")
    for path in ("/etc/passwd", str(folder / "digits.zip"), str(folder / "examples" / ".." / "digits.zip")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        called = httpx.post(f"{url}gradio_api/call/classify", json={"data": [[file], DIGITS, "", ""]})
        answer = httpx.get(f"{url}gradio_api/call/classify/{called.json()['event_id']}", timeout=30).text
        assert "event: error" in answer
        assert "learned" not in answer
        assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)


def test_a_prompt_is_learned_and_stays_with_who_learned_it(url, client, folder):
    other = gradio_client.Client(url, verbose=False)
    job = client.submit(gradio_client.handle_file(folder / "digits.zip"), 4, api_name="/learn")
    status, _, path = job.result(timeout=120)
    told = [output[0] for output in job.outputs()]
    assert any(text.startswith("Iteration 3: loss ") for text in told)
    assert "Accuracy" in status
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "downloaded")
    downloaded = HFCoOp.from_pretrained(folder / "downloaded", DEMO_CLIP)
    assert downloaded.card_details.shots == 4
    assert downloaded.classnames == sorted(CLASSNAMES)
    _, rows = classify(client, folder / "examples" / "0.png", prompt=app.YOURS)
    predicted = downloaded.predict(folder / "examples" / "0.png")
    assert rows[0]["learned"][0]["score"] == pytest.approx(predicted[0]["score"], abs=1e-4)
    with pytest.raises(Exception, match=r"no such prompt|not in the list of choices"):
        classify(other, folder / "examples" / "0.png", prompt=app.YOURS)


def test_archives_that_cannot_be_learned_from(client, folder, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("<b>a/1.png", b"no image")
    for name, message in (("no.zip", "not a .zip file that can be read"), ("bad.zip", "&lt;b&gt;a/1.png: ")):
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            client.predict(gradio_client.handle_file(tmp_path / name), 4, api_name="/learn")
    with pytest.raises(gradio_client.exceptions.AppError, match=r"Upload a \.zip of a folder"):
        client.predict(None, 4, api_name="/learn")


@pytest.mark.slow
def test_ten_thousand_files(url, client, folder, tmp_path):
    """Posted for real: as images, and in an archive; the app then still answers."""
    httpx = pytest.importorskip("httpx")
    content, files = (folder / "examples" / "0.png").read_bytes(), []
    for start in range(0, 10_000, 500):
        parts = [("files", (f"{number}.png", content)) for number in range(start, start + 500)]
        files += httpx.post(f"{url}gradio_api/upload", files=parts, timeout=60).raise_for_status().json()
    images = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in files]
    refused = browse(url, "many", "classify", images, DIGITS, "", "")
    assert refused["output"]["error"] == "10000 images: at most 64 go at a time."
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(10_000):
            archive.writestr(f"digits/{number % 10}/{number}.png", content)
    with pytest.raises(gradio_client.exceptions.AppError, match=r"the \.zip holds 10000 files; 5000 are allowed"):
        client.predict(gradio_client.handle_file(tmp_path / "many.zip"), 4, api_name="/learn")
    assert len(classify(client, folder / "examples" / "0.png")[1]) == 1


def test_two_users_at_once_get_their_own_results(url, folder):
    clients = [gradio_client.Client(url, verbose=False) for _ in range(2)]
    names = ["one\ntwo", "three\nfour\nfive"]

    def ask(number: int) -> set[str]:
        _, rows = classify(clients[number], folder / "examples" / f"{number}.png", names=names[number])
        return {row["label"] for row in rows[0]["learned"]}

    with ThreadPoolExecutor(2) as users:
        found = list(users.map(ask, [0, 1] * 5))
    assert found == [set(names[0].split()), set(names[1].split())] * 5


@pytest.mark.slow
def test_learning_ends_when_the_browser_leaves(url, folder, monkeypatch):
    """A client that is killed after it has begun to learn."""

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "hf-coop-learning"]

    epochs = []
    progress = app._progress
    monkeypatch.setattr(app, "_progress", lambda row: (epochs.append(row["epoch"]), time.sleep(0.2), progress(row))[2])
    code = f"""
import time
from gradio_client import Client, handle_file
Client({url!r}, verbose=False).submit(handle_file({str(folder / "digits.zip")!r}), 16, api_name="/learn")
time.sleep(100)
"""
    browser = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not epochs:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    browser.kill()
    browser.wait()
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    assert len(epochs) < 60, "all was told to nobody"


def test_it_is_a_server_of_the_model_context_protocol(url):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("mcp")
    headers = {"Accept": "application/json, text/event-stream"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    answer = httpx.post(f"{url}gradio_api/mcp/", json=request, headers=headers, follow_redirects=True).text
    tools = json.loads(answer[answer.index("{") :])["result"]["tools"]
    described = {tool["name"].rpartition("_")[2]: tool["description"] for tool in tools}
    assert "Classify images by a learned prompt and by a hand-written one." in described["classify"]
    assert set(described) == {"classify", "learn"}


@pytest.mark.slow
def test_a_learned_prompt_is_pushed_with_the_users_own_token(folder, tmp_path):
    """By a process whose Hub is on loopback, and which has a token itself that would do."""
    httpx = pytest.importorskip("httpx")
    log = tmp_path / "log"
    with HubServer(tmp_path / "hub") as hub, log.open("wb") as file:
        env = hub.environment(tmp_path / "home") | {"PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "hf_coop_cli", "app", str(folder / DIGITS)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"the app runs at (\S+)", log.read_text())):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            url = found[1]
            with (folder / "digits.zip").open("rb") as archive:
                (path,) = httpx.post(f"{url}gradio_api/upload", files={"files": ("digits.zip", archive)}).json()
            file_data = {"path": path, "meta": {"_type": "gradio.FileData"}}
            learned = browse(url, "mine", "learn", file_data, 4)
            assert learned["success"], learned
            for session, token, message in (
                ("mine", " ", "Give a token of yours"),
                ("mine", "hf_wrong", "401 Unauthorized"),
                ("another", TOKEN, "Learn a prompt first"),
            ):
                refused = browse(url, session, "push", "tester/mine", token)
                assert message in refused["output"]["error"]
                assert "hf_wrong" not in json.dumps(refused)
                assert TOKEN not in json.dumps(refused)
            assert hub.repos == {}
            pushed = browse(url, "mine", "push", "tester/mine", f" {TOKEN} ")
            page, token = pushed["output"]["data"]
            assert page == f"Pushed: {hub.endpoint}/tester/mine/commit/{hub.repos['tester/mine'].branches['main']}"
            assert token == ""
            assert {*ADAPTER_FILES} < {*hub.repos["tester/mine"].files()}
            assert TOKEN not in httpx.get(f"{url}config").text
        finally:
            process.kill()
            process.wait()
    assert TOKEN not in log.read_text()
    kept = [path for path in [*folder.rglob("*"), *(tmp_path / "home").rglob("*")] if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]


def test_a_port_that_is_taken(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(command, ["app", str(folder / DIGITS), "--port", str(port)])
    assert done.exit_code == 1
    assert f"error: cannot listen on port {port}: it is taken" in done.output


def test_an_adapter_that_is_not_there(folder):
    for options in ([], ["--export_space", str(folder / "space")]):
        done = CliRunner().invoke(command, ["app", str(folder / DIGITS), str(folder / "nowhere"), *options])
        assert done.exit_code == 1
        assert f"error: '{folder / 'nowhere'}' is neither a folder on this machine nor" in done.output
    assert not (folder / "space").exists()


@pytest.mark.slow
def test_an_exported_space_starts_with_the_same_code(folder, tmp_path):
    space = tmp_path / "space"
    options = ["--examples_dir", folder / "examples", "--export_space", space]
    done = CliRunner().invoke(command, ["app", *map(str, [folder / DIGITS, folder / SPECIFIC, *options])])
    assert done.exit_code == 0, done.output
    assert {path.name for path in space.iterdir()} == {
        *("app.py", "requirements.txt", "README.md", "adapters", "clip", "examples")
    }
    metadata = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["app_file"] == "app.py"
    assert metadata["sdk_version"].count(".") == 2
    assert "models" not in metadata
    assert (space / "requirements.txt").read_text().startswith("hf-coop[app]==")
    process = subprocess.Popen([sys.executable, space / "app.py"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if "the app runs at" in line)
        _, rows = classify(
            gradio_client.Client(url, verbose=False), folder / "examples" / "0.png", prompt=f"adapters/{DIGITS}"
        )
        assert len(rows[0]["learned"]) == 5
    finally:
        process.kill()
        process.wait()
