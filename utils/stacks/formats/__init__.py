"""Readers and writers of stacks, a file a format."""
