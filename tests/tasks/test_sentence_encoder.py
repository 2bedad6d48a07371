"""SentenceEncoder: pooling, dense layers, prompts and options, against formulas in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serve_model
import torch
from safetensors.torch import save_file
from torch import Tensor

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.tasks.sentence_modules import SentenceModules

TEXTS = ["a sparse matrix has few non zeros .", "zeros", "dense many zeros ."]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def files(pooling: dict[str, Any], *more: str) -> dict[str, Any]:
    """modules.json and the config of the pooling; `more` are "Dense" and "Normalize" in turn."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}" if i else ""}
        for i, kind in enumerate(kinds)
    ]
    return {"modules.json": modules, "1_Pooling/config.json": pooling}


def states(texts: list[str]) -> list[Tensor]:
    """Hidden states of each text alone, in float64."""
    tokens = {word: i for i, word in enumerate(serve_model.VOCABULARY)}
    model = serve_model.model().double().eval()
    with torch.no_grad():
        return [
            model(torch.tensor([[2, *(tokens[word] for word in text.split()), 3]]))[0][0]
            for text in texts
        ]


def pooled(mode: str, x: Tensor, skip: int = 0) -> Tensor:
    """One text's vector; its first `skip` tokens do not count."""
    weight = torch.arange(1, len(x) + 1).double()[skip:, None]
    x = x[skip:]
    return {
        "cls": x[0],
        "max": x.amax(0),
        "mean": x.mean(0),
        "mean_sqrt_len_tokens": x.sum(0) / len(x) ** 0.5,
        "weightedmean": (x * weight).sum(0) / weight.sum(),
        "lasttoken": x[-1],
    }[mode]


def encoder(folder: Path, content: dict[str, Any], **options: Any) -> se.SentenceEncoder:
    return se.SentenceEncoder(
        serve_model.write(folder, content), serve_model.model().eval(), **options
    )


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("mode", MODES)
def test_pooling(tmp_path: Path, mode: str, batch_size: int) -> None:
    expected = torch.stack([pooled(mode, x) for x in states(TEXTS)]).float()
    for config in (
        {"pooling_mode": mode},
        {f"pooling_mode_{mode}": True, "word_embedding_dimension": 24},
    ):
        found = encoder(tmp_path, files(config)).encode(TEXTS, batch_size=batch_size)
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=5e-6)


def test_several_modes_are_concatenated(tmp_path: Path) -> None:
    model = encoder(tmp_path, files({"pooling_mode": ["lasttoken", "cls"]}))
    expected = [torch.cat([pooled(m, x) for m in ("lasttoken", "cls")]) for x in states(TEXTS)]
    found = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=0, atol=5e-6)
    assert model.get_embedding_dimension() == 48
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    found = encoder(tmp_path / "b", files(flags)).encode(TEXTS, convert_to_tensor=True)
    expected = [torch.cat([pooled(m, x) for m in ("cls", "mean")]) for x in states(TEXTS)]
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_dense_layers_and_norms(tmp_path: Path, activation: str, bias: bool) -> None:
    """Through a package, as a user converts it."""
    content = files({"pooling_mode": "mean"}, "Dense", "Dense", "Normalize")
    folder, expected = serve_model.write(tmp_path / "model", content), []
    generator, sizes = torch.Generator().manual_seed(0), (24, 31, 7)
    layers = []
    for i in (0, 1):
        place = folder / f"{i + 2}_Dense"
        place.mkdir()
        tensors = {"linear.weight": torch.randn(sizes[i + 1], sizes[i], generator=generator)}
        if bias:
            tensors["linear.bias"] = torch.randn(sizes[i + 1], generator=generator)
        save_file(tensors, place / "model.safetensors")
        config = {"in_features": sizes[i], "out_features": sizes[i + 1], "bias": bias}
        config["activation_function"] = f"torch.nn.modules.activation.{activation}"
        (place / "config.json").write_text(json.dumps(config))
        layers.append(tensors)
    for x in states(TEXTS):
        y = x.mean(0)
        for tensors in layers:
            y = tensors["linear.weight"].double() @ y + tensors.get("linear.bias", 0.0)
            y = y.tanh() if activation == "Tanh" else y
        expected.append(y / y.norm())
    model = serve_model.model().eval()
    se.sparsify_(model, "csr")
    se.save(model, tmp_path / "package", source=folder)
    loaded = se.SentenceEncoder(tmp_path / "package")
    found = loaded.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)
    assert loaded.get_sentence_embedding_dimension() == 7


