"""Benchmark sets from the Hub on loopback: real downloads, real archives, and archives made to do harm."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_hub import HubServer
from typer.testing import CliRunner

from hf_coop.data import download_benchmark, downloads, load_benchmark
from hf_coop.data.benchmarks import IMAGE_SETS
from hf_coop.data.downloads import ZIP_REPO, archives_of, unpack
from hf_coop_cli import app

ON_THE_HUB = [name for name, image_set in IMAGE_SETS.items() if archives_of(image_set)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub of this process, and of those that `run` starts."""
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        path = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "".join(path[1:]))
        yield server


def zipped(folder: Path, inside: str, **more: bytes) -> bytes:
    """A zip with the files of a folder below another name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(inside, path.relative_to(folder)))
        for name, content in more.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(folder: Path, inside: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(folder, inside)
    return file.getvalue()


def put(hub: HubServer, repo_id: str, filename: str, content: bytes) -> None:
    repo = hub.repos.get(repo_id) or hub.create(repo_id)
    repo.commit("main", f"add {filename}", {filename: content})


def put_zip(hub: HubServer, name: str, content: bytes) -> None:
    put(hub, *archives_of(IMAGE_SETS[name])[0][::2], content)


def put_tar(hub: HubServer, name: str, content: bytes) -> None:
    put(hub, *archives_of(IMAGE_SETS[name])[1][::2], content)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_over(data_dir: Path) -> set[str]:
    """What a download leaves beside the sets; locks and the Hub client's notes stay."""
    return (
        {path.name for path in (data_dir / ".downloads").iterdir()}
        - {".cache"}
        - {f"{image_set.folder}.lock" for image_set in IMAGE_SETS.values()}
    )


class TestDownload:
    def test_every_set_from_zips_and_from_tars(self, hub, trees, tmp_path):
        """Half of them from the first source, the others from the second; the folders inside have other names."""
        for number, name in enumerate(ON_THE_HUB):
            folder = trees / IMAGE_SETS[name].folder
            if number % 2:
                put_zip(hub, name, zipped(folder, f"data/{folder.name.replace('-', '')}", **{"__MACOSX/._x": b"x"}))
            else:
                put_tar(hub, name, tarred(folder, folder.name.upper()))
        for name in ON_THE_HUB:
            assert download_benchmark(name, tmp_path).classnames == load_benchmark(name, trees).classnames
            assert files(tmp_path / IMAGE_SETS[name].folder) == files(trees / IMAGE_SETS[name].folder)
        assert left_over(tmp_path) == set()

    def test_a_set_that_is_there_is_not_fetched(self, hub, trees, tmp_path):
        shutil.copytree(trees / "dtd", tmp_path / "dtd")
        assert len(download_benchmark("dtd", tmp_path).splits["train"]) == 36
        assert hub.calls == []

    def test_a_broken_connection(self, hub, trees, tmp_path):
        put_zip(hub, "dtd", zipped(trees / "dtd", "dtd"))
        hub.cut_after = 1000
        download_benchmark("dtd", tmp_path)
        assert files(tmp_path / "dtd") == files(trees / "dtd")

    def test_a_damaged_part_is_noticed_and_not_kept(self, hub, trees, tmp_path):
        content = zipped(trees / "dtd", "dtd")
        put_zip(hub, "dtd", content)
        (tmp_path / ".downloads").mkdir()
        sha256 = hashlib.sha256(content).hexdigest()
        (tmp_path / ".downloads" / f"dtd.zip.{sha256}.part").write_bytes(b"?" * 1000)
        with pytest.raises(OSError, match="what was fetched is damaged"):
            download_benchmark("dtd", tmp_path)
        assert left_over(tmp_path) == set()
        download_benchmark("dtd", tmp_path)

    def test_a_wrong_archive_is_put_nowhere_and_the_next_source_is_tried(self, hub, trees, tmp_path):
        broken = Path(shutil.copytree(trees / "eurosat", tmp_path / "broken"))
        next((broken / "2750").rglob("*.jpg")).unlink()
        put_zip(hub, "eurosat", zipped(broken, "eurosat"))
        put_tar(hub, "eurosat", tarred(trees / "eurosat", "eurosat"))
        download_benchmark("eurosat", tmp_path)
        assert files(tmp_path / "eurosat") == files(trees / "eurosat")

    def test_no_source_has_it_and_later_one_does(self, hub, trees, tmp_path):
        put_zip(hub, "eurosat", zipped(trees / "dtd", "eurosat"))
        put_tar(hub, "eurosat", b"not an archive")
        with pytest.raises(OSError, match="cannot get eurosat from the Hub") as failed:
            download_benchmark("eurosat", tmp_path)
        assert f"{ZIP_REPO}, eurosat.zip: no folder in it holds both '2750' and" in str(failed.value)
        assert "koorye/EuroSAT, eurosat.tar.gz: cannot unpack" in str(failed.value)
        assert not (tmp_path / "eurosat").exists()
        assert left_over(tmp_path) == set()
        put_zip(hub, "eurosat", zipped(trees / "eurosat", "eurosat"))
        download_benchmark("eurosat", tmp_path)

    def test_no_repository(self, hub, tmp_path):
        with pytest.raises(OSError, match=r"_dataset, dtd.zip: .*; koorye/Describable-Textures-Dataset"):
            download_benchmark("dtd", tmp_path)

    def test_a_full_disk(self, hub, trees, tmp_path, monkeypatch):
        put_zip(hub, "dtd", zipped(trees / "dtd", "dtd"))

        def no_room(*unused: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(downloads, "unpack", no_room)
        with pytest.raises(OSError, match=r"no room for dtd in .*No space left"):
            download_benchmark("dtd", tmp_path)
        assert left_over(tmp_path) == {"dtd.zip"}  # the next try need not fetch it again
        monkeypatch.undo()
        assert not (tmp_path / "dtd").exists()

    def test_a_folder_that_is_another_thing(self, hub, tmp_path):
        (tmp_path / "dtd").mkdir()
        with pytest.raises(ValueError, match=r"dtd' is there already, but dtd is not there: no .*move it away"):
            download_benchmark("dtd", tmp_path)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("imagenet", "needs an account: get ILSVRC 2012 from"), ("flowers", "no benchmark 'flowers'")],
    )
    def test_what_is_not_on_the_hub(self, hub, tmp_path, name, message):
        with pytest.raises(ValueError, match=message):
            download_benchmark(name, tmp_path / "data")
        assert not (tmp_path / "data").exists()

    def test_strange_class_names_are_told(self, hub, trees, tmp_path, caplog):
        base = Path(shutil.copytree(trees / "dtd", tmp_path / "changed"))
        split = base / IMAGE_SETS["dtd"].labels
        split.write_text(split.read_text().replace('"marbled"', '"mottled"'))
        put_zip(hub, "dtd", zipped(base, "dtd"))
        download_benchmark("dtd", tmp_path)
        assert "dtd: class names that the published splits do not have: ['mottled']" in caplog.text


