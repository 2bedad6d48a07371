"""Learned masks: groups of weights, which of them are kept, and what training learns of them."""
