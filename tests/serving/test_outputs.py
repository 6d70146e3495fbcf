"""`hf-coop predict`: CSV, JSON, and sorting photos into folders."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from conftest import CLASSNAMES, PARITY
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.serving import PhotoSorter, csv_header, csv_line
from hf_coop.serving.sorting import NO_CLASS
from hf_coop_cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path, images: list[Image.Image]) -> Path:
    """Two different photos of one name, one whose name needs quotes in CSV, and a broken one."""
    folder = tmp_path / "photos"
    for name, image in (("a/photo.png", images[0]), ("b/photo.png", images[1]), ('b/x, "y".png', images[2])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    (folder / "b" / "z.png").write_bytes(b"\x89PNG broken")
    return folder


class TestFormats:
    def test_csv(self, adapter, photos):
        done = run("predict", adapter, photos, "--output_format", "csv", "--top_k", 2)
        assert done.exit_code == 1
        table, _ = done.stdout.split("1 of 4 images could not be read")  # which is on stderr outside of tests
        rows = list(csv.DictReader(io.StringIO(table)))
        assert list(rows[0]) == ["image", "label", "score", "label_2", "score_2", "error"]
        places = [photos / "a" / "photo.png", photos / "b" / "photo.png", photos / "b" / 'x, "y".png']
        assert [row["image"] for row in rows] == [*map(str, places), str(photos / "b" / "z.png")]
        expected = HFCoOp.from_pretrained(adapter).predict(places, top_k=2)
        for row, predictions in zip(rows, expected, strict=False):
            assert [row["label"], row["label_2"]] == [found["label"] for found in predictions]
            assert float(row["score"]) == pytest.approx(predictions[0]["score"], rel=1e-5)
            assert row["error"] == ""
        assert rows[3]["label"] == ""
        assert rows[3]["error"].startswith("cannot read")

    def test_more_ranks_than_classes(self, adapter, photos):
        done = run("predict", adapter, photos / "a", "--output_format", "csv", "--top_k", 50)
        (row,) = csv.DictReader(io.StringIO(done.stdout))
        assert len(row) == 2 + 2 * len(CLASSNAMES)

    def test_an_empty_row(self):
        assert csv_line("a.png", [], 2) == "a.png,,,,,"
        assert csv_header(1) == "image,label,score,error"

    def test_json_by_either_option(self, adapter, photos):
        outputs = [run("predict", adapter, photos, *option) for option in (["--json"], ["--output_format", "json"])]
        assert outputs[0].stdout == outputs[1].stdout
        assert json.loads(outputs[0].stdout.splitlines()[0])["predictions"]

    def test_options_in_conflict(self, adapter, photos):
        done = run("predict", adapter, photos, "--json", "--output_format", "csv")
        assert done.exit_code == 2
        assert "--json: it is in conflict with --output_format csv" in done.output
        assert "--move: it goes with --sort_into" in run("predict", adapter, photos, "--move").output


class TestSorting:
    def test_each_photo_goes_to_its_class(self, adapter, photos, tmp_path):
        before = {path: path.read_bytes() for path in photos.rglob("*.png")}
        for _ in range(2):  # the second time changes nothing
            done = run("predict", adapter, photos, "--sort_into", tmp_path / "sorted", "--json")
            assert done.exit_code == 1
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            found = sorted(path for path in (tmp_path / "sorted").rglob("*") if path.is_file())
            assert len(found) == 3
            by_class = {(path.parent.name, path.read_bytes()) for path in found}
            assert by_class == {
                (row["predictions"][0]["label"], Path(row["image"]).read_bytes())
                for row in rows
                if "predictions" in row
            }
        assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before

    def test_moved(self, adapter, photos, tmp_path):
        run("predict", adapter, photos, "--sort_into", tmp_path / "sorted", "--move")
        assert [path.name for path in photos.rglob("*.png")] == ["z.png"]  # the broken one stays
        assert len(list((tmp_path / "sorted").rglob("*.png"))) == 3

    def test_refused_before_anything_is_loaded(self, adapter, photos, tmp_path):
        done = run("predict", "no/adapter", "http://127.0.0.1:9/x.png", "--sort_into", tmp_path / "sorted")
        assert done.exit_code == 1
        assert "'http://127.0.0.1:9/x.png' is no file that could be sorted" in done.output
        (tmp_path / "file").write_text("")
        done = run("predict", adapter, photos, "--sort_into", tmp_path / "file")
        assert done.output.strip().endswith(
            f"error: cannot sort into '{tmp_path / 'file'}': it is a file, not a folder"
        )

    def test_names_that_are_no_file_names(self, tmp_path):
        names = ["a/b", "a_b", "A_B", "..", "", "CON", "x" * 400, "ü" * 400, "cat\n", "none of these", "dog. ", "7:1"]
        sorter = PhotoSorter(tmp_path / "sorted", names)
        (tmp_path / "photo.png").write_bytes(b"photo")
        places = [sorter.sort(tmp_path / "photo.png", [{"label": name, "score": 1.0}]) for name in names]
        folders = [place.parent for place in places]
        assert all(folder.parent == tmp_path / "sorted" for folder in folders)
        assert len({folder.name.casefold() for folder in folders}) == len(names)
        assert folders[0].name == "a_b"
        assert folders[-1].name == "7_1"
        for folder in folders:
            assert folder.name.isprintable()
            assert not set(folder.name) & set('<>:"/\\|?*')

    def test_name_clashes(self, tmp_path):
        sorter = PhotoSorter(tmp_path / "sorted", ["cat"])
        for number in range(3):
            source = tmp_path / str(number) / "photo.png"
            source.parent.mkdir()
            source.write_text(str(number))
            for _ in range(2):
                assert sorter.sort(source, [{"label": "cat", "score": 1.0}]).read_text() == str(number)
        found = {path.name: path.read_text() for path in (tmp_path / "sorted" / "cat").iterdir()}
        assert found == {"photo.png": "0", "photo-2.png": "1", "photo-3.png": "2"}

    def test_a_photo_that_lies_there_already_stays(self, tmp_path):
        place = tmp_path / "cat" / "photo.png"
        place.parent.mkdir()
        place.write_text("photo")
        for move in (False, True):
            assert PhotoSorter(tmp_path, ["cat"], move).sort(place, [{"label": "cat", "score": 1.0}]) == place
        assert [path.name for path in place.parent.iterdir()] == ["photo.png"]

    def test_photos_of_no_class(self, tmp_path):
        (tmp_path / "photo.png").write_text("photo")
        place = PhotoSorter(tmp_path / "sorted", ["cat"]).sort(tmp_path / "photo.png", [])
        assert place == tmp_path / "sorted" / NO_CLASS / "photo.png"

    def test_a_folder_that_cannot_be_made(self, adapter, photos, tmp_path):
        (tmp_path / "sorted").mkdir()
        for name in CLASSNAMES:
            (tmp_path / "sorted" / name).write_text("a file")
        done = run("predict", adapter, photos, "--sort_into", tmp_path / "sorted")
        assert done.exit_code == 1
        assert "error: cannot write to " in done.output

    def test_photos_that_no_class_is_good_enough_for(self, adapter, photos, tmp_path):
        options = ["--sort_into", tmp_path / "sorted", "--min_score", "1"]
        done = run("predict", adapter, photos / "a", *options)
        assert done.stdout == f"{photos / 'a' / 'photo.png'}: {NO_CLASS}\n"
        assert (tmp_path / "sorted" / NO_CLASS / "photo.png").exists()
        (row,) = csv.DictReader(
            io.StringIO(run("predict", adapter, photos / "a", *options, "--output_format", "csv").stdout)
        )
        assert row["label"] == row["score"] == row["error"] == ""

    def test_a_score_that_is_no_number(self, adapter, photos):
        done = run("predict", adapter, photos, "--min_score", "low")
        assert done.exit_code == 2
        assert "'low' is neither a number nor auto" in done.stderr
