"""The files beside tokenizer.json that hold tokens or ids, rewritten with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.io.companions import Companion
from sparse_engine.io.tensorfile import read_json
from sparse_engine.vocabulary.configs import Renumbering, merged
from sparse_engine.vocabulary.tokenizer_file import TokenizerFile

# Binary vocabularies: tokenizer.json holds the same and is read instead, so they are left out.
REPLACED: tuple[Companion, ...] = (
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Vocabularies that are read although there is a tokenizer.json.
REFUSED: tuple[Companion, ...] = ("source.spm", "target.spm", "bpe.codes")


def check_companions(files: Mapping[Companion, bytes], where: str) -> None:
    """Raise UsageError for a tokenizer that is not in tokenizer.json alone."""
    for name in REFUSED:
        if name in files:
            raise UsageError(f"{where}: a vocabulary in {name} cannot be cut; use tokenizer.json")
    if "tokenizer.json" not in files:
        raise UsageError(
            f"{where} has no tokenizer.json, which a vocabulary is cut in: write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def rewritten(
    files: Mapping[Companion, bytes],
    old: TokenizerFile,
    cut: TokenizerFile,
    new: Renumbering,
) -> dict[Companion, bytes | None]:
    """The files that change; None for those that are left out. config.json follows the model.

    Args:
        files: all files of the model's folder.
        old, cut: tokenizer.json before and after.
        new: the new ids.

    Raises:
        InvalidFileError: if a file does not hold what tokenizer.json holds.
    """
    found: dict[Companion, bytes | None] = {"tokenizer.json": cut.text().encode()}
    found |= dict.fromkeys(name for name in REPLACED if name in files)
    changed: dict[Companion, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "generation_config.json": lambda plain: merged(plain, new.changes(plain)),
        "tokenizer_config.json": lambda plain: _tokenizer_config(plain, old, cut),
        "vocab.json": lambda plain: _tokens(plain, "vocab.json", old, cut),
        "added_tokens.json": lambda plain: _tokens(plain, "added_tokens.json", old, cut),
    }
    for name, change in changed.items():
        if name in files:
            plain = read_json(files[name], name, dict)
            try:
                new_plain = change(plain)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InvalidFileError(f"{name}: unexpected value: {error!r:.80}") from error
            if new_plain == plain:
                continue
            found[name] = (json.dumps(new_plain, ensure_ascii=False, indent=1) + "\n").encode()
    if "vocab.txt" in files:
        listed = {token: i for i, token in enumerate(_lines(files, "vocab.txt"))}
        found["vocab.txt"] = _joined(_tokens(listed, "vocab.txt", old, cut))
    if "merges.txt" in files:
        left = {f"{a} {b}" for a, b in cut.model.plain.get("merges", ())}
        gone = {f"{a} {b}" for a, b in old.model.plain.get("merges", ())} - left
        lines = _lines(files, "merges.txt")
        found["merges.txt"] = _joined(line for line in lines if line not in gone)
    return found


def _tokenizer_config(
    plain: dict[str, Any], old: TokenizerFile, cut: TokenizerFile
) -> dict[str, Any]:
    name = "added_tokens_decoder"
    if not isinstance(plain.get(name), dict):
        return plain
    entries = {str(token["content"]): token for token in plain[name].values()}
    ids = {str(token["content"]): int(i) for i, token in plain[name].items()}
    added = _tokens(ids, "tokenizer_config.json", old, cut)
    return plain | {name: {str(i): entries[token] for token, i in added.items()}}


def _tokens(
    given: Mapping[str, int], name: str, old: TokenizerFile, cut: TokenizerFile
) -> dict[str, int]:
    """The tokens of a file that are kept, with their new ids, in their order."""
    if other := next((token for token, i in given.items() if old.ids.get(token) != i), None):
        raise InvalidFileError(f"{name}: token {other!r:.60} has another id than in tokenizer.json")
    kept = {token: cut.ids[token] for token in given if token in cut.ids}
    return dict(sorted(kept.items(), key=lambda item: item[1]))


def _lines(files: Mapping[Companion, bytes], name: Companion) -> list[str]:
    try:
        return files[name].decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{name} is not UTF-8 text: {error.reason}") from None


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
