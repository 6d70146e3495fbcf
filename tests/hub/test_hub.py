"""Push and pull against a real HTTP Hub on loopback, each side in a fresh process with a fresh cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PARITY
from loopback_hub import HubServer

CLASSNAMES = ["cat", "Tiger_Cat", "bird of paradise", "pink primrose"]
THREE_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
START = f"""
import json, sys, tempfile, torch
from pathlib import Path
import numpy as np
from PIL import Image
from huggingface_hub import HfApi
from hf_coop import HFCoOp
from hf_coop.hub.model_card import CardDetails

CLASSNAMES = {CLASSNAMES!r}
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8))
report = {{}}

def attempt(name, call):
    try:
        report[name] = call()
    except Exception as error:
        report[name] = f"{{type(error).__name__}}: {{error}}"
"""
PUSH = """
folder = Path(sys.argv[1])
model = HFCoOp.from_clip("tester/tiny-clip", CLASSNAMES, n_ctx=4, revision="main")
model.card_details = CardDetails(dataset_name="Flowers", split="test", shots=16, learned={"accuracy": 0.75})
report["predictions"] = model.predict(image)
report["revision"] = model.prompt_config.revision
model.save_pretrained(folder)
before = {path.name: path.read_bytes() for path in folder.iterdir()}

first = model.push_to_hub("tester/flowers", private=True, commit_message="My prompt")
second = model.push_to_hub("tester/flowers")
report["first"], report["second"] = first.oid, second.oid
loaded = HFCoOp.from_pretrained(folder)
report["after loading"] = loaded.push_to_hub("tester/flowers").oid
model.push_to_hub("tester/shaky", commit_message="Shaky")
attempt("broken", lambda: model.push_to_hub("tester/broken"))
attempt("no token", lambda: model.push_to_hub("tester/other", token="hf_wrong"))

model.add_adapter("birds", type(model.prompt_config)(classnames=["red kite", "robin"], n_ctx=2))
HfApi().create_repo("tester/two-adapters")
note = b"---\\nlicense: mit\\n---\\n# Taken by the sea.\\n"
HfApi().upload_file(path_or_fileobj=note, path_in_repo="README.md", repo_id="tester/two-adapters")
model.push_to_hub("tester/two-adapters")
with torch.no_grad():
    model.delete_adapter("birds")
    model.prompt_layer.active_learner.ctx.neg_()
report["negated predictions"] = model.predict(image)
model.push_to_hub("tester/flowers", revision="negated")
report["pull request"] = model.push_to_hub("tester/flowers", create_pr=True).pr_url
report["folder unchanged"] = before == {path.name: path.read_bytes() for path in folder.iterdir()}
print(json.dumps(report))
"""
PULL = """
from peft import PeftModel
from transformers import CLIPModel

model = HFCoOp.from_pretrained("tester/flowers")
report["predictions"] = model.predict(image)
report["learned"] = model.card_details.learned
report["config"] = {name: getattr(model.prompt_config, name) for name in ("revision", "base_model_name_or_path")}
report["negated predictions"] = HFCoOp.from_pretrained("tester/flowers", revision="negated").predict(image)
report["pull request"] = HFCoOp.from_pretrained("tester/flowers", revision="refs/pr/1").predict(image)
report["subfolder"] = HFCoOp.from_pretrained("tester/two-adapters", subfolder="birds").classnames
half = HFCoOp.from_pretrained("tester/flowers", dtype=torch.bfloat16, device="cpu")
report["dtype"] = [str(half.clip.dtype), str(half.prompt_layer.active_learner.ctx.dtype)]
report["other base"] = HFCoOp.from_pretrained("tester/flowers", sys.argv[1]).predict(image)

clip = CLIPModel.from_pretrained("tester/tiny-clip")
pixels = model.image_processor(images=image, return_tensors="pt").pixel_values
peft_model = PeftModel.from_pretrained(clip, "tester/flowers")
peft_model.load_adapter("tester/flowers", "negated", revision="negated")
with torch.no_grad():
    report["peft"] = peft_model(pixel_values=pixels).logits_per_image.softmax(-1)[0].tolist()
    peft_model.set_adapter("negated")
    report["peft negated"] = peft_model(pixel_values=pixels).logits_per_image.softmax(-1)[0].tolist()

loaded = CLIPModel.from_pretrained("tester/flowers")  # as transformers loads adapters itself
own = CLIPModel.from_pretrained("tester/tiny-clip")
own.load_adapter("tester/flowers")
with torch.no_grad():
    for name, way in (("clip from_pretrained", loaded), ("clip load_adapter", own)):
        report[name] = way(pixel_values=pixels).logits_per_image.softmax(-1)[0].tolist()

