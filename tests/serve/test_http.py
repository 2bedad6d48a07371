"""The routes: right answers, and what an app is made of."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import serve_model

from sparse_engine import load, prune, save, sparsify_
from sparse_engine.errors import UsageError
from sparse_engine.serve import Embedder, create_app, run

HIDDEN, MAX_LENGTH = serve_model.HIDDEN, 17
infer, tensor = serve_model.infer, serve_model.tensor
V1, V2 = "/v1/embeddings", "/v2/models/tiny/infer"
Send = Callable[..., Any]


def vectors(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["embedding"] for entry in data], np.float32)


@pytest.mark.parametrize("given", ["a sparse matrix", ["a sparse matrix", "dense", "zeros zeros"]])
@pytest.mark.parametrize("extra", [{}, {"model": "tiny"}, {"dimensions": HIDDEN, "user": "me"}])
def test_embeddings_of_texts(send: Send, embedder: Embedder, given: Any, extra: Any) -> None:
    texts = [given] if isinstance(given, str) else given
    answer = send("POST", V1, json={"input": given, **extra})
    np.testing.assert_allclose(vectors(answer), embedder.embed(texts).numpy(), rtol=0, atol=1e-6)
    body = answer.json()
    tokens = sum(map(len, embedder.encode(texts)))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (body["object"], body["model"]) == ("list", "tiny")
    assert body["data"][0]["object"] == "embedding"


def test_embeddings_of_a_cut_model(tmp_path: Path) -> None:
    """Heads and units that differ by layer, zeros in the rest, from a package."""
    folder = serve_model.write(tmp_path / "model")
    model = serve_model.model().eval()
    structures, steps = ["head", "unit(keep=4)"], []
    for layer, share in (("encoder.layer.0", 0.3), ("encoder.layer.1", 0.6)):
        report = prune(model, share, structures, "magnitude", layers=[layer])
        steps.append([len(site.kept) for site in report.sites])
    assert steps == [[2, 25], [1, 14]]
    prune(model, 0.5)
    texts = ["a sparse matrix", "dense", "zeros zeros"]
    expected = Embedder(model, folder).embed(texts).numpy()
    sparsify_(model, "csr")
    save(model, tmp_path / "package", source=folder)
    served = Embedder(load(tmp_path / "package"), tmp_path / "package")
    send = serve_model.sender(create_app({"cut": served}, threads=1))
    got = vectors(send("POST", V1, json={"input": texts}))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [[2, 5, 3], [[2, 5, 3], [4], [2, 10, 10, 3]]])
def test_embeddings_of_token_ids(send: Send, embedder: Embedder, given: Any) -> None:
    rows = given if isinstance(given[0], list) else [given]
    got = vectors(send("POST", V1, json={"input": given}))
    np.testing.assert_allclose(got, embedder.embed_ids(rows).numpy(), rtol=0, atol=1e-6)


def test_base64_is_the_same_to_the_bit(send: Send) -> None:
    body = {"input": ["a sparse matrix", "zeros"]}
    plain = vectors(send("POST", V1, json=body))
    coded = send("POST", V1, json=body | {"encoding_format": "base64"}).json()["data"]
    got = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in coded]
    assert np.array_equal(np.array(got), plain)


def test_infer_on_text(send: Send, embedder: Embedder) -> None:
    texts = ["a sparse matrix", "dense"]
    for shape in ([2], [2, 1]):
        body = infer(
            tensor("text", texts, shape, "BYTES"), id="7\n", outputs=[{"name": "embedding"}]
        )
        answer = send("POST", V2, json=body)
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        assert answer.json()["model_name"] == "tiny"
        assert answer.json()["id"] == "7\n"
        assert (output["name"], output["datatype"]) == ("embedding", "FP32")
        assert output["shape"] == [2, HIDDEN]
        got = np.array(output["data"], np.float32).reshape(2, HIDDEN)
        np.testing.assert_allclose(got, embedder.embed(texts).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_infer_on_tokens(send: Send, embedder: Embedder, nested: bool) -> None:
    ids = [[2, 4, 5, 3], [2, 11, 3, 0]]
    mask = [[1, 1, 1, 1], [1, 1, 1, 0]]
    lay = list if nested else lambda rows: list(chain.from_iterable(rows))
    body = infer(tensor("input_ids", lay(ids), [2, 4]), tensor("attention_mask", lay(mask), [2, 4]))
    answer = send("POST", V2, json=body)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["name"] == "last_hidden_state"
    assert output["shape"] == [2, 4, HIDDEN]
    got = torch.tensor(output["data"]).view(2, 4, HIDDEN)
    expected = embedder.hidden_states(torch.tensor(ids), torch.tensor(mask))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    alone = embedder.hidden_states(torch.tensor([ids[1][:3]]), torch.ones(1, 3, dtype=torch.int64))
    torch.testing.assert_close(got[1, :3], alone[0], rtol=0, atol=1e-5)


def test_infer_without_a_mask_takes_every_token(send: Send, embedder: Embedder) -> None:
    answer = send("POST", V2, json=infer(tensor("input_ids", [2, 0, 3], [1, 3])))
    got = torch.tensor(answer.json()["outputs"][0]["data"]).view(1, 3, HIDDEN)
    expected = embedder.hidden_states(
        torch.tensor([[2, 0, 3]]), torch.ones(1, 3, dtype=torch.int64)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_what_is_served(send: Send, embedder: Embedder) -> None:
    (model,) = send("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"], model["info"]) == ("tiny", "model", embedder.info)
    told = send("GET", "/v2/models/tiny").json()
    assert told["parameters"]["max_length"] == MAX_LENGTH
    assert [entry["name"] for entry in told["inputs"]] == ["input_ids", "attention_mask", "text"]
    assert told["outputs"][1] == {"name": "embedding", "datatype": "FP32", "shape": [-1, HIDDEN]}
    assert send("GET", "/v2").json()["name"] == "sparse_engine"
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert send("GET", path).status_code == 200
    assert send("GET", "/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}


def test_metrics_count_what_happened(send: Send) -> None:
    for body in ({"input": ["a", "dense", "zeros"]}, {"input": []}):
        send("POST", V1, json=body)
    send("GET", "/no/such/route")
    text = send("GET", "/metrics").text
    for line in (
        'se_requests_total{code="200",route="/v1/embeddings"} 1.0',
        'se_requests_total{code="400",route="/v1/embeddings"} 1.0',
        'se_requests_total{code="404",route="other"} 1.0',
        'se_request_seconds_count{route="/v1/embeddings"} 2.0',
        'se_batch_rows_bucket{le="4.0"} 1.0',
        "se_batch_rows_sum 3.0",
        f'se_model_info{{format="dense",hidden="{HIDDEN}",model="tiny",pooling="mean",'
        'task="embedding"} 1.0',
        'se_queue_depth{model="tiny"} 0.0',
    ):
        assert line in text.splitlines()
    rss = next(line for line in text.splitlines() if line.startswith("se_rss_bytes"))
    assert float(rss.split()[1]) > 1e6


def test_two_models_have_to_be_named(embedder: Embedder, send: Send, app: Any) -> None:
    service = app.state.service
    service.models["other"] = service.models["tiny"]
    answer = send("POST", V1, json={"input": "a"})
    assert answer.status_code == 400
    assert "give one of tiny, other" in answer.json()["error"]["message"]
    assert send("POST", V1, json={"input": "a", "model": "tiny"}).status_code == 200


def test_what_an_app_cannot_be_made_of(embedder: Embedder) -> None:
    with pytest.raises(UsageError, match="no model"):
        create_app({})
    with pytest.raises(UsageError, match="plain name"):
        create_app({"a/b": embedder})
    with pytest.raises(UsageError, match="threads is 0"):
        create_app({"tiny": embedder}, threads=0)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "tokenizers"])
def test_missing_packages_are_one_line(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"needs {package}: pip install sparse-engine\[serve\]"
    with pytest.raises(UsageError, match=words):
        create_app({"tiny": embedder})
    with pytest.raises(UsageError, match=words):
        run("nowhere")
