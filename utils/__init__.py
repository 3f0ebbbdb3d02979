"""The rooms of the toolkit; this package imports nothing by itself.

docs/layout.md says what stands in each, and from which others it may import.
"""