model.load_adapter("tester/flowers", "negated", revision="negated")
model.load_adapter("tester/two-adapters", "birds", subfolder="birds")
model.set_adapter("negated")
report["second adapter"] = model.predict(image)
model.set_adapter("birds")
report["third adapter"] = [model.classnames, model.config.id2label]

with tempfile.TemporaryDirectory() as empty:  # from a cache that has it, huggingface_hub gives it to anyone
    attempt("private", lambda: HFCoOp.from_pretrained("tester/flowers", token=False, cache_dir=empty))
attempt("missing", lambda: HFCoOp.from_pretrained("tester/nothing"))
attempt("no such revision", lambda: HFCoOp.from_pretrained("tester/flowers", revision="later"))
attempt("local only", lambda: HFCoOp.from_pretrained("tester/shaky", local_files_only=True))
for repo in ("pickled", "empty", "lora", "local-base"):
    attempt(repo, lambda: HFCoOp.from_pretrained(f"tester/{repo}"))
print(json.dumps(report))
"""
OFFLINE = """
report["predictions"] = HFCoOp.from_pretrained("tester/flowers").predict(image)
report["negated predictions"] = HFCoOp.from_pretrained("tester/flowers", revision="negated").predict(image)
attempt("not in the cache", lambda: HFCoOp.from_pretrained("tester/shaky"))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add("tester/tiny-clip", PARITY)
        server.fail(r"POST /api/models/tester/shaky/preupload", times=2)
        server.fail(r"POST /api/models/tester/broken/commit")
        yield server


