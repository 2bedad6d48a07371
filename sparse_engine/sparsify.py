"""sparsify_: swap the linear layers of any model for sparse ones, and say what was done and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.blocks import give_back_, take_over_
from sparse_engine.choose import MIN_SPARSITY, Choice, choose_format, zeros
from sparse_engine.config import SparseConfig
from sparse_engine.effective import fold_
from sparse_engine.eligible import check_readable, why_not
from sparse_engine.errors import UsageError
from sparse_engine.frozen import freeze_, thaw_, trained
from sparse_engine.gpu_timer import time_on_gpu
from sparse_engine.linears import as_conv1d, as_linear, is_conv1d, is_linear
from sparse_engine.nn import SparseLinear, SparseRNNBase, SparseRNNCellBase
from sparse_engine.nn.recurrent import NETWORKS
from sparse_engine.nn.recurrent_cells import CELLS
from sparse_engine.nn.recurrent_gpu import step_kernel
from sparse_engine.semi_structured import compress, is_compressed, restored

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
TWINS: dict[Any, Any] = {**NETWORKS, **CELLS}
Twin = SparseRNNBase | SparseRNNCellBase
# Of the sequences on which "auto" times recurrent networks: `tokens` are spread over as many.
STEPS = 32

FilterFn = Callable[[nn.Module, str], bool]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SparsifyRow:
    """One linear layer: what became of it."""

    name: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    """The format in use; "dense" where the layer was left alone."""
    kernel: str
    """Kernel for the largest token count asked for."""
    dense_bytes: int
    bytes: int
    reason: str
    times_us: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """A module with weights that no row is about, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify_` swapped, what it did not, and why."""

    rows: tuple[SparsifyRow, ...]
    blocks: str = ""
    """Whether whole layers run natively, and if not, why."""
    left: tuple[Left, ...] = ()

    @property
    def swapped(self) -> tuple[SparsifyRow, ...]:
        """Layers that are sparse now."""
        return tuple(row for row in self.rows if row.format != "dense")

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows as plain values, for JSON."""
        return [dict(vars(row)) for row in self.rows]

    def __str__(self) -> str:
        """A table, one line a layer."""
        head = (
            f"{'layer':44} {'shape':>12} {'zeros':>6} {'format':9} {'MB':>7} {'of':>7}  why, kernel"
        )
        lines = [
            f"{row.name:44} {f'{row.shape[0]}x{row.shape[1]}':>12} {row.sparsity:6.1%} "
            f"{row.format:9} {row.bytes / 1e6:7.2f} {row.dense_bytes / 1e6:7.2f}  "
            f"{row.reason}{', ' if row.kernel else ''}{row.kernel}"
            for row in self.rows
        ]
        return "\n".join([head, *lines, self.summary, *([self.blocks] if self.blocks else [])])

    @property
    def summary(self) -> str:
        """One line: how many layers are sparse."""
        return f"{len(self.swapped)} of {len(self.rows)} linear layers are sparse"


def sparsify_(
    model: nn.Module,
    config: SparseConfig | str | None = None,
    filter_fn: FilterFn | None = None,
    progress: Progress | None = None,
) -> SparsifyReport:
    """Replace every torch.nn.Linear in `model`, and every Conv1D of GPT-2, by a SparseLinear, and
    torch.nn.LSTM, GRU, RNN and their cells by their sparse twins, in place; returns the report.

    Layers of known families (sparse_engine/models) then run natively, in one call a stack.

    `filter_fn(module, name)` picks layers; all by default. A layer stays dense, with its reason in
    the report, when it is tied to an embedding, may compute something else than its class does (a
    subclass, forward hooks), has too few zeros, or when "auto" measured that dense is faster. Weights
    that are computed before each call (masks of torch.nn.utils.prune, weight norm, spectral norm,
    parametrizations) become plain ones. Parameters take no gradients from here on; `densify_` gives
    their flags back. `progress(done, total, name)` is
    called after each layer. Raises UsageError when `model` is itself a Linear, when a weight has no
    values, is quantised already, or does not fit the format.

    >>> print(se.sparsify_(model, se.SparseConfig(format="csr")))
    """
    config = SparseConfig.of(config)
    if isinstance(model, (nn.Linear, *RECURRENT)):
        kind = type(model).__name__
        raise UsageError(
            f"the model is a single {kind}: use Sparse{kind}.from_dense(model, config)"
        )
    check_readable(model)
    folded, flags = fold_(model), trained(model)
    # A module that is reached by two names is swapped at both.
    modules = list(model.named_modules(remove_duplicate=False))
    linears = [(name, module) for name, module in modules if is_linear(module)]
    networks = [(name, module) for name, module in modules if isinstance(module, RECURRENT)]
    total = len(linears) + len(networks)
    tied = _tied_weights(model)
    # One sparse layer for modules that share their parameters; swapped in when all are made.
    layers: dict[tuple[int, int], SparseLinear] = {}
    swaps: list[tuple[str, nn.Module]] = []
    rows = []
    for done, (name, linear) in enumerate(linears, 1):
        kept = _reason_to_keep(linear, name, filter_fn, tied)
        plain = restored(as_linear(linear))
        choice = Choice("dense", 1.0, {}, kept) if kept else _choose(plain, config)
        layer = None
        if choice.format != "dense":
            key = id(linear.weight), id(linear.bias)
            layer = layers.get(key) or SparseLinear.from_dense(
                plain, SparseConfig(choice.format, config.dtype, config.tokens)
            )
            layer.is_conv1d = is_conv1d(linear)
            layers[key] = layer
            swaps.append((name, layer.train(linear.training)))
        compressed = None
        if choice.format == "dense" and config.format == "auto" and plain is linear and not kept:
            compressed, told = compress(plain, config.tokens)
            choice = replace(choice, reason=f"{choice.reason}; {told}" if told else choice.reason)
        rows.append(_row(name, plain, layer, choice, config))
        if compressed is not None:
            plain.weight = nn.Parameter(compressed, requires_grad=False)
        if progress is not None:
            progress(done, total, name)
    made: dict[int, tuple[Twin | None, str]] = {}  # one for all names of a network
    for done, (name, network) in enumerate(networks, len(linears) + 1):
        if id(network) not in made:
            kept = _reason_to_keep_network(network, name, filter_fn)
            made[id(network)] = (None, kept) if kept else _sparse_network(network, config)
        twin, why = made[id(network)]
        rows += _network_rows(name, network, twin, why)
        if twin is not None:
            swaps.append((name, twin))
        if progress is not None:
            progress(done, total, name)
    for name, swapped in swaps:
        _replace(model, name, swapped)
    freeze_(model, flags)
    return SparsifyReport(_told(rows, folded), take_over_(model))


def _told(rows: list[SparsifyRow], folded: dict[str, str]) -> tuple[SparsifyRow, ...]:
    """Rows whose reasons say what was folded into their weights; parts of a network have its name."""
    owners = [
        (row, next((f for f in folded if f"{row.name}.".startswith(f"{f}.")), None)) for row in rows
    ]
    return tuple(
        replace(row, reason=f"{row.reason}; {folded[owner]}") if owner is not None else row
        for row, owner in owners
    )


def densify_(model: nn.Module) -> nn.Module:
    """Turn every SparseLinear in `model` back into the layer it stands for, in place, and every native
    stack into the module it stands for.

    Weights come back in the dtype of the model's other parameters.
    """
    give_back_(model)
    others = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(others, None)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, SparseRNNCellBase):
            _replace(model, name, module.to_dense(dtype))
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, SparseRNNBase):
            _replace(model, name, module.to_dense(dtype))
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Linear) and is_compressed(module.weight):
            _replace(model, name, restored(module))
        if isinstance(module, SparseLinear):
            linear = module.to_dense(dtype)
            _replace(model, name, as_conv1d(linear) if module.is_conv1d else linear)
    thaw_(model)
    return model


def _reason_to_keep(
    linear: Any, name: str, filter_fn: FilterFn | None, tied: dict[int, str]
) -> str:
    if filter_fn is not None and not filter_fn(linear, name):
        return "left out by filter_fn"
    told = why_not(linear, type(linear) if is_conv1d(linear) else nn.Linear)
    if told:
        return told
    if linear.weight.dtype not in _dtypes(linear.weight):
        return f"is {linear.weight.dtype}: cast the model to float32 or bfloat16 first"
    if is_compressed(linear.weight):
        return "runs torch's 2:4 kernels already"
    if id(linear.weight) in tied:
        return f"tied to {tied[id(linear.weight)]}"
    return ""


def _dtypes(weight: Tensor) -> tuple[torch.dtype, ...]:
    """What weights there may come in."""
    return (torch.float32, torch.bfloat16, *((torch.float16,) if weight.is_cuda else ()))


def _choose(linear: nn.Linear, config: SparseConfig) -> Choice:
    weight = linear.weight.detach()
    if config.format == "auto":
        return choose_format(weight, config)
    share = zeros(weight)
    if share < MIN_SPARSITY:
        return Choice("dense", 1.0, {}, f"{share:.0%} zeros, no gain below {MIN_SPARSITY:.0%}")
    return Choice(config.format, 1.0, {}, "asked for")


def _row(
    name: str, linear: nn.Linear, layer: SparseLinear | None, choice: Choice, config: SparseConfig
) -> SparsifyRow:
    weight = linear.weight.detach()
    return SparsifyRow(
        name=name,
        shape=(linear.out_features, linear.in_features),
        sparsity=zeros(weight),
        format=choice.format,
        kernel=layer.kernel(max(config.tokens)) if layer else "",
        dense_bytes=weight.nbytes,
        bytes=layer.packed.nbytes if layer else weight.nbytes,
        reason=choice.reason,
        times_us=choice.times_us,
    )


def _reason_to_keep_network(network: Any, name: str, filter_fn: FilterFn | None) -> str:
    if filter_fn is not None and not filter_fn(network, name):
        return "left out by filter_fn"
    told = why_not(network, *TWINS)
    if told:
        return told
    weights = [p for n, p in network.named_parameters() if n.startswith("weight")]
    if weights[0].dtype not in _dtypes(weights[0]):
        return f"is {weights[0].dtype}: cast the model to float32 or bfloat16 first"
    share = 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    if share < MIN_SPARSITY:
        return f"{share:.0%} zeros, no gain below {MIN_SPARSITY:.0%}"
    return ""


def _sparse_network(network: Any, config: SparseConfig) -> tuple[Twin | None, str]:
    """The sparse twin, or None if "auto" measures that the network is faster; and why.

    What it times: sequences of STEPS, as many as have the tokens asked for; of a cell one step.
    """
    if config.format == "dense":
        return None, "asked for"
    twin: Twin = TWINS[type(network)].from_dense(network, config)
    if config.format != "auto":
        return twin, "asked for"
    batches = sorted({max(1, tokens // STEPS) for tokens in config.tokens})
    total = [0.0, 0.0]
    for batch in batches:
        shape = (batch,) if isinstance(network, nn.RNNCellBase) else (STEPS, batch)
        if getattr(network, "batch_first", False):
            shape = (batch, STEPS)
        weight = next(network.parameters())
        x = torch.randn(*shape, network.input_size).to(weight)
        if x.is_cuda:
            runs = {"dense": lambda x=x: network(x), "sparse": lambda x=x: twin(x)}
            times = time_on_gpu(runs, x.device)
            total = [total[0] + times["dense"] / 1e6, total[1] + times["sparse"] / 1e6]
            continue
        best = [float("inf")] * 2
        with torch.inference_mode():
            for i, run in [(0, network), (1, twin)] * 5:
                start = perf_counter()
                run(x)
                best[i] = min(best[i], perf_counter() - start)
        total = [a + b for a, b in zip(total, best, strict=True)]
    told = (
        f"{', '.join(map(str, batches))} sequences of {STEPS} steps: dense {total[0] * 1e3:.2f} ms"
    )
    return (twin if total[1] < total[0] else None), f"{told}, sparse {total[1] * 1e3:.2f} ms"


def _network_rows(name: str, network: Any, twin: Twin | None, why: str) -> list[SparsifyRow]:
    rows = []
    for part, parameter in network.named_parameters():
        if not part.startswith("weight"):
            continue
        which = part.removeprefix("weight_")
        if isinstance(network, nn.RNNCellBase):  # its twin holds a network of one layer
            which = f"network.{which}_l0"
        layer: Any = None if twin is None else twin.get_submodule(which)
        rows.append(
            SparsifyRow(
                name=f"{name}.{which}",
                shape=tuple(parameter.shape),
                sparsity=zeros(parameter),
                format="dense" if layer is None else layer.format,
                kernel="" if layer is None else _kernel_of(layer, part),
                dense_bytes=parameter.nbytes,
                bytes=parameter.nbytes if layer is None else layer.packed.nbytes,
                reason=why,
            )
        )
    return rows


def _kernel_of(layer: SparseLinear, part: str) -> str:
    if layer.values.is_cuda and part.startswith("weight_hh"):
        return step_kernel(layer)
    return layer.kernel(128 if part.startswith("weight_ih") else 1)


def _tied_weights(model: nn.Module) -> dict[int, str]:
    """id(weight) -> name, for weights that an embedding reads too."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) and isinstance(weight, Tensor):
            found[id(weight)] = name
    return found


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
