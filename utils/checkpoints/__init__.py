"""What training writes and prediction reads.

- ``utils.checkpoints.loading``: a checkpoint by its path, its log directory or a network's name.
- ``utils.checkpoints.pretrained``: networks known by name, with a card made from a run's records.
"""
