"""Models to sparse ones and back: which modules are swapped, and the report."""
