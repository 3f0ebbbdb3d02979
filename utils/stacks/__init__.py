"""Stacks as microscopes and other programs leave them: read slab by slab, written by their ending.

Every reader and writer is a library's; none of them is let run code from a file.
"""

from utils.stacks.endings import ENDINGS, format_of, split_ending, zarr_around
from utils.stacks.opening import check_input, crop_stack, list_stacks, open_stack
from utils.stacks.stack import FileArray, Stack, StackLayout
from utils.stacks.writing import check_output, write_stack
