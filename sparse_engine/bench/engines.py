"""Whole models in dense engines: their names, their dtypes, and a call that runs each.

An engine is written as in `--against`: torch, torch:bfloat16, onnxruntime:int8. Packages are
imported when an engine is used.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError

Inputs = dict[str, Tensor]
Call = Callable[[], object]
"""One call of the model on fixed inputs."""

OURS = "sparse_engine"
# The dtypes in which each runs whole models on CPUs. ONNX Runtime has no bfloat16 there, and
# OpenVINO's int8 needs a model calibrated by another tool.
DENSE_ENGINES = {
    "torch": ("float32", "bfloat16", "int8"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Engine:
    """An engine and its dtype; int8: int8 weights, and activations quantised at run time."""

    name: str
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Engine:
        """From "NAME" or "NAME:DTYPE"; raises UsageError for an unknown one."""
        if text == OURS:
            return cls(text)
        name, _, dtype = text.partition(":")
        if name not in DENSE_ENGINES:
            raise UsageError(f"engine {name!r}: use one of {', '.join(DENSE_ENGINES)}")
        dtypes = DENSE_ENGINES[name]
        if dtype and dtype not in dtypes:
            raise UsageError(f"{name} runs whole models in {', '.join(dtypes)}, not in {dtype}")
        return cls(name, dtype or "float32")

    def require_installed(self) -> None:
        """Raise UsageError with the install command where a package is missing."""
        for module in () if self.name in (OURS, "torch") else ("onnx", self.name):
            if find_spec(module) is None:
                raise UsageError(f"{module} is not installed: pip install sparse-engine[bench]")


def exported_call(engine: Engine, model: nn.Module, inputs: Inputs) -> Call:
    """A dense float32 model in an engine that reads ONNX, on as many threads as torch has."""
    feed, threads = {name: value.numpy() for name, value in inputs.items()}, torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="sparse-engine-bench-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, inputs, path)
        if engine.name == "openvino":
            return _openvino(path, engine.dtype, threads, feed)
        if engine.dtype == "int8":
            path = _quantized(path)
        return _onnxruntime(path, threads, feed)


def torch_call(model: nn.Module, inputs: Inputs) -> Call:
    """The model as torch runs it."""

    def call() -> object:
        with torch.inference_mode():
            return model(**inputs)

    return call


def in_torch(model: nn.Module, dtype: str) -> nn.Module:
    """The model as torch runs it in `dtype`; int8: torch.ao's dynamic quantisation."""
    if dtype == "bfloat16":
        return model.to(torch.bfloat16)
    if dtype == "float32":
        return model.float()
    with warnings.catch_warnings():  # deprecated, with no successor in torch itself
        warnings.simplefilter("ignore")
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(
            model.float(), {nn.Linear, nn.LSTM, nn.GRU}, torch.qint8
        )
    return quantized


def export_onnx(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """Write the dense float32 model, from ids and mask to its first output."""

    class FirstOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    names = ["input_ids", "attention_mask"]
    values = tuple(inputs[name] for name in names)
    torch.onnx.export(
        FirstOutput(), values, str(path), input_names=names, opset_version=17, dynamo=False
    )


def _quantized(path: Path) -> Path:
    """Weights in int8 with a scale a row; beside the float file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    to = path.with_name("int8.onnx")
    quantize_dynamic(
        path,
        to,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
        extra_options={"MatMulConstBOnly": True},
    )
    return to


def _onnxruntime(path: Path, threads: int, feed: dict[str, Any]) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda: session.run(None, feed)


def _openvino(path: Path, dtype: str, threads: int, feed: dict[str, Any]) -> Call:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: compiled(feed)
