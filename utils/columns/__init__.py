"""From masks and probabilities to columns, each with its axis and its place in the lattice."""
