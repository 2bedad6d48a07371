"""Mutations of packages with all hashes made right again: read by fuzz.py.

A package is taken apart into its manifest, tensors and files; a mutation changes some of that; what
is written has right sizes, offsets and hashes, unless just they were the mutation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

WEIGHTS, MANIFEST, PAD = "sparse_engine.safetensors", "sparse_engine.json", "__pad_"
NUMPY: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "U16": np.uint16,
    "BOOL": np.uint8,
}  # fmt: skip
NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "BOOL": "bool",
}  # fmt: skip
INTEGERS = (
    -1, 0, 1, 2, 3, 7, 64, 255, 65536, 2**31 - 1, 2**31, 2**63, 10**6, 10**8, 10**12, -(10**9),
)  # fmt: skip
FLOATS = (-1.0, 0.0, 0.5, 1e-30, 1e-5, 1e30, 3.5, -1e-12)
OTHERS = (None, True, False, "", "x", "csr", "gelu", [], {}, [1], [[]], {"a": 1}, ["x", None])
FORMATS = (
    "csr", "bsr:2x3", "bsr:16x1", "bsr:32x1", "sellp", "bitmask", "nm:2:4", "nm:1:4", "nm:4:8",
)  # fmt: skip
STORED = ("runs", "quad_runs", "strips", "sellp", "sellp8", "bits8", "groups8", "bitmask", "nm")
# Names that a config may or may not have, and that models read.
KEYS = (
    "layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon", "rope_theta", "rope_parameters",
    "head_dim",
    "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "num_layers", "n_head",
    "max_position_embeddings", "n_positions", "sliding_window", "layer_types", "use_sliding_window",
    "num_labels", "id2label", "problem_type", "pad_token_id", "eos_token_id", "bos_token_id",
    "decoder_start_token_id", "vocab_size", "type_vocab_size", "hidden_act", "return_dict",
    "output_hidden_states", "use_cache", "is_decoder", "tie_word_embeddings", "d_kv", "num_heads",
    "relative_attention_num_buckets", "relative_attention_max_distance", "feed_forward_proj",
    "chunk_size_feed_forward", "torch_dtype", "dtype", "initializer_range", "attention_bias",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "forced_bos_token_id", "cell",
    "cutoffs", "inner_sizes", "bidirectional", "scale_attn_weights", "mlp_bias",
    "partial_rotary_factor",
)  # fmt: skip
ROPES = tuple(
    {"rope_type": kind, "rope_theta": theta, "factor": factor}
    for kind in ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
    for theta in (10000.0, 0.0, -3.0, 1e300)
    for factor in (2.0, 0.0, -1.0)
)


# Kept groups and statements of recipes that are wrong in some way.
KEPT = ("0-999999999999", "3-1", "1,1", "-1", "0-", "x", "0-3,2", "9" * 5000, "²", "")
STATED = (
    "filter(readers='a: b; a: c')", "unit(readers=3)", "unit(keep=-1)", "unit(" * 50, ["unit"] * 99,
    "filter(readers='[: x')", "filter(readers='" + "x" * 2000 + ": y')",
)  # fmt: skip


@dataclass
class Tensor:
    """One tensor: dtype as safetensors name it, shape, and its bytes."""

    name: str
    dtype: str
    shape: list[int]
    data: bytearray

    def array(self) -> Any:
        """The elements, flat, to be written to."""
        kind = NUMPY[self.dtype]
        count = len(self.data) // np.dtype(kind).itemsize
        return np.frombuffer(self.data, kind, count)

    def resize(self, size: int) -> None:
        """Make it one-dimensional, of `size` elements; new ones repeat the last."""
        width = np.dtype(NUMPY[self.dtype]).itemsize
        last = bytes(self.data[-width:]) or bytes(width)
        missing = size - len(self.data) // width
        self.data = bytearray(bytes(self.data[: size * width]) + last * max(0, missing))
        self.shape = [size, *self.shape[1:]] if self.shape[1:] == [1] else [size]


class Package:
    """A package taken apart."""

    def __init__(self, folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        table, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        self.tensors = []
        for name, entry in table.items():
            if not name.startswith(PAD):
                begin, end = entry["data_offsets"]
                part = bytearray(data[begin:end])
                self.tensors.append(Tensor(name, entry["dtype"], entry["shape"], part))
        self.files = {
            entry["name"]: (folder / entry["name"]).read_bytes() for entry in self.manifest["files"]
        }
        self.header_edits: list[Any] = []

    def write(self, folder: Path) -> None:
        """Put it together again: layout, sizes and hashes as they must be."""
        table: dict[str, Any] = {}
        body = bytearray()
        for i, tensor in enumerate(self.tensors):
            if len(body) % 64:
                pad = -len(body) % 64
                ends = [len(body), len(body) + pad]
                table[f"{PAD}{i}"] = {"dtype": "U8", "shape": [pad], "data_offsets": ends}
                body += bytes(pad)
            ends = [len(body), len(body) + len(tensor.data)]
            entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": ends}
            table[tensor.name] = entry
            body += tensor.data
        for edit in self.header_edits:
            edit(table)
        header = json.dumps(table).encode()
        header += b" " * (-(8 + len(header)) % 64)
        folder.mkdir(exist_ok=True)
        raw = len(header).to_bytes(8, "little") + header + body
        (folder / WEIGHTS).write_bytes(raw)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            for entry in _dicts(self.manifest.get("files")):
                if entry.get("name") == name and {"bytes", "sha256"} <= set(entry):
                    entry["bytes"], entry["sha256"] = len(content), _digest(content)
        given = {tensor.name: tensor for tensor in self.tensors}
        for entry in _dicts(self.manifest.get("tensors")):
            found = given.get(str(entry.get("name")))
            if found is not None and "sha256" in entry:
                entry["sha256"] = _digest(found.data)
        if "sha256" in self.manifest:
            self.manifest["sha256"] = ""
        text = json.dumps(self.manifest, indent=1) + "\n"
        blank = '"sha256": ""'
        (folder / MANIFEST).write_text(
            text.replace(blank, f'"sha256": "{_digest(text.encode())}"', 1)
        )

    def declare(self, tensor: Tensor) -> None:
        """Let the manifest say what a tensor is now."""
        for entry in _dicts(self.manifest.get("tensors")):
            if entry.get("name") == tensor.name:
                entry["dtype"], entry["shape"] = NAMES[tensor.dtype], list(tensor.shape)


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _dicts(entries: Any) -> list[dict[str, Any]]:
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def mutate(package: Package, random: Random) -> str:
    """Change a package, once or up to three times; says how."""
    times = random.choice((1, 1, 1, 1, 2, 3))
    return "; ".join(random.choice(MUTATIONS)(package, random) for _ in range(times))


def _tensor(package: Package, random: Random) -> Tensor:
    """Any of them, more often one that says where values belong."""
    inner = [t for t in package.tensors if t.dtype in ("U8", "U16", "I32")]
    return random.choice(inner if inner and random.random() < 0.5 else package.tensors)


def change_values(package: Package, random: Random) -> str:
    """Some elements: another number nearby, an extreme one, two that change places, a bit."""
    tensor = _tensor(package, random)
    values = tensor.array()
    if not len(values):
        return f"{tensor.name} is empty"
    for _ in range(random.choice((1, 1, 2, 8))):
        i, j, kind = random.randrange(len(values)), random.randrange(len(values)), random.random()
        if tensor.dtype in ("F32", "F64", "F16") and kind < 0.5:
            extremes = (np.nan, np.inf, -np.inf, -0.0, 1e38, -1e38, 1e-45, 0.0, -1.0)
            with np.errstate(all="ignore"):
                values[i] = random.choice(extremes)
        elif kind < 0.3:
            values[i], values[j] = values[j], values[i]
        elif kind < 0.6:
            tensor.data[random.randrange(len(tensor.data))] ^= 1 << random.randrange(8)
        elif values.dtype.kind in "iu":
            info = np.iinfo(values.dtype)
            near = int(values[i]) + random.randint(-2, 2)
            chosen = random.choice((info.max, info.min, 0, 1, near, near, near))
            values[i] = min(max(chosen, info.min), info.max)
    return f"values of {tensor.name}"


def change_size(package: Package, random: Random) -> str:
    """More or fewer elements than there were."""
    tensor = _tensor(package, random)
    size = len(tensor.array())
    tensor.resize(max(0, random.choice((0, size - 1, size + 1, size // 2, 2 * size, size + 16))))
    package.declare(tensor)
    return f"{tensor.name} has {tensor.shape}"


def change_type(package: Package, random: Random) -> str:
    """The same bytes as another dtype."""
    tensor = _tensor(package, random)
    width = np.dtype(NUMPY[tensor.dtype]).itemsize
    same = [code for code, kind in NUMPY.items() if np.dtype(kind).itemsize == width]
    tensor.dtype = random.choice(same if random.random() < 0.8 else sorted(NUMPY))
    if np.dtype(NUMPY[tensor.dtype]).itemsize != width:
        tensor.resize(len(tensor.array()))
    package.declare(tensor)
    return f"{tensor.name} is {tensor.dtype}"


def change_shape(package: Package, random: Random) -> str:
    """The same elements in another shape."""
    tensor = _tensor(package, random)
    size = len(tensor.array())
    tensor.shape = random.choice(
        (tensor.shape[::-1], [size], [1, *tensor.shape], [*tensor.shape, 1], [size, 1], [1, size])
    )
    package.declare(tensor)
    return f"{tensor.name} has {tensor.shape}"


def swap_tensors(package: Package, random: Random) -> str:
    """Two tensors change places; the manifest says so where their names do not."""
    one, two = random.choice(package.tensors), random.choice(package.tensors)
    one.dtype, two.dtype = two.dtype, one.dtype
    one.shape, two.shape = two.shape, one.shape
    one.data, two.data = two.data, one.data
    package.declare(one)
    package.declare(two)
    return f"{one.name} and {two.name} change places"


def change_header(package: Package, random: Random) -> str:
    """Some place in the header of the weights file."""
    seed = random.random()
    package.header_edits.append(lambda table: change_json(table, Random(seed)))
    return f"header, {seed}"


def change_manifest(package: Package, random: Random) -> str:
    """Some place in the manifest."""
    return f"manifest {change_json(package.manifest, random)}"


def change_layer(package: Package, random: Random) -> str:
    """A field of a sparse layer, to what another might have."""
    layers = _dicts(package.manifest.get("layers"))
    if not layers:
        return "no layers"
    layer, other = random.choice(layers), random.choice(layers)
    field = random.choice(
        ("format", "stored", "params", "shape", "dtype", "bias", "aliases", "name")
    )
    new: Any = other.get(field)
    kind = random.random()
    if field == "format" and kind < 0.7:
        new = random.choice(FORMATS)
    elif field == "stored" and kind < 0.7:
        new = random.choice(STORED)
    elif field == "dtype":
        new = random.choice(("float32", "bfloat16", "int8"))
    elif field == "aliases":
        new = [str(other.get("name"))]
    elif field == "shape" and kind < 0.7 and isinstance(layer.get("shape"), list):
        new = [
            side + random.choice((-1, 0, 0, 1, 16)) for side in layer["shape"] if type(side) is int
        ]
    elif field == "params" and isinstance(layer.get("params"), dict):
        old = layer["params"]
        new = {
            k: random.choice((*INTEGERS, v + 1, v - 1)) for k, v in old.items() if type(v) is int
        }
    layer[field] = new
    return f"{field} of {layer.get('name')} is {new}"


def change_config(package: Package, random: Random) -> str:
    """Some place in a JSON file of the model, or a key that models read."""
    names = [name for name in package.files if name.endswith(".json") and name != "tokenizer.json"]
    if not names:
        return change_manifest(package, random)
    name = "config.json" if random.random() < 0.8 else random.choice(names)
    try:
        config = json.loads(package.files[name])
    except ValueError:
        return f"{name} is no JSON"
    if random.random() < 0.5 and isinstance(config, dict):
        key = random.choice(KEYS)
        old = config.get(key)
        new = random.choice(ROPES) if key == "rope_parameters" else _scalar(old, random)
        config[key], told = new, f"{key} = {new}"
    else:
        told = change_json(config, random)
    package.files[name] = json.dumps(config).encode()
    return f"{name} {told}"


def change_file(package: Package, random: Random) -> str:
    """Bytes of any file of the model; or it is gone, or another one's."""
    if not package.files:
        return change_values(package, random)
    name = random.choice(list(package.files))
    content = bytearray(package.files[name])
    kind = random.random()
    if kind < 0.2:
        content = content[: random.randrange(len(content) + 1)]
    elif kind < 0.3:
        content = bytearray(package.files[random.choice(list(package.files))])
    elif kind < 0.5 and name.endswith(".json"):
        return change_document(package, name, random)
    elif content:
        for _ in range(random.choice((1, 3))):
            content[random.randrange(len(content))] = random.randrange(256)
    package.files[name] = bytes(content)
    return f"bytes of {name}"


