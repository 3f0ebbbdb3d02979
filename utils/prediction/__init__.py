"""From a trained network and a whole volume to probabilities, and from those to scores."""
