"""SparseConv1d: torch.nn.Conv1d on packed sparse weights. Inference only."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.backends import backend_of_packing
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import check_plain
from sparse_engine.modules.linears import linear_of
from sparse_engine.modules.placeholder import placeholder_weight
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.parts import ComposedModule, as_dense_linear
from sparse_engine.ops import check_linear, is_plain, run_conv1d
from sparse_engine.ops.conv1d import Window

# With fewer steps, windows of many sequences are copied to rows: each would fill few lanes of a
# panel.
FEW_STEPS = 8


class SparseConv1d(ComposedModule):
    """y[b, o, t] = bias[o] + sum over c, i of W[o, c, i] x[b, c, t stride + i dilation - padding].

    x is [batch, in, length] or [in, length], float32 or bfloat16. The weight of a group is one
    sparse matrix [out, in x kernel]. Where the backend convolves its packing, the kernel reads
    windows of x in place, channels first. Elsewhere windows are copied to the rows of linear
    layers.

    >>> SparseConv1d.from_dense(torch.nn.Conv1d(300, 100, 3), "csr")
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        """An all-zero layer with the signature of torch.nn.Conv1d."""
        super().__init__()
        conv = nn.Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device="meta",
        )
        self._describe(conv)
        inner = in_channels // groups * kernel_size
        self.linears = nn.ModuleList(
            SparseLinear(inner, out_channels // groups, bias) for _ in range(groups)
        )

    @classmethod
    def unpacked(cls, conv: nn.Conv1d) -> Self:
        """See ComposedModule.unpacked; each group is a layer [out, in x kernel]."""
        check_plain(conv)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._describe(conv)
        weights = conv.weight.detach().flatten(1).chunk(conv.groups)
        biases = [None] * conv.groups if conv.bias is None else conv.bias.chunk(conv.groups)
        layer.linears = nn.ModuleList(map(linear_of, weights, biases))
        return layer.train(conv.training)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Conv1d:
        """A torch.nn.Conv1d with the same weight, in `dtype` or the weight's own."""
        parts = [as_dense_linear(part, dtype) for part in self._parts()]
        conv = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            parts[0].bias is not None,
            self.padding_mode,
            device="meta",
        )
        weight = torch.cat([part.weight for part in parts])
        shape = self.out_channels, self.in_channels // self.groups, *self.kernel_size
        conv.weight = nn.Parameter(weight.view(shape), requires_grad=False)
        if conv.bias is not None:
            conv.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """y [batch, out, length'], or without batch as x is; raises UsageError for other shapes."""
        if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels:
            wanted = f"[batch, {self.in_channels}, length]"
            raise UsageError(f"x is {list(x.shape)}, expected {wanted}")
        batch = x if x.dim() == 3 else x[None]
        left, right = self._pads()
        if (left or right) and self.padding_mode != "zeros":
            batch = F.pad(batch, (left, right), self.padding_mode)
            left = right = 0
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        length, reach = left + batch.shape[-1] + right, dilation * (kernel - 1) + 1
        if length < reach:
            raise UsageError(f"x is {length} long with its padding, the kernel {reach}")
        steps = (length - reach) // stride + 1
        if self._on_panels(batch, steps):
            window = Window(kernel, stride, dilation, left, steps)
            sources = batch.chunk(self.groups, 1) if self.groups > 1 else [batch]
            ys = [
                run_conv1d(part.packed, source, part.bias, window)
                for part, source in zip(self._parts(), sources, strict=True)
            ]
            y = ys[0] if len(ys) == 1 else torch.cat(ys, 1)
        else:
            y = self.multiply_windows(batch, left, right)
        return y if x.dim() == 3 else y[0]

    def _on_panels(self, x: Tensor, steps: int) -> bool:
        """Whether a convolution kernel runs x; raises UsageError for what no kernel takes."""
        parts: list[Any] = self._parts()
        if not all(_convolves(part, x.device) for part in parts):
            return False
        dtypes = backend_of_packing(parts[0].packed).input_dtypes
        shape = self.out_channels, self.in_channels
        check_linear(x.transpose(1, 2), shape, None, None, dtypes)
        # In a trace sizes may be symbols: it holds the convolution for any number of steps.
        return not is_plain(x) or steps >= FEW_STEPS or len(x) == 1

    def multiply_windows(self, x: Tensor, left: int, right: int) -> Tensor:
        """y of x [batch, in, length], padded with zeros, by linear layers on copied windows."""
        x = F.pad(x, (left, right)) if left or right else x
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        # Views of x, [batch, in, steps, kernel], copied once to rows [batch, steps, in x kernel].
        windows = x.unfold(2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        groups = windows.transpose(1, 2).chunk(self.groups, 2)
        parts = [part(rows.flatten(2)) for part, rows in zip(self._parts(), groups, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).transpose(1, 2)

    def extra_repr(self) -> str:
        """Sizes, as torch.nn.Conv1d shows them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, padding_mode={self.padding_mode}"
        )

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and device of the dense weight [out, in, kernel], without values."""
        size = self.out_channels, self.in_channels // self.groups, *self.kernel_size
        part = self._parts()[0].weight
        return placeholder_weight(size, part.dtype, part.device)

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], float32; a copy where there are groups."""
        biases = [part.bias for part in self._parts() if part.bias is not None]
        return torch.cat(biases) if len(biases) > 1 else next(iter(biases), None)

    def _parts(self) -> list[SparseLinear]:
        return list(self.linears)  # type: ignore[arg-type]

    def _describe(self, conv: nn.Conv1d) -> None:
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        sizes: Any = conv  # tuples of one, as in torch, which models read
        self.kernel_size: tuple[int] = sizes.kernel_size
        self.stride: tuple[int] = sizes.stride
        self.dilation: tuple[int] = sizes.dilation
        self.padding: tuple[int] | str = sizes.padding
        self.groups = conv.groups
        self.padding_mode = conv.padding_mode

    def _pads(self) -> tuple[int, int]:
        """Values to add on the left and on the right."""
        if not isinstance(self.padding, str):
            return self.padding[0], self.padding[0]
        same = self.padding == "same"
        total = self.dilation[0] * (self.kernel_size[0] - 1) if same else 0
        return total // 2, total - total // 2


def _convolves(part: nn.Module, device: torch.device) -> bool:
    """Whether a convolution kernel may read the weight of `part` instead of calling it."""
    return (
        type(part) is SparseLinear
        and backend_of_packing(part.packed).convolves(part.packed)
        and part.values.device == device
        and not (part._forward_hooks or part._forward_pre_hooks)
        and "forward" not in part.__dict__
    )
