"""NativeRecurrent: a recurrent network as the library reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparse_engine import _core
from sparse_engine.formats import Format
from sparse_engine.modules.watch import Watched, child_entries, tensor_entry
from sparse_engine.nn.recurrent.weights import BLOCK, same, version
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Strips
from sparse_engine.packings.cpu.purposes import (
    for_panels,
    for_rows,
    for_steps_on_panels,
    for_steps_on_rows,
)

if TYPE_CHECKING:
    from sparse_engine.nn.recurrent.base import SparseRNNBase

FEW, FEW_ON_STRIPS = _core.ROW_TOKENS, 16
"""As many sequences as run on kernels for few tokens, and with tall blocks; more have a lane each."""
CELLS = {"RNN_TANH": 0, "RNN_RELU": 1, "LSTM": 2, "GRU": 3}


class NativeRecurrent:
    """The library's views of a network: for many sequences, for a few, and for their single steps.

    What a view needs in another packing than a layer holds is made once and kept. The network comes
    with each call, so that it holds its views and they do not hold it.
    """

    def __init__(self) -> None:
        self._views: dict[str, _core.Recurrent] = {}
        self._packings: dict[tuple[str, str], tuple[Any, Format]] = {}
        self._watched: list[Watched] = []
        self._few = FEW

    def known(self, batch: int, tokens: int) -> _core.Recurrent | None:
        """The view for so many sequences if there is one and nothing was replaced or written to."""
        view = self._views.get(self._kind(batch, tokens))
        return view if view is not None and _core.unchanged(self._watched) else None

    def view(self, network: SparseRNNBase, batch: int, tokens: int) -> _core.Recurrent:
        """The same, made where it is missing."""
        if not self._watched or not _core.unchanged(self._watched):
            self._look(network)
        kind = self._kind(batch, tokens)
        if kind not in self._views:
            self._views[kind] = self._build(network, kind)
        return self._views[kind]

    def _kind(self, batch: int, tokens: int) -> str:
        return "panels" if batch > self._few else "rows" if tokens > FEW else "steps"

    def _look(self, network: SparseRNNBase) -> None:
        layers = network.layers()
        self._views = {}
        self._watched = [
            *child_entries([network]),
            *(tensor_entry(layer._buffers, name) for _, layer in layers for name in layer._buffers),
        ]
        strips = all(isinstance(layer.packed, Strips) for n, layer in layers if n[:2] != "ih")
        self._few = FEW_ON_STRIPS if strips else FEW

    def _build(self, network: SparseRNNBase, kind: str) -> _core.Recurrent:
        return _core.Recurrent(
            CELLS[network.mode],
            network.input_size,
            network.hidden_size,
            network.out_size,
            network.directions,
            [
                [self._direction(network, f"l{i}{end}", kind) for end in network.ends]
                for i in range(network.num_layers)
            ],
        )

    def _direction(self, network: SparseRNNBase, which: str, kind: str) -> tuple[Any, Any, Any]:
        b_ih, b_hh = network.step_biases(which)
        rows = kind != "panels"
        return (
            self._linear(network, f"ih_{which}", kind == "steps", b_ih),
            self._linear(network, f"hh_{which}", rows, b_hh),
            self._linear(network, f"hr_{which}", rows, None) if network.proj_size else None,
        )

    def _linear(self, network: SparseRNNBase, name: str, rows: bool, bias: Tensor | None) -> Any:
        packed: Any = network.get_submodule(name).packed
        key = name, "rows" if rows else "panels"
        made = self._packings.get(key)
        tensors = packed.tensors().values()
        seen = (packed, *map(version, tensors), *(tensor.data_ptr() for tensor in tensors))
        if made is None or not same(made[0], seen):
            if name.startswith("hh"):
                together = BLOCK * network.gates
                turned = (
                    for_steps_on_rows(packed) if rows else for_steps_on_panels(packed, together)
                )
            else:
                turned = for_rows(packed) if rows else for_panels(packed)
            made = self._packings[key] = seen, turned
        handle = weight_handle(made[1])
        plain = None if bias is None else bias.contiguous().numpy()
        return (None, handle, plain) if rows else (handle, None, plain)
