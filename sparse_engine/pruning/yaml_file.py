"""YAML files as plain values, by rules that leave no doubt what a text means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from sparse_engine.errors import InvalidFileError, UsageError

MAX_BYTES = 1 << 20
# The scalars of YAML 1.2. In YAML 1.1, 2:4 would be the number 124, and `no` would be false.
SCALARS = {
    "null": r"~|null|",
    "bool": r"true|false",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
}


def read_document(path: Path) -> Any:
    """Texts, numbers, lists and mappings of a YAML 1.2 or JSON file.

    Raises:
        UsageError: there is no such file, or PyYAML, which YAML needs, is not installed.
        InvalidFileError: it is too large, no YAML, has a name twice, or aliases.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        raise UsageError(f"recipe {path}: there is no such file") from None
    if len(raw) > MAX_BYTES:
        raise InvalidFileError(f"{path}: over {MAX_BYTES >> 20} MiB, which is no recipe")
    try:
        text = raw.decode("utf-8-sig")
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            return _parse_yaml(text, path)
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or "nested too deep"
        raise InvalidFileError(f"{path}: is no YAML: {reason}") from None


def _parse_yaml(text: str, path: Path) -> Any:
    """A YAML document of texts, numbers, lists and mappings; raises ValueError."""
    try:
        import yaml
    except ImportError:
        raise UsageError(
            f"recipe {path}: YAML needs PyYAML: pip install 'sparse-engine[hf]', or write JSON"
        ) from None

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("aliases are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            pairs = [(self.construct_object(k, deep=True), v) for k, v in node.value]
            _unique([(str(key), value) for key, value in pairs])
            return super().construct_mapping(node, deep)

    for name, pattern in SCALARS.items():
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), None
        )
    try:
        return yaml.load(text, Loader)  # a SafeLoader: texts and numbers, no objects
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found
