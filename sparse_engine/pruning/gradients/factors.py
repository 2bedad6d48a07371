"""Factors of groups: what a group is multiplied by before the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.statistics.capture import linear_input, pre_forward_hooks
from sparse_engine.structures import Site


class RowsMixed(BaseException):
    """The first dimension of what a layer reads is not that of the batch.

    It is not an Exception, so that it is not taken for an error of the model.
    """


@contextmanager
def group_factors(
    model: nn.Module, sites: Sequence[Site], factors: Mapping[str, Tensor], batch: Batch
) -> Iterator[None]:
    """Inside of a `with` block, the features of groups are multiplied by factors.

    Args:
        model: the unrolled model.
        sites: those whose groups have factors.
        factors: by the name of a site, [1, groups], or [rows of the batch, groups].
        batch: what the model is run on.

    Raises:
        RowsMixed: when a layer runs, if each row has factors and the layer does not see rows.
    """
    read: dict[str, list[tuple[str, Tensor]]] = {}
    for site in sites:
        for name, groups in site.readers.items():
            read.setdefault(name, []).append((site.name, groups.to(factors[site.name].device)))

    def scaled(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        x = linear_input(args, kwargs)
        for site, groups in read[name]:
            of_site = factors[site]
            rows = len(of_site)
            if rows > 1 and batch.mask_of(x) is None:
                raise RowsMixed
            ones = of_site.new_ones(rows, 1)  # for the group -1
            columns = torch.cat([of_site, ones], 1)[:, groups].to(x.dtype)
            shape = (rows, *(1,) * (x.ndim - 2), -1) if x.ndim > 1 else (-1,)
            x = x * columns.view(shape)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

    with pre_forward_hooks({name: model.get_submodule(name) for name in read}, scaled):
        yield
