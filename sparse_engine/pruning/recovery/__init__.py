"""What repairs the weights that are left after a cut."""
