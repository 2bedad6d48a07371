"""The tiny encoder, an application that serves it, and requests to that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import serve_model

    from sparse_engine.serve import Embedder

    return Embedder(serve_model.model(), serve_model.write(tmp_path_factory.mktemp("model")))


@pytest.fixture
def app(embedder: Any) -> Any:
    from sparse_engine.serve import create_app

    return create_app({"tiny": embedder}, threads=1)


@pytest.fixture
def send(app: Any) -> Callable[..., Any]:
    import serve_model

    return serve_model.sender(app)
