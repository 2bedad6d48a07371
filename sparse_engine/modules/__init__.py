"""Reading torch modules: which ones may be read, and the weights that they compute with."""
