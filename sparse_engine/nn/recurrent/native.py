"""NativeRunner: runs recurrent networks on the CPU, whole sequences in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.formats import Format
from sparse_engine.modules.watch import Watched, child_entries, same, tensor_entry, version
from sparse_engine.nn.recurrent.arguments import State, States
from sparse_engine.nn.recurrent.rows import UNIT_TILE
from sparse_engine.nn.recurrent.weights import DirectionLayers, RecurrentWeights
from sparse_engine.ops import weight_handle
from sparse_engine.packings.cpu.purposes import (
    for_inputs,
    for_panels,
    for_rows,
    for_steps_on_panels,
    for_steps_on_rows,
)


class NativeRunner:
    """The native networks of one module, made at the first call that needs them and then kept.

    `_core.recurrent_path` decides which packings a call multiplies: up to three native networks
    share the packings that the layers hold, and those that are made for them here. They are made
    again when a layer was replaced or written to.

    The module comes with each call: it owns its runner, and the runner holds no reference to it.
    """

    def __init__(self) -> None:
        self._networks: dict[_core.RecurrentPath, _core.RecurrentNetwork] = {}
        self._packings: dict[tuple[int, int, str, bool], tuple[Any, Format]] = {}
        self._watched: list[Watched] = []
        self._tall_blocks = False

    def run(
        self,
        network: RecurrentWeights,
        x: Tensor,
        batch_sizes: list[int],
        states: States,
        in_place: bool,
    ) -> tuple[Tensor, States]:
        """Run a packed batch of sequences.

        Args:
            network: The module that owns this runner.
            x: [tokens, input_size], one time step after another.
            batch_sizes: Sequences of each time step, not increasing.
            states: See `arguments`.
            in_place: Whether float32 states may be overwritten with the last ones.

        Returns:
            y [tokens, directions x out_size] and the last states, float32.
        """
        y = x.new_empty(len(x), network.directions * network.out_size, dtype=torch.float32)
        initial = tuple(t.float().contiguous() for t in states)
        shape = (network.state_count, batch_sizes[0])
        final = (
            initial
            if in_place and initial
            else tuple(x.new_empty(*shape, n, dtype=torch.float32) for n in network.state_sizes)
        )
        if batch_sizes[0]:
            native = self.network(network, batch_sizes[0], len(x))
            rows = x.float().contiguous()
            native.run(rows.numpy(), batch_sizes, y.numpy(), _arrays(initial), _arrays(final))
        return y, final

    def step(
        self, network: RecurrentWeights, x: Tensor, state: State, out: State, lead: tuple[int, ...]
    ) -> Tensor | None:
        """One time step without conversions: it takes microseconds, and so would one conversion.

        Args:
            network: The module that owns this runner.
            x: [batch, input_size].
            state: h or (h, c), [*lead, batch, features].
            out: Like `state`, for the new state; or `state` itself.
            lead: The dimensions before the batch.

        Returns:
            y [batch, out_size], or None where nothing was run: an argument is wrong or needs a
            conversion, or the native network has to be made first.
        """
        initial = (state,) if isinstance(state, Tensor) else state
        sizes = network.state_sizes
        if len(initial) != len(sizes) or isinstance(state, Tensor) != (len(sizes) == 1):
            return None
        if not _is_plain(x) or torch.jit.is_tracing():
            return None
        batch = len(x)
        if x.shape != (batch, network.input_size) or not batch:
            return None
        for tensor, size in zip(initial, sizes, strict=True):
            if not _is_plain(tensor) or tensor.shape != (*lead, batch, size):
                return None
        native = self._networks.get(_core.recurrent_path(batch, batch, self._tall_blocks))
        if native is None or not _core.unchanged(self._watched):
            return None
        y = torch.empty(batch, sizes[0])
        arrays = final = _arrays(initial)
        if out is not state:
            final = _arrays((out,) if isinstance(out, Tensor) else out)
        native.run(x.numpy(), [batch], y.numpy(), arrays, final)
        return y

    def network(
        self, network: RecurrentWeights, sequences: int, tokens: int
    ) -> _core.RecurrentNetwork:
        """The native network for a call of so many sequences, with so many tokens in all."""
        if not self._watched or not _core.unchanged(self._watched):
            self._watch(network)
        path = _core.recurrent_path(sequences, tokens, self._tall_blocks)
        if path not in self._networks:
            self._networks[path] = self._build(network, path)
        return self._networks[path]

    def _watch(self, network: RecurrentWeights) -> None:
        layers = network.layers()
        self._networks = {}
        self._watched = [
            *child_entries([network]),
            *(tensor_entry(layer._buffers, name) for _, layer in layers for name in layer._buffers),
        ]
        every_step = [layer.packed for name, layer in layers if name[:2] != "ih"]
        # Lists of columns become strips again.
        tall = ("strips", "columns")
        self._tall_blocks = all(packed.name in tall for packed in every_step)

    def _build(
        self, network: RecurrentWeights, path: _core.RecurrentPath
    ) -> _core.RecurrentNetwork:
        return _core.RecurrentNetwork(
            mode=network.mode,
            path=path,
            input_size=network.input_size,
            hidden_size=network.hidden_size,
            output_size=network.out_size,
            layers=[
                [
                    self._direction(network, layers, path, (i, d))
                    for d, layers in enumerate(network.directions_of(i))
                ]
                for i in range(network.num_layers)
            ],
        )

    def _direction(
        self,
        network: RecurrentWeights,
        layers: DirectionLayers,
        path: _core.RecurrentPath,
        place: tuple[int, int],
    ) -> _core.RecurrentDirection:
        panels = path == "panels"
        tile_rows = UNIT_TILE * network.gates
        input_bias, hidden_bias = layers.biases(network.mode)
        projection = layers.projection
        return _core.RecurrentDirection(
            input=self._weight((*place, "ih", path != "few_tokens"), layers.input.packed),
            hidden=self._weight((*place, "hh", panels), layers.hidden.packed, tile_rows),
            projection=None
            if projection is None
            else self._weight((*place, "hr", panels), projection.packed),
            input_bias=None if input_bias is None else input_bias.contiguous().numpy(),
            hidden_bias=None if hidden_bias is None else hidden_bias.contiguous().numpy(),
        )

    def _weight(
        self, key: tuple[int, int, str, bool], packed: Format, tile_rows: int = 0
    ) -> _core.Weight:
        """The packing of one weight for panels or for rows; key: layer, direction, part, panels."""
        panels = key[-1]
        tensors = packed.tensors().values()
        source = (packed, *map(version, tensors), *(tensor.data_ptr() for tensor in tensors))
        made = self._packings.get(key)
        if made is None or not same(made[0], source):
            if tile_rows:
                converted = (
                    for_steps_on_panels(packed, tile_rows) if panels else for_steps_on_rows(packed)
                )
            else:
                many = for_inputs if key[2] == "ih" else for_panels
                converted = many(packed) if panels else for_rows(packed)
            made = self._packings[key] = source, converted
        return weight_handle(made[1])


def _arrays(states: States) -> list[Any]:
    return [tensor.numpy() for tensor in states]


def _is_plain(tensor: Any) -> bool:
    """Whether native code can read and write the tensor's memory as it is."""
    return (
        type(tensor) is Tensor
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.requires_grad
    )
