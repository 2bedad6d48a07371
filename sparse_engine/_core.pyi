from typing import Any, Literal

import numpy as np

ACTIVATIONS: dict[str, int]
DTYPES: tuple[str, ...]

class Weight:
    def __init__(
        self,
        packing: str,
        buffers: list[np.ndarray[Any, Any]],
        params: list[int],
        out: int,
        in_features: int,
    ) -> None: ...
    def linear(
        self,
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
        bias: np.ndarray[Any, Any] | None = None,
        residual: np.ndarray[Any, Any] | None = None,
        activation: int = 0,
        isa: str | None = None,
    ) -> None: ...
    def panel_width(self, tokens: int, isa: str | None = None) -> int: ...
    def linear_on_panels(
        self,
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
        bias: np.ndarray[Any, Any] | None = None,
        activation: int = 0,
        isa: str | None = None,
    ) -> None: ...
    def conv1d(
        self,
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
        kernel: int,
        stride: int,
        dilation: int,
        left: int,
        bias: np.ndarray[Any, Any] | None = None,
        activation: int = 0,
        isa: str | None = None,
    ) -> None: ...

class KvCache:
    def __init__(
        self, layers: list[tuple[int, int]], sequences: int, dtype: str = "float32"
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def nbytes(self) -> int: ...
    def copy(self) -> KvCache: ...
    def crop(self, lengths: list[int]) -> None: ...
    def select(self, sequences: list[int]) -> None: ...

class LinearPair:
    def __init__(
        self,
        *,
        panels: Weight | None = None,
        rows: Weight | None = None,
        bias: np.ndarray[Any, Any] | None = None,
    ) -> None: ...
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...

class Norm:
    def __init__(
        self,
        *,
        gamma: np.ndarray[Any, Any] | None = None,
        beta: np.ndarray[Any, Any] | None = None,
        epsilon: float,
        rms: bool = False,
    ) -> None: ...

class RotaryTable:
    def __init__(self, cosines: np.ndarray[Any, Any], sines: np.ndarray[Any, Any]) -> None: ...
    @property
    def positions(self) -> int: ...

class PositionBias:
    def __init__(self, values: np.ndarray[Any, Any]) -> None: ...

class Attention:
    def __init__(
        self,
        *,
        heads: int,
        key_heads: int,
        head_size: int,
        query: LinearPair,
        key: LinearPair | None = None,
        value: LinearPair | None = None,
        output: LinearPair,
        interleaved: bool = False,
        scale: float | None = None,
        soft_cap: float = 0.0,
        causal: bool = False,
        window: int = 0,
        rotary: RotaryTable | None = None,
        position_bias: PositionBias | None = None,
        query_norm: Norm | None = None,
        key_norm: Norm | None = None,
        input_norm: Norm | None = None,
        output_norm: Norm | None = None,
        sum_norm: Norm | None = None,
    ) -> None: ...

class FeedForward:
    def __init__(
        self,
        *,
        up: LinearPair,
        down: LinearPair,
        activation: str,
        gate: LinearPair | None = None,
        fused_gate: bool = False,
        input_norm: Norm | None = None,
        output_norm: Norm | None = None,
        sum_norm: Norm | None = None,
    ) -> None: ...

class Layer:
    def __init__(
        self,
        *,
        attention: Attention,
        feed_forward: FeedForward,
        cross_attention: Attention | None = None,
        parallel: bool = False,
    ) -> None: ...

Linear = tuple[Weight | None, Weight | None, np.ndarray[Any, Any] | None]

RecurrentPath = Literal["panels", "rows", "few_tokens"]
RECURRENT_GATES: dict[str, int]

def recurrent_path(sequences: int, tokens: int, tall_blocks: bool) -> RecurrentPath: ...

class RecurrentDirection:
    def __init__(
        self,
        *,
        input: Weight,
        hidden: Weight,
        projection: Weight | None = None,
        input_bias: np.ndarray[Any, Any] | None = None,
        hidden_bias: np.ndarray[Any, Any] | None = None,
    ) -> None: ...

class RecurrentNetwork:
    def __init__(
        self,
        *,
        mode: str,
        path: RecurrentPath,
        input_size: int,
        hidden_size: int,
        output_size: int,
        layers: list[list[RecurrentDirection]],
    ) -> None: ...
    def run(
        self,
        x: np.ndarray[Any, Any],
        batch_sizes: list[int],
        y: np.ndarray[Any, Any],
        initial: list[np.ndarray[Any, Any]],
        final: list[np.ndarray[Any, Any]],
        isa: str | None = None,
    ) -> None: ...

class Stack:
    def __init__(
        self, hidden: int, layers: list[Layer], final_norm: Norm | None = None
    ) -> None: ...
    @property
    def kv_heads(self) -> list[tuple[int, int]]: ...
    @property
    def memory_heads(self) -> list[tuple[int, int]]: ...
    def run(
        self,
        x: np.ndarray[Any, Any],
        lengths: list[int],
        y: np.ndarray[Any, Any],
        cache: KvCache | None = None,
        positions: np.ndarray[Any, Any] | None = None,
        memory: KvCache | None = None,
        isa: str | None = None,
    ) -> None: ...
    def encode_memory(
        self,
        x: np.ndarray[Any, Any],
        lengths: list[int],
        memory: KvCache,
        isa: str | None = None,
    ) -> None: ...

def unchanged(
    watched: list[tuple[dict[str, Any], str, Any, int | None, int | None]],
) -> bool: ...
def linear_kernel(packing: str, dtype: str, tokens: int, isa: str | None = None) -> str: ...
def pack_runs(
    pointers: np.ndarray[Any, Any],
    columns: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    out: int,
    in_features: int,
    chunk: int,
    block: int,
) -> dict[str, np.ndarray[Any, Any]]: ...
def rows_of_runs(
    values: np.ndarray[Any, Any],
    columns: np.ndarray[Any, Any],
    rows: np.ndarray[Any, Any],
    stretches: np.ndarray[Any, Any],
    starts: np.ndarray[Any, Any],
    out: int,
    in_features: int,
    chunk: int,
    block: int,
    begin: int,
    end: int,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]: ...
def sellp_pattern(
    pointers: np.ndarray[Any, Any],
    columns: np.ndarray[Any, Any],
    out: int,
    in_features: int,
) -> dict[str, np.ndarray[Any, Any]]: ...
def fill_sellp(
    pointers: np.ndarray[Any, Any],
    columns: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    in_features: int,
    first: int,
    lanes: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
    starts: np.ndarray[Any, Any],
    to: np.ndarray[Any, Any],
) -> None: ...
def kernels() -> list[dict[str, Any]]: ...
def detected_isa() -> str: ...
def active_isa() -> str: ...
def capabilities(isa: str | None = None) -> list[str]: ...
def presets() -> list[str]: ...
def cpu_name() -> str: ...
def tiles_refused() -> bool: ...
def peak_gflops(dtype: str, isa: str | None = None) -> float: ...
def read_gbytes_per_second(bytes: int, isa: str | None = None) -> float: ...
