"""Random patches of simulated volumes, from one or several HDF5 files, as a torch data set.

Which patch item k of epoch e shows depends on (seed, e, k) alone, so that any number of worker
processes, forked or spawned, sees the same. Each process opens the files for itself, at first use.
"""

import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np
import torch

from utils.data.epochs import EpochDataset, in_turn, item_index
from utils.data.patches import check_patches, choose_patch
from utils.errors import UserError
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.storage import VolumeFile, version_note

FilePath = str | os.PathLike[str]


@dataclass(eq=False, repr=False)
class SegmentationFake3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    The image lies in 0..1, scaled by its whole volume's percentiles; the mask is 0 or 1.
    ``background_threshold`` is the largest share of background in a patch; a volume without such
    patches gives its densest. An epoch has ``patches_per_epoch`` items (default: one a sample);
    where that is another number, the samples come in seeded random orders, one after the other
    across epochs, so that all are used evenly.

    Raises UserError, naming the file, if one is missing, broken, or of other voxel numbers than the
    first, if the patch is larger than the volumes or a number is out of range. Warns of files of
    another version of the program.
    """

    files: InitVar[FilePath | Sequence[FilePath]]
    _: KW_ONLY
    patch_size: int = 64
    background_threshold: float = 0.95
    seed: int = 0
    patches_per_epoch: int | None = None

    def __post_init__(self, files: FilePath | Sequence[FilePath]) -> None:
        super().__init__()
        paths = [files] if isinstance(files, str | os.PathLike) else files
        self.files = [VolumeFile(path) for path in paths]
        if not self.files:
            raise UserError("no data file given; generate_3d_data.py makes them")
        shapes, self._rows = [], []
        for file in self.files:
            with file:
                shapes.append(file.shape)
                self._rows += [(file, row) for row in range(len(file))]
                note = version_note(file.path, file.program_version)
            if note:
                warnings.warn(note, stacklevel=3)
            if shapes[-1] != shapes[0]:
                other = f"but {self.files[0].path} has {shapes[0]}"
                raise UserError(f"{file.path}: volumes of {shapes[-1]} voxels, {other}")
        self.volume_shape = shapes[0]
        self.seed = check_seed(self.seed)
        number = {"patches_per_epoch": self.patches_per_epoch}
        check_patches(self.volume_shape, self.patch_size, self.background_threshold, **number)

    @property
    def num_samples(self) -> int:
        """Volumes in all files together."""
        return len(self._rows)

    def __len__(self) -> int:
        return self.patches_per_epoch or self.num_samples

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        item = item_index(item, len(self))
        file, row = self._rows[self._sample(self.epoch, item)]
        shapes = self.volume_shape, (self.patch_size,) * 3
        rng = make_rng(Purpose.PATCH, self.seed, self.epoch, item)
        read_mask = functools.partial(file.read_mask, row)
        slices, mask = choose_patch(read_mask, *shapes, self.background_threshold, rng)
        image = self.normalizer.apply(file.read_image(row, slices), *file.percentiles(row))
        return torch.from_numpy(image)[None], torch.from_numpy(mask.astype(np.float32))[None]

    def describe(self) -> list[dict[str, Any]]:
        """Return name, seed, number of samples and the simulation's version of each file."""
        described = []
        for file in self.files:
            with file:
                found = {"file": str(file.path), "seed": file.seed, "samples": len(file)}
                described.append(found | {"version": file.program_version})
        return described

    def column_spacing(self, samples: int = 256) -> list[float]:
        """Return the columns' spacing in voxels along x, y, z: the median over even samples."""
        chosen = np.unique(np.linspace(0, self.num_samples - 1, samples).round().astype(int))
        rows = [self._rows[sample] for sample in chosen]
        spacings = [f.parameters(row).spacing_voxels(self.volume_shape) for f, row in rows]
        for file in self.files:
            file.close()
        return np.median(spacings, axis=0).tolist()

    def _sample(self, epoch: int, item: int) -> int:
        """Return the sample that an item shows: itself, or its place in an endless even order."""
        if len(self) == self.num_samples:
            return item
        return in_turn(self.seed, epoch * len(self) + item, self.num_samples)