class TestCommand:
    """`hf-coop data` in processes of its own."""

    def test_killed_it_goes_on_where_it_stopped(self, hub, trees, tmp_path):
        chunk = 10 * 2**20  # what the Hub's client writes at a time
        put_zip(hub, "dtd", zipped(trees / "dtd", "dtd", pad=os.urandom(chunk + chunk // 2)))
        hub.cut_after = chunk + 1000
        command = ("-m", "hf_coop_cli", "data", "get", "dtd")
        env = hub.environment(tmp_path / "home") | {"HF_COOP_DATA": str(tmp_path / "data")}
        with subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            while hub.cut_after is not None or not any(
                path.stat().st_size >= chunk for path in (tmp_path / "data").rglob("*.part")
            ):
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "data" / "dtd").exists()
        hub.calls.clear()
        done = hub.run(tmp_path / "home", *command, HF_COOP_DATA=str(tmp_path / "data"))
        assert done.stdout == "dtd: 7 classes; images: 36 train, 17 validation, 23 test\n", done.stderr[-2000:]
        assert [call for call in hub.calls if f"bytes={chunk}-" in call]
        assert files(tmp_path / "data" / "dtd") == files(trees / "dtd")

    def test_list_and_errors(self, trees, tmp_path):
        shutil.copytree(trees / "dtd", tmp_path / "dtd")
        shown = CliRunner().invoke(app, ["data", "list", "--data_dir", str(tmp_path)])
        states = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
        assert states["dtd"] == f"{tmp_path / 'dtd'}: there"
        assert states["ucf101"] == f"{tmp_path / 'ucf101'}: not there"
        failed = CliRunner().invoke(app, ["data", "get", "flowers"])
        assert str(failed.exception).startswith("error: no benchmark 'flowers'; there are caltech101")


class TestUnpack:
    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        return tmp_path / "inner" / "target"

    def make_zip(self, path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = mode << 16
                archive.writestr(info, content)
        return path

    def make_tar(self, path: Path, *members: tuple[str, bytes, str], content: bytes = b"image") -> Path:
        with tarfile.open(path, "w:gz") as archive:
            for name, kind, link in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(content))
        return path

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "C:\\x", "..\\x"])
    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_paths_outside(self, tmp_path, target, kind, name):
        archive = tmp_path / "archive"
        if kind == "zip":
            self.make_zip(archive, {name: b"x"})
        else:
            self.make_tar(archive, (name, tarfile.REGTYPE, ""))
        with pytest.raises(ValueError, match="leads out of it"):
            unpack(archive, target)
        assert {path.name for path in tmp_path.rglob("*")} <= {"archive", "inner", "target"}

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    @pytest.mark.parametrize("link", ["/etc/passwd", "../../secret", "nowhere", "link"])
    def test_links_that_lead_out_nowhere_or_to_themselves(self, tmp_path, target, kind, link):
        (tmp_path / "secret").write_text("secret")
        archive = self.make_tar(tmp_path / "archive", ("link", kind, link))
        with pytest.raises(ValueError, match="cannot unpack"):
            unpack(archive, target)
        assert files(target.parent) == {}

    def test_writing_through_a_link(self, tmp_path, target):
        archive = self.make_tar(
            tmp_path / "archive", ("out", tarfile.SYMTYPE, str(tmp_path)), ("out/x", tarfile.REGTYPE, "")
        )
        with pytest.raises(ValueError, match="cannot unpack"):
            unpack(archive, target)
        assert not (tmp_path / "x").exists()

    def test_links_inside_are_copied(self, tmp_path, target):
        archive = self.make_tar(
            tmp_path / "archive",
            *(("a/1.jpg", tarfile.REGTYPE, ""), ("a/2.jpg", tarfile.SYMTYPE, "1.jpg")),
            ("3.jpg", tarfile.LNKTYPE, "a/1.jpg"),
        )
        unpack(archive, target)
        assert files(target) == dict.fromkeys(["a/1.jpg", "a/2.jpg", "3.jpg"], b"image")
        assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in target.rglob("*.jpg"))

    @pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
    def test_devices(self, tmp_path, target, kind):
        with pytest.raises(ValueError, match="'dev' is neither a file nor a folder"):
            unpack(self.make_tar(tmp_path / "archive", ("dev", kind, "")), target)

    @pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
    def test_links_and_devices_in_a_zip(self, tmp_path, target, mode):
        with pytest.raises(ValueError, match="'link' is neither a file nor a folder"):
            unpack(self.make_zip(tmp_path / "archive", {"link": b"/etc/passwd"}, mode), target)

    def test_modes_are_left_out(self, tmp_path, target):
        unpack(self.make_zip(tmp_path / "archive", {"x": b"x"}, stat.S_IFREG | 0o6777), target)
        assert (target / "x").stat().st_mode & 0o7111 == 0

    def test_too_many_files(self, tmp_path, target):
        archive = self.make_zip(tmp_path / "archive", {str(k): b"" for k in range(11)})
        unpack(archive, target, max_files=11)
        with pytest.raises(ValueError, match="more than 10 files"):
            unpack(archive, target.with_name("other"), max_files=10)

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_a_bomb(self, tmp_path, target, kind):
        archive, zeros = tmp_path / "archive", bytes(2**23)
        if kind == "zip":
            self.make_zip(archive, {"a": zeros, "b": zeros})
        else:
            self.make_tar(archive, ("a", tarfile.REGTYPE, ""), *[("b", tarfile.LNKTYPE, "a")] * 9, content=zeros)
        assert archive.stat().st_size < 2**16
        with pytest.raises(ValueError, match=r"unpacks to more than 0[.]00977 GiB"):
            unpack(archive, target, max_bytes=10 * 2**20)
        assert sum(len(content) for content in files(target).values()) <= 10 * 2**20

    def test_the_same_file_twice(self, tmp_path, target):
        archive = self.make_tar(tmp_path / "archive", *[("x", tarfile.REGTYPE, "")] * 2)
        with pytest.raises(ValueError, match=r"it holds '.*/x' twice"):
            unpack(archive, target)

    @pytest.mark.parametrize("kind", ["zip", "tar", "text", "empty", "crc"])
    def test_damaged(self, tmp_path, target, kind):
        archive, image = tmp_path / "archive", os.urandom(100_000)
        if kind in ("zip", "crc"):
            self.make_zip(archive, {"a": image, "b": image})
        else:
            self.make_tar(archive, ("a", tarfile.REGTYPE, ""), ("b", tarfile.REGTYPE, ""), content=image)
        whole = archive.read_bytes()
        archive.write_bytes(
            {"text": b"hello", "empty": b"", "crc": whole[:50_000] + b"?" * 9 + whole[50_009:]}.get(
                kind, whole[: len(whole) // 2]
            )
        )
        with pytest.raises(ValueError, match=f"cannot unpack '{archive}'"):
            unpack(archive, target)
