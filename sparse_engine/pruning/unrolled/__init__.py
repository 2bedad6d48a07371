"""Modules of torch.nn and transformers as linear layers, so that they are pruned as those are.

One kind a file: which modules it takes, the linear layers in them, whose weights share the module's
memory, and a forward pass that runs these. Names of the layers are those of the sparse twins in
`sparse_engine.nn`: `lstm.ih_l0`, `attention.q_proj`, `conv.linears.0`, `experts.gate_up_proj.3`.
"""

from sparse_engine.pruning.unrolled.experts import RoutedLinear
from sparse_engine.pruning.unrolled.swap import (
    KINDS,
    is_unrolled,
    kind_of,
    left_alone,
    unrolled,
)

__all__ = [
    "KINDS",
    "RoutedLinear",
    "is_unrolled",
    "kind_of",
    "left_alone",
    "unrolled",
]
