"""The HDF5 file of simulated volumes: its layout, how a row gets into it, and how it is read.

No module outside this package knows a dataset's name. Plain h5py opens the file without plugins;
``LAYOUT`` lists the datasets and each carries its text as the attribute ``description``. Axis order
is (x, y, z).

While a file is made, two neighbours stand beside its final name and nothing under it:

- ``NAME.partial`` is the HDF5 file with room for all images. An image goes straight into its place
  in that block, which HDF5 lays out as one plain array (chunks without a filter, allocated early).
- ``NAME.rows.partial`` is a journal that only grows: one record with a check sum for each sample,
  written after its image, holding the check sum of that image and all that is compressed or ragged.

A process killed at any moment thus leaves a whole journal up to a torn tail, and never HDF5 tables
that were half rewritten: these are written once, at the end, from the journal, in the order of the
samples. If that last step is cut short, the file's own tables are put back from the journal's head.
"""

from __future__ import annotations

from utils.storage.errors import RecipeMismatchError, StorageError
from utils.storage.journal import partial_path
from utils.storage.layout import (
    CHUNK_EDGE,
    FORMAT_VERSION,
    GZIP_LEVEL,
    LAYOUT,
    PROGRAM_VERSION,
    version_note,
)
from utils.storage.reading import VolumeFile
from utils.storage.recipe import Recipe, disk_space
from utils.storage.rows import EncodedRow, encode_row, stored_image
from utils.storage.writing import VolumeWriter, open_writer, remove_stray_journal

__all__ = [
    "CHUNK_EDGE",
    "FORMAT_VERSION",
    "GZIP_LEVEL",
    "LAYOUT",
    "PROGRAM_VERSION",
    "EncodedRow",
    "Recipe",
    "RecipeMismatchError",
    "StorageError",
    "VolumeFile",
    "VolumeWriter",
    "disk_space",
    "encode_row",
    "open_writer",
    "partial_path",
    "remove_stray_journal",
    "stored_image",
    "version_note",
]
