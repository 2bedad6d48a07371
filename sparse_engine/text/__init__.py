"""Texts as model inputs: tokens and batches, for calibration, tasks and serving."""
