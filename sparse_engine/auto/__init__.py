"""format="auto": the formats that fit a weight are timed on this machine, and one is chosen."""
