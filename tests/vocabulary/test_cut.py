"""Cut models give what they gave before, for whole families and from folders."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ok
from vocabulary_cases import CORPUS, OTHER, folder

import sparse_engine as se
from sparse_engine.io import load_pretrained, save_checkpoint
from sparse_engine.text.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")

CASES = [
    ("wordpiece", "BertModel"),
    ("wordpiece", "BertForMaskedLM"),
    ("wordpiece", "DistilBertForMaskedLM"),
    ("wordpiece", "MPNetForMaskedLM"),
    ("bpe", "GPT2LMHeadModel"),
    ("bpe", "LlamaForCausalLM"),
    ("bpe", "RobertaForMaskedLM"),
    ("unigram", "T5ForConditionalGeneration"),
    ("unigram", "MarianMTModel"),
    ("unigram", "BartForConditionalGeneration"),
]


def call(model: Any, ids: list[int]) -> Any:
    given = torch.tensor([ids])
    inputs = {"input_ids": given}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = given.flip(1)
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True)


def states(output: Any) -> list[torch.Tensor]:
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [state for name in names for state in getattr(output, name, None) or ()]


@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_the_corpus_gives_the_same(tmp_path: Path, kind: str, architecture: str) -> None:
    source = folder(tmp_path / "model", kind, architecture, padding=7)
    model, _ = load_pretrained(source)
    dense = copy.deepcopy(model)
    report = se.cut_vocabulary(model, source, CORPUS)
    out = save_checkpoint(model, tmp_path / "cut", source, {}, files=report.files)
    before, after = load_tokenizer(source), load_tokenizer(out)
    kept = torch.tensor(report.kept)
    assert 0 < len(kept) < report.rows - 7
    assert model.config.vocab_size == len(kept)
    assert set(after.get_vocab().values()) == set(range(len(kept)))
    loaded, _ = load_pretrained(out)
    for text in CORPUS:
        old, new = before.encode(text), after.encode(text)
        assert old.tokens == new.tokens
        assert old.ids == [report.kept[i] for i in new.ids]
        expected = call(dense, old.ids)
        for cut in (model, loaded):
            found = call(cut, new.ids)
            assert states(expected)
            for one, other in zip(states(expected), states(found), strict=True):
                assert torch.equal(one, other)
            if "logits" in expected:
                logits = expected.logits[..., kept]
                torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
    for name in report.tensors:  # all rows, and tied tensors are still one
        old, new = dense.state_dict()[name], model.state_dict()[name]
        dim = next(d for d in range(old.ndim) if old.shape[d] != new.shape[d])
        assert torch.equal(old.index_select(dim, kept), new)
    assert _tied(model) == _tied(dense)


def _tied(model: Any) -> list[set[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [group for group in names.values() if len(group) > 1]


@pytest.mark.parametrize(("kind", "architecture"), [CASES[1], CASES[4], CASES[7]])
def test_the_command_writes_a_folder_that_transformers_loads(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    source, out = folder(tmp_path / "model", kind, architecture), tmp_path / "cut"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    printed = ok("prune", source, out, "--granularity", "vocabulary", "--calibration", corpus)
    assert "rows kept" in printed
    record = json.loads((out / "pruning.json").read_text())
    (site,) = se.PruneReport.from_dict(record).sites
    assert site.kind == "vocabulary"
    assert record["recipe"]["granularity"] == "vocabulary"
    before, after = (transformers.AutoTokenizer.from_pretrained(p) for p in (source, out))
    model = getattr(transformers, architecture).from_pretrained(out)
    assert len(after) == len(site.kept) == model.config.vocab_size
    assert model.get_input_embeddings().num_embeddings == len(after)
    for text in CORPUS:
        tokens = before.convert_ids_to_tokens(before(text)["input_ids"])
        assert tokens == after.convert_ids_to_tokens(after(text)["input_ids"])
        assert before.decode(before(text)["input_ids"]) == after.decode(after(text)["input_ids"])
    for text in OTHER:
        found = after(text)["input_ids"]
        assert max(found, default=0) < len(after)
        unknown = before.unk_token_id
        if kind == "bpe":  # bytes can spell everything
            assert after.decode(found) == text
        else:
            assert found.count(after.unk_token_id) <= before(text)["input_ids"].count(unknown)
    for name in before.special_tokens_map:
        token = getattr(before, name)
        assert getattr(after, name) == token
        assert after.convert_tokens_to_ids(token) == site.kept.index(
            before.convert_tokens_to_ids(token)
        )
    again = tmp_path / "again"
    ok("prune", source, again, "--recipe", out)
    assert (again / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


def test_a_cut_folder_is_pruned_converted_and_run(tmp_path: Path) -> None:
    source, corpus = folder(tmp_path / "model", "wordpiece", "BertModel"), tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    cut, pruned, package = (tmp_path / name for name in ("cut", "pruned", "package"))
    ok("prune", source, cut, "--granularity", "vocabulary", "--calibration", corpus)
    ok("prune", cut, pruned, "--sparsity", "0.5", "--calibration", corpus)
    ok("convert", pruned, package, "--format", "csr")
    assert len(ok("run", package, "--text", CORPUS[0]).split()) == 16


def test_inspect_shows_the_rows_before_and_after(tmp_path: Path) -> None:
    source, corpus = folder(tmp_path / "model", "wordpiece", "BertModel"), tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    cut, package = tmp_path / "cut", tmp_path / "package"
    ok("prune", source, cut, "--granularity", "vocabulary", "--calibration", corpus)
    ok("convert", cut, package, "--format", "csr")
    rows = [load_pretrained(path)[0].config.vocab_size for path in (cut, source)]  # type: ignore[union-attr]
    for path in (cut, package):
        assert f"vocabulary: {rows[0]} of {rows[1]} rows remain" in ok("inspect", path)


def test_ids_in_configs_follow(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "bpe", "GPT2LMHeadModel", padding=3)
    model, _ = load_pretrained(source)
    last = model.config.eos_token_id
    model.generation_config.bad_words_ids = [[0], [last - 1, 0], [last]]
    model.generation_config.suppress_tokens = [last - 1, last]
    report = se.cut_vocabulary(model, source, CORPUS)
    assert last - 1 not in report.kept
    end = len(report.kept) - 1
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == config.bos_token_id == end
    assert model.generation_config.bad_words_ids == [[0], [end]]
    assert model.generation_config.suppress_tokens == [end]
    out = save_checkpoint(model, tmp_path / "cut", source, {}, files=report.files)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == end


def test_files_of_the_vocabulary_agree(tmp_path: Path) -> None:
    source = folder(tmp_path / "bpe", "bpe", "GPT2LMHeadModel")
    last = len(load_tokenizer(source).get_vocab()) - 1
    (source / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": last}))
    (source / "spiece.model").write_bytes(b"stale")
    path = source / "tokenizer_config.json"
    added = {"added_tokens_decoder": {str(last): {"content": "<|endoftext|>", "special": True}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    report = se.cut_vocabulary(load_pretrained(source)[0], source, CORPUS)
    files = {name: data.decode() for name, data in report.files.items() if data is not None}
    plain = json.loads(files["tokenizer.json"])["model"]
    assert json.loads(files["vocab.json"]) == plain["vocab"]
    merges = [f"{a} {b}" for a, b in plain["merges"]]
    assert files["merges.txt"].splitlines() == ["#version: 0.2", *merges]
    end = len(report.kept) - 1
    assert json.loads(files["added_tokens.json"]) == {"<|endoftext|>": end}
    assert list(json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]) == [str(end)]
    assert report.files["spiece.model"] is None
    assert "spiece.model" in report.summary

    source = folder(tmp_path / "wordpiece", "wordpiece", "BertModel")
    report = se.cut_vocabulary(load_pretrained(source)[0], source, CORPUS)
    ids = json.loads(report.files["tokenizer.json"] or b"")["model"]["vocab"]
    lines = (report.files["vocab.txt"] or b"").decode().splitlines()
    assert lines == sorted(ids, key=ids.get)


def test_a_tokenizer_of_transformers_and_a_cut_model(tmp_path: Path) -> None:
    """The files come from the tokenizer, and heads may be gone that the config still has."""
    source = folder(tmp_path / "model", "wordpiece", "BertModel")
    model, _ = load_pretrained(source)
    se.prune(model, 0.5, "head", "magnitude")
    dense = copy.deepcopy(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    report = se.cut_vocabulary(model, tokenizer, iter(f"{text}\n" for text in CORPUS))
    ids = tokenizer(CORPUS[0])["input_ids"]
    expected = call(dense, ids).last_hidden_state
    cut_ids = list(map(report.kept.index, ids))
    assert torch.equal(call(model, cut_ids).last_hidden_state, expected)
    package = se.save(model, tmp_path / "package", source=source, files=report.files)
    assert load_tokenizer(package).encode(CORPUS[0]).ids == cut_ids
    assert torch.equal(call(se.load(package), cut_ids).last_hidden_state, expected)
