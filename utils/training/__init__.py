"""Training of segmentation networks in two and three dimensions; import the modules themselves.

- ``utils.training.flag_table``: what each flag means; the scripts hold the defaults.
- ``utils.training.options``: flags to frozen options, with every check; imports no torch.
- ``utils.training.run``: what both scripts do with flags, network and data.
- ``utils.training.recipes``: bundles of flags; ``utils.training.resuming``: which flags may change.
- ``utils.training.fabric``, ``ranks``: several devices: who starts their processes, how these share
  batches and sums.
- ``utils.training.losses``: what is minimised.
- ``utils.training.schedules``, ``averaging``, ``compiling``, ``precision``: what a step may have.
- ``utils.training.loop``: epochs over batches, on Lightning Fabric.
- ``utils.training.loaders``, ``records``: what goes into an epoch, and what comes out.
- ``utils.training.state``: network, optimiser, schedule and average, to a checkpoint and back.
- ``utils.training.experiment``: the log directory: records, checkpoints, pictures.
- ``utils.training.ending``: Ctrl-C, failures, exit status, and how they are recorded.
"""