def test_damaged_dense_layers(tmp_path: Path) -> None:
    folder = serve_model.write(tmp_path, files({"pooling_mode": "mean"}, "Dense"))
    place = folder / "2_Dense"
    place.mkdir()
    good = {"in_features": 24, "out_features": 3}
    for config, tensors, error, match in (
        (good, {"linear.weight": torch.ones(4, 24)}, InvalidFileError, "not 3 x 24"),
        (good, {"weight": torch.ones(3, 24)}, InvalidFileError, "not 3 x 24"),
        (
            good,
            {"linear.weight": torch.ones(3, 24), "linear.bias": torch.ones(4)},
            InvalidFileError,
            "not 3 values",
        ),
        (
            good | {"activation_function": "os.system"},
            {"linear.weight": torch.ones(3, 24)},
            UnsupportedModelError,
            "activation system",
        ),
        (
            good | {"use_residual": True},
            {"linear.weight": torch.ones(3, 24)},
            UnsupportedModelError,
            "use_residual",
        ),
    ):
        (place / "config.json").write_text(json.dumps(config))
        save_file(tensors, place / "model.safetensors")
        with pytest.raises(error, match=match):
            SentenceModules.of(folder)
    (place / "config.json").write_text(json.dumps(good))
    (place / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidFileError, match=r"model\.safetensors"):
        SentenceModules.of(folder)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_prompts(tmp_path: Path, mode: str, include: bool) -> None:
    content = files({"pooling_mode": mode, "include_prompt": include})
    content["config_sentence_transformers.json"] = {
        "prompts": {"query": "few non ", "document": ""},
        "similarity_fn_name": "dot",
    }
    model = encoder(tmp_path, content)
    skip = 0 if include else 3  # with the first token
    expected = torch.stack(
        [pooled(mode, x, skip) for x in states([f"few non {text}" for text in TEXTS])]
    ).float()
    for found in (
        model.encode(TEXTS, prompt_name="query"),
        model.encode(TEXTS, prompt="few non "),
        model.encode_query(TEXTS),
    ):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=5e-6)
    plain = model.encode(TEXTS)
    assert np.array_equal(model.encode_document(TEXTS), plain)
    torch.testing.assert_close(model.similarity(plain, found), torch.tensor(plain @ found.T))
    with pytest.raises(UsageError, match="prompt_name 'answer': the model has query, document"):
        model.encode(TEXTS, prompt_name="answer")


def test_options(tmp_path: Path) -> None:
    model = encoder(tmp_path, {})
    y = model.encode(TEXTS)
    one = model.encode(TEXTS[1])
    assert one.shape == (24,)
    np.testing.assert_allclose(one, y[1], rtol=0, atol=1e-6)
    assert isinstance(model.encode(TEXTS, convert_to_numpy=False), list)
    cut = model.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)
    expected = y[:, :5] / np.linalg.norm(y[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, rtol=1e-5)
    assert model.encode([]).shape == (0, 24)
    bits = model.encode(TEXTS, precision="ubinary")
    assert np.array_equal(np.unpackbits(bits, axis=1), (y > 0).astype(np.uint8))
    signed = model.encode(TEXTS, precision="binary")
    assert signed.dtype == np.int8
    assert np.array_equal(signed.astype(int) + 128, bits)
    for options, match in (
        ({"precision": "int8"}, "precision 'int8'"),
        ({"truncate_dim": 0}, "truncate_dim 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(UsageError, match=match):
            model.encode(TEXTS, **options)
    with pytest.raises(UsageError, match="similarity 'near'"):
        encoder(tmp_path, {}, similarity_fn_name="near")
    with pytest.raises(UsageError, match="prompt_name 'x'"):
        encoder(tmp_path, {}, default_prompt_name="x")


def test_similarities(tmp_path: Path) -> None:
    a, b = torch.randn(3, 4), torch.randn(2, 4)
    pairs = [(x, y) for x in a for y in b]
    for name, formula in (
        ("cosine", lambda x, y: x @ y / x.norm() / y.norm()),
        ("dot", lambda x, y: x @ y),
        ("euclidean", lambda x, y: -(x - y).norm()),
        ("manhattan", lambda x, y: -(x - y).abs().sum()),
    ):
        model = encoder(tmp_path, {}, similarity_fn_name=name)
        expected = torch.stack([formula(x, y) for x, y in pairs]).view(3, 2)
        torch.testing.assert_close(model.similarity(a.numpy(), b), expected)


def test_long_texts_are_cut_or_refused(tmp_path: Path) -> None:
    long = "zeros " * 5000
    model = encoder(tmp_path, {})
    assert model.max_seq_length == serve_model.MAX_POSITIONS
    expected = model.encode("zeros " * (serve_model.MAX_POSITIONS - 2))
    np.testing.assert_allclose(model.encode(long), expected, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="characters"):
        encoder(tmp_path, {}, truncate=False).encode(long)
