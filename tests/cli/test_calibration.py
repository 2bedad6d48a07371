"""`prune` with texts: which models read them, and one line for those that do not."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command_line import WORDS, ok, refused, run

pytest.importorskip("transformers")


def seq2seq(path: Path, kind: str) -> Path:
    """A tiny encoder-decoder model with a word tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    common = {
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
        "eos_token_id": 3,
        "decoder_start_token_id": 0,
        "d_model": 16,
    }
    sizes = {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    if kind != "T5ForConditionalGeneration":
        sizes = {
            f"{part}_{what}": value
            for part in ("encoder", "decoder")
            for what, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
        } | {"max_position_embeddings": 40}
    config = kind.partition("For")[0].removesuffix("MTModel") + "Config"
    model = getattr(transformers, kind)(getattr(transformers, config)(**common, **sizes))
    model.eval().save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "T5ForConditionalGeneration",
        "MarianMTModel",
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "PegasusForConditionalGeneration",
    ],
)
def test_encoder_decoders_are_calibrated_and_verified(
    kind: str, texts: Path, tmp_path: Path
) -> None:
    model, pairs = seq2seq(tmp_path / "model", kind), tmp_path / "pairs.txt"
    lines = texts.read_text().splitlines()
    pairs.write_text("\n".join(f"{a}\t{b}" for a, b in pairwise(lines)))
    for name, file in (("texts", texts), ("pairs", pairs)):
        told = ok("prune", model, tmp_path / name, "--sparsity", "0.5", "--calibration", file)
        assert "sparsegpt" in told
    ok("convert", tmp_path / "texts", tmp_path / "package", "--format", "csr", "--verify")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("texts", "pairs"))
    assert a != b  # answers were read


def test_answers_are_what_the_decoder_reads(tmp_path: Path) -> None:
    from sparse_engine.io import load_pretrained
    from sparse_engine.text.calibration import calibration_batches
    from sparse_engine.text.tokenizer import load_tokenizer

    folder = seq2seq(tmp_path / "model", "MarianMTModel")
    model, _ = load_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    cat, sat, dog = (WORDS.index(word) for word in ("cat", "sat", "dog"))
    given = ["cat sat\tdog", "dog\tcat sat dog"]
    (batch,) = calibration_batches(given, tokenizer, model)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[dog, 3, 0], [cat, sat, 3]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "decoder_input_ids": [[0, cat, sat, dog], [0, dog, 3, 0]],
        "decoder_attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
    }
    (batch,) = calibration_batches(["cat sat"], tokenizer, model)
    assert batch["decoder_input_ids"].tolist() == [[0, cat, sat]]


