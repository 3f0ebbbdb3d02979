"""The 2D data sets: items, seeds, files, targets, and one clear error for each mistake."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader

from tests.conftest import write_fake_file
from utils.data import (
    KeypointDetectionFake2DDataset,
    RegressionFake2DDataset,
    SegmentationFake2DDataset,
)
from utils.data.images import Fake2DDataset, heat_map
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.simulation import GeometryError
from utils.simulation.image import ImageConfig, image_rng, simulate_image
from utils.storage import OtherParametersError

EXPECTED_HASH = "cf479283741af4f9"
"""Of the first two items of seed 111, with the pinned versions."""


@pytest.fixture(scope="module")
def dataset() -> SegmentationFake2DDataset:
    return SegmentationFake2DDataset(L=6, seed=0)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.h5"
    SegmentationFake2DDataset(L=6, seed=0, h5path=path)
    return path


def same(first: Fake2DDataset, second: Fake2DDataset, count: int) -> bool:
    return all(
        torch.equal(a, b) for i in range(count) for a, b in zip(first[i], second[i], strict=True)
    )


def test_items(dataset: SegmentationFake2DDataset) -> None:
    assert len(dataset) == 6
    for image, mask in dataset:
        assert image.shape == mask.shape == (1, 128, 128)
        assert image.dtype == mask.dtype == torch.float32
        assert image.min() == 0.0 and image.max() == 1.0
        assert set(mask.unique().tolist()) == {0.0, 1.0} and mask.mean() >= 0.30
    with pytest.raises(IndexError, match="item 6 is outside -6..5"):
        dataset[6]
    assert torch.equal(dataset[-1][0], dataset[5][0])


def test_one_percent_of_an_image_is_clipped_at_each_end(dataset: SegmentationFake2DDataset) -> None:
    image = dataset[3][0].numpy()
    assert (image == 0).mean() == pytest.approx(0.01, abs=0.002)
    assert (image == 1).mean() == pytest.approx(0.01, abs=0.002)


def test_a_sample_does_not_depend_on_how_many_there_are(dataset: SegmentationFake2DDataset) -> None:
    assert same(dataset, SegmentationFake2DDataset(L=2, seed=0), 2)
    assert not same(dataset, SegmentationFake2DDataset(L=1, seed=1), 1)


def test_samples_are_those_of_earlier_runs() -> None:
    content = b"".join(
        np.round(part.numpy() * 1e4).astype(np.int32).tobytes()
        for item in SegmentationFake2DDataset(L=2, seed=111)
        for part in item
    )
    assert hashlib.sha256(content).hexdigest()[:16] == EXPECTED_HASH


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_see_the_same(file: Path, dataset: SegmentationFake2DDataset, context: str) -> None:
    loaded = SegmentationFake2DDataset(L=6, seed=0, h5path=file)
    loader = DataLoader(loaded, batch_size=3, num_workers=2, multiprocessing_context=context)
    images = torch.cat([image for image, _ in loader])
    assert torch.equal(images, torch.stack([image for image, _ in dataset]))


def test_items_are_copies(dataset: SegmentationFake2DDataset) -> None:
    before = dataset[0][0].clone()
    dataset[0][0].zero_()
    dataset.centres(0)[:] = 0
    assert torch.equal(dataset[0][0], before) and dataset.centres(0).min() > 0


def test_seeds() -> None:
    first, second = SegmentationFake2DDataset(L=1), SegmentationFake2DDataset(L=1)
    assert first.seed != second.seed
    assert same(first, SegmentationFake2DDataset(L=1, seed=first.seed), 1)
    assert SegmentationFake2DDataset(L=1, seed=0).seed == 0


def test_simulating_again_gives_the_whole_record(dataset: SegmentationFake2DDataset) -> None:
    sample = simulate_image(dataset.config, image_rng(dataset.seed, 2))
    np.testing.assert_array_equal(sample.mask, dataset[2][1][0].numpy())
    np.testing.assert_array_equal(sample.centres, dataset.centres(2))


# Files ------------------------------------------------------------------------------------------


def test_a_file_is_made_once_and_then_loaded(
    file: Path, dataset: SegmentationFake2DDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.data.images.simulate_image", None)
    before = file.read_bytes()
    for seed, count in ((0, 6), (None, 6), (0, 4)):
        loaded = SegmentationFake2DDataset(L=count, seed=seed, h5path=str(file))
        assert loaded.seed == 0 and len(loaded) == count
        assert same(loaded, dataset, count)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_plain_h5py_reads_the_file(file: Path, dataset: SegmentationFake2DDataset) -> None:
    with h5py.File(file) as content:
        assert content.attrs["seed"] == 0 and content.attrs["num_samples"] == 6
        np.testing.assert_array_equal(content["image_data"][1], dataset[1][0][0].numpy())
        np.testing.assert_array_equal(content["image_labels"][1], dataset[1][1][0].numpy())
        points = content["points"][1].reshape(-1, 2)
        np.testing.assert_array_equal(points, dataset.centres(1))
        assert all("description" in content[name].attrs for name in content)


def test_a_fresh_seed_is_kept_in_the_file(tmp_path: Path) -> None:
    made = SegmentationFake2DDataset(L=1, h5path=tmp_path / "a.h5")
    loaded = SegmentationFake2DDataset(L=1, h5path=tmp_path / "a.h5")
    assert loaded.seed == made.seed and same(made, loaded, 1)


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        ({"seed": 1}, "seed is 0, asked for 1"),
        ({"L": 7}, "L .number of samples. is 6, asked for 7"),
        ({"v_std": 2.0}, "v_std is 5.0, asked for 2.0"),
        ({"shape": (64, 64), "seed": 3}, "shape is .*; seed is 0"),
    ],
)
def test_another_file_is_refused(file: Path, asked: dict, difference: str) -> None:
    with pytest.raises(OtherParametersError, match=f"images.h5: other parameters: .*{difference}"):
        SegmentationFake2DDataset(**{"L": 6, "seed": 0, "h5path": file, **asked})


def test_a_file_of_another_version_is_read_with_a_note_and_not_continued(
    file: Path, dataset: SegmentationFake2DDataset, tmp_path: Path
) -> None:
    old = tmp_path / "old.h5"
    old.write_bytes(file.read_bytes())
    with h5py.File(old, "r+") as content:
        content.attrs["program_version"] = "0.1"
    before = old.read_bytes()
    with pytest.warns(UserWarning, match="old.h5 was made by version 0.1 .* is read as it is"):
        loaded = SegmentationFake2DDataset(L=6, seed=0, h5path=old)
    assert same(loaded, dataset, 6)
    assert loaded.describe()["version"] == "0.1"
    with (
        pytest.warns(UserWarning, match="version 0.1"),
        pytest.raises(OtherParametersError, match="L .number of samples. is 6, asked for 7"),
    ):
        SegmentationFake2DDataset(L=7, seed=0, h5path=old)
    assert old.read_bytes() == before


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    """Write one file of each kind that cannot be loaded, and name what its error says."""
    text, volumes, cut, foreign = (folder / f"{n}.h5" for n in ("text", "volumes", "cut", "other"))
    text.write_text("not HDF5")
    write_fake_file(volumes, num_samples=1)
    cut.write_bytes(good.read_bytes()[:50_000])
    with h5py.File(foreign, "w") as content:
        content["image_data"] = np.zeros((1, 8, 8))
    return {
        "text.h5: truncated or not HDF5": text,
        "volumes.h5: holds 3D volumes": volumes,
        "cut.h5: truncated or not HDF5": cut,
        "other.h5: not a file of simulated images: lacks image_labels": foreign,
        "nowhere does not exist": folder / "nowhere" / "x.h5",
        "is a folder": folder,
        # A folder in which nobody, not even root, can make a file.
        "/proc/x.h5: cannot be written": Path("/proc/x.h5"),
    }


def test_files_that_cannot_be_loaded_or_made(file: Path, tmp_path: Path) -> None:
    for message, path in broken_files(tmp_path, file).items():
        with pytest.raises(UserError, match=message):
            SegmentationFake2DDataset(L=1, seed=0, h5path=path)
    assert not (tmp_path / "nowhere").exists()


def test_an_error_while_saving_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GeometryError):
        SegmentationFake2DDataset(L=2, h5path=tmp_path / "a.h5", min_labelled=0.9, max_tries=5)
    monkeypatch.setattr("utils.data.images.simulate_image", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        SegmentationFake2DDataset(L=2, h5path=tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_kill_while_saving_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "from utils.data import SegmentationFake2DDataset as S;"
        "S(L=100_000, seed=0, h5path='images.h5', shape=(32, 32), min_labelled=0.1)"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 240
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    left = [path.name for path in tmp_path.iterdir()]
    assert left and "images.h5" not in left
    small = {"shape": (32, 32), "min_labelled": 0.1}
    again = SegmentationFake2DDataset(L=2, seed=0, h5path=tmp_path / "images.h5", **small)
    assert same(again, SegmentationFake2DDataset(L=2, seed=0, **small), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["images.h5"]


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -3, 2.5, "4", None])
def test_bad_lengths(count: object) -> None:
    with pytest.raises(ValueError, match="L must be a whole number of at least 1"):
        SegmentationFake2DDataset(L=count, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "a"])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(UserError, match="seed .*: must be a whole number of at least 0 and below"):
        SegmentationFake2DDataset(L=1, seed=seed)


def test_bad_parameters() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument .colour"):
        SegmentationFake2DDataset(L=1, colour=1)
    with pytest.raises(ValueError, match="min_labelled 2"):
        SegmentationFake2DDataset(L=1, min_labelled=2)
    with pytest.raises(GeometryError, match="min_labelled 0.8 .* none of 2000 placements"):
        SegmentationFake2DDataset(L=1, seed=0, min_labelled=0.8)


def test_every_parameter_is_documented_and_reaches_the_generator() -> None:
    for field in fields(ImageConfig):
        assert f"{field.name} " in Fake2DDataset.__init__.__doc__
    changed = SegmentationFake2DDataset(L=1, seed=0, shape=[64, 80], label_radius=2, min_labelled=0)
    assert changed.config == ImageConfig(shape=(64, 80), label_radius=2, min_labelled=0)
    assert changed[0][0].shape == (1, 64, 80)


def test_repr(file: Path) -> None:
    text = repr(SegmentationFake2DDataset(L=1, seed=0))
    assert text == "SegmentationFake2DDataset(1 images of 128 x 128, seed 0, in memory)"
    assert f"in {file}" in repr(SegmentationFake2DDataset(L=6, h5path=file))


def test_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    SegmentationFake2DDataset(L=1, seed=0)
    assert capsys.readouterr().err == ""  # it is no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    SegmentationFake2DDataset(L=1, seed=0)
    assert "Simulating" in capsys.readouterr().err


def test_show_draws_the_image_with_outlines_and_centres_beside_it(
    dataset: SegmentationFake2DDataset,
) -> None:
    picture = dataset.show(1)
    pixels = np.asarray(picture).astype(int)
    assert picture.width > 400 and picture._repr_png_()
    half = pixels.shape[1] // 2
    orange = (pixels[..., 0] > 200) & (pixels[..., 2] < 80)
    assert orange[:, half:].sum() > 1_000 and orange[:, :half].sum() == 0
    assert not np.array_equal(pixels, np.asarray(dataset.show(2)).astype(int))


def test_pickling(dataset: SegmentationFake2DDataset) -> None:
    assert same(pickle.loads(pickle.dumps(dataset)), dataset, 6)


# Targets ----------------------------------------------------------------------------------------


def test_keypoints(dataset: SegmentationFake2DDataset) -> None:
    keypoints = KeypointDetectionFake2DDataset(L=3, seed=0)
    image, heat, centres = keypoints[1]
    assert torch.equal(image, dataset[1][0])
    assert heat.shape == (1, 128, 128) and centres.shape == (128, 2)
    assert heat.dtype == centres.dtype == torch.float32
    count = len(dataset.centres(1))
    np.testing.assert_array_equal(centres[:count], dataset.centres(1))
    assert torch.all(centres[count:] == 999.0) and 0 < count < 128
    # Within half a pixel per axis of the centre the bump is almost at its height of 1.
    at_centres = heat[0].numpy()[tuple(centres[:count].long().T.numpy())]
    assert np.all(at_centres > np.exp(-0.5 / 8.0) - 1e-6) and heat.max() <= 1.0
    pair = KeypointDetectionFake2DDataset(L=3, seed=0, with_centres=False)[1]
    assert len(pair) == 2 and torch.equal(pair[1], heat)


@pytest.mark.parametrize(
    ("type", "sigma", "expected"),
    [
        ("Gaussian", 2.0, np.exp(-9.0 / 8.0)),
        ("Cauchy", 2.0, 4.0 / 13.0),
        ("Gaussian", 3.0, np.exp(-0.5)),
    ],
)
def test_heat_map_three_pixels_from_a_centre(type: str, sigma: float, expected: float) -> None:
    heat = heat_map((20, 24), np.array([[10.5, 4.5]], np.float32), sigma, type)
    assert heat[10, 4] == 1.0
    assert heat[13, 4] == pytest.approx(expected) == heat[10, 7]


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.just(2)), elements=st.floats(0, 12, width=32)
    )
)
def test_heat_map_is_the_largest_bump(centres: np.ndarray) -> None:
    whole = heat_map((12, 9), centres)
    single = [heat_map((12, 9), centre[None]) for centre in centres]
    np.testing.assert_allclose(whole, np.max(single, axis=0), rtol=1e-6)


def test_regression(dataset: SegmentationFake2DDataset) -> None:
    image, centres = RegressionFake2DDataset(L=2, seed=0)[1]
    count = len(dataset.centres(1))
    assert torch.equal(image, dataset[1][0]) and centres.shape == (128, 2)
    np.testing.assert_allclose(centres[:count] * 128 + 64, dataset.centres(1), atol=1e-4)
    assert torch.all(centres[count:] == centres[0]) and centres.abs().max() <= 0.5


def test_bad_heat_maps() -> None:
    with pytest.raises(ValueError, match="type 'gauss': must be one of Gaussian, Cauchy"):
        KeypointDetectionFake2DDataset(L=1, type="gauss")
    with pytest.raises(ValueError, match="sigma 0"):
        KeypointDetectionFake2DDataset(L=1, sigma=0)


def test_images_are_scaled_by_plain_percentiles() -> None:
    """Bright spots are sparse: another rule would make other images of the same seed."""
    dataset, others = SegmentationFake2DDataset(L=20, seed=5), 0
    for index in range(len(dataset)):
        image = simulate_image(dataset.config, image_rng(5, index)).image
        low, high = np.percentile(image, (1, 99))
        expected = PercentileNormalizer().apply(image, float(low), float(high))
        np.testing.assert_array_equal(dataset[index][0][0].numpy(), expected)
        others += PercentileNormalizer().fit(image)[1] > 1.01 * high
    assert others
