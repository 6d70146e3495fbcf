"""`HFCoOp.predict`: one image or many, in whatever form they come, also from forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSNAMES, PARITY
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_coop import HFCoOp
from hf_coop.hub import CardDetails


@pytest.fixture
def model() -> HFCoOp:
    torch.manual_seed(0)
    return HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=4).eval()


def assert_same(found: list[list[dict]], expected: list[list[dict]]) -> None:
    """The same but for the last bits, which depend on how many images go through the tower at a time."""
    for one, other in zip(found, expected, strict=True):
        assert [row["label"] for row in one] == [row["label"] for row in other]
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-6)


class TestPredict:
    def test_one_image_and_a_list(self, model, images):
        results = model.predict(images, top_k=3)
        assert [len(result) for result in results] == [3] * 4
        single = model.predict(images[0], top_k=3)
        assert [p["label"] for p in single] == [p["label"] for p in results[0]]
        assert single[0].keys() == {"label", "score"}
        for result in results:
            scores = [p["score"] for p in result]
            assert scores == sorted(scores, reverse=True)
            assert {p["label"] for p in result} <= set(CLASSNAMES)

    def test_scores_are_the_softmax_of_forward(self, model, images):
        pixels = model.image_processor(images=images, return_tensors="pt").pixel_values
        expected = model(pixel_values=pixels).logits.softmax(-1)
        for row, result in zip(expected.tolist(), model.predict(images, top_k=5), strict=True):
            assert {p["label"]: pytest.approx(p["score"], abs=1e-6) for p in result} == dict(
                zip(CLASSNAMES, row, strict=True)
            )

    def test_top_k(self, model, images):
        assert len(model.predict(images[0])) == 5
        assert len(model.predict(images[0], top_k=1)) == 1
        assert len(model.predict(images[0], top_k=99)) == 5
        with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
            model.predict(images[0], top_k=0)

    def test_any_batch_size_gives_the_same(self, model, images):
        together = model.predict(images, batch_size=4)
        for size in (1, 3):
            assert_same(model.predict(images, batch_size=size), together)
        assert model.predict([]) == []

    def test_paths_arrays_and_tensors(self, model, images, tmp_path):
        expected = model.predict(images[0])
        path = tmp_path / "image.png"
        images[0].save(path)
        array = np.asarray(images[0])
        for given in (path, str(path), array, array / 255, torch.from_numpy(array.copy()).permute(2, 0, 1)):
            assert model.predict(given) == expected
            assert model.predict([given]) == [expected]

    def test_restores_training_mode(self, model, images):
        model.train()
        model.predict(images)
        assert model.training
        assert model.clip.vision_model.training

    def test_half_precision(self, images):
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, dtype=torch.bfloat16)
        assert sum(p["score"] for p in model.predict(images[0])) == pytest.approx(1, abs=1e-5)

    def test_what_is_no_image_is_named(self, model, images, tmp_path):
        text = tmp_path / "notes.txt"
        text.write_text("no image")
        for bad, error, message in [
            (text, ValueError, "notes.txt"),
            (tmp_path / "missing.png", ValueError, "missing.png"),
            (tmp_path, ValueError, str(tmp_path)),
            (None, TypeError, "not an image: None"),
            (7, TypeError, "not an image: 7"),
            (np.zeros((3, 8, 8), np.uint8), ValueError, r"got \(3, 8, 8\)"),
            (np.zeros((0, 8, 3), np.uint8), ValueError, r"got \(0, 8, 3\)"),
            (np.full((8, 8), 300), ValueError, "300"),
            (np.full((8, 8), 1.5), ValueError, "from 0 to 1"),
            (np.full((8, 8), np.nan), ValueError, "from 0 to 1"),
            (np.array([["a", "b"]]), ValueError, "<U1"),
        ]:
            with pytest.raises(error, match=message):
                model.predict(bad)
            with pytest.raises(error, match="image 1: .*" + message):
                model.predict([images[0], bad])

    @pytest.mark.parametrize("option", ["top_k", "batch_size"])
    def test_options_are_whole_numbers_from_1(self, model, images, option):
        for given in (images, images[0], iter(images), []):
            for value in (0, -1):
                with pytest.raises(ValueError, match=f"{option} must be at least 1, got {value}"):
                    model.predict(given, **{option: value})
            for value in (None, 2.0, "3", True):
                with pytest.raises(TypeError, match=f"{option} must be a whole number, got {value!r}"):
                    model.predict(given, **{option: value})
        assert_same(model.predict(images, **{option: np.int64(2)}), model.predict(images, **{option: 2}))


class TestNoneOfThese:
    def test_lower_scores_are_left_out(self, model, images):
        every = model.predict(images)
        bound = sorted(row["score"] for prediction in every for row in prediction)[8]
        found = model.predict(images, min_score=bound)
        assert_same(found, [[row for row in prediction if row["score"] >= bound] for prediction in every])
        assert model.predict(images[0], min_score=1) == []
        assert list(model.predict(iter(images), min_score=1.0)) == [[]] * 4
        assert model.predict(images, min_score=0) == every

    def test_the_score_of_the_validation_images(self, model, images):
        with pytest.raises(ValueError, match="min_score='auto' is a score found on validation images"):
            model.predict(images, min_score="auto")
        bound = model.predict(images[0])[1]["score"] + 1e-6
        model.card_details = CardDetails(min_score=bound)
        assert len(model.predict(images[0], min_score="auto")) == 1
        model.set_classnames(["dog", "cow"])
        with pytest.raises(ValueError, match="or has other class names now"):
            model.predict(images, min_score="auto")

    @pytest.mark.parametrize(
        ("value", "error"), [(-0.1, ValueError), (1.5, ValueError), (float("nan"), ValueError), ("high", TypeError)]
    )
    def test_other_values(self, model, images, value, error):
        with pytest.raises(error, match=f"min_score must be .* or 'auto', got '?{value}"):
            model.predict(images, min_score=value)


class TestThreads:
    """One model, two adapters with different numbers of classes, and threads that do not know of each other."""

    NAMES = ("default", "birds")

    @pytest.fixture
    def both(self, model) -> HFCoOp:
        model.add_adapter("birds", type(model.prompt_config)(classnames=["red kite", "robin"], n_ctx=2))
        return model

    @staticmethod
    def in_threads(work: Callable[[int], Any]) -> list[Any]:
        switched = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                return list(pool.map(work, range(400)))
        finally:
            sys.setswitchinterval(switched)

    @pytest.mark.parametrize("training", [False, True])
    def test_each_gets_the_adapter_that_it_names(self, both, images, training):
        expected = {name: both.predict(images[0], adapter_name=name) for name in self.NAMES}
        assert {row["label"] for row in expected["birds"]} == {"red kite", "robin"}
        assert both.active_adapter == "default"
        both.train(training)
        found = self.in_threads(lambda n: both.predict(images[0], adapter_name=self.NAMES[n % 2]))
        assert [prediction == expected[self.NAMES[n % 2]] for n, prediction in enumerate(found)].count(True) == 400
        assert both.training == training
        assert all(module.training == training for module in both.modules())

    def test_names_and_scores_belong_together_whoever_sets_the_adapter(self, both, images):
        expected = [both.predict(images[0], adapter_name=name) for name in self.NAMES]

        def work(number: int) -> Any:
            both.set_adapter(self.NAMES[number % 2])
            return both.predict(images[0])

        assert all(prediction in expected for prediction in self.in_threads(work))

    def test_cocoop(self, images):
        torch.manual_seed(0)
        model = HFCoOp.from_clip(PARITY, CLASSNAMES, "cocoop", n_ctx=2)
        model.add_adapter("birds", type(model.prompt_config)(classnames=["red kite", "robin"], n_ctx=2))
        expected = {name: model.predict(images[0], adapter_name=name) for name in self.NAMES}
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: model.predict(images[0], adapter_name=self.NAMES[n % 2]), range(40)))
        assert found == [expected[self.NAMES[n % 2]] for n in range(40)]

    def test_no_such_adapter(self, both, images):
        with pytest.raises(ValueError, match="there is no adapter 'fish'; there are default, birds"):
            both.predict(images, adapter_name="fish")


class TestManyImages:
    """Whatever holds several images gives what a list of them gives."""

    @pytest.fixture
    def expected(self, model, images) -> list:
        return model.predict(images)

    @pytest.fixture
    def dataset(self, images) -> Dataset:
        features = Features({"number": Value("int64"), "image": ImageFeature()})
        return Dataset.from_dict({"number": range(4), "image": images}, features=features)

    def test_tuples_arrays_of_paths_and_files(self, model, images, expected, tmp_path):
        paths = [tmp_path / f"{number}.png" for number in range(4)]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        strings = [str(path) for path in paths]
        for given in (tuple(images), paths, np.array(strings), [path.read_bytes() for path in paths]):
            assert model.predict(given) == expected

    def test_batches_of_arrays_and_tensors(self, model, images):
        array = np.stack([np.asarray(image.resize((32, 32))) for image in images])
        expected = model.predict(list(array))
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
        for given in (array, array / 255, tensor, tensor / 255, list(tensor)):
            assert model.predict(given) == expected
        assert model.predict(tensor[:0]) == model.predict(array[:0]) == []

    @pytest.mark.parametrize("kind", [None, "torch", "numpy"])
    def test_a_data_set_or_its_column(self, model, dataset, expected, kind):
        formatted = dataset.with_format(kind)
        assert model.predict(formatted) == model.predict(formatted["image"]) == expected
        assert_same(model.predict(formatted["image"][:2]), expected[:2])
        assert_same(model.predict(formatted, batch_size=3, top_k=1), [row[:1] for row in expected])

    def test_undecoded_columns_and_other_names(self, model, dataset, expected):
        assert model.predict(dataset.cast_column("image", ImageFeature(decode=False))) == expected
        assert model.predict(dataset.rename_column("image", "photo")) == expected

    def test_a_streamed_data_set_is_predicted_as_it_comes(self, model, dataset, expected):
        stream = dataset.to_iterable_dataset()
        assert isinstance(stream, IterableDataset)
        for given in (stream, stream["image"]):
            found = model.predict(given, batch_size=2)
            assert isinstance(found, Iterator)
            assert_same(list(found), expected)

    def test_a_data_set_without_images_or_with_several_columns(self, model, dataset, images):
        twice = Dataset.from_dict({"a": images, "b": images}, features=Features(dict.fromkeys("ab", ImageFeature())))
        for given, message in (
            (dataset.remove_columns("image"), r"no column of images \(number\): give the column"),
            (twice, r"several columns of images \(a, b\): give the column"),
            (DatasetDict(train=dataset), r"these are splits \(train\): give one of them"),
        ):
            with pytest.raises(ValueError, match=message):
                model.predict(given)
        assert len(model.predict(twice["b"])) == 4

    def test_a_broken_image_of_a_column_is_numbered(self, model, images):
        cells = [images[0], {"bytes": b"no image", "path": None}]
        dataset = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
        for given in (dataset, dataset["image"]):
            with pytest.raises(ValueError, match="image 1: cannot be read"):
                model.predict(given)

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    @pytest.mark.parametrize("num_proc", [None, 2])
    def test_inside_map(self, model, dataset, expected, num_proc):
        rows = dataset.map(
            lambda rows: {"prediction": model.predict(rows["image"])}, batched=True, batch_size=2, num_proc=num_proc
        )
        assert_same(rows["prediction"][:], expected)


class TestIterators:
    def test_give_predictions_as_the_images_come(self, model, images):
        taken: list[int] = []

        def camera() -> Iterator[Image.Image]:
            for number in range(10**6):
                taken.append(number)
                yield images[number % 4]

        found = model.predict(camera(), batch_size=2)
        assert not taken
        first = [next(found), next(found)]
        assert taken == [0, 1]
        assert_same([*first, next(found)], model.predict(images[:3]))
        assert taken == [0, 1, 2, 3]

    def test_end_as_their_images_do(self, model, images):
        expected = model.predict(images)
        assert list(model.predict(iter(images))) == expected
        assert list(model.predict(image for image in images)) == expected
        assert_same(list(model.predict(iter(images), batch_size=3)), expected)
        assert list(model.predict(iter([]))) == []

    def test_the_model_can_be_trained_in_between(self, model, images, pixel_values):
        model.train()
        for _ in model.predict(iter(images), batch_size=2):
            assert model.training
            assert torch.is_grad_enabled()
            model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()

    def test_names_are_those_of_the_moment(self, model, images):
        found = model.predict(iter(images), batch_size=2)
        assert {row["label"] for row in next(found)} == set(CLASSNAMES)
        model.set_classnames(["dog", "cow"])
        assert {row["label"] for row in next(found)} == set(CLASSNAMES)  # of the batch before
        assert {row["label"] for row in next(found)} == {"dog", "cow"}

    def test_errors_come_with_their_image(self, model, images):
        found = model.predict(iter([*images[:2], "gone.png"]), batch_size=2)
        assert len([next(found), next(found)]) == 2
        with pytest.raises(ValueError, match=r"image 2: cannot read 'gone.png'"):
            next(found)

    def test_an_error_of_the_generator_is_its_own(self, model):
        def broken() -> Iterator[Image.Image]:
            raise OSError("the camera is off")
            yield

        with pytest.raises(OSError, match="the camera is off"):
            next(model.predict(broken()))


FORKED = """
import sys
import numpy as np
import torch
from datasets import Dataset, Features, Image
from hf_coop import HFCoOp
from hf_coop.demo import DEMO_CLIP

torch.set_num_threads(2)
model = HFCoOp.from_clip(DEMO_CLIP, ["zero", "one", "two"], n_ctx=4)
pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
rows = Dataset.from_dict({"image": list(pixels)}, features=Features({"image": Image()}))
expected = model.predict(rows)
assert torch.get_num_threads() == 2

def classify(rows):
    logits = model(pixel_values=model.image_processor(images=rows["image"], return_tensors="pt").pixel_values).logits
    return {"prediction": model.predict(rows["image"]), "logits": logits.detach().numpy()}

found = rows.map(classify, batched=True, batch_size=10, num_proc=2)
for prediction, wanted in zip(found["prediction"], expected, strict=True):
    assert [row["label"] for row in prediction] == [row["label"] for row in wanted]
assert len(model.predict(rows)) == 20  # and the parent goes on
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_workers_after_the_parent_has_predicted(tmp_path):
    """They hung at their first parallel operation, waiting for OpenMP threads that had stayed in the parent."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("done")
