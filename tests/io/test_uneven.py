"""Models of which heads and units were removed: written, read, verified, and refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from io_cases import edit_manifest
from safetensors.torch import load_file, save_file
from uneven_models import build, cut_, inputs, output, sparse

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.io import load_pretrained, save_checkpoint, verify
from sparse_engine.structures import find_sites, resize_

torch.set_num_threads(1)
KINDS = ["bert", "llama", "gpt2", "t5", "distilbert"]


def source_of(kind: str, folder: Path) -> Path:
    build(kind).save_pretrained(folder)
    return folder


def cut_folder(kind: str, tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint of a cut model, and the model."""
    model = build(kind)
    cut_(model)
    source = source_of(kind, tmp_path / "hf")
    return save_checkpoint(model, tmp_path / "cut", source, {}), model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    folder, model = cut_folder(kind, tmp_path)
    assert (folder / "config.json").read_bytes() == (tmp_path / "hf/config.json").read_bytes()
    loaded: Any
    loaded, _ = load_pretrained(folder)
    assert type(loaded) is type(model)
    assert shapes(loaded) == shapes(model)
    assert torch.equal(output(loaded), output(model))
    names = dict(model.named_buffers())
    assert dict(loaded.named_buffers()).keys() == names.keys()
    for name, buffer in loaded.named_buffers():  # the non-persistent ones too
        assert torch.equal(buffer, names[name])
    copied = copy.deepcopy(loaded)
    copied.load_state_dict(loaded.state_dict())
    assert torch.equal(output(copied), output(model))
    again = save_checkpoint(loaded, tmp_path / "again", folder, {})
    assert torch.equal(output(load_pretrained(again)[0]), output(model))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packages(kind: str, zeros: bool, tmp_path: Path) -> None:
    folder, model = cut_folder(kind, tmp_path)
    if zeros:
        model = sparse(model)
    se.save(model, tmp_path / "package", source=folder)
    loaded: Any = se.load(tmp_path / "package")
    torch.testing.assert_close(output(loaded), output(model))
    assert verify(tmp_path / "package", against=se.densify_(copy.deepcopy(model))).samples == 5
    if not zeros:
        assert verify(tmp_path / "package", against=folder).samples == 5


def test_sharded_checkpoints(tmp_path: Path) -> None:
    model = build("llama")
    cut_(model)
    model.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    assert torch.equal(output(load_pretrained(tmp_path / "cut")[0]), output(model))


def test_ties_and_training(tmp_path: Path) -> None:
    folder, _ = cut_folder("bert", tmp_path)
    model: Any = load_pretrained(folder)[0]
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.requires_grad_(True).train()
    model(**inputs(model))[0].square().mean().backward()
    assert model.bert.encoder.layer[0].intermediate.dense.weight.grad.any()


def test_generation(tmp_path: Path) -> None:
    folder, model = cut_folder("llama", tmp_path)
    ids = inputs(model)["input_ids"]
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    assert torch.equal(load_pretrained(folder)[0].generate(ids, **options), expected)  # type: ignore[operator]
    se.save(sparse(model), tmp_path / "package", source=folder)
    packed: Any = se.load(tmp_path / "package")
    assert torch.equal(packed.generate(ids, **options), model.generate(ids, **options))


def edit_weights(folder: Path, **shapes: tuple[int, ...]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, shape in shapes.items():
        full = next(key for key in tensors if key.endswith(name.replace("__", ".")))
        tensors[full] = torch.zeros(shape)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer.0.attention.self.query.weight", (12, 32)),
        ("layer.0.attention.self.query.weight", (0, 32)),
        ("layer.0.attention.self.key.bias", (8,)),
        ("layer.1.intermediate.dense.weight", (0, 32)),
        ("layer.1.intermediate.dense.bias", (1,)),
        ("layer.1.output.dense.weight", (32, 0)),
        ("layer.1.output.dense.weight", (32, 49)),
        ("layer.1.output.dense.bias", (31,)),
    ],
)
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    folder, _ = cut_folder("bert", tmp_path)
    edit_weights(folder, **{name: shape})
    with pytest.raises(InvalidFileError, match="tensor '") as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}: ")
    assert caught.value.exit_code == 3


