"""The HDF5 file of simulated volumes: its layout, how a row gets into it, and how it is read.

No module outside this package knows a dataset's name. Plain h5py opens the file without plugins;
``volumes.py`` lists the datasets; each carries its text as the attribute ``description``. Axis
order is (x, y, z). While a file is made it has a temporary name, hidden beside its own.
"""

from utils.storage.files import in_words, version_note
from utils.storage.images import OtherParametersError
from utils.storage.volumes import (
    EncodedRow,
    VolumeFile,
    VolumeSet,
    disk_space,
    encode_row,
    stored_image,
    write_simulated_file,
)
