"""Every picture; the only room that imports matplotlib.

Slices of volumes show x to the right and y upwards; lengths are voxels, or pixels in 2D. A
picture is written whole or not at all, in the format of its suffix. Importing this package imports
none of its modules.
"""