def test_a_config_with_more_layers_is_refused(tmp_path: Path) -> None:
    folder, _ = cut_folder("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"num_hidden_layers": 4},
        {"hidden_size": 64},
        {"intermediate_size": 16},
        {"intermediate_size": 10**12},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InvalidFileError) as caught:
            load_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_packages_with_wrong_shapes_are_refused(tmp_path: Path) -> None:
    folder, model = cut_folder("bert", tmp_path)
    se.save(sparse(model), tmp_path / "package", source=folder)

    def shrink(manifest: dict[str, Any]) -> None:
        layer = next(e for e in manifest["layers"] if e["name"].endswith("0.intermediate.dense"))
        layer["shape"][1] -= 1

    edit_manifest(tmp_path / "package", shrink)
    with pytest.raises(InvalidFileError) as caught:
        se.load(tmp_path / "package")
    assert "\n" not in str(caught.value)


class Tower(nn.Module):
    """A transformer without a config of its own, below another name."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = build("bert")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.tower(ids)[0]
        return found


def test_plain_modules_are_filled(tmp_path: Path) -> None:
    model, ids = Tower(), inputs(build("bert"))["input_ids"]
    kept = {site.name: torch.arange(1, 3) for site in find_sites(model, ("head", "unit"))}
    resize_(model, kept, find_sites(model, ("head", "unit")))
    expected = model(ids)
    se.save(model, tmp_path / "package")
    full = Tower()
    assert torch.equal(se.load(tmp_path / "package", full)(ids), expected)
    assert shapes(full) == shapes(model)
    # A module that does not fit is as it was before.
    other = Tower()
    other.tower.bert.embeddings.word_embeddings = nn.Embedding(51, 32)
    before = shapes(other)
    with pytest.raises(InvalidFileError, match="word_embeddings"):
        se.load(tmp_path / "package", other)
    assert shapes(other) == before


def without_last_layer_(model: Any) -> None:
    del model.bert.encoder.layer[-1]
    model.config.num_hidden_layers -= 1


def test_the_live_config_is_written(tmp_path: Path) -> None:
    source = source_of("bert", tmp_path / "hf")
    model: Any = load_pretrained(source)[0]
    cut_(model)
    without_last_layer_(model)
    out = save_checkpoint(model, tmp_path / "out", source, {})
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, out))
    assert after == {**before, "num_hidden_layers": 2}
    assert list(after) == list(before)
    assert torch.equal(output(load_pretrained(out)[0]), output(model))
    se.save(sparse(model), tmp_path / "package", source=source)
    torch.testing.assert_close(output(se.load(tmp_path / "package")), output(model))


def test_files_take_the_place_of_those_of_the_source(tmp_path: Path) -> None:
    source = source_of("bert", tmp_path / "hf")
    (source / "vocab.txt").write_text("a\nb\n")
    (source / "LICENSE").write_text("free")
    model = load_pretrained(source)[0]
    files: Any = {"vocab.txt": b"a\n", "LICENSE": None, "merges.txt": b"#"}
    for save in (
        lambda folder: save_checkpoint(model, folder, source, {}, files=files),
        lambda folder: se.save(model, folder, source=source, files=files),
    ):
        out = save(tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert (out / "vocab.txt").read_bytes() == b"a\n"
        assert (out / "merges.txt").read_bytes() == b"#"
        assert not (out / "LICENSE").exists()
    with pytest.raises(UsageError, match=r"'\.\./evil' is no file of a model"):
        save_checkpoint(model, tmp_path / "x", source, {}, files={"../evil": b""})  # type: ignore[dict-item]
