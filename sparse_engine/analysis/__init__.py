"""Which layers of a model bear how much pruning, what it costs and what it gains: `sensitivity`."""
