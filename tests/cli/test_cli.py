"""The command line end to end on a tiny model, and one line with the right exit code for
bad input.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")
from transformers import BertConfig, BertModel

from sparse_engine.cli import main

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"the cat sat on a mat and dog ran far away now".split(),
]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, **env: str) -> Done:
    """The command in this process: what `sparse-engine ARGUMENTS` prints and exits with."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparse-engine", *map(str, arguments)])
        for name, value in {"NO_COLOR": "1", "COLUMNS": "200", **env}.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def ok(*arguments: object, **env: str) -> str:
    done = run(*arguments, **env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def refused(code: int, *arguments: object, **env: str) -> str:
    """The one line on stderr of a command that must fail with `code`."""
    done = run(*arguments, **env)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with a word tokenizer, as Hugging Face writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cli") / "model"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(model: Path) -> Path:
    path = model.parent / "texts.txt"
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(4, len(WORDS), (200, 12), generator=generator).tolist()
    path.write_text("\n".join(" ".join(WORDS[i] for i in row) for row in picks))
    return path


@pytest.fixture(scope="module")
def package(model: Path, texts: Path) -> Path:
    """The whole path: prune with calibration, then convert with verification."""
    pruned, out = model.parent / "pruned", model.parent / "package"
    told = ok("prune", model, pruned, "--sparsity", "0.8", "--calibration", texts)
    assert "query" in told
    assert (pruned / "pruning.json").is_file()
    told = ok("convert", pruned, out, "--format", "csr", "--verify")
    assert "max relative error" in told
    return out


def test_help_of_every_command_answers_a_newcomer() -> None:
    for command in (
        ("prune",),
        ("convert",),
        ("inspect",),
        ("verify",),
        ("info",),
        ("bench", "kernel"),
        ("bench", "model"),
        ("serve",),
        ("demo",),
    ):
        text = ok(*command, "--help")
        assert "Usage: sparse-engine" in text
        if command != ("info",):
            assert "Example" in text


def test_info_names_isa_and_kernels() -> None:
    told = ok("info", SPARSE_ENGINE_ISA="scalar")
    assert "scalar (forced)" in told
    assert "* spmm_strips_f32_scalar" in told
    assert "ISA" in refused(2, "info", SPARSE_ENGINE_ISA="mmx")


def test_package_runs_inspects_verifies(package: Path, model: Path) -> None:
    assert "csr" in ok("inspect", package)
    found = json.loads(ok("inspect", package, "-o", "json"))
    assert found
    assert "intact" in ok("verify", package)
    assert "cosine" in ok("verify", package, "--against", model.parent / "pruned")
    # Against the model before pruning it must differ, and say so.
    assert "error" in refused(5, "verify", package, "--against", model)


def test_bench_model_prints_both_engines(package: Path) -> None:
    options = ("--seq", "8", "--runs", "1", "--rounds", "1", "-o", "json")
    rows = json.loads(ok("bench", "model", package, *options))
    assert [row["engine"] for row in rows] == ["sparse_engine", "torch"]
    assert all(row["median_ms"] > 0 for row in rows)


def test_bench_kernel_prints_json() -> None:
    sizes = ("-n", 16, "-k", 16, "-m", 2, "--sparsity", "0.5")
    done = run("bench", "kernel", *sizes, "-o", "json", "--rounds", 1)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 2


def test_prune_patterns_and_bad_numbers(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        ("--sparsity", "1.5"),
        ("--sparsity", "-0.1"),
        ("--sparsity", "0.5", "--granularity", "7x"),
        ("--sparsity", "0.5", "--granularity", "4096x4096"),
        ("--sparsity", "0.5", "--criterion", "luck"),
        ("--sparsity", "0.5", "--criterion", "wanda"),
        ("--sparsity", "0.5", "--calibration", tmp_path / "none.txt"),
        ("--sparsity", "0.3", "--granularity", "2:4"),
        ("--sparsity", "0.5", "--threads", "0"),
        ("--sparsity", "0.5", "--threads", "100000"),
    ):
        refused(2, "prune", model, out, *arguments)
        assert not out.exists()
    ok("prune", model, out, "--granularity", "2:4")
    assert list(tmp_path.iterdir()) == [out]


def test_package_can_be_pruned_again(package: Path, texts: Path, tmp_path: Path) -> None:
    told = ok("prune", package, tmp_path / "out", "--sparsity", "0.9", "--calibration", texts)
    assert "query" in told
    long = tmp_path / "long.txt"
    long.write_text(" ".join(WORDS[4:] * 20))
    options = ("--sparsity", "0.9", "--calibration", long, "--max-length", "500")
    ok("prune", package, tmp_path / "clipped", *options)


def test_errors_before_work_starts(package: Path, tmp_path: Path) -> None:
    refused(2, "bench", "kernel", "--plot", tmp_path / "chart.foo")
    refused(2, "bench", "kernel", "--plot", tmp_path / "none" / "chart.png")
    refused(2, "bench", "model", package, "--threads", "0")
    refused(2, "inspect", package, SPARSE_ENGINE_ISA="avx3")
    small = ("-n", 16, "-k", 16, "-m", 2, "--sparsity", "0.001", "--rounds", 1)
    ok("bench", "kernel", *small)


def test_failed_verification_leaves_no_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparse_engine.io as io_room
    from sparse_engine.errors import VerificationError

    def differ(*args: object, **kwargs: object) -> None:
        raise VerificationError("differs")

    monkeypatch.setattr(io_room, "verify", differ)
    refused(5, "convert", model, tmp_path / "out", "--verify")
    assert list(tmp_path.iterdir()) == []


def test_bad_models(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(4, "convert", tmp_path / "nowhere", out)
    no_weights = tmp_path / "no-weights"
    shutil.copytree(model, no_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(3, "convert", no_weights, out)
    torch.save({"a": torch.zeros(2)}, no_weights / "pytorch_model.bin")
    assert "pickle" in refused(3, "convert", no_weights, out)
    nan = tmp_path / "nan"
    shutil.copytree(model, nan)
    broken = BertModel.from_pretrained(nan)
    broken.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    broken.save_pretrained(nan)
    assert "output.dense" in refused(3, "convert", nan, out)
    assert not out.exists()
    refused(4, "bench", "model", tmp_path / "nowhere")


def test_bad_packages(package: Path, tmp_path: Path) -> None:
    assert "exists" in refused(2, "convert", package, package)
    weights = "sparse_engine.safetensors"
    for name, damage in (
        ("truncated", lambda b: b[:-100]),
        ("flipped", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]),
    ):
        copy = tmp_path / name
        shutil.copytree(package, copy)
        (copy / weights).write_bytes(damage((copy / weights).read_bytes()))
        refused(3, "verify", copy)
    unknown = tmp_path / "unknown"
    shutil.copytree(package, unknown)
    text = (unknown / "sparse_engine.json").read_text()
    (unknown / "sparse_engine.json").write_text(text.replace('"csr"', '"coo"'))
    refused(3, "inspect", unknown)


def test_full_disk_leaves_nothing_behind(package: Path, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: writing fails half-way in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        told = refused(2, "convert", package, tmp_path / "out", "--format", "csr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "nothing was left behind" in told
    assert list(tmp_path.iterdir()) == []


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
    ok("prune", folder, tmp_path / "b", "--sparsity", "0.5")
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


def test_traceback_shows_the_rest(model: Path, tmp_path: Path) -> None:
    shown = run("prune", model, tmp_path / "a", "--sparsity", "2", "--traceback")
    assert shown.returncode == 2
    assert "Traceback (most recent call last)" in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("error: sparsity 2")
    again = run("--traceback", "prune", model, tmp_path / "a", "--sparsity", "2")
    assert again.stderr.splitlines()[-1] == shown.stderr.splitlines()[-1]
    assert "Traceback" not in refused(2, "prune", model, tmp_path / "a", "--sparsity", "2")
    assert "--traceback" in ok("--help")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {"modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense"}]},
            "module 'Dense'",
        ),
        ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, "pooling lasttoken"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "pooling weightedmean"),
        (
            {
                "modules.json": [{"type": "x.Pooling", "path": "2_Pooling"}],
                "2_Pooling/config.json": {"pooling_mode": "mean"},
            },
            "2_Pooling/config.json, packages keep 1_Pooling/config.json",
        ),
    ],
)
def test_convert_refuses_what_run_would_refuse(
    files: dict[str, object], match: str, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    assert match in refused(4, "convert", folder, tmp_path / "out", "--format", "csr")
    assert list(tmp_path.iterdir()) == [folder]
