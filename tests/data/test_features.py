"""`hf_coop.data.features`: computed once, and again when anything they depend on changes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSNAMES, PARITY
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import CLIPModel

from hf_coop import HFCoOp
from hf_coop.data import load_image_folder
from hf_coop.data.features import CachedImages, FreshCrops, encode_images, feature_dtype, made_ahead


@pytest.fixture
def model(clip: CLIPModel) -> HFCoOp:
    return HFCoOp.from_clip(clip, CLASSNAMES, n_ctx=2)


def photo(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def in_memory(count: int, first: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSNAMES))})
    photos = [photo(first + number) for number in range(count)]
    return Dataset.from_dict(
        {"image": photos, "label": [k % len(CLASSNAMES) for k in range(count)]}, features=features
    )


@pytest.fixture
def dataset() -> Dataset:
    return in_memory(5)


@pytest.fixture
def towers(model: HFCoOp) -> list[int]:
    """Images that each call of the image tower got."""
    calls: list[int] = []
    model.clip.vision_model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(output.pooler_output)), with_kwargs=True
    )
    return calls


class TestValues:
    def test_equal_the_models_own(self, model, dataset):
        pixels = model.image_processor(images=dataset["image"][:], return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = model.clip.get_image_features(pixel_values=pixels).pooler_output
        found = encode_images(model, dataset, batch_size=2)
        assert found.shape == (5, 1, model.clip.config.projection_dim)
        torch.testing.assert_close(found[:, 0], expected)

    def test_random_views_differ_and_are_decided_by_the_seed(self, model, dataset):
        first = encode_images(model, dataset, views=3, random=True, seed=1)
        again = encode_images(model, dataset, views=3, random=True, seed=1)
        other = encode_images(model, dataset, views=3, random=True, seed=2)
        assert first.shape[:2] == (5, 3)
        assert torch.equal(first, again)
        assert not torch.allclose(first[:, 0], first[:, 1])
        assert not torch.allclose(first, other)

    def test_parts_are_those_of_the_whole(self, model, dataset):
        """What the processes of a run each encode: crops go by the image's number in the whole."""
        whole = encode_images(model, dataset, views=2, random=True, seed=1)
        parts = [dataset.select(rows) for rows in (range(3), range(3, 5), range(0))]
        firsts = (0, 3, 5)
        found = [
            encode_images(model, part, views=2, random=True, seed=1, first=first)
            for part, first in zip(parts, firsts, strict=True)
        ]
        torch.testing.assert_close(torch.cat(found), whole)

    def test_given_features_are_taken(self, model, towers):
        given = torch.randn(4, model.clip.config.projection_dim)
        found = encode_images(model, Dataset.from_dict({"image_embeds": given.tolist(), "label": [0] * 4}))
        torch.testing.assert_close(found[:, 0], given)
        assert not towers

    def test_a_broken_image_is_named(self, model, tmp_path):
        (tmp_path / "images" / "cat").mkdir(parents=True)
        (tmp_path / "images" / "cat" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
        with pytest.raises(ValueError, match=r"cannot read .*cat/cut\.jpg"):
            encode_images(model, load_image_folder(tmp_path / "images"))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_in_lower_precision(self, model, dataset, towers, dtype):
        exact = encode_images(model, dataset, dtype="float32")
        towers.clear()
        found = encode_images(model, dataset, dtype=dtype)
        assert towers, "the features in another precision are not those in the cache"
        assert found.dtype == torch.float32
        assert not torch.equal(found, exact)
        assert torch.cosine_similarity(found, exact, dim=-1).min() > 0.999

    def test_a_model_in_lower_precision_keeps_its_own(self, clip, dataset):
        half = HFCoOp.from_clip(clip.bfloat16(), CLASSNAMES, n_ctx=2)
        assert encode_images(half, dataset).isfinite().all()
        assert feature_dtype(half.clip, "auto") is torch.bfloat16
        with pytest.raises(ValueError, match=r"feature_dtype='float32'.*weights are torch.bfloat16"):
            encode_images(half, dataset, dtype="float32")

    def test_an_unknown_precision(self, model, dataset):
        with pytest.raises(ValueError, match=r"must be one of auto, .*got 'int8'"):
            encode_images(model, dataset, dtype="int8")

    def test_the_next_images_are_read_meanwhile(self):
        """The second is made before the first one's work is done, the third not before it is asked for."""
        second = threading.Event()
        made: list[int] = []

        def make(number: int) -> int:
            made.append(number)
            if number == 2:
                second.set()
            return number * 10

        results = made_ahead(make, [1, 2, 3])
        assert next(results) == 10
        assert second.wait(10)
        assert made == [1, 2]
        assert list(results) == [20, 30]

    def test_the_models_mode_is_left(self, model, dataset):
        model.train()
        encode_images(model, in_memory(2, first=90))
        assert model.training
        assert model.clip.vision_model.training


class TestCache:
    def test_the_second_time_is_free(self, model, towers):
        first = encode_images(model, in_memory(3, first=10), batch_size=2)
        assert towers == [2, 1]
        again = encode_images(model, in_memory(3, first=10), batch_size=3)
        assert towers == [2, 1]
        assert torch.equal(first, again)

    def test_in_another_process_too(self, model, tmp_path):
        """A folder of images, in a process of its own each time; the second one must not run the tower."""
        for number in range(3):
            path = tmp_path / "images" / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(number).save(path)
        script = (
            "import sys\n"
            "from hf_coop import HFCoOp\n"
            "from hf_coop.data import load_image_folder\n"
            "from hf_coop.data.features import encode_images\n"
            f"model = HFCoOp.from_clip({str(PARITY)!r}, ['cat'], n_ctx=2)\n"
            "calls = []\n"
            "model.clip.vision_model.register_forward_hook(lambda *_: calls.append(1))\n"
            f"embeds = encode_images(model, load_image_folder({str(tmp_path / 'images')!r}))\n"
            "print(len(calls), embeds.double().sum().item())\n"
        )
        env = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        lines = [
            subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
            for _ in range(2)
        ]
        assert [line.split()[0] for line in lines] == ["1", "0"]
        assert lines[0].split()[1] == lines[1].split()[1]

    @pytest.mark.parametrize("change", ["images", "weights", "processor", "views", "seed", "random"])
    def test_any_change_computes_anew(self, model, towers, change):
        dataset, options = in_memory(2, first=20), {"views": 2, "random": True, "seed": 1}
        before = encode_images(model, dataset, **options)
        towers.clear()
        if change == "images":
            dataset = in_memory(2, first=21)
        elif change == "weights":
            with torch.no_grad():
                model.clip.vision_model.post_layernorm.weight[0] += 1
        elif change == "processor":
            model.image_processor.image_mean = [0.5, 0.5, 0.5]
        else:
            options = {
                "views": {**options, "views": 3},
                "seed": {**options, "seed": 2},
                "random": {"views": 1, "random": False},
            }[change]
        after = encode_images(model, dataset, **options)
        assert towers
        assert after.shape != before.shape or not torch.equal(after, before)

    @pytest.mark.parametrize("embedded", [False, True])
    def test_images_that_change_behind_their_paths(self, model, tmp_path, embedded):
        """`datasets` keeps its fingerprint, which knows the paths alone."""
        path = tmp_path / "photo.png"

        def features(seed: int) -> torch.Tensor:
            photo(seed).save(path)
            data = Dataset.from_dict({"image": [str(path)]}, features=Features({"image": Image()}))
            if embedded:
                data.save_to_disk(tmp_path / f"set-{seed}")
                data = Dataset.load_from_disk(tmp_path / f"set-{seed}")
            return encode_images(model, data)

        assert not torch.allclose(features(71), features(72))

    def test_other_labels_do_not(self, model, towers):
        data = in_memory(3, first=80)
        first = encode_images(model, data)
        renamed = data.remove_columns("label").add_column("label", ["x", "y", "z"])
        assert torch.equal(encode_images(model, renamed), first)
        assert towers == [3]

    def test_a_damaged_cache_file_is_made_anew(self, model, datasets_cache):
        data = in_memory(3, first=90)
        folder = datasets_cache / "hf_coop_features"
        before = set(folder.glob("*.arrow"))
        first = encode_images(model, data)
        (file,) = set(folder.glob("*.arrow")) - before
        file.write_bytes(file.read_bytes()[:40])
        assert torch.equal(encode_images(model, data), first)
        assert torch.equal(encode_images(model, data), first)

    def test_a_cache_that_cannot_be_written(self, model, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file")
        with pytest.raises(OSError, match=r"cannot keep the image features in .*HF_DATASETS_CACHE"):
            encode_images(model, in_memory(1, first=99))

    def test_learning_the_prompt_does_not(self, model, towers):
        encode_images(model, in_memory(2, first=30))
        with torch.no_grad():
            model.prompt_layer.active_learner.ctx += 1
        towers.clear()
        encode_images(model, in_memory(2, first=30))
        assert not towers

    def test_switched_off_with_that_of_datasets(self, model, towers):
        import datasets

        datasets.disable_caching()
        try:
            for _ in range(2):
                encode_images(model, in_memory(2, first=40))
        finally:
            datasets.enable_caching()
        assert towers == [2, 2]

    def test_a_failed_run_leaves_nothing_behind(self, model, tmp_path, datasets_cache):
        root = tmp_path / "images" / "cat"
        root.mkdir(parents=True)
        photo(1).save(root / "a.png")
        (root / "b.png").write_bytes(b"broken")
        before = set(Path(datasets_cache).rglob("*"))
        with pytest.raises(ValueError, match=r"b\.png"):
            encode_images(model, load_image_folder(tmp_path / "images"), batch_size=1)
        assert not [path for path in set(Path(datasets_cache).rglob("*")) - before if path.suffix == ".arrow"]


class TestTrainingImages:
    def test_an_epoch_draws_one_view_of_each_image(self):
        embeds, labels = torch.arange(24.0).view(6, 4, 1), torch.arange(6)
        images = CachedImages(embeds, labels, seed=3)

        def epoch(number: int) -> torch.Tensor:
            parts = list(images.batches(number, [[5, 0, 1], [2, 3, 4]]))
            assert torch.cat([part["labels"] for part in parts]).tolist() == [5, 0, 1, 2, 3, 4]
            return torch.cat([part["image_embeds"] for part in parts])[:, 0]

        drawn = torch.stack([epoch(number) for number in range(30)])  # (epochs, images)
        assert (drawn // 4 == torch.tensor([5, 0, 1, 2, 3, 4])).all()
        assert all(len(set(column.tolist())) == 4 for column in drawn.T)
        assert torch.equal(epoch(7), drawn[7])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_fresh_crops_each_epoch(self, model, dataset, workers):
        images = FreshCrops(model, dataset, seed=1, num_workers=workers)
        first, other, again = (list(images.batches(epoch, [[4, 1], [0]])) for epoch in (0, 1, 0))
        assert [part["labels"].tolist() for part in first] == [[4, 1], [0]]
        assert first[0]["pixel_values"].shape == (2, 3, 32, 32)
        assert torch.equal(first[0]["pixel_values"], again[0]["pixel_values"])
        assert not torch.allclose(first[0]["pixel_values"], other[0]["pixel_values"])

    def test_a_crop_does_not_depend_on_its_batch(self, model, dataset):
        images = FreshCrops(model, dataset, seed=1)
        (whole,) = images.batches(2, [[0, 1, 2]])
        (alone,) = images.batches(2, [[2]])
        assert torch.equal(whole["pixel_values"][2], alone["pixel_values"][0])
