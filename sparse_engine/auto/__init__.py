"""format="auto": the formats that fit a weight are timed, and one is chosen."""
