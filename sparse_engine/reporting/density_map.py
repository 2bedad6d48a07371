"""Where a matrix has its non-zeros: densities of at most 64 x 64 equal parts, as a small image."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparse_engine.errors import InvalidFileError

SIDE = 64
"""Cells along the longer side."""


@dataclass(frozen=True)
class DensityMap:
    """The share of non-zeros in each of rows x columns equal parts of a matrix.

    Attributes:
        shape: (rows, columns) of the map, each at most SIDE.
        packed: the cells row by row, a byte each, 255 where no weight is zero: compressed by zlib,
            in base64, so that reports can be written as JSON.
    """

    shape: tuple[int, int]
    packed: str

    @classmethod
    def of(cls, nonzero: NDArray[np.bool_]) -> DensityMap:
        """The map of a matrix [out, in] that tells which weights are not zero.

        The sides of the map are as those of the matrix. Only one band of rows is summed at a time.

        >>> DensityMap.of(np.eye(2, dtype=bool)).values.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        rows, columns = (_cells(side, max(nonzero.shape)) for side in nonzero.shape)
        row_ends = np.linspace(0, nonzero.shape[0], rows + 1).astype(int)
        starts = np.linspace(0, nonzero.shape[1], columns + 1).astype(int)
        widths = np.diff(starts)
        density = np.empty((rows, columns))
        for i, (first, last) in enumerate(pairwise(row_ends)):
            counts = nonzero[first:last].sum(0, dtype=np.int64)
            density[i] = np.add.reduceat(counts, starts[:-1]) / (widths * (last - first))
        return cls._pack(density)

    @classmethod
    def _pack(cls, density: NDArray[np.float64]) -> DensityMap:
        cells = np.rint(density * 255).astype(np.uint8).tobytes()
        return cls(
            (density.shape[0], density.shape[1]),
            base64.b64encode(zlib.compress(cells, 9)).decode(),
        )

    @property
    def values(self) -> NDArray[np.float64]:
        """Densities [rows, columns], 0..1, in steps of 1 / 255.

        Raises:
            InvalidFileError: for a map from a file that is not one.
        """
        rows, columns = self.shape
        try:
            if not (1 <= rows <= SIDE and 1 <= columns <= SIDE):
                raise ValueError(f"{rows} x {columns} cells")
            packed = base64.b64decode(self.packed, validate=True)
            cells = zlib.decompressobj().decompress(packed, SIDE * SIDE + 1)
            if len(cells) != rows * columns:
                raise ValueError(f"{len(cells)} cells, not {rows} x {columns}")
        except (ValueError, zlib.error) as error:
            raise InvalidFileError(f"this is no density map: {error}") from None
        return np.frombuffer(cells, np.uint8).reshape(rows, columns) / 255

    def smaller(self, side: int) -> DensityMap:
        """The same map with at most `side` cells along each side."""
        values = self.values
        factor = -(-max(values.shape) // side)
        starts = [np.arange(0, n, factor) for n in values.shape]
        sums = np.add.reduceat(np.add.reduceat(values, starts[0], 0), starts[1], 1)
        counts = np.add.reduceat(np.add.reduceat(np.ones_like(values), starts[0], 0), starts[1], 1)
        return self._pack(sums / counts)

    def png(self, high: float) -> str:
        """A data: URL of an image, one pixel a cell; `high` is the density of the last colour."""
        from matplotlib import colormaps
        from PIL import Image

        scaled = np.minimum(self.values / high, 1) * 255 if high else self.values
        colours = colormaps["viridis"](np.arange(256))[:, :3]
        image = Image.fromarray(np.rint(scaled).astype(np.uint8), mode="P")
        image.putpalette(np.rint(colours * 255).astype(np.uint8).tobytes())
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _cells(side: int, longest: int) -> int:
    """Cells along a side of a matrix whose longer side may have SIDE of them."""
    return side if longest <= SIDE else max(1, min(side, round(side * SIDE / longest)))
