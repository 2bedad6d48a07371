"""Packings that the CPU kernels read."""
