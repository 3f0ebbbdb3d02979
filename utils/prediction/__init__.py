"""From a trained network and a stack of any size to probabilities and a mask."""
