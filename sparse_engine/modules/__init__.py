"""Reading torch modules: which may be read instead of called, and the weights they compute with."""
