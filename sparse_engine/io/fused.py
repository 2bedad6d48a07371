"""Experts of checkpoints: transformers writes a tensor for each, and fuses them as it reads.

Mixtral has `block_sparse_moe.experts.3.w1.weight`, others `mlp.experts.3.gate_proj.weight`; the
model has `mlp.experts.gate_up_proj` of all experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sparse_engine.structures import Shape

STORED = re.compile(r"(.+\.experts)\.(\d{1,6})\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight")
PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def fused_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of the fused weights that transformers makes of experts, by their names.

    Experts that differ in their shapes, or lack some, are left out: transformers cannot fuse them.

    Args:
        shapes: of stored tensors by their names.

    Example:
        fused_shapes({"mlp.experts.0.w2.weight": (16, 8), "mlp.experts.1.w2.weight": (16, 8)})
    """
    found: dict[str, dict[str, dict[int, Shape]]] = {}
    renamed = {}
    for name, shape in shapes.items():
        inside = name.replace(".block_sparse_moe.", ".mlp.")
        if inside != name:
            renamed[inside] = shape
        if (match := STORED.fullmatch(inside)) and len(shape) == 2:
            experts, number, part = match.groups()
            parts = found.setdefault(experts, {})
            parts.setdefault(PARTS.get(part, part), {})[int(number)] = shape
    fused: dict[str, Shape] = {}
    for experts, parts in found.items():
        counts = {len(of) for of in parts.values()}
        alike = all(len(set(of.values())) == 1 for of in parts.values())
        if len(counts) > 1 or not alike or any(max(of) >= len(of) for of in parts.values()):
            continue
        count = counts.pop()
        own = {part: next(iter(of.values())) for part, of in parts.items()}
        gate, up = own.pop("gate_proj", None), own.get("up_proj")
        if gate is not None and up is not None:
            del own["up_proj"]
            own["gate_up_proj"] = (gate[0] + up[0], gate[1])
        fused |= {f"{experts}.{part}": (count, *shape) for part, shape in own.items()}
    return renamed | fused
