"""What a model and its layers cost on this machine, with the kernels that will run them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.auto.format import MIN_SPARSITY, Choice, choose_format
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.modules.linears import weight_of
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.native.stack import native_stacks
from sparse_engine.pruning.allocators.base import Setting
from sparse_engine.pruning.target.outputs import first_tensor
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.target.timing import in_turn
from sparse_engine.pruning.unrolled import unrolled

Weights = Mapping[str, tuple[Tensor, Tensor | None]]
"""By layer, its weight [out, in], and its bias [out] where that changes."""


@dataclass(frozen=True)
class Measured:
    """One converted model.

    Attributes:
        ms: milliseconds of a call.
        dense_ms: of the dense model in torch, measured in turn.
        nbytes: bytes of all parameters and buffers.
        formats: by layer, the format that it was converted to.
        stacked: names of the native stacks, each with whether it is causal.
    """

    ms: float
    dense_ms: float
    nbytes: int
    formats: dict[str, str]
    stacked: dict[str, bool]


class Machine:
    """Measures layers and whole models; a layer once for each shape and setting.

    Layers have random weights with a random mask of the granularity. All formats are timed as
    `convert` times them, and stored in the same cache, so that it makes the same choice.

    Args:
        model: what is pruned, not unrolled; it is copied, never changed.
        target: tokens, threads and dtype.
        inputs: arguments of a call with so many tokens.
        dense: what converted models are timed against; None for `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        inputs: dict[str, Any] | Sequence[Any],
        dense: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.dense = model if dense is None else dense
        self.target = target
        self._inputs = inputs
        self._choices: dict[tuple[tuple[int, int], Setting], Choice] = {}
        self._dense_us: dict[tuple[int, int], float] = {}
        self._parameter = next(model.parameters())

    def measure_layer(self, shape: tuple[int, int], setting: Setting) -> None:
        """Time a layer, if that has not been done."""
        if (shape, setting) in self._choices:
            return
        weight = self.random_weight(shape, setting)
        # A layer that stays dense is not stored in another dtype.
        dtype = self.target.dtype if setting.sparsity >= MIN_SPARSITY else "float32"
        config = SparseConfig(dtype=dtype, tokens=(self.target.tokens,))
        with self._threads():
            choice = choose_format(weight, config, least=0.0)
        self._choices[shape, setting] = choice
        if choice.times_us:
            micros = choice.times_us["dense"][self.target.tokens]
            self._dense_us[shape] = min(micros, self._dense_us.get(shape, micros))

    def layer(
        self, shape: tuple[int, int], setting: Setting, causal: bool | None
    ) -> tuple[str, float]:
        """The format and the milliseconds of a layer that was measured.

        Times are taken relative to dense in the same round, which a drift of the clock does not
        change, and multiplied by the shortest time of dense.

        Args:
            shape: (out, in).
            setting: how it is pruned.
            causal: whether the native stack that runs the layer is causal; None for no stack.
        """
        choice = self._choices[shape, setting]
        times = {spec: by[self.target.tokens] for spec, by in choice.times_us.items()}
        if not times:
            return "dense", 0.0
        # A layer with hardly any zeros stays dense, whatever is faster.
        chosen = choice.format if setting.sparsity >= MIN_SPARSITY else "dense"
        runs_as = chosen if causal is None else _in_stack(chosen, times, causal and self._is_few)
        return chosen, times[runs_as] / times["dense"] * self._dense_us[shape] / 1e3

    def packed_bytes(self, shape: tuple[int, int], setting: Setting) -> int:
        """Bytes of a layer's weight as csr is packed."""
        config = SparseConfig("csr", self.target.dtype, (self.target.tokens,))
        linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(self.random_weight(shape, setting), requires_grad=False)
        return SparseLinear.from_dense(linear, config).packed.nbytes

    @property
    def _is_few(self) -> bool:
        return self.target.tokens <= FEW

    def random_weight(self, shape: tuple[int, int], setting: Setting) -> Tensor:
        """A weight [out, in] with a random mask."""
        generator = torch.Generator().manual_seed(0)
        weight = 0.02 * torch.randn(shape, generator=generator)
        if setting.sparsity:
            drop = setting.granularity.quota(*shape, setting.sparsity)
            weight *= setting.granularity.mask(torch.rand(shape, generator=generator), drop)
        return weight.to(self._parameter)

    @torch.no_grad()
    def measure(self, weights: Weights, format: str = "auto", clock: bool = True) -> Measured:
        """Convert a copy of the model with these weights, and time it in turn with the dense one.

        Args:
            weights: of the pruned layers, named as in the unrolled model.
            format: as in SparseConfig.
            clock: whether times are taken; they are 1 if not.
        """
        with self._threads():
            clone = copy.deepcopy(self.model).eval()
            with unrolled(clone):
                for name, module in clone.named_modules():
                    if name in weights:
                        weight, bias = weights[name]
                        weight_of(module).copy_(weight)
                        if bias is not None:
                            module.bias.copy_(bias)
            config = SparseConfig(format, self.target.dtype, (self.target.tokens,))
            report = sparsify_(clone, config)
            times = {"dense": 1e-3, "converted": 1e-3}
            if clock:
                calls = {"dense": self._call(self.dense), "converted": self._call(clone)}
                times = in_turn(calls)
        return Measured(
            times["converted"] * 1e3,
            times["dense"] * 1e3,
            bytes_of(clone),
            {row.name: row.format for row in report.rows},
            {found.stack.name: found.stack.causal for _, found in native_stacks(clone)},
        )

    def _call(self, model: nn.Module) -> Callable[[], object]:
        inputs = self._inputs

        def call() -> object:
            with torch.inference_mode():
                y = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
                # Reading one value waits for a GPU.
                return float(first_tensor(y).flatten()[0])

        return call

    @contextmanager
    def _threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.target.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


FEW = 4  # tokens for which a causal stack reads weights by rows


def _in_stack(chosen: str, times: Mapping[str, float], by_rows: bool) -> str:
    """The format whose kernel a native stack runs for a layer.

    Tall blocks keep their own kernel. Everything else, dense layers too, is repacked: as csr is for
    panels of tokens, as a bitmask or sellp for a few rows.
    """
    if chosen.startswith("bsr"):
        return chosen
    wanted = [spec for spec in ("bitmask", "sellp") if spec in times] if by_rows else ["csr"]
    fitting = [spec for spec in wanted if spec in times]
    return min(fitting, key=times.__getitem__) if fitting else chosen


def bytes_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; tied ones count once."""
    return sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
