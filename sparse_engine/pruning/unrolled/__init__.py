"""Modules of torch.nn and transformers as linear layers, so that they can be pruned like these.

One kind of module a file: which modules belong to it, their linear layers, whose weights share the
memory of the module, and a forward pass that runs these layers. The names of the layers are those
of the sparse modules in `sparse_engine.nn`: `lstm.ih_l0`, `attention.q_proj`, `conv.linears.0`,
`experts.gate_up_proj.3`. A new kind is a file and an entry in KINDS.
"""

from sparse_engine.pruning.unrolled.unroll import (
    KINDS,
    is_unrolled,
    kind_of,
    left_alone,
    unrolled,
)

__all__ = [
    "KINDS",
    "is_unrolled",
    "kind_of",
    "left_alone",
    "unrolled",
]
