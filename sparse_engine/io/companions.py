"""Files that are copied with a model unchanged: config, tokenizer, sentence-transformers setup.

Only names on this list are ever copied or read. All are small and none holds code; of weights only
those of the dense layers after a pooling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Companion = Literal[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "sentence_xlnet_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "3_Dense/config.json",
    "3_Dense/model.safetensors",
    "LICENSE",
]
COMPANIONS: tuple[Companion, ...] = get_args(Companion)
MAX_BYTES = 64 << 20


def write_companions(folder: Path, files: dict[Companion, bytes]) -> None:
    """Write the files into `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
