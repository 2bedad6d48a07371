"""Budgets: what a level costs in the unit of the target, and what the whole model comes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from sparse_engine.convert.census import census
from sparse_engine.modules.names import prefixes
from sparse_engine.pruning.allocators.base import Setting
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.target.machine import Machine, Measured, Weights, bytes_of
from sparse_engine.pruning.target.target import Target

DENSE = Setting(Element(), 0.0)
# Whole models that times are fitted to have these sparsities in all layers.
UNIFORM = (0.5, 0.9)
SLOPES = (0.3, 3.0)  # within which a fitted slope is plausible
Report = Callable[[int, int, str], None]


@dataclass
class Budget(ABC):
    """What a model may cost: fixed + slope x the summed costs of its layers' levels.

    Attributes:
        unit: of all costs.
        limit: what the whole model may cost.
        dense: what the dense model costs.
        fixed: the cost of everything besides the layers.
        slope: what a unit of a layer's cost adds to the model's.
    """

    unit: str
    limit: float
    dense: float
    fixed: float = 0.0
    slope: float = 1.0

    @abstractmethod
    def price(self, layer: Layer, setting: Setting) -> tuple[str, float]:
        """The format and the cost of a layer."""

    @abstractmethod
    def measure(self, weights: Weights) -> tuple[float, dict[str, str]]:
        """What the model costs with these weights, and by layer its format."""

    @property
    def needs_a_sparse_layer(self) -> bool:
        """Whether costs only hold if at least one layer is sparse."""
        return False

    @property
    def of_layers(self) -> float:
        """What the layers' costs may sum up to."""
        return (self.limit - self.fixed) / self.slope

    def predict(self, costs: float) -> float:
        """The cost of the model from the summed costs of its layers."""
        return self.fixed + self.slope * costs

    def correct(self, costs: float, measured: float) -> None:
        """Move the fixed part so that a prediction agrees with what was measured.

        It is not below 0: then the layers together take less time than each alone, and the slope
        is lowered.
        """
        self.fixed = measured - self.slope * costs
        if self.fixed < 0 < costs:
            self.fixed, self.slope = 0.0, measured / costs


class Counts(Budget):
    """Parameters or operations: counted, never measured."""

    def __init__(
        self, model: nn.Module, target: Target, layers: Sequence[Layer], dense: nn.Module
    ) -> None:
        counted, original = census(model), census(dense)
        sizes = {layer.name: layer.weight.numel() for layer in layers}
        if target.goal == "params":
            self._factor = dict.fromkeys(sizes, 1.0)
            unit, now, before = "parameters", counted.parameters, original.parameters
        else:
            uses = {row.name: row.multiply_adds / (row.weights or 1) for row in counted.rows}
            self._factor = {
                name: 2 * next((uses[n] for n in reversed([*prefixes(name)]) if n in uses), 1.0)
                for name in sizes
            }
            unit, now, before = "FLOPs", 2 * counted.multiply_adds, 2 * original.multiply_adds
        fixed = now - sum(self._factor[name] * size for name, size in sizes.items())
        super().__init__(unit, target.value, float(before), float(fixed))

    def price(self, layer: Layer, setting: Setting) -> tuple[str, float]:
        kept = round((1 - setting.sparsity) * layer.weight.numel())
        return "", self._factor[layer.name] * kept

    def measure(self, weights: Weights) -> tuple[float, dict[str, str]]:
        kept = sum(
            self._factor[name] * int(weight.count_nonzero())
            for name, (weight, _) in weights.items()
        )
        return self.fixed + kept, {}


