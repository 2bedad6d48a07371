"""A recurrent controller: a policy that learns how much of each layer to remove."""
