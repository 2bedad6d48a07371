"""Backend: what a kind of device reads, computes and measures, as one value.

All other code uses the backend of a tensor or of a packing, and never tests for the kind of
device it is. A new packing is a file in `packings/` and a row in the backend's table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.formats.checks import dtype_name
from sparse_engine.packings.base import Packing

Params = Mapping[str, int]


class Window(NamedTuple):
    """The windows of a convolution over time: `left` zeros precede x, and `steps` are computed."""

    kernel: int
    stride: int
    dilation: int
    left: int
    steps: int


@dataclass(frozen=True)
class Row:
    """A row of a backend's table of packings: what a packing is chosen for.

    Attributes:
        packing: The class that kernels read.
        formats: The formats that it is chosen for; `Format` means all.
        dtypes: Names of the dtypes of stored values that it is chosen for.
        when: Whether it fits the format's parameters and the token counts, where those matter.
        portable: Whether packages hold it: not what only some processors read fast.
    """

    packing: type[Packing]
    formats: tuple[type[Format], ...]
    dtypes: tuple[str, ...]
    when: Callable[[Params, Sequence[int]], bool] = lambda params, tokens: True
    portable: bool = True


class Backend(ABC):
    """The kernels of one kind of device: which packings they read, and how they are called."""

    name: ClassVar[str]
    """The kind of device, as torch.device.type names it."""
    table: ClassVar[tuple[Row, ...]] = ()
    """Packings by what they are chosen for: the first row that fits is taken."""
    value_dtypes: ClassVar[tuple[torch.dtype, ...]]
    """Dtypes that stored values may have."""
    input_dtypes: ClassVar[tuple[torch.dtype, ...]]
    """Dtypes that activations may have."""
    native_layers: ClassVar[bool] = False
    """Whether the native library runs whole layers, stacks and recurrent networks."""
    patterns: ClassVar[tuple[str, ...]] = ("element",)
    """Granularities of pruning that have fast kernels, in their text forms."""
    fuses_projections: ClassVar[bool] = False
    """Whether `fuse` makes one weight of several that read the same activations."""

    @property
    def packings(self) -> tuple[type[Packing], ...]:
        """The packings that the kernels read."""
        return tuple(dict.fromkeys(row.packing for row in self.table))

    def holds(self, weight: Format) -> bool:
        """Whether kernels read `weight` as it is."""
        return isinstance(weight, self.packings)

    def packing_for(
        self,
        spec: FormatSpec,
        dtype: str,
        tokens: Sequence[int] = (),
        portable: bool = False,
    ) -> type[Packing]:
        """The packing of a weight in a format.

        Args:
            spec: The format and its parameters.
            dtype: Name of the dtype of the stored values.
            tokens: The token counts that the weight will be multiplied with, where they are known.
            portable: Whether to choose among the packings that packages hold.

        Raises:
            UsageError: No kernels read such values.
        """
        for row in self.table:
            if portable and not row.portable:
                continue
            fits = issubclass(spec.format, row.formats) and dtype in row.dtypes
            if fits and row.when(spec.params, tokens):
                return row.packing
        raise UsageError(f"no kernel on {self.name} has weights of {dtype}")

    @abstractmethod
    def pack(self, weight: Format, dtype: str | None = None, tokens: Sequence[int] = ()) -> Format:
        """What the kernels read for a weight.

        Args:
            weight: In a format, or packed already.
            dtype: Name of the dtype of the stored values; by default the weight's own.
            tokens: The token counts that it will be multiplied with, where they are known.

        Raises:
            UsageError: The backend has no such values, or they cannot hold the weight.
        """

    def repack(self, packed: Format, spec: FormatSpec) -> Format:
        """`packed` if kernels read it, else the same weight made anew from its format.

        Values of a dtype that the backend has not become float32.
        """
        if self.holds(packed):
            return packed
        stored = spec.convert(packed)
        dtype = packed.dtype if packed.dtype in self.value_dtypes else torch.float32
        return self.pack(stored, dtype_name(dtype))

    def from_package(self, packed: Format, spec: FormatSpec) -> Format:
        """A weight from a package as kernels read it best on this machine.

        packed: of the format `spec`, as packages hold it.
        """
        dtype = dtype_name(packed.dtype)
        if type(packed) is not self.packing_for(spec, dtype, portable=True):
            return packed
        best = self.packing_for(spec, dtype)
        return packed if type(packed) is best else best.from_format(packed)

    @abstractmethod
    def value_dtype(self, weight: Tensor, dtype: str) -> str:
        """The dtype that a dense weight is stored in where `dtype` is asked for.

        Raises:
            UsageError: No kernels have such values.
        """

    @abstractmethod
    def formats(self, weight: Tensor, dtype: str) -> list[str]:
        """Specs of the formats that a dense weight fits and that there are fast kernels for."""

    def estimate(
        self, spec: str, shape: tuple[int, int], stored: int, tokens: int, dtype: str
    ) -> float:
        """Relative cost of multiplying `tokens` tokens by a weight with `stored` values.

        0 where nothing is known: then every format is timed.
        """
        return 0.0

    @abstractmethod
    def linear(
        self,
        packed: Format,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> Tensor:
        """y [..., out] = act(x Wᵀ + bias) + residual on checked arguments, in the dtype of x."""

    @abstractmethod
    def kernel_name(self, packed: Format, tokens: int) -> str:
        """Name of the kernel that `linear` runs for so many tokens."""

    def convolves(self, packed: Format) -> bool:
        """Whether `conv1d` takes this packing."""
        return False

    def conv1d(self, packed: Format, x: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        """y [batch, out, steps] of x [batch, channels, length], for packings that `convolves`."""
        raise NotImplementedError

    def fuse(
        self, packed: Sequence[Format], gated: bool = False
    ) -> tuple[Format, list[Format]] | None:
        """One weight of the rows of several, and each of them as a view of it; None if they differ.

        gated: of two weights, the first one's outputs are activated and multiplied by the second's.
        """
        return None

    def recurrent_format(self, weight: Tensor, gate_rows: int) -> str | None:
        """The format of a recurrent network's weight for "auto"; None where formats are timed.

        Args:
            weight: [out, in]; the rows of a gate are stored in groups of `gate_rows`.
            gate_rows: Rows of a group.
        """
        return None

    def has_step_kernel(self, packed: Format, gate_rows: int) -> bool:
        """Whether a time step of a network with this hidden weight is one kernel."""
        return False

    def compress_linear(
        self, linear: nn.Linear, tokens: tuple[int, ...]
    ) -> tuple[Tensor | None, str]:
        """The weight in a compressed format of torch's own if that is faster than dense; and why.

        The reason is "" for weights that have no such format.
        """
        return None, ""

    @abstractmethod
    def time(
        self,
        calls: Mapping[str, Callable[[], object]],
        device: torch.device,
        inputs: Sequence[Tensor] = (),
        repeats: int = 1,
        between: int | None = None,
    ) -> dict[str, float]:
        """Microseconds of each call, in inference mode, after other memory was read.

        The calls alternate, so that a drift of the clocks affects them all.

        Args:
            calls: The rivals by name.
            device: Where they run.
            inputs: Activations that are in the caches at a call, as in a model.
            repeats: Calls in a sample, for calls as short as the clock's grain.
            between: Bytes that are read before each sample, as the other weights of a model are;
                None for more than the caches hold. A GPU always reads more than they hold.
        """

    @abstractmethod
    def device_name(self, device: torch.device) -> str:
        """The processor, as its maker names it."""

    def check_available(self, device: torch.device) -> None:
        """Raise UsageError where this machine has no such device."""
        return None


def spec_of(weight: Format) -> FormatSpec:
    """The format of a weight and its parameters."""
    return FormatSpec(type(weight), tuple(weight.params().values()))
