"""config.json is the source's, with the values that the model's config has now."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, Qwen2VLConfig

from sparse_engine.io.hugging import read_config
from sparse_engine.io.live_config import live_config


def source(config: Any, **own: Any) -> dict[str, Any]:
    return {**json.loads(config.to_json_string()), **own}


def written(plain: dict[str, Any], change: Any) -> dict[str, Any]:
    config = read_config(plain)
    change(config)
    found: dict[str, Any] = json.loads(live_config(json.dumps(plain).encode(), "here", config))
    return found


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig, GPT2Config, LlamaConfig])
def test_without_a_change_the_bytes_are_the_source(kind: Any) -> None:
    raw = json.dumps(source(kind(), auto_map={"AutoModel": "x"}, own=[1], dtype="float16")).encode()
    config = read_config(json.loads(raw))
    config.dtype = "float32"
    config._name_or_path = "elsewhere"
    assert live_config(raw, "here", config) == raw


def test_changed_options_are_written_and_others_stay() -> None:
    plain = source(LlamaConfig(num_hidden_layers=3), own={"x": 1}, auto_map={"AutoModel": "x"})

    def change(config: Any) -> None:
        config.num_hidden_layers = 2
        config.layer_types = ["full_attention"] * 2

    expected = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    assert written(plain, change) == plain | expected


def test_an_option_by_another_name() -> None:
    plain = source(DistilBertConfig())
    plain["num_hidden_layers"] = plain.pop("n_layers")

    def change(config: Any) -> None:
        config.num_hidden_layers = 2

    found = written(plain, change)
    assert "num_hidden_layers" not in found
    assert read_config(found).n_layers == 2


def test_labels_and_nested_configs() -> None:
    plain = source(BertConfig(num_labels=3))

    def fewer(config: Any) -> None:
        config.num_labels = 2

    assert read_config(written(plain, fewer)).id2label.keys() == {0, 1}
    nested = source(Qwen2VLConfig())

    def change(config: Any) -> None:
        config.text_config.vocab_size = 7

    found = written(nested, change)
    assert read_config(found).text_config.vocab_size == 7
    assert {**found, "text_config": 0} == {**nested, "text_config": 0}


def test_another_model_is_left_alone() -> None:
    raw = json.dumps(source(GPT2Config())).encode()
    assert live_config(raw, "here", BertConfig()) == raw