def run_script(hub: HubServer, home: Path, script: str, *arguments: str, **options: Any) -> dict[str, Any]:
    done = hub.run(home, "-c", START + script, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved") / "flowers"


@pytest.fixture(scope="module")
def pushed(hub: HubServer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pushing process reports."""
    return run_script(hub, tmp_path_factory.mktemp("author"), PUSH, str(folder))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the pulling side."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def pulled(hub: HubServer, pushed: dict[str, Any], folder: Path, home: Path) -> dict[str, Any]:
    """What the pulling process reports."""
    config = (folder / "adapter_config.json").read_bytes()
    other_type = json.dumps({**json.loads(config), "peft_type": "LORA"}).encode()
    elsewhere = json.dumps({**json.loads(config), "base_model_name_or_path": "/home/author/clip", "revision": None})
    weights = (folder / "adapter_model.safetensors").read_bytes()
    for name, files in {
        "pickled": {"adapter_config.json": config, "adapter_model.bin": b"\x80\x02."},
        "empty": {"README.md": b"nothing"},
        "lora": {"adapter_config.json": other_type, "adapter_model.safetensors": weights},
        "local-base": {"adapter_config.json": elsewhere.encode(), "adapter_model.safetensors": weights},
    }.items():
        hub.create(f"tester/{name}").commit("main", "add files", files)
    return run_script(hub, home, PULL, str(PARITY))


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    labels = [row["label"] for row in found] == [row["label"] for row in expected]
    return labels and [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], rel=1e-5)


def summaries(hub: HubServer, repo: str, branch: str = "main") -> list[str]:
    return [row["summary"] for row in hub.repos[repo].log if row["branch"] == branch]


def test_a_push_is_one_commit_of_three_files(hub, pushed):
    repo = hub.repos["tester/flowers"]
    assert repo.private
    assert summaries(hub, "tester/flowers") == ["initial commit", "My prompt"]
    assert set(repo.files()) == {*THREE_FILES, ".gitattributes"}
    assert repo.branches["main"] == pushed["first"]


def test_a_second_push_adds_no_commit(pushed):
    assert pushed["second"] == pushed["first"]


def test_results_survive_loading_and_pushing_again(pushed, pulled):
    assert pushed["after loading"] == pushed["first"]
    assert pulled["learned"] == {"accuracy": 0.75}


def test_the_pushed_card_names_the_repository(hub, pushed, folder):
    card = hub.repos["tester/flowers"].files()["README.md"].read_text()
    assert 'HFCoOp.from_pretrained("tester/flowers")' in card
    saved = (folder / "README.md").read_text().replace("your-name/your-adapter", "tester/flowers")
    assert re.sub("<!-- hf-coop [0-9a-f]+", "", card) == re.sub("<!-- hf-coop [0-9a-f]+", "", saved)
    assert "base_model: tester/tiny-clip" in card


def test_text_that_somebody_wrote_on_the_hub_stays(hub, pushed):
    card = hub.repos["tester/two-adapters"].files()["README.md"].read_text()
    assert card.endswith("---\n# Taken by the sea.\n")
    assert "license: mit" in card
    assert "base_model: tester/tiny-clip" in card


def test_the_exact_revision_of_the_base_model_is_recorded(hub, pushed, folder):
    commit = hub.repos["tester/tiny-clip"].branches["main"]
    assert pushed["revision"] == commit
    assert json.loads((folder / "adapter_config.json").read_text())["revision"] == commit


def test_a_push_goes_on_after_passing_failures(hub, pushed):
    assert summaries(hub, "tester/shaky") == ["initial commit", "Shaky"]


def test_a_failed_push_says_what_to_do_and_changes_nothing(hub, pushed):
    assert summaries(hub, "tester/broken") == ["initial commit"]
    assert pushed["broken"].startswith("OSError: cannot push to 'tester/broken'")
    assert "503" in pushed["broken"]
    assert "then push again" in pushed["broken"]
    assert pushed["folder unchanged"]


def test_a_wrong_token_cannot_push(hub, pushed):
    assert "hf auth login" in pushed["no token"]
    assert "tester/other" not in hub.repos


def test_branches_and_pull_requests(hub, pushed):
    assert summaries(hub, "tester/flowers", "negated") == ["Upload prompt with hf-coop"]
    assert summaries(hub, "tester/flowers", "refs/pr/1") == ["Upload prompt with hf-coop"]
    assert pushed["pull request"].endswith("/tester/flowers/discussions/1")


def test_a_fresh_process_predicts_the_same(pushed, pulled):
    assert same(pulled["predictions"], pushed["predictions"])
    assert same(pulled["other base"], pushed["predictions"])
    assert not same(pushed["negated predictions"], pushed["predictions"])


def test_revisions_are_loaded(pushed, pulled):
    assert same(pulled["negated predictions"], pushed["negated predictions"])
    assert same(pulled["pull request"], pushed["negated predictions"])


def test_several_adapters_travel_in_one_repository(hub, pulled):
    names = set(hub.repos["tester/two-adapters"].files())
    assert names == {*THREE_FILES, ".gitattributes", "birds/adapter_config.json", "birds/adapter_model.safetensors"}
    assert pulled["subfolder"] == ["red kite", "robin"]


def test_dtype_is_that_of_clip_alone(pulled):
    assert pulled["dtype"] == ["torch.bfloat16", "torch.float32"]


def test_plain_peft_loads_the_same_repository(pushed, pulled):
    for mine, theirs in (("predictions", "peft"), ("negated predictions", "peft negated")):
        scores = {row["label"]: row["score"] for row in pushed[mine]}
        assert pulled[theirs] == pytest.approx([scores[name] for name in CLASSNAMES], rel=1e-5)


@pytest.mark.parametrize("way", ["clip from_pretrained", "clip load_adapter"])
def test_so_does_transformers_by_itself(pulled, way):
    assert pulled[way] == pytest.approx(pulled["peft"], rel=1e-5)


def test_several_adapters_on_one_clip(pushed, pulled):
    assert same(pulled["second adapter"], pushed["negated predictions"])
    assert pulled["third adapter"] == [["red kite", "robin"], {"0": "red kite", "1": "robin"}]


def test_a_private_repository_needs_a_token(pulled):
    assert pulled["private"].startswith("OSError: 'tester/flowers' is neither a folder nor a repository")
    assert "token" in pulled["private"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "'tester/nothing' is neither a folder nor a repository"),
        ("no such revision", "repository 'tester/flowers' has no revision 'later'"),
        ("local only", "is no folder and not in the cache (adapter_config.json), and the Hub is switched off"),
        ("pickled", "only adapter_model.bin: pickled weights can run code"),
        ("empty", "no adapter_config.json in 'tester/empty'"),
        ("lora", "peft_type is 'LORA'"),
        ("local-base", "'/home/author/clip': a folder that is not on this machine (it was local to the author?)"),
    ],
)
def test_refusals(pulled, case, message):
    assert message in pulled[case]


def test_offline_after_one_download(hub, pushed, pulled, home):
    hub.calls.clear()
    report = run_script(hub, home, OFFLINE, HF_HUB_OFFLINE="1")
    assert same(report["predictions"], pushed["predictions"])
    assert same(report["negated predictions"], pushed["negated predictions"])
    assert "'tester/shaky'" in report["not in the cache"]
    assert "offline" in report["not in the cache"]
    assert hub.calls == []
