"""SparseRNNBase: what the recurrent networks share."""

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
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.recurrent import cuda as recurrent_gpu
from sparse_engine.nn.recurrent.native import NativeRecurrent
from sparse_engine.nn.recurrent.weights import BLOCK, added_up, in_order, interleaved, packed_layer
from sparse_engine.packings import Strips
from sparse_engine.packings.cpu.purposes import for_steps_on_rows

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}

State = Tensor | tuple[Tensor, Tensor]


class SparseRNNBase(nn.Module):
    """What SparseLSTM, SparseGRU and SparseRNN share: arguments, inputs and outputs are torch's.

    The weights are SparseLinear layers `ih_l0`, `hh_l0`, `hr_l0`, `ih_l0_reverse`, ..., with the rows
    of `interleaved`. On the CPU products and states are float32, whatever the dtype of the weights;
    nn/recurrent/cuda.py says how it is on a GPU. Dropout is for training and does nothing. What a call needs
    in another packing than a layer holds is made at the first such call, and kept.
    """

    mode: str
    kinds: ClassVar[tuple[str, ...]]
    """The modes that the class has."""

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
        """A network of zeros; on the device "meta" one that has places for weights only."""
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise UsageError(f"{name} is {size}: give 1 or more")
        if proj_size and (mode != "LSTM" or not 0 < proj_size < hidden_size):
            raise UsageError("proj_size is for an LSTM, and smaller than hidden_size")
        self.mode = mode
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self._native = NativeRecurrent()
        rows = -(-hidden_size // BLOCK) * BLOCK * self.gates
        linear: Any = nn.Linear if str(device) == "meta" else SparseLinear
        made = {"device": device, "dtype": dtype}
        for layer in range(num_layers):
            for end in self.ends:
                width = input_size if layer == 0 else self.directions * self.out_size
                self.add_module(f"ih_l{layer}{end}", linear(width, rows, bias, **made))
                self.add_module(f"hh_l{layer}{end}", linear(self.out_size, rows, bias, **made))
                if proj_size:
                    projection = linear(hidden_size, proj_size, False, **made)
                    self.add_module(f"hr_l{layer}{end}", projection)

    @property
    def gates(self) -> int:
        """Rows of a weight for each unit."""
        return GATES[self.mode]

    @property
    def directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def out_size(self) -> int:
        """Features of h: proj_size if there is one, else hidden_size."""
        return self.proj_size or self.hidden_size

    @property
    def ends(self) -> tuple[str, ...]:
        """What the names of each direction's layers end with."""
        return ("", "_reverse")[: self.directions]

    @classmethod
    def like(cls, network: Any, device: torch.device | str | None = None) -> Self:
        """A network without weights, with the sizes of a torch.nn one."""
        raise NotImplementedError

    @classmethod
    def from_dense(cls, network: nn.RNNBase, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of a torch.nn network as `config.format` in `config.dtype`.

        `network` is left as it is. "auto" measures the formats on this machine: of input weights at
        128 tokens, of hidden ones at one. Blocks of more than 16 rows become ones of 16: a gate's
        rows lie together in sixteens. Raises UsageError for another class, or for a format or dtype
        that a weight does not fit.
        """
        check_plain(network)
        if getattr(network, "mode", None) not in cls.kinds:
            raise UsageError(
                f"{cls.__name__} stands for another class than {type(network).__name__}"
            )
        config = SparseConfig.of(config)
        made = cls.like(network, "meta").train(network.training)
        for name, child in made.named_children():
            kind = name[:2]
            weight = getattr(network, f"weight_{name}").detach()
            bias = getattr(network, f"bias_{name}", None) if child.bias is not None else None
            if kind != "hr":
                weight = interleaved(weight, made.gates)
                bias = None if bias is None else interleaved(bias.detach(), made.gates)
            layer = packed_layer(weight, bias, config, 128 if kind == "ih" else 1)
            if kind == "hh" and isinstance(layer.packed, Strips):
                steps = for_steps_on_rows(layer.packed)
                layer = SparseLinear.from_format(steps, layer.bias, layer.spec)
            setattr(made, name, layer)
        return made

    def to_dense(self, dtype: torch.dtype | None = None) -> Any:
        """The torch.nn network with the same weights, in `dtype` or the weights' own."""
        dtype = dtype or self.layers()[0][1].weight.dtype
        network = self._dense(device="meta", dtype=dtype).to_empty(device="cpu")
        for name, child in self.layers():
            linear = child.to_dense(dtype)
            turned = name.startswith("hr")
            for part, tensor in (("weight", linear.weight), ("bias", linear.bias)):
                if tensor is None:
                    continue
                rows = tensor if turned else in_order(tensor, self.gates, self.hidden_size)
                parameter = nn.Parameter(rows.detach().contiguous(), requires_grad=False)
                setattr(network, f"{part}_{name}", parameter)
        return network.train(self.training)

    def _dense(self, **kwargs: Any) -> nn.RNNBase:
        """torch.nn's network of these sizes."""
        raise NotImplementedError

    def layers(self) -> list[tuple[str, SparseLinear]]:
        """The weights and their names."""
        return [(n, child) for n, child in self.named_children() if isinstance(child, SparseLinear)]

    def flatten_parameters(self) -> None:
        """Nothing: there is nothing to flatten."""

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Any, State]:
        """What torch's network returns: the output of every step, and the last state.

        input: [seq, batch, in], [batch, seq, in] with batch_first, [seq, in], or a PackedSequence;
        hx: [layers x directions, batch, out], of an LSTM a pair with c [.., hidden]; zeros without.
        Raises UsageError for sizes that do not fit.
        """
        if isinstance(input, PackedSequence):
            x, sizes = input.data, input.batch_sizes.tolist()
            self._check(x, 2)
            state = self._state(hx, sizes[0], input.sorted_indices, True)
            y, last = self._run(x, sizes, state)
            packed = PackedSequence(
                y, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, self._given(last, input.unsorted_indices, True)
        batched = input.dim() == 3
        self._check(input, 3 if batched else 2)
        x = input if batched else input.unsqueeze(1)
        if self.batch_first and batched:
            x = x.transpose(0, 1)
        seq, batch = x.shape[:2]
        if seq == 0:
            raise UsageError("a sequence has no steps")
        state = self._state(hx, batch, None, batched)
        y, last = self._run(x.reshape(seq * batch, self.input_size), [batch] * seq, state)
        y = y.view(seq, batch, self.directions * self.out_size)
        if not batched:
            y = y.squeeze(1)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, self._given(last, None, batched)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step: y [batch, out] of x [batch, in], and the state, [layers, batch, out].

        A state that was given is written over and returned: nothing is packed, and nothing but y
        allocated. For online speech and text; a bidirectional network has no single steps.
        """
        if self.bidirectional:
            raise UsageError("a bidirectional network needs whole sequences")
        if state is not None:
            y = self.plain_step(x, state, state, (self.num_layers,))
            if y is not None:
                return y, state
        self._check(x, 2)
        kept = self._state(state, len(x), None, True)
        y, last = self._run(x, [len(x)], kept, in_place=state is not None)
        return y, self._given(last, None, True)

    def plain_step(
        self, x: Tensor, state: State, into: State, lead: tuple[int, ...]
    ) -> Tensor | None:
        """y of a step whose arguments need no conversion; None where one does or is wrong, or where the
        library's view is to be made first.

        x: [batch, in]; state: [*lead, batch, out]; `into`: the same, for the new state, or `state` itself.
        A step takes microseconds, and so would one conversion.
        """
        given = (state,) if isinstance(state, Tensor) else state
        if len(given) != 1 + (self.mode == "LSTM") or not _is_plain(x) or torch.jit.is_tracing():
            return None
        batch = len(x)
        if x.shape != (batch, self.input_size) or not batch:
            return None
        for tensor, width in zip(given, (self.out_size, self.hidden_size), strict=False):
            if not _is_plain(tensor) or tensor.shape != (*lead, batch, width):
                return None
        native = self._native.known(batch, batch)
        if native is None:
            return None
        y = torch.empty(batch, self.out_size)
        begin = [tensor.numpy() for tensor in given]
        end = begin
        if into is not state:
            end = [t.numpy() for t in ((into,) if isinstance(into, Tensor) else into)]
        if len(begin) == 1:
            begin, end = [*begin, None], [*end, None]  # type: ignore[list-item]
        native.run(x.numpy(), [batch], y.numpy(), begin[0], begin[1], end[0], end[1])
        return y

    def _check(self, x: Tensor, dims: int) -> None:
        if x.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "sparse layers are inference only: call them under torch.inference_mode()"
            )
        if x.dtype not in backend_of(x).input_dtypes:
            raise UsageError(f"input is {x.dtype}: cast it to float32 or bfloat16")
        device = next(self.buffers()).device
        if x.device != device:
            raise UsageError(f"input is on {x.device}, the network on {device}: move one of them")
        if x.dim() != dims or x.shape[-1] != self.input_size:
            raise UsageError(
                f"input is {list(x.shape)}, but the network takes [..., {self.input_size}]"
            )

    def _state(
        self, hx: State | None, batch: int, order: Tensor | None, batched: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """h and c as the library reads them."""
        pair = self.mode == "LSTM"
        if hx is None:
            return None, None
        given = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        if pair != isinstance(hx, tuple | list) or len(given) != 1 + pair:
            wanted = "a pair of tensors" if pair else "a tensor"
            raise UsageError(f"the state of {type(self).__name__} is {wanted}")
        found = []
        for name, tensor, size in zip("hc", given, (self.out_size, self.hidden_size), strict=False):
            states = self.num_layers * self.directions
            wanted_shape = (states, batch, size) if batched else (states, size)
            if tuple(tensor.shape) != wanted_shape:
                raise UsageError(
                    f"state {name} is {list(tensor.shape)}, expected {list(wanted_shape)}"
                )
            tensor = tensor.detach() if batched else tensor.detach().unsqueeze(1)
            found.append(tensor if order is None else tensor.index_select(1, order))
        return found[0], found[1] if pair else None

    def _given(self, last: list[Tensor], order: Tensor | None, batched: bool) -> State:
        states = [t if order is None else t.index_select(1, order) for t in last]
        states = states if batched else [t.squeeze(1) for t in states]
        return (states[0], states[1]) if self.mode == "LSTM" else states[0]

    def _run(
        self,
        x: Tensor,
        sizes: list[int],
        state: tuple[Tensor | None, Tensor | None],
        in_place: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """y [tokens, directions x out] in the dtype of x, and the last h (and c)."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise UsageError(
                f"{type(self).__name__} is one call of the library, which cannot be traced or "
                "exported: densify_ the model first, or leave the network out with filter_fn"
            )
        if self._on_gpu(x):
            y, last = recurrent_gpu.run(self, x.detach(), sizes, state)
            given = [t for t in state if t is not None]
            if not in_place:
                return y.to(x.dtype), [t.to(x.dtype) for t in last]
            for kept, t in zip(given, last, strict=True):
                kept.copy_(t)
            return y.to(x.dtype), given
        states = self.num_layers * self.directions
        widths = (self.out_size, self.hidden_size)[: 2 if self.mode == "LSTM" else 1]
        y = x.new_empty(len(x), self.directions * self.out_size, dtype=torch.float32)
        begin = [None if t is None else t.float().contiguous() for t in state[: len(widths)]]
        last = [
            t
            if in_place and t is not None
            else x.new_empty(states, sizes[0], width, dtype=torch.float32)
            for t, width in zip(begin, widths, strict=True)
        ]
        if sizes[0]:
            rows = x.detach().float().contiguous()
            h0, c0 = (None if t is None else t.numpy() for t in (*begin, None)[:2])
            hn, cn = (None if t is None else t.numpy() for t in (*last, None)[:2])
            assert hn is not None
            self.native(sizes[0], len(x)).run(rows.numpy(), sizes, y.numpy(), h0, c0, hn, cn)
        if not in_place:
            return y.to(x.dtype), [t.to(x.dtype) for t in last]
        given = [t for t in state if t is not None]
        for kept, t in zip(given, last, strict=True):
            if kept.data_ptr() != t.data_ptr():  # of another dtype, or not contiguous
                kept.copy_(t)
        return y.to(x.dtype), given

    def _on_gpu(self, x: Tensor) -> bool:
        return not backend_of(x).native_layers

    def step_biases(self, which: str) -> tuple[Tensor | None, Tensor | None]:
        """Of the inputs' and of the hidden product of a layer and direction, see `added_up`."""
        inputs, hidden = (self.get_submodule(f"{part}_{which}").bias for part in ("ih", "hh"))
        return added_up(inputs, hidden, self.mode)  # type: ignore[arg-type]

    def native(self, batch: int, tokens: int) -> _core.Recurrent:
        """The library's view of the network for so many sequences, made anew when a weight was
        replaced or written to.
        """
        return self._native.view(self, batch, tokens)

    def forget(self) -> None:
        """Make everything anew at the next call: after weights that were made under
        torch.inference_mode were written to, which nothing else shows.
        """
        self._native = NativeRecurrent()
        self.__dict__.pop("_graphs", None)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key != "_graphs"}
        return {**kept, "_native": NativeRecurrent()}

    def extra_repr(self) -> str:
        """Sizes, as torch shows them."""
        told = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        if self.proj_size:
            told += f", proj_size={self.proj_size}"
        return told + f", batch_first={self.batch_first}, bidirectional={self.bidirectional}"


def _is_plain(tensor: Any) -> bool:
    """Whether the library can read and write it as it is."""
    return (
        type(tensor) is Tensor
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.requires_grad
    )
