"""Density maps against means over the parts of a matrix, and their images."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sparse_engine.errors import InvalidFileError
from sparse_engine.reporting.density_map import SIDE, DensityMap


def reference(nonzero: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        pairwise(np.linspace(0, side, count + 1).astype(int))
        for side, count in zip(nonzero.shape, cells, strict=True)
    )
    ends = list(columns)
    return np.array([[nonzero[r0:r1, c0:c1].mean() for c0, c1 in ends] for r0, r1 in rows])


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        ((64, 64), (64, 64)),
        ((384, 384), (64, 64)),
        ((1536, 384), (64, 16)),
        ((70, 131), (34, 64)),
        ((3, 5), (3, 5)),
        ((1, 4096), (1, 64)),
        ((5000, 2), (64, 1)),
    ],
)
def test_cells_are_means(shape: tuple[int, int], cells: tuple[int, int]) -> None:
    nonzero = np.random.default_rng(0).random(shape) < 0.3
    made = DensityMap.of(nonzero)
    assert made.shape == cells
    assert max(made.shape) <= SIDE
    np.testing.assert_allclose(made.values, reference(nonzero, cells), atol=0.5 / 255 + 1e-9)


def test_a_smaller_map_has_the_means_of_cells() -> None:
    nonzero = np.random.default_rng(1).random((120, 90)) < 0.4
    made = DensityMap.of(nonzero)
    assert made.shape == (64, 48)
    small = made.smaller(32)
    assert small.shape == (32, 24)
    means = made.values.reshape(32, 2, 24, 2).mean((1, 3))
    np.testing.assert_allclose(small.values, means, atol=0.5 / 255 + 1e-9)
    assert made.smaller(64).shape == made.shape


def test_the_image_has_a_pixel_for_each_cell() -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    nonzero = np.zeros((4, 6), bool)
    nonzero[1, 2] = True
    url = DensityMap.of(nonzero).png(high=1.0)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    opened = image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert opened.size == (6, 4)
    colours = {opened.getpixel((x, y)) for x in range(6) for y in range(4)}
    assert len(colours) == 2
    assert sum(opened.getpixel((2, 1))) > sum(opened.getpixel((0, 0)))


def test_damaged_maps_are_refused() -> None:
    made = DensityMap.of(np.ones((8, 8), bool))
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
    for damaged in (
        replace(made, packed="no base64!"),
        replace(made, packed=base64.b64encode(b"not zlib").decode()),
        replace(made, shape=(8, 9)),
        replace(made, shape=(0, 8)),
        replace(made, shape=(65, 8)),
        replace(made, packed=bomb),
    ):
        with pytest.raises(InvalidFileError, match="density map"):
            _ = damaged.values
