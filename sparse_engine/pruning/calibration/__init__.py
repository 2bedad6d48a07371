"""Calibration inputs: the batches that the model is run on to collect statistics."""

from sparse_engine.pruning.calibration.batch import Batch
from sparse_engine.pruning.calibration.fingerprint import fingerprint
from sparse_engine.pruning.calibration.merge import merge_batches
from sparse_engine.pruning.calibration.read import check_iterable, read_calibration
from sparse_engine.pruning.calibration.split import split_batches

__all__ = [
    "Batch",
    "check_iterable",
    "fingerprint",
    "merge_batches",
    "read_calibration",
    "split_batches",
]
