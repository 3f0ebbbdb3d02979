"""Training of segmentation networks in two and three dimensions; import the modules themselves.

- ``utils.training.options``: flags to frozen options, with every check; imports no torch.
- ``utils.training.recipes``: bundles of flags; ``utils.training.resuming``: which flags may change.
- ``utils.training.device``: which device, precision and memory format a machine is fast at.
- ``utils.training.processes``, ``ranks``, ``watch``: several devices: who starts their processes,
  how these share batches and sums, how they end together.
- ``utils.training.replicates``: the same training once a seed, mean and interval.
- ``utils.training.losses`` and ``utils.training.metrics``: what is minimised, what is reported.
- ``utils.training.schedules``, ``averaging``, ``compiling``, ``determinism``: what a step may have.
- ``utils.training.learner``: network, optimiser, schedule and average, to a checkpoint and back.
- ``utils.training.loop``: epochs over batches, on Lightning Fabric.
- ``utils.training.experiment``: the log directory: records, checkpoints, pictures, how it ended.
- ``utils.training.pretrained``: networks known by name, with a card made from a run's records.
"""
