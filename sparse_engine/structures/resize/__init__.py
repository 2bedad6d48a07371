"""Removes rows and columns of modules, in place: one kind of module a file."""

from sparse_engine.structures.resize.resize import check_resizable, owner_of, resize_

__all__ = ["check_resizable", "owner_of", "resize_"]
