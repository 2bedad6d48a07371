"""SparseRNNBase: what SparseLSTM, SparseGRU and SparseRNN share."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparse_engine import _core
from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import check_plain
from sparse_engine.nn.recurrent.arguments import (
    State,
    States,
    check_input,
    read_state,
    returned_state,
)
from sparse_engine.nn.recurrent.cuda import CudaRunner
from sparse_engine.nn.recurrent.native import NativeRunner
from sparse_engine.nn.recurrent.rows import deinterleave_gates, interleave_gates
from sparse_engine.nn.recurrent.weights import RecurrentWeights, packed_layer


class SparseRNNBase(RecurrentWeights):
    """A recurrent network whose arguments, inputs and outputs are those of torch.nn's.

    The weights are SparseLinear layers `ih_l0`, `hh_l0`, `hr_l0`, `ih_l0_reverse`, ..., with the
    rows of `interleave_gates`. On the CPU products and states are float32, whatever the dtype of
    the weights; nn/recurrent/cuda.py describes the GPU. Dropout is for training and does nothing.
    A packing that a call needs and the layers do not hold is made at the first such call, and kept.
    """

    modes: ClassVar[tuple[str, ...]]
    """The modes of the class."""
    dense_class: ClassVar[type[nn.RNNBase]]
    """The class of torch.nn."""
    argument_names: ClassVar[tuple[str, ...]] = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    )
    """Arguments of both classes, by the names of their attributes."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero network; on the device "meta" one whose layers are to be replaced."""
        sizes = (input_size, hidden_size, num_layers, bias, bidirectional, proj_size)
        super().__init__(mode, *sizes, device, dtype)
        self.batch_first, self.dropout = batch_first, float(dropout)
        self.native_runner, self.cuda_runner = NativeRunner(), CudaRunner()

    @classmethod
    def like(cls, network: Any, device: torch.device | str | None = None) -> Self:
        """A network without weights, with the sizes of a torch.nn one."""
        return cls(**_arguments(cls, network), device=device)

    @classmethod
    def from_dense(cls, network: nn.RNNBase, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of a torch.nn network as `config.format` in `config.dtype`.

        `network` is not changed. "auto" measures the formats on this machine: input weights at 128
        tokens, hidden ones at one. Blocks of more than 16 rows become blocks of 16 rows, which is
        the height of a gate's unit tile.

        Raises:
            UsageError: The network is of another class, or a weight does not fit the format or
                dtype.
        """
        check_plain(network)
        if getattr(network, "mode", None) not in cls.modes:
            raise UsageError(
                f"{cls.__name__} replaces torch.nn.{cls.dense_class.__name__}: "
                f"{type(network).__name__} is another class"
            )
        config = SparseConfig.of(config)
        made = cls.like(network, "meta").train(network.training)
        for name, child in made.named_children():
            part = name[:2]
            weight = getattr(network, f"weight_{name}").detach()
            bias = getattr(network, f"bias_{name}", None) if child.bias is not None else None
            if part != "hr":
                weight = interleave_gates(weight, made.gates)
                bias = None if bias is None else interleave_gates(bias.detach(), made.gates)
            setattr(made, name, packed_layer(part, weight, bias, config))
        return made

    def to_dense(self, dtype: torch.dtype | None = None) -> Any:
        """The torch.nn network with the same weights, in `dtype` or the weights' own."""
        dtype = dtype or self.layers()[0][1].weight.dtype
        empty = self.dense_class(**_arguments(self, self), device="meta", dtype=dtype)
        network = empty.to_empty(device="cpu")
        for name, child in self.layers():
            linear = child.to_dense(dtype)
            for part, tensor in (("weight", linear.weight), ("bias", linear.bias)):
                if tensor is None:
                    continue
                rows = tensor.detach()
                if not name.startswith("hr"):
                    rows = deinterleave_gates(rows, self.gates, self.hidden_size)
                parameter = nn.Parameter(rows.contiguous(), requires_grad=False)
                setattr(network, f"{part}_{name}", parameter)
        return network.train(self.training)

    def flatten_parameters(self) -> None:
        """Does nothing: sparse weights have no flat buffer."""

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Any, State]:
        """Run whole sequences.

        Args:
            input: [seq, batch, in], [batch, seq, in] with batch_first, [seq, in], or a
                PackedSequence.
            hx: [layers x directions, batch, out], for an LSTM a pair with c [.., hidden]; zeros
                where it is None.

        Returns:
            What the torch.nn network returns: the output of every step, and the last state.

        Raises:
            UsageError: Sizes do not fit.
        """
        if isinstance(input, PackedSequence):
            x, sizes = input.data, input.batch_sizes.tolist()
            check_input(self, x, 2)
            states = read_state(self, hx, sizes[0], input.sorted_indices, True)
            y, last = self._run(x, sizes, states)
            packed = PackedSequence(
                y, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, returned_state(last, input.unsorted_indices, True)
        batched = input.dim() == 3
        check_input(self, input, 3 if batched else 2)
        x = input if batched else input.unsqueeze(1)
        if self.batch_first and batched:
            x = x.transpose(0, 1)
        seq, batch = x.shape[:2]
        if seq == 0:
            raise UsageError("a sequence has no steps")
        states = read_state(self, hx, batch, None, batched)
        y, last = self._run(x.reshape(seq * batch, self.input_size), [batch] * seq, states)
        y = y.view(seq, batch, self.directions * self.out_size)
        if not batched:
            y = y.squeeze(1)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, returned_state(last, None, batched)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run one time step, for online speech and text.

        Args:
            x: [batch, in].
            state: [layers, batch, out], for an LSTM a pair with c [.., hidden]. It is overwritten
                with the new state and returned: nothing is packed, and nothing but y allocated.

        Returns:
            y [batch, out] and the new state.

        Raises:
            UsageError: Sizes do not fit, or the network is bidirectional.
        """
        if self.bidirectional:
            raise UsageError("a bidirectional network needs whole sequences")
        if state is not None:
            y = self.native_runner.step(self, x, state, state, (self.num_layers,))
            if y is not None:
                return y, state
        check_input(self, x, 2)
        states = read_state(self, state, len(x), None, True)
        y, last = self._run(x, [len(x)], states, in_place=state is not None)
        return y, returned_state(last, None, True)

    def native(self, batch: int, tokens: int) -> _core.RecurrentNetwork:
        """The native network for a call of `batch` sequences with `tokens` tokens in all.

        It is made again when a weight was replaced or written to.
        """
        return self.native_runner.network(self, batch, tokens)

    def forget(self) -> None:
        """Drop everything that was made from the weights.

        Call it after writing to weights that were made under torch.inference_mode: such writes
        cannot be detected.
        """
        self.native_runner, self.cuda_runner = NativeRunner(), CudaRunner()

    def extra_repr(self) -> str:
        """Sizes, as torch shows them."""
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        if self.proj_size:
            text += f", proj_size={self.proj_size}"
        return text + f", batch_first={self.batch_first}, bidirectional={self.bidirectional}"

    def _run(
        self, x: Tensor, batch_sizes: list[int], states: States, in_place: bool = False
    ) -> tuple[Tensor, States]:
        """y [tokens, directions x out] and the last states, both in the dtype of x.

        With `in_place` the last states are written over `states`, in their dtypes.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise UsageError(
                f"{type(self).__name__} is one native call, which cannot be traced or exported: "
                "densify_ the model first, or exclude the network with filter_fn"
            )
        runner = self.native_runner if backend_of(x).native_layers else self.cuda_runner
        y, last = runner.run(self, x.detach(), batch_sizes, states, in_place)
        if not in_place:
            return y.to(x.dtype), tuple(t.to(x.dtype) for t in last)
        for given, new in zip(states, last, strict=True):
            if given.data_ptr() != new.data_ptr():
                given.copy_(new)
        return y.to(x.dtype), states

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        runners = {"native_runner": NativeRunner(), "cuda_runner": CudaRunner()}
        return {**self.__dict__, **runners}


def _arguments(cls: Any, network: Any) -> dict[str, Any]:
    """The constructor's arguments of a network, sparse or torch.nn's."""
    return {name: getattr(network, name) for name in cls.argument_names}
