"""The HDF5 file of simulated volumes: its layout, how a row gets into it, and how it is read.

No module outside this package knows a dataset's name. Plain h5py opens the file without plugins;
``layout.py`` lists the datasets; each carries its text as the attribute ``description``. Axis
order is (x, y, z). While a file is made it has a temporary name, hidden beside its own.
"""

from utils.storage.images import OtherParametersError
from utils.storage.layout import version_note
from utils.storage.reading import VolumeFile
from utils.storage.rows import EncodedRow, encode_row, stored_image
from utils.storage.volume_set import VolumeSet, disk_space
from utils.storage.writing import in_words, new_volume_file, write_simulated_file
