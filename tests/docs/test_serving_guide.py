"""docs/serving.md: the service as it stands there, with concurrent clients on loopback."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib import import_module
from io import BytesIO
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from test_guides import python_blocks

from hf_coop import HFCoOp
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The guide's module, with `port`."""
    folder = tmp_path_factory.mktemp("service")
    HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, ctx_init="a photo of a").save_pretrained(folder / "adapter")
    code = python_blocks("serving.md")[-1]
    assert len([line for line in code.splitlines() if line.strip()]) < 60
    (folder / "service.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("ADAPTER", str(folder / "adapter"))
        module: Any = import_module("service")
        server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        module.port = server.servers[0].sockets[0].getsockname()[1]
        yield module
        server.should_exit = True
        thread.join(10)
        del sys.modules["service"]


def ask(service: Any, body: bytes | None = None) -> tuple[int, Any]:
    """Status and answer of `POST /predict`, or of `GET /health` without a body."""
    connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        connection.request(*(("GET", "/health") if body is None else ("POST", "/predict", body)))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_each_of_many_clients_gets_its_own_answer(service):
    digits = load_digits_dataset()["test"]["image"][:48]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda image: ask(service, png(image)), digits))
    expected = service.app.state.model.predict(digits)
    for (status, found), rows in zip(answers, expected, strict=True):
        assert status == 200
        assert [row["label"] for row in found] == [row["label"] for row in rows]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in rows], abs=1e-5)


def test_what_waits_goes_together_and_what_is_too_much_is_refused(service, monkeypatch):
    """While the model is held, one image is in it and as many wait as may; afterwards these are one batch."""
    model, hold, sizes = service.app.state.model, threading.Event(), []
    predict = model.predict

    def held(images: list[Image.Image]) -> Any:
        sizes.append(len(images))
        hold.wait(20)
        return predict(images)

    monkeypatch.setattr(model, "predict", held)
    monkeypatch.setattr(service, "MAX_WAITING", 3)
    body = png(Image.new("RGB", (20, 20)))
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(ask, service, body)]
        while not sizes:
            time.sleep(0.01)
        answers += [clients.submit(ask, service, body) for _ in range(3)]
        while ask(service)[1]["waiting"] < 3:
            time.sleep(0.01)
        status, answer = ask(service, body)
        hold.set()
        assert {answer.result()[0] for answer in answers} == {200}
    assert (status, answer["detail"]) == (503, "too many images are waiting")
    assert sizes == [1, 3]


def test_bad_requests(service, monkeypatch):
    for body in (b"", b"no image", b"\x89PNG broken"):
        assert ask(service, body) == (422, {"detail": "this is not an image that can be read"})
    bomb = png(Image.new("1", (8000, 8000)))
    assert len(bomb) < 20_000
    assert ask(service, bomb) == (413, {"detail": "the image has more than 30000000 pixels"})
    monkeypatch.setattr(service, "MAX_BYTES", 100)
    assert ask(service, b"x" * 1000) == (413, {"detail": "the image has more than 100 bytes"})
    assert ask(service) == (200, {"classnames": list(CLASSNAMES), "waiting": 0})


def test_an_error_in_the_model_is_told_and_the_service_goes_on(service, monkeypatch):
    def fail(images: list[Image.Image]) -> None:
        raise RuntimeError("out of memory")

    body = png(Image.new("RGB", (20, 20)))
    with monkeypatch.context() as patch:
        patch.setattr(service.app.state.model, "predict", fail)
        connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
        connection.request("POST", "/predict", body)
        assert connection.getresponse().status == 500
        connection.close()
    assert ask(service, body)[0] == 200
