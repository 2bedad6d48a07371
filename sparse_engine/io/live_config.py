"""config.json of a model that was changed since it was loaded: the source's, with the live values.

Removed layers and words change options of the config. Everything else stays as the source has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sparse_engine.io.hugging import DROPPED, read_config
from sparse_engine.io.tensorfile import parse_json

# Options that loading changes, and what they are in a file.
LOADED = DROPPED | {"dtype", "torch_dtype", "transformers_version", "architectures"}


def live_config(raw: bytes, what: str, config: Any) -> bytes:
    """The bytes of a config.json with the values that `config` has now.

    Args:
        raw: config.json of the source.
        what: its name, for errors.
        config: of the model. Options that are the same are not touched; without a difference the
            bytes are `raw`.
    """
    plain = parse_json(raw, what)
    if plain.get("model_type") != getattr(config, "model_type", None):
        return raw  # of another model: comparing it with the weights is up to the caller
    before, live = (_plain(one.to_dict()) for one in (read_config(plain), config))
    changed = _changed(plain, before, live, getattr(config, "attribute_map", {}))
    return raw if changed == plain else (json.dumps(changed, indent=2) + "\n").encode()


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, where all keys are texts."""
    found: dict[str, Any] = json.loads(json.dumps(options, default=str))
    return found


def _changed(
    plain: Mapping[str, Any],
    before: Mapping[str, Any],
    live: Mapping[str, Any],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """`plain` with each value that is another one in `live` than in `before`."""
    found = {key: value for key, value in plain.items() if key in live or key not in before}
    for key, value in live.items():
        if key in LOADED or value == before.get(key):
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            inner = found.get(key)
            value = _changed(inner if isinstance(inner, dict) else {}, before[key], value, {})
        found[key] = value
        for alias in (other for other, name in aliases.items() if name == key):
            found.pop(alias, None)  # the same option by another name
    return found
