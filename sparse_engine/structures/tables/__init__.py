"""Tables that tell which rows and columns belong to a structure: one file a kind of model."""
