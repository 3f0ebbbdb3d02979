"""Training of segmentation networks in 2D and 3D; docs/layout.md lists the modules."""