class Bytes(Budget):
    """Megabytes of the converted model, its layers stored as csr."""

    def __init__(self, machine: Machine, layers: Sequence[Layer]) -> None:
        self._machine = machine
        self._sizes: dict[tuple[tuple[int, int], Setting], float] = {}
        fixed = bytes_of(machine.model) / 1e6 - sum(layer.weight.nbytes for layer in layers) / 1e6
        super().__init__("MB", machine.target.value, bytes_of(machine.dense) / 1e6, fixed)

    def price(self, layer: Layer, setting: Setting) -> tuple[str, float]:
        if setting == DENSE:
            return "dense", layer.weight.nbytes / 1e6
        key = layer.shape, setting
        if key not in self._sizes:
            self._sizes[key] = self._machine.packed_bytes(*key) / 1e6
        return "csr", self._sizes[key]

    def measure(self, weights: Weights) -> tuple[float, dict[str, str]]:
        found = self._machine.measure(weights, "csr", clock=False)
        return found.nbytes / 1e6, found.formats


class Times(Budget):
    """Milliseconds of a call of the converted model.

    What is not a layer of the table (norms, attention, embeddings, heads, calls) is the fixed part.
    It is found, with the slope, from two whole models of uniform sparsity.
    """

    def __init__(self, machine: Machine, layers: Sequence[Layer]) -> None:
        self._machine = machine
        self._causal: dict[str, bool | None] = {}
        self._layers = layers
        super().__init__("ms", machine.target.latency_ms or 0.0, 0.0)

    def prepare(self, settings: Sequence[Setting], report: Report) -> None:
        """Time every shape with every setting, then the whole models.

        Args:
            settings: of all levels.
            report: report(done, total, text) is called after each measurement.
        """
        uniform = [Setting(Element(), sparsity) for sparsity in UNIFORM]
        shapes = sorted({layer.shape for layer in self._layers})
        timed = [
            (shape, setting)
            for shape in shapes
            for setting in dict.fromkeys([DENSE, *uniform, *settings])
            if setting.granularity.fits(*shape)
        ]
        count = len(timed) + len(uniform)
        for done, (shape, setting) in enumerate(timed):
            text = "{}x{} {} at {:.0%}".format(*shape, setting.granularity, setting.sparsity)
            report(done, count, f"timing {text}")
            self._machine.measure_layer(shape, setting)
        points = []
        for done, setting in enumerate(uniform, len(timed)):
            report(done, count, f"timing the model at {setting.sparsity:.0%}")
            points.append(self._whole(setting))
        self._fit(points)
        target = self._machine.target
        if target.speedup is not None:
            self.limit = self.dense / target.speedup

    def _whole(self, setting: Setting) -> tuple[float, float]:
        """Summed costs of the layers, and milliseconds of the model, at one setting."""
        fitting = [la for la in self._layers if setting.granularity.fits(*la.shape)]
        weights = {
            la.name: (self._machine.random_weight(la.shape, setting), None) for la in fitting
        }
        found = self._machine.measure(weights)
        self._causal = {
            layer.name: next(
                (causal for name, causal in found.stacked.items() if name in prefixes(layer.name)),
                None,
            )
            for layer in self._layers
        }
        self.dense = self.dense or found.dense_ms
        costs = sum(self.price(layer, setting)[1] for layer in fitting)
        costs += sum(self.price(layer, DENSE)[1] for layer in self._layers if layer not in fitting)
        return costs, self._ms(found)

    @property
    def needs_a_sparse_layer(self) -> bool:
        """A stack runs natively from the first sparse layer on, dense layers included."""
        is_native = any(causal is not None for causal in self._causal.values())
        return is_native and self.limit < self.dense

    def _ms(self, found: Measured) -> float:
        """Milliseconds as if the machine were as fast as when dense was measured first."""
        return found.ms / found.dense_ms * self.dense

    def _fit(self, points: Sequence[tuple[float, float]]) -> None:
        (more, slow), (less, fast) = points
        if more > less and slow > fast:
            self.slope = min(max((slow - fast) / (more - less), SLOPES[0]), SLOPES[1])
        self.fixed = max(fast - self.slope * less, 0.0)

    def price(self, layer: Layer, setting: Setting) -> tuple[str, float]:
        return self._machine.layer(layer.shape, setting, self._causal.get(layer.name))

    def measure(self, weights: Weights) -> tuple[float, dict[str, str]]:
        found = self._machine.measure(weights)
        return self._ms(found), found.formats
