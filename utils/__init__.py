"""The rooms of the toolkit, from the ground up; this package imports nothing by itself.

A room imports from those above it in this list alone (tests/test_doors.py), and docs/layout.md
says what stands in each.

- ``utils.errors``, ``flags``, ``replacing``, ``freed_memory``, ``devices``, ``provenance``: the
  ground that every room may use.
- ``utils.simulation``: geometry, neurites, labels, fluorescence, imaging: parameters to arrays.
- ``utils.storage``: the HDF5 files: the only room that knows their layouts.
- ``utils.stacks``: stacks of microscopes: formats, axes, units, crops.
- ``utils.data``: torch data sets over files, patches, augmentation, and the one normaliser.
- ``utils.checkpoints``: what training writes and prediction reads, and networks by name.
- ``utils.prediction``: whole stacks through a network, resampled to the voxels that it sees.
- ``utils.evaluation``: scores, their statistics and tables; draws nothing.
- ``utils.figures``: every picture and animation; the only room that imports matplotlib.
- ``utils.training``: losses, schedules, the training loop, the log directory.
- ``utils.search``: studies over the flags of the training scripts.
"""
