"""Packings that the Triton kernels read."""
