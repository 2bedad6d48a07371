from typing import Any

import numpy as np

ROW_TOKENS: int
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
        self, layers: int, key_heads: int, head: int, sequences: int, dtype: str = "float32"
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

Linear = tuple[Weight | None, Weight | None, np.ndarray[Any, Any] | None]

class Recurrent:
    def __init__(
        self,
        cell: int,
        in_features: int,
        units: int,
        out: int,
        directions: int,
        layers: list[list[tuple[Linear, Linear, Linear | None]]],
    ) -> None: ...
    def run(
        self,
        x: np.ndarray[Any, Any],
        sizes: list[int],
        y: np.ndarray[Any, Any],
        h0: np.ndarray[Any, Any] | None,
        c0: np.ndarray[Any, Any] | None,
        hn: np.ndarray[Any, Any],
        cn: np.ndarray[Any, Any] | None,
        isa: str | None = None,
    ) -> None: ...

class Stack:
    def __init__(self, config: dict[str, Any], layers: list[dict[str, Any]]) -> None: ...
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
    def remember(
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
def peak_gflops(dtype: str, isa: str | None = None) -> float: ...
def read_gbytes_per_second(bytes: int, isa: str | None = None) -> float: ...
