"""Every picture; the only room that imports matplotlib.

Slices of volumes show x to the right and y upwards; lengths are voxels, or pixels in 2D. Pictures
are written whole or not at all. matplotlib is imported by the first figure, so that importing this
package and ``python -m utils.figures --help`` cost nothing.
"""
