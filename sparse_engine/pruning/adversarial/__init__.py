"""Soft masks of structures, trained against a discriminator: no labels, only the dense model."""

from sparse_engine.pruning.adversarial.masks import train_masks

__all__ = ["train_masks"]
