"""Models larger than memory: a checkpoint is pruned, or converted, one module after the other.

In memory are one module, its Hessians and one calibration batch. Weights are read from the shards
of the checkpoint and written to copies of them; the hidden states of the calibration batches are on
the disk. A run that was interrupted continues after the last finished module.
"""

from sparse_engine.streaming.checkpoint import Checkpoint, open_checkpoint
from sparse_engine.streaming.convert import convert_checkpoint
from sparse_engine.streaming.draft import unfinished
from sparse_engine.streaming.memory import must_stream, return_freed_memory
from sparse_engine.streaming.prune import prune_checkpoint

__all__ = [
    "Checkpoint",
    "convert_checkpoint",
    "must_stream",
    "open_checkpoint",
    "prune_checkpoint",
    "return_freed_memory",
    "unfinished",
]
