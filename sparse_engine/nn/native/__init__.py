"""Stacks of Transformer layers that run in one native call."""
