"""Random patches of simulated volumes, from one or several HDF5 files, as a torch data set.

Which patch item k of epoch e shows depends on (seed, e, k) alone, so that any number of worker
processes, forked or spawned, sees the same. Each process opens the files for itself, at first use.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.data.epochs import EpochDataset
from utils.data.indexing import item_index
from utils.data.normalize import PercentileNormalizer
from utils.data.patches import choose_patch
from utils.errors import UserError
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.simulation.volume import SimulatedVolume
from utils.storage import VolumeFile, version_note

FilePath = str | os.PathLike[str]


class SegmentationFake3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    The image lies in 0..1, scaled by its whole volume's percentiles; the mask is 0 or 1.
    ``background_threshold`` is the largest share of background in a patch; a volume without such
    patches gives its densest. An epoch has ``patches_per_epoch`` items (default: one a sample);
    where that is another number, the samples come in seeded random orders, one after the other
    across epochs, so that all are used evenly. ``fixed`` gives the patches of epoch 0 always.

    Raises UserError, naming the file, if one is missing, broken, or of other voxel numbers than the
    first, if the patch is larger than the volumes or a number is out of range.
    """

    def __init__(
        self,
        files: FilePath | Sequence[FilePath],
        *,
        patch_size: int = 64,
        background_threshold: float = 0.95,
        seed: int = 0,
        patches_per_epoch: int | None = None,
        fixed: bool = False,
        normalizer: PercentileNormalizer | None = None,
    ) -> None:
        paths = [files] if isinstance(files, str | os.PathLike) else list(files)
        self.files = [VolumeFile(path) for path in paths]
        self.volume_shape, self._ends = _check_files(self.files)
        _check_numbers(self.files[0].path, self.volume_shape, patch_size, background_threshold)
        if patches_per_epoch is not None and patches_per_epoch < 1:
            raise UserError(f"patches_per_epoch must be at least 1, got {patches_per_epoch}")
        self.patch_size = patch_size
        self.background_threshold = background_threshold
        self.seed = check_seed(seed)
        self.patches_per_epoch = patches_per_epoch
        self.fixed = fixed
        self.normalizer = normalizer or PercentileNormalizer()
        # In shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._fitted: dict[int, tuple[float, float]] = {}

    @property
    def num_samples(self) -> int:
        """Volumes in all files together."""
        return self._ends[-1]

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self.patches_per_epoch or self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose patches are given from now on, in all worker processes."""
        self._epoch.fill_(epoch)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and mask, (1, p, p, p) float32, of one patch."""
        item = item_index(item, len(self))
        epoch = 0 if self.fixed else int(self._epoch)
        sample = self._sample(epoch, item)
        file, row = self._locate(sample)
        slices, mask = choose_patch(
            lambda part: file.read_mask(row, part),
            self.volume_shape,
            (self.patch_size,) * 3,
            self.background_threshold,
            make_rng(Purpose.PATCH, self.seed, epoch, item),
        )
        image = self.normalizer.apply(file.read_image(row, slices), *self._percentiles(sample))
        return torch.from_numpy(image)[None], torch.from_numpy(mask.astype(np.float32))[None]

    def get_volume(self, index: int) -> SimulatedVolume:
        """Return a whole sample with everything that is known about it."""
        file, row = self._locate(index)
        return file.read_volume(row)

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the file of a sample and its row in there."""
        file, row = self._locate(index)
        return file.path, row

    def describe(self) -> list[dict[str, Any]]:
        """Return name, seed and number of samples of each file."""
        described = []
        for file in self.files:
            with file:
                described.append({"file": str(file.path), "seed": file.seed, "samples": len(file)})
        return described

    def column_spacing(self, samples: int = 256) -> list[float]:
        """Return the columns' spacing in voxels along x, y, z: the median over even samples."""
        chosen = np.unique(np.linspace(0, self.num_samples - 1, samples).round().astype(int))
        rows: dict[VolumeFile, list[int]] = {}
        for file, row in (self._locate(int(sample)) for sample in chosen):
            rows.setdefault(file, []).append(row)
        spacings = []
        for file, wanted in rows.items():
            with file:
                spacings += [file.parameters(row).spacing for row in wanted]
        return np.multiply(np.median(spacings), self.volume_shape).tolist()

    def _sample(self, epoch: int, item: int) -> int:
        """Return the sample that an item shows: itself, or its place in an endless even order."""
        if len(self) == self.num_samples:
            return item
        order, place = divmod(epoch * len(self) + item, self.num_samples)
        rng = make_rng(Purpose.SAMPLE_ORDER, self.seed, order)
        return int(rng.permutation(self.num_samples)[place])

    def _locate(self, index: int) -> tuple[VolumeFile, int]:
        index = item_index(index, self.num_samples, name="sample")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def _percentiles(self, sample: int) -> tuple[float, float]:
        """Return what the normaliser fits to a whole volume; the usual two stand in the file."""
        file, row = self._locate(sample)
        if self.normalizer == PercentileNormalizer():
            return file.percentiles(row)
        if sample not in self._fitted:
            self._fitted[sample] = self.normalizer.fit(file.read_image(row))
        return self._fitted[sample]


def _check_files(files: list[VolumeFile]) -> tuple[tuple[int, int, int], list[int]]:
    """Return the volumes' shape and the running number of samples; leaves the files closed.

    Warns of files of another version of the program.
    """
    if not files:
        raise UserError("no data file given; generate_3d_data.py makes them")
    shapes, lengths = [], []
    for file in files:
        with file:
            shapes.append(file.shape)
            lengths.append(len(file))
            note = version_note(file.path, file.program_version)
        if note:
            warnings.warn(note, stacklevel=3)
        if shapes[-1] != shapes[0]:
            raise UserError(
                f"{file.path}: volumes of {shapes[-1]} voxels, but {files[0].path} has {shapes[0]}"
            )
    return shapes[0], list(accumulate(lengths))


def _check_numbers(
    path: Path, shape: tuple[int, int, int], patch_size: int, background_threshold: float
) -> None:
    if not 1 <= patch_size <= min(shape):
        raise UserError(
            f"{path}: a patch of {patch_size} voxels an edge does not fit into volumes of {shape}"
        )
    if not 0 <= background_threshold <= 1:
        raise UserError(f"background_threshold must be in 0..1, got {background_threshold}")