def test_texts_that_a_model_cannot_take_are_one_line(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    def prune(folder: Path, *more: object) -> tuple[object, ...]:
        out = tmp_path / "out"
        return ("prune", folder, out, "--sparsity", "0.5", "--calibration", texts, *more)

    larger, unknown = tmp_path / "larger", tmp_path / "unknown"
    for folder in (larger, unknown):
        shutil.copytree(model, folder)
    told = json.loads((larger / "tokenizer.json").read_text())
    told["model"]["vocab"] |= {"now": 400}
    (larger / "tokenizer.json").write_text(json.dumps(told))
    line = refused(2, *prune(larger))
    assert "token id 400, the model's vocabulary is 0 to 15; is this tokenizer the model's?" in line
    told = json.loads((unknown / "tokenizer.json").read_text())
    del told["model"]["vocab"]["[UNK]"], told["model"]["vocab"]["now"]
    (unknown / "tokenizer.json").write_text(json.dumps(told))
    line = refused(2, *prune(unknown))
    assert "the tokenizer fails on a text; does its vocabulary have the unknown token?" in line
    assert list(tmp_path.iterdir()) in ([larger, unknown], [unknown, larger])


def test_models_that_read_no_texts_are_one_line(texts: Path, model: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path / "vit"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=24, image_size=16, patch_size=8)
    ViTModel(config).eval().save_pretrained(folder)
    shutil.copy(model / "tokenizer.json", folder)
    options = ("--sparsity", "0.5", "--calibration", texts)
    line = refused(2, "prune", folder, tmp_path / "a", *options)
    assert "ViTModel needs pixel_values: texts are not enough" in line
    line = refused(2, "prune", folder, tmp_path / "a", "--sparsity", "0.5")
    assert "the built-in calibration texts do not fit this model: ViTModel needs pixel" in line
    assert "'none' as calibration" in line
    ok("prune", folder, tmp_path / "b", "--sparsity", "0.5", "--calibration", "none")
    ok("convert", tmp_path / "b", tmp_path / "c", "--format", "csr", "--verify")


def test_texts_as_long_as_the_position_table(texts: Path, model: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    folder, long = tmp_path / "roberta", tmp_path / "long.txt"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(
        **sizes,
        vocab_size=len(WORDS),
        intermediate_size=24,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    RobertaModel(config).eval().save_pretrained(folder)
    shutil.copy(model / "tokenizer.json", folder)
    long.write_text("\n".join(" ".join(WORDS[4:] * repeat) for repeat in (1, 3, 9)))
    options = ("--sparsity", "0.5", "--calibration", long, "--max-length", "512")
    ok("prune", folder, tmp_path / "a", *options)


@pytest.mark.parametrize("criterion", ["taylor", "fisher(block=8)"])
def test_gradients_need_no_labels(criterion: str, model: Path, texts: Path, tmp_path: Path) -> None:
    arguments = ("--sparsity", "0.5", "--criterion", criterion, "--calibration", texts)
    told = ok("prune", model, tmp_path / "pruned", *arguments)
    assert criterion in told
    report = json.loads((tmp_path / "pruned/pruning.json").read_text())
    assert report["recipe"]["criterion"] == criterion


def test_snip_has_no_loss_on_the_command_line(model: Path, texts: Path, tmp_path: Path) -> None:
    arguments = ("--sparsity", "0.5", "--criterion", "snip", "--calibration", texts)
    told = refused(2, "prune", model, tmp_path / "pruned", *arguments)
    assert "without labels the mean gradient is zero" in told
    assert not (tmp_path / "pruned").exists()


def test_sources_are_mixed_and_recorded(texts: Path, model: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("the cat sat\na dog ran")
    options = ("--sparsity", "0.5", "--samples", "20")
    sources = ("--calibration", f"{texts}:0.9", "--calibration", f"{few}:0.1")
    done = run("prune", model, tmp_path / "mixed", *options, *sources)
    assert done.returncode == 0, done.stderr
    assert f"calibration: 20 texts: 18 of 200 from {texts}, 2 of 2 from {few}" in done.stderr
    assert f"warning: {few} holds only 2 texts; use 128 or more" in done.stderr
    recipe = json.loads((tmp_path / "mixed" / "pruning.json").read_text())
    assert [source["texts"] for source in recipe["calibration"]["sources"]] == [18, 2]
    line = refused(2, "prune", model, tmp_path / "a", *options, "--calibration", f"{few}:0")
    assert "a share is a positive number" in line


def test_without_files_the_built_in_texts_are_used_and_named(model: Path, tmp_path: Path) -> None:
    done = run("prune", model, tmp_path / "a", "--sparsity", "0.5", "--samples", "200")
    assert done.returncode == 0, done.stderr
    assert "calibration: 200 texts: 200 of" in done.stderr
    assert "documentation of Python" in done.stderr
    recipe = json.loads((tmp_path / "a" / "pruning.json").read_text())
    assert (recipe["criterion"], recipe["recovery"]) == ("sparsegpt", "least_squares")
    assert recipe["calibration"]["texts"] == 200
    for name, more in (("b", ("--calibration", "none")), ("c", ("--criterion", "magnitude"))):
        done = run("prune", model, tmp_path / name, "--sparsity", "0.5", *more)
        recipe = json.loads((tmp_path / name / "pruning.json").read_text())
        assert recipe["criterion"] == "magnitude"
        assert bool(recipe["calibration"]) == (name == "c")  # for the refit
        assert ("expect much lower quality" in done.stderr) == (name == "b")
