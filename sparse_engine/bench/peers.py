"""Peers of one linear layer, y = x W^T on row-major tensors: dense engines and sparse libraries.

A peer loads a weight once and then makes, for given activations, a call without arguments. `PEERS`
lists them; packages are imported when a peer is loaded. peer_hosts.py runs each in its process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.config import DTYPES
from sparse_engine.errors import UsageError

Call = Callable[[], Any]
"""The layer on activations that it already has: returns y [tokens, out]."""
Loaded = Callable[[Tensor], Call]
"""The layer with its weight loaded: activations float32 [tokens, in] -> Call."""

BLOCK = (16, 16)
"""Block of torch-bsr where the format names none that torch can run."""


@dataclass(frozen=True)
class Peer:
    """One engine or library.

    Attributes:
        name: The name in `--against`.
        load: Called with the float32 weight [out, in], a dtype and a block; may raise.
        dtypes: Dtypes of its matrix product.
        dense: Whether it multiplies dense weights.
        packages: Packages that it needs.
        own_threads: Whether it has a thread pool of its own, and so runs in a process of its own.
        spin: Seconds for which its threads spin after a call, as measured.
    """

    name: str
    load: Callable[[Tensor, str, tuple[int, int]], Loaded]
    dtypes: tuple[str, ...]
    dense: bool = True
    packages: tuple[str, ...] = ()
    own_threads: bool = False
    spin: float = 0.0

    def problem(self, dtype: str) -> str | None:
        """Why this peer cannot run in `dtype`, in one line, or None."""
        return None if dtype in self.dtypes else f"has no matrix product in {dtype} on CPUs"


def _fastest(calls: Sequence[Call]) -> Call:
    """The fastest of several ways to the same result: which one depends on the tokens."""

    def seconds(call: Call) -> float:
        call()
        times = []
        for _ in range(3):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        return min(times)

    return min(calls, key=seconds) if len(calls) > 1 else calls[0]


def _load_torch(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    """torch.nn.functional.linear; int8: dynamically quantised, the fastest of torch's engines."""
    if dtype == "int8":
        return _load_torch_int8(weight)
    cast = weight.to(DTYPES[dtype])
    return lambda x: partial(F.linear, x.to(cast.dtype), cast)


def _load_torch_int8(weight: Tensor) -> Loaded:
    quantized: Any = torch.backends.quantized
    engines = [e for e in ("x86", "onednn", "fbgemm") if e in quantized.supported_engines]
    if not engines:
        raise UsageError(f"this torch quantises with {quantized.supported_engines} only")
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-30).double()
    before, packed = quantized.engine, []
    try:
        for engine in engines:
            quantized.engine = engine
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces that it will drop these one day
                integers = torch.quantize_per_channel(
                    weight, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
                )
            packed.append(torch.ops.quantized.linear_prepack(integers, None))
    finally:
        quantized.engine = before
    run = torch.ops.quantized.linear_dynamic
    return lambda x: _fastest([partial(run, x, each) for each in packed])


def _load_onnxruntime(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    """MatMul with a constant weight; int8: DynamicQuantizeMatMul, weights with a scale a row."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    out_features, in_features = weight.shape
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", in_features])
    y_info = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", out_features])
    opsets = [helper.make_opsetid("", 17)]
    if dtype == "int8":
        scales = (weight.abs().amax(1) / 127).clamp(min=1e-30)
        integers = (weight / scales[:, None]).round().to(torch.int8)
        constants = {
            "w": integers.T.contiguous().numpy(),
            "scale": scales.numpy(),
            "zero": np.zeros(out_features, np.int8),
        }
        opsets.append(helper.make_opsetid("com.microsoft", 1))
        inputs, kind, domain = ["x", "w", "scale", "zero"], "DynamicQuantizeMatMul", "com.microsoft"
    else:
        constants = {"w": weight.T.contiguous().numpy()}
        inputs, kind, domain = ["x", "w"], "MatMul", ""
    node = helper.make_node(kind, inputs, ["y"], domain=domain)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "linear", [x_info], [y_info], initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def start(x: Tensor) -> Call:
        feed = {"x": x.numpy()}
        return lambda: session.run(None, feed)[0]

    return start


def _load_openvino(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    """MatMul compiled for the number of tokens, float32 in and out; bfloat16 by the precision hint.

    int8: FakeQuantize on both sides, weights with a scale a row; the range of the activations is
    that of the ones measured, so that finding it is not part of the time.
    """
    import openvino
    from openvino import opset13 as op

    core = openvino.Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("OpenVINO has no bfloat16 kernels for this processor")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    values = weight.numpy()

    def start(x: Tensor) -> Call:
        parameter = op.parameter(list(x.shape), np.float32)
        left, right = parameter, op.constant(values)
        if dtype == "int8":
            top = np.float32(max(float(x.abs().max()), 1e-30))
            low, high = -top, np.float32(top * 127 / 128)
            left = op.fake_quantize(parameter, low, high, low, high, 256)
            rows = np.maximum(np.abs(values).max(1, keepdims=True), np.float32(1e-30))
            right = op.fake_quantize(right, -rows, rows, -rows, rows, 255)
        model = openvino.Model([op.matmul(left, right, False, True)], [parameter])
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        feed = [x.numpy()]
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0]

    return start


def _load_scipy(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    """CSR times dense, on one thread: scipy has no other."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(weight.numpy())

    def start(x: Tensor) -> Call:
        rows = x.numpy()
        if len(rows) == 1:
            return lambda: (matrix @ rows[0])[None]
        return lambda: np.ascontiguousarray((matrix @ np.ascontiguousarray(rows.T)).T)

    return start


def _torch_sparse(matrix: Tensor) -> Loaded:
    """The fastest way to row-major results: either operand of torch's product may be sparse."""
    transposed = matrix.t()
    return lambda x: _fastest([lambda: (matrix @ x.T).T.contiguous(), lambda: x @ transposed])


def _load_torch_csr(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "beta state"
        return _torch_sparse(weight.to_sparse_csr())


def _load_torch_bsr(weight: Tensor, dtype: str, block: tuple[int, int]) -> Loaded:
    """The format's own blocks where torch can run them: square ones, larger than an element."""
    sides = block if block[0] == block[1] > 1 else BLOCK
    if any(size % side for size, side in zip(weight.shape, sides, strict=True)):
        shape = "x".join(map(str, weight.shape))
        raise UsageError(f"{sides[0]}x{sides[1]} blocks do not tile a weight of {shape}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _torch_sparse(weight.to_sparse_bsr(sides))


_ALL = ("float32", "bfloat16", "int8")
PEERS = (
    Peer("torch", _load_torch, _ALL),
    Peer(
        "onnxruntime",
        _load_onnxruntime,
        ("float32", "int8"),
        packages=("onnx", "onnxruntime"),
        own_threads=True,
        spin=0.05,
    ),
    Peer("openvino", _load_openvino, _ALL, packages=("openvino",), own_threads=True, spin=0.02),
    Peer("scipy", _load_scipy, ("float32",), dense=False),
    Peer("torch-csr", _load_torch_csr, ("float32",), dense=False),
    Peer("torch-bsr", _load_torch_bsr, ("float32",), dense=False),
)


def find_peers(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers of these names, each once; raises UsageError for one unknown or not installed."""
    by_name = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in by_name:
            raise UsageError(f"peer {name!r}: use some of {', '.join(by_name)}")
        for package in by_name[name].packages:
            if find_spec(package) is None:
                raise UsageError(f"{package} is not installed: pip install sparse-engine[bench]")
    return tuple(by_name[name] for name in dict.fromkeys(names))
