"""The rooms of the toolkit; this package imports nothing by itself.

- ``utils.simulation``: geometry, neurites, labels, fluorescence, imaging: parameters to arrays.
- ``utils.storage``: the HDF5 files: the only room that knows their layouts.
- ``utils.data``: torch data sets over files, patches, and the one normaliser.
- ``utils.training``: losses, metrics, the training loop, the log directory.
- ``utils.prediction``: whole volumes through a network.
- ``utils.figures``: every picture; the only room that imports matplotlib.
- ``utils.animations``, on the views of ``utils.rendering``: every moving picture.
- ``utils.flags``: the flag parser and one-line errors of all scripts.
- ``utils.freed_memory``: has the C library keep freed memory.
- ``utils.replacing``: files that appear whole or not at all.
"""
