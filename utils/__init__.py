"""The rooms of the toolkit; this package imports nothing by itself.

- ``utils.simulation``: geometry, neurites, labels, fluorescence, imaging: parameters to arrays.
- ``utils.storage``: the HDF5 file: the only module that knows its layout.
- ``utils.data``: torch data sets over files, patches, and the one normaliser.
- ``utils.training``: losses, metrics, the training loop, the log directory.
- ``utils.prediction``: whole volumes through a network.
- ``utils.figures``: every picture and animation; the only module that imports matplotlib.
"""
