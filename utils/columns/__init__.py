"""Columns one by one: instances, their axes and their places in the lattice."""
