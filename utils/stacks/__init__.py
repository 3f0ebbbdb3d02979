"""Stacks as microscopes and other programs leave them: read slab by slab, written by their ending.

Every reader and writer is a library's; none of them is let run code from a file.
"""

from utils.stacks.endings import (
    ENDINGS,
    check_output,
    format_of,
    split_ending,
    write_stack,
    zarr_around,
)
from utils.stacks.opening import check_input, crop_stack, list_stacks, open_stack
from utils.stacks.stack import FileArray, Stack, StackLayout
