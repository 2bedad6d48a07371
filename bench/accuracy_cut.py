"""Structures cut from all-MiniLM-L6-v2 and from the tagger g2pM, and what plain torch gains.

The tasks are those of accuracy_sick.py and accuracy_tagger.py, with their data. Heads, units and
layers are taken out, so that the model is a smaller one in plain torch; its speed there is measured
in turn with the dense one, on one text of 128 tokens.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from accuracy_rows import Setting
from accuracy_sick import Sick
from accuracy_tagger import Tagger
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_engine.bench.timing import time_in_turn
from sparse_engine.pruning.target.timing import inputs_of

TOKENS = 128
LEAST_SQUARES = "least_squares"


class CutSick(Sick):
    """Heads and feed-forward units of MiniLM; figures of `Sick`, and of sizes and speeds.

    `parameters` is the share that is left of those in the layers of the stack, `promised` the ratio
    of the operations of the dense model to those that are left, `faster` that of the times.
    """

    name = "cut"
    columns = ("rho", "cosine", "parameters", "promised", "faster")
    methods = (
        ("random", LEAST_SQUARES),
        ("magnitude", LEAST_SQUARES),
        ("activation", LEAST_SQUARES),
        ("taylor", LEAST_SQUARES),
        ("fisher", LEAST_SQUARES),
        ("obs", LEAST_SQUARES),
        ("obs", LEAST_SQUARES, "raw"),
        ("fisher", LEAST_SQUARES, "raw"),
        ("random", "none"),
        ("obs", "none"),
    )
    points = (("head,unit", 0.25), ("head,unit", 0.5))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model in torch."""
        inputs: Any = inputs_of(self.dense, TOKENS, [])
        with torch.inference_mode():
            flops = operations(self.dense, inputs) / operations(model, inputs)
            both = {"dense": lambda: self.dense(**inputs), "cut": lambda: model(**inputs)}
            times = time_in_turn(both)
        sizes = [stack_parameters(one) for one in (model, self.dense)]
        return super().evaluate(model) | {
            "parameters": round(sizes[0] / sizes[1], 3),
            "promised": round(flops, 2),
            "faster": round(times["dense"] / times["cut"], 2),
        }


class CutLayers(CutSick):
    """Whole layers of MiniLM: one and two of six."""

    name = "cut-layers"
    methods = (
        ("last", "none"),
        ("last", LEAST_SQUARES),
        ("random", LEAST_SQUARES),
        ("activation", LEAST_SQUARES),
        ("influence", LEAST_SQUARES),
        ("outputs", "none"),
        ("outputs", LEAST_SQUARES),
        ("outputs", "blocks"),
    )
    points = (("layer", 1 / 6), ("layer", 1 / 3))


class CutTagger(Tagger):
    """Units of the bidirectional LSTM of the tagger."""

    name = "cut-tagger"
    methods = tuple(product(("random", "magnitude", "obs"), (LEAST_SQUARES,)))
    points = (("unit", 1 / 3), ("unit", 0.5))

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`; the network alone loses units."""
        return {
            "calibration": super().arguments(setting)["calibration"],
            "layers": ["rnn"],
        }


def operations(model: Any, inputs: dict[str, Any]) -> int:
    """Floating-point operations of the matrix products of a call, attention included."""
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def stack_parameters(model: nn.Module) -> int:
    """Parameters without those of embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
