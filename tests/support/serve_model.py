"""A tiny sentence encoder in a folder, for the tests of serving; as a program, serve it.

Run as `python serve_model.py PACKAGE SECONDS`, each forward pass taking that long at least.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

WORDS = ["a", "sparse", "matrix", "has", "few", "non", "zeros", "dense", "many", "##s", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
MAX_POSITIONS = 19
HIDDEN = 24
POOLING = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "x.models.Normalize"},
    ],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "sentence_bert_config.json": {"max_seq_length": 17, "do_lower_case": False},
}


def config(**changes: Any) -> BertConfig:
    """Sizes of the encoder."""
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 36,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.5,
    }
    return BertConfig(**(sizes | changes))


def model() -> BertModel:
    """The encoder, the same each time, in training mode as it is built."""
    torch.manual_seed(3)
    return BertModel(config())


def pruned() -> BertModel:
    """The same, with about 70 % zeros in every linear layer."""
    encoder = model()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data[torch.rand_like(module.weight) < 0.7] = 0
    return encoder


def write(folder: Path, pooling: dict[str, Any] | None = None) -> Path:
    """Tokenizer and configs; the tokenizer.json cuts at 4 tokens and pads, as published ones do."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config().to_dict()))
    for name, content in (POOLING if pooling is None else pooling).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def client(app: Any) -> Any:
    """An httpx client of an app in this process."""
    import httpx

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


def sender(app: Any) -> Callable[..., Any]:
    """send(method, path, ...) -> response; the loop that answers it is a new one each time."""

    def sending(method: str, path: str, **given: Any) -> Any:
        async def going() -> Any:
            async with client(app) as one:
                return await one.request(method, path, **given)

        return asyncio.run(going())

    return sending


def tensor(name: str, data: list[Any], shape: list[int], datatype: str = "INT64") -> dict[str, Any]:
    """A tensor of the Open Inference Protocol."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def infer(*inputs: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol."""
    return {"inputs": list(inputs), **rest}


def main(package: Path, seconds: float) -> None:
    """Serve a package on a free port until a signal comes."""
    from sparse_engine.serve import Embedder, run

    at_once = Embedder.hidden_states

    def slowly(self: Embedder, *args: Any) -> torch.Tensor:
        time.sleep(seconds)
        return at_once(self, *args)

    Embedder.hidden_states = slowly
    run(package, port=0, name="tiny", threads=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