def change_document(package: Package, name: str, random: Random) -> str:
    """Some place in a JSON file of the model."""
    try:
        plain = json.loads(package.files[name])
    except ValueError:
        return f"{name} is no JSON"
    told = change_json(plain, random)
    package.files[name] = json.dumps(plain).encode()
    return f"{name} {told}"


def _scalar(old: Any, random: Random) -> Any:
    """Another value, of the same type more often than not."""
    kind = random.random()
    if type(old) is int and kind < 0.7:
        return random.choice((*INTEGERS, old + 1, old - 1, old * 2, old // 2, old * 1000))
    if type(old) is float and kind < 0.7:
        return random.choice((*FLOATS, -old, old * 1e6))
    if type(old) is bool and kind < 0.7:
        return not old
    if isinstance(old, str) and kind < 0.3:
        return random.choice((old[:-1], old + "x", old.upper(), old * 100))
    return random.choice((*INTEGERS, *FLOATS, *OTHERS))


def change_json(root: Any, random: Random) -> str:
    """One place anywhere below `root`: another value, a key or entry less, one more, two
    swapped.
    """
    where, node = "", root
    if not isinstance(root, dict | list):
        return "nothing"
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            if isinstance(node, dict):
                node["x"] = _scalar(None, random)
            else:
                node.append(_scalar(None, random))
            return f"{where} has an entry more"
        key = random.choice(keys)
        where = f"{where}.{key}"
        child = node[key]
        deeper = isinstance(child, dict | list) and random.random() < 0.9
        if not deeper:
            break
        node = child
    kind = random.random()
    if kind < 0.1:
        del node[key]
        return f"{where} is gone"
    if kind < 0.2:
        other = random.choice(keys)
        node[key], node[other] = node[other], node[key]
        return f"{where} and {other} change places"
    if kind < 0.25 and isinstance(node, list):
        node.append(child)
        return f"{where} appears twice"
    if kind < 0.28 and isinstance(node, dict):
        node["unknown"] = child
        return f"{where} has another name, too"
    node[key] = _scalar(child, random)
    return f"{where} = {str(node[key])[:40]}"


def change_recipe(package: Package, random: Random) -> str:
    """What the recipe of a cut model states and lists, to what cannot be read or does not fit."""
    recipe = package.manifest.get("recipe")
    if not isinstance(recipe, dict):
        return change_manifest(package, random)
    sites, plan = _dicts(recipe.get("sites")), recipe.get("recipe")
    if sites and random.random() < 0.5:
        site = random.choice(sites)
        key = random.choice(("kept", "groups", "kind", "name"))
        site[key] = random.choice((*KEPT, _scalar(site.get(key), random)))
        return f"{key} of a site is {site[key]!s:.40}"
    if not isinstance(plan, dict):
        return change_manifest(package, random)
    name = random.choice(package.tensors).name.rpartition(".")[0]
    others = [random.choice(package.tensors).name.rpartition(".")[0] for _ in range(2)]
    kind = random.choice(("filter", "unit"))
    stated = random.choice((f"{name}: {others[0]}", f"{name}: {' '.join(others)}", "*: *", ":", ""))
    plan["granularity"] = random.choice(
        (f"{kind}(readers={stated!r})", [kind, f"filter(readers={stated!r})"], *STATED)
    )
    return f"granularity is {plan['granularity']!s:.60}"


MUTATIONS = (
    *(change_values,) * 6,
    *(change_config,) * 6,
    *(change_layer,) * 2,
    *(change_manifest,) * 2,
    *(change_recipe,) * 2,
    change_size,
    change_type,
    change_shape,
    swap_tensors,
    change_header,
    change_file,
)
