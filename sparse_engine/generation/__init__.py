"""Text generation: sampling, steps of a decoder with its cache, and tokens back to text."""
