"""What training writes and prediction reads: checkpoints, and networks known by name."""
