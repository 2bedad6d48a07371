"""Hostile manifests with a right hash: refused before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from io_cases import edit_manifest, refused


def layer(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in manifest["layers"] if entry["name"] == name)


def tensor(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in manifest["tensors"] if entry["name"] == name)


MANIFEST_CASES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("no version", lambda m: m.pop("package_version"), "package_version"),
    ("newer", lambda m: m.update(package_version=3), "package version 3, .* reads 2: update"),
    ("older", lambda m: m.update(package_version=1), "version 1, .* reads 2: convert the model"),
    ("text version", lambda m: m.update(package_version="1"), "package_version"),
    ("unknown field", lambda m: m.update(code="import os"), "code: Extra inputs"),
    ("unknown layer field", lambda m: layer(m, "0").update(x=1), "x: Extra inputs"),
    ("source", lambda m: m.update(source="pickle"), "source"),
    ("import path", lambda m: m.update(architecture="os.system"), "architecture"),
    ("transformers", lambda m: m.update(source="transformers"), "needs architecture and config"),
    ("format", lambda m: layer(m, "0").update(format="zip"), "'0': unknown format 'zip'"),
    ("format args", lambda m: layer(m, "1").update(format="bsr:0x9"), "block sides"),
    ("stored", lambda m: layer(m, "0").update(stored="coo"), "stored"),
    ("stored as other", lambda m: layer(m, "0").update(format="bitmask"), "is stored as bitmask"),
    ("params", lambda m: layer(m, "0").update(params={"height": 1}), "params .* do not fit"),
    ("params 2", lambda m: layer(m, "3").update(params={"keep": 1, "of": 4}), "do not fit"),
    ("params 3", lambda m: layer(m, "2").update(params={"keep": 1}), "do not fit"),
    ("chunk", lambda m: layer(m, "1")["params"].update(chunk=7), "runs starts"),
    ("block 0", lambda m: layer(m, "0")["params"].update(block=0), "block must lie in"),
    ("huge block", lambda m: layer(m, "0")["params"].update(block=10**6), "block must lie in"),
    ("negative", lambda m: layer(m, "0").update(shape=[-9, 7]), "shape"),
    ("bool", lambda m: layer(m, "0").update(shape=[True, 7]), "shape"),
    ("float", lambda m: layer(m, "0").update(shape=[9.0, 7]), "shape"),
    ("absurd", lambda m: layer(m, "0").update(shape=[10**12, 10**12]), "shape"),
    ("absurd in range", lambda m: layer(m, "0").update(shape=[2**31 - 1] * 2), "layer '0'"),
    ("absurd mask", lambda m: layer(m, "2").update(shape=[2**31 - 1] * 2), "layer '2'"),
    ("absurd nm", lambda m: layer(m, "3").update(shape=[2**31 - 1] * 2), "layer '3'"),
    ("other shape", lambda m: layer(m, "0").update(shape=[9, 8]), "'0' is .*, the model has"),
    ("dtype", lambda m: layer(m, "0").update(dtype="bfloat16"), "values are not bfloat16"),
    ("sparsity", lambda m: layer(m, "0").update(sparsity=2.0), "sparsity"),
    ("bias", lambda m: layer(m, "0").update(bias="1.bias"), "bias"),
    ("no bias", lambda m: layer(m, "0").update(bias=None), "has no bias, unlike the model"),
    ("twice", lambda m: m["layers"].append(layer(m, "0")), "layer '0' appears twice"),
    ("alias", lambda m: layer(m, "0").update(aliases=["1"]), "layer '1' appears twice"),
    ("not a layer", lambda m: layer(m, "0").update(aliases=["9"]), "'9' is not in the model"),
    ("no linear", lambda m: layer(m, "0").update(aliases=["4"]), "is a Embedding in the model"),
    ("tensor twice", lambda m: m["tensors"].append(m["tensors"][0]), "appears twice"),
    ("tensor gone", lambda m: m["tensors"].pop(0), "tensor '0.values' of a layer is missing"),
    ("tensor gone 2", lambda m: m["tensors"].pop(), "tensor '4.weight' is not in"),
    ("tensor more", lambda m: m["tensors"].append({**m["tensors"][0], "name": "x"}), "'x' of"),
    ("order", lambda m: m["tensors"].reverse(), "not in the order"),
    ("tensor dtype", lambda m: tensor(m, "0.values").update(dtype="int32"), "has int32"),
    ("object", lambda m: tensor(m, "0.values").update(dtype="object"), "dtype"),
    ("tensor shape", lambda m: tensor(m, "4.weight").update(shape=[3, 5]), r"has float32 \[3, 5"),
    ("tensor size", lambda m: tensor(m, "4.weight").update(shape=[-5, -3]), "shape"),
    ("dims", lambda m: tensor(m, "4.weight").update(shape=[1] * 99), "shape"),
    ("digest", lambda m: tensor(m, "4.weight").update(sha256="x"), "sha256"),
    ("tie", lambda m: tensor(m, "4.weight").update(aliases=["4.w"]), "model has no tensor '4.w'"),
    ("file", lambda m: m["files"][0].update(name="../vocab.txt"), "files"),
    ("file 2", lambda m: m["files"][0].update(name="/etc/passwd"), "files"),
    ("file size", lambda m: m["files"][0].update(bytes=-1), "files"),
    ("machine", lambda m: m.update(machine={"cpu": "x"}), "isa"),
    ("choices", lambda m: m.update(choices=[{"name": "0"}]), "choices"),
]


def many(manifest: dict[str, Any], kind: str) -> None:
    """150,000 entries, the last one twice; of aliases, keys of an object, and entries."""
    names = [f"t{i}" for i in range(150_000)]
    if kind == "alias":
        tensor(manifest, "4.weight")["aliases"] = [*names, names[-1]]
    elif kind == "layer":
        layer(manifest, "0")["aliases"] = [*names, names[-1]]
    else:
        first = manifest["tensors"][0]
        manifest["tensors"] += [{**first, "name": name} for name in (*names, names[-1])]


@pytest.mark.parametrize("kind", ["alias", "layer", "tensor"])
def test_many_names_and_one_of_them_twice(kind: str, bad: Path) -> None:
    """As fast as reading them: each name is looked up once."""
    edit_manifest(bad, lambda manifest: many(manifest, kind))
    refused(bad, "'t149999' appears twice")


def test_many_keys_and_one_of_them_twice(bad: Path) -> None:
    path = bad / "sparse_engine.json"
    keys = ", ".join(f'"k{i}": 0' for i in (*range(150_000), 149_999))
    path.write_text(path.read_text().replace('"recipe": null', f'"recipe": {{{keys}}}'))
    refused(bad, "'k149999' appears twice")


@pytest.mark.parametrize(
    ("edit", "match"), [case[1:] for case in MANIFEST_CASES], ids=[c[0] for c in MANIFEST_CASES]
)
def test_manifest(edit: Callable[[dict[str, Any]], Any], match: str, bad: Path) -> None:
    edit_manifest(bad, edit)
    refused(bad, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("hello", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "package_version|sha256"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "not valid JSON"),
    ],
)
def test_manifest_is_no_manifest(text: str, match: str, bad: Path) -> None:
    (bad / "sparse_engine.json").write_bytes(text.encode("latin-1"))
    refused(bad, match)


def test_an_edited_manifest_is_refused(bad: Path) -> None:
    path = bad / "sparse_engine.json"
    path.write_text(path.read_text().replace('"sparsity": 0.', '"sparsity": 0.1', 1))
    refused(bad, "does not match its own sha256")
