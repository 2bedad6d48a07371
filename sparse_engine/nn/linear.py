"""SparseLinear: torch.nn.Linear on a packed sparse weight. Inference only."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.auto.format import choose_format
from sparse_engine.backends import WEIGHT_CLASSES, backend_of, backend_of_packing
from sparse_engine.config import SparseConfig
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import CSR, Format, FormatSpec
from sparse_engine.modules.effective import check_plain
from sparse_engine.modules.placeholder import placeholder_weight
from sparse_engine.ops import check_linear, is_plain, linear_kernel


class SparseLinear(nn.Module):
    """y = x Wᵀ + b with a sparse W, for inference.

    x is [..., in], float32 or bfloat16, on a GPU also float16; y is [..., out] in its dtype. Moving
    the layer to another device (`.to("cuda")`) packs the weight for the kernels there.

    The state is plain tensors: the buffers of the packed weight, and `bias` in float32. A layer is
    made by `from_dense`, or with zeros that `load_state_dict` replaces.

    Attributes:
        spec: The format that the weight was stored in, e.g. bsr:4x1; `format` is its text.
        packed: The weight as kernels read it.

    >>> layer = SparseLinear.from_dense(torch.nn.Linear(768, 3072), SparseConfig(format="csr"))
    """

    values: Tensor
    bias: Tensor | None
    is_conv1d = False
    """Whether it replaces GPT-2's Conv1D, which `densify_` then restores."""
    fused: Any = None
    """A FusedProjections, which runs this layer with others that read the same x; or None."""
    _known: Format | None = None
    """The last `packed`, with the native handle that the ops cache on it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero layer with the signature of torch.nn.Linear."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # No format has float16, but packings on a GPU do.
        half = dtype == torch.float16
        stored_dtype = torch.float32 if half else dtype or torch.float32
        self.spec = FormatSpec(CSR)
        stored = CSR.empty((out_features, in_features), stored_dtype, device)
        self._hold(backend_of(stored.device).pack(stored, "float16" if half else None))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_dense(cls, linear: nn.Linear, config: SparseConfig | str | None = None) -> Self:
        """Store the weight of a dense layer, which is not changed.

        Args:
            linear: The dense layer.
            config: Format and dtype; "auto" measures the formats on this machine, see
                `sparse_engine.auto.format`.

        Raises:
            UsageError: The format or dtype cannot hold the weight.
        """
        check_plain(linear)
        config = SparseConfig.of(config)
        weight = linear.weight.detach().to(config.source_dtype)
        spec = config.spec
        if config.format == "auto":
            choice = choose_format(linear.weight.detach(), config, dense=False)
            if choice.packed is not None:
                return cls.from_format(choice.packed, linear.bias, choice.format)
            spec = FormatSpec.parse(choice.format)
        if spec is None:
            raise UsageError("format 'dense' keeps torch.nn.Linear: there is nothing to convert")
        stored = spec.from_dense(weight)
        backend = backend_of(weight)
        dtype = backend.value_dtype(linear.weight, config.dtype)
        packed = backend.pack(stored, dtype, config.tokens)
        return cls.from_format(packed, linear.bias, spec)

    @classmethod
    def from_format(
        cls, weight: Format, bias: Tensor | None = None, spec: FormatSpec | str | None = None
    ) -> Self:
        """A layer with a weight in a format, or packed (then `spec` is its format)."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.out_features, layer.in_features = weight.shape
        layer.spec = FormatSpec.of(spec or weight.spec)
        layer._hold(backend_of(weight.device).pack(weight))
        layer.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        return layer

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A torch.nn.Linear with the same weight, in `dtype` or the weight's own."""
        weight = self.packed.to_dense().to(dtype or self.weight.dtype)
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(weight.dtype), requires_grad=False)
        return linear

    def to_format(self) -> Format:
        """The weight in the format that the layer was made from; float16 becomes float32."""
        return self.spec.convert(self.packed)

    @property
    def format(self) -> str:
        """What the weight was stored as, e.g. "bsr:4x1"."""
        return str(self.spec)

    @property
    def weight(self) -> Tensor:
        """A placeholder with the shape, dtype and device of the dense weight [out, in].

        Models read `layer.weight.dtype` before they call the layer. The placeholder has no values:
        torch's fused paths do not run, and computing with it or writing to it raises UsageError.
        """
        size = (self.out_features, self.in_features)
        dtype = torch.float32 if self.values.dtype == torch.int8 else self.values.dtype
        return placeholder_weight(size, dtype, self.values.device)

    @property
    def packed(self) -> Format:
        """The weight as the kernels read it; shares memory with the layer's buffers."""
        cls, extra = self._packing
        known, buffers = self._known, self._buffers
        if known is not None and all(getattr(known, n) is buffers[n] for n in cls.buffer_names):
            return known
        tensors = {name: getattr(self, name) for name in cls.buffer_names}
        self._known = cls(shape=(self.out_features, self.in_features), **tensors, **extra)
        return self._known

    def kernel(self, tokens: int) -> str:
        """Name of the kernel that runs `tokens` tokens, e.g. "spmm_runs_f32_avx512"."""
        return linear_kernel(self.packed, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """y = x Wᵀ + b; raises UsageError for a wrong width or dtype, or if x needs gradients."""
        packed = self.packed
        backend = backend_of_packing(packed)
        check_linear(x, packed.shape, None, None, backend.input_dtypes)
        if x.device != self.values.device:
            raise UsageError(
                f"x is on {x.device}, the layer on {self.values.device}: move one of them"
            )
        if self.fused is not None and backend.fuses_projections and is_plain(x):
            y = self.fused.run(self, x)
            if y is not None:
                return y
        return backend.linear(packed, x, self.bias, "none", None)

    def extra_repr(self) -> str:
        """Sizes, format, share of zeros and bytes."""
        packed = self.packed
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format}, dtype={packed.dtype}, "
            f"sparsity={packed.sparsity:.3f}, bytes={packed.nbytes}"
        )

    def share_buffers(self, packed: Format) -> None:
        """Replace the layer's buffers by those of `packed`, the same weight in other memory."""
        for name, tensor in packed.tensors().items():
            if self._buffers[name] is not tensor:
                self._buffers[name] = tensor

    def _hold(self, packed: Format) -> None:
        """Make the buffers of `packed` the layer's state."""
        if "_packing" in self.__dict__:
            for name in self._packing[0].buffer_names:
                del self._buffers[name]
        for name, tensor in packed.tensors().items():
            self.register_buffer(name, tensor)
        fields = type(packed).__dataclass_fields__
        extra = {name: value for name, value in packed.params().items() if name in fields}
        self._packing: tuple[type[Format], dict[str, Any]] = (type(packed), extra)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = fn(self.values[:0])
        # float16 from a GPU becomes float32 on the CPU.
        backends = backend_of(moved), backend_of(self.values)
        if not any(moved.dtype in backend.value_dtypes for backend in backends):
            raise UsageError(
                f"SparseLinear has no {moved.dtype} on {backends[0].name}: use float32 or bfloat16"
            )
        self._known = None
        if self.fused is not None:
            self.fused.reset()
        scales = self._buffers.get("scales")
        super()._apply(fn, recurse)
        if scales is not None and not scales.is_meta:  # `model.bfloat16()` must not round them
            self.scales = scales.to(self.values.device)
        self._hold(backend_of(self.values).repack(self.packed, self.spec))
        return self

    def get_extra_state(self) -> Tensor:
        """Format, packing and parameters, as JSON bytes, so that state dicts stay plain tensors."""
        packed = self.packed
        state = {"format": self.format, "packing": packed.name, "params": packed.params()}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """No operation: `_load_from_state_dict` reads and checks the extra state."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Replace the buffers, since the new ones may have another number of non-zeros."""
        state = state_dict.get(prefix + "_extra_state")
        buffers = {prefix + name for cls in WEIGHT_CLASSES for name in cls.buffer_names}
        if not isinstance(state, Tensor) and buffers & state_dict.keys():
            raise InvalidFileError(f"{prefix}_extra_state is missing: it describes the buffers")
        if isinstance(state, Tensor):
            self._hold(self._read_state(state_dict, prefix, state))
            # The base class then finds the layer's own tensors under the buffers' names.
            kept = {key: value for key, value in state_dict.items() if key not in buffers}
            held = {prefix + name: tensor for name, tensor in self.packed.tensors().items()}
            state_dict = {**kept, **held}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _read_state(self, state_dict: dict[str, Any], prefix: str, state: Tensor) -> Format:
        """A checked copy of the weight in a state dict, packed for the layer's device."""
        try:
            extra = json.loads(bytes(state.tolist()))
            cls = next(cls for cls in WEIGHT_CLASSES if cls.name == extra["packing"])
            self.spec, params = FormatSpec.parse(str(extra["format"])), dict(extra["params"])
            stored = {name: state_dict[prefix + name] for name in cls.buffer_names}
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise InvalidFileError(f"{prefix}_extra_state does not fit: {error!r}") from error
        buffers = {name: t.to(self.values.device, copy=True) for name, t in stored.items()}
        shape = (self.out_features, self.in_features)
        packed = cls.from_tensors(shape, params, buffers)
        return backend_of(self.values).repack(packed, self.spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        own = {
            name: value for name, value in self.__dict__.items() if name not in ("_known", "fused")
        }
        clone.__dict__.update(copy.deepcopy(own, memo))
        return clone

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(
            "SparseLinear is not pickled: use sparse_engine.save(model, folder), or state_dict()"
        )
