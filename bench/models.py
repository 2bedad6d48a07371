"""Every architecture tried: tiny random weights through prune, convert, verify and run.

    python bench/models.py                       # all, a table in docs/models.md
    python bench/models.py --only Bert,Whisper   # some, printed

Each row is made as a user would make it: a Hugging Face folder is written, loaded, pruned to 80 %
zeros with `wanda` on random inputs, written, converted to csr, verified against the pruned folder,
loaded and run. Nothing is left out of the table: what fails has its error as its row. Weights are
random and layers tiny: the table shows what works, not what is fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track

import sparse_engine as se
from sparse_engine.convert.census import census
from sparse_engine.io import load_pretrained, save_checkpoint, verify

SPARSITY = 0.8
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
TOKENS = 9

# What makes a config tiny, by the names that configs have for it.
TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "encoder_vocab_size", "entity_vocab_size"), 96),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "entity_emb_size", "trunk_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "hidden_dim", "ffn_dim"), 128),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_inner"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions"), 64),
    **dict.fromkeys(("max_target_positions", "sliding_window", "local_attention"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k"), 2),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "bos_token_id", "sep_token_id", "cls_token_id"), 1),
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "image_size": 16,
    "patch_size": 8,
    "num_mel_bins": 16,
    "projection_dim": 32,
}


@dataclass(frozen=True)
class Case:
    """A class of transformers, what its config needs beside TINY (None: TINY's value is left out),
    and what it is called with.
    """

    name: str
    config: dict[str, Any] | None = None
    inputs: str = "text"


TEXT = """
BertModel BertForSequenceClassification BertForMaskedLM BertForMultipleChoice RobertaModel
XLMRobertaModel CamembertModel ElectraModel DistilBertModel MPNetModel AlbertModel
DebertaModel DebertaV2Model ModernBertModel NomicBertModel EuroBertModel ConvBertModel
FNetModel MobileBertModel SqueezeBertModel RoFormerModel ErnieModel LayoutLMModel FunnelModel
LongformerModel BigBirdModel NystromformerModel YosoModel XLNetModel XLMModel FlaubertModel
GPT2LMHeadModel GPTNeoForCausalLM GPTNeoXForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM
OPTForCausalLM BloomForCausalLM FalconForCausalLM CodeGenForCausalLM BioGptForCausalLM
LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM
Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM StableLmForCausalLM
CohereForCausalLM OlmoForCausalLM Olmo2ForCausalLM SmolLM3ForCausalLM GraniteForCausalLM
Starcoder2ForCausalLM NemotronForCausalLM HeliumForCausalLM GlmForCausalLM
MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM OlmoeForCausalLM GptOssForCausalLM
PhimoeForCausalLM GraniteMoeForCausalLM DeepseekV3ForCausalLM
MambaForCausalLM Mamba2ForCausalLM RwkvForCausalLM
T5ForConditionalGeneration MT5ForConditionalGeneration LongT5ForConditionalGeneration
SwitchTransformersForConditionalGeneration UMT5ForConditionalGeneration
BartForConditionalGeneration MBartForConditionalGeneration PegasusForConditionalGeneration
MarianMTModel BlenderbotForConditionalGeneration M2M100ForConditionalGeneration
ProphetNetForConditionalGeneration
"""
OWN_CONFIG: dict[str, dict[str, Any]] = {
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTJForCausalLM": {"rotary_dim": 8},
    "CodeGenForCausalLM": {"rotary_dim": 8},
    "GPTBigCodeForCausalLM": {"multi_query": True},
    "FalconForCausalLM": {"num_kv_heads": 4, "head_dim": None},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "MobileBertModel": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "FunnelModel": {"block_sizes": [1, 1], "d_head": 16, "num_hidden_layers": None},
    "LongformerModel": {"attention_window": [4, 4]},
    "BigBirdModel": {"attention_type": "original_full"},
    "GemmaForCausalLM": {"num_key_value_heads": 1},
    "SwitchTransformersForConditionalGeneration": {"num_sparse_encoder_layers": 1},
    "DeepseekV3ForCausalLM": {
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
        **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
        "num_key_value_heads": 4,
    },
    "MambaForCausalLM": {"state_size": 8, "time_step_rank": 8},
    "Mamba2ForCausalLM": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "RwkvForCausalLM": {"attention_hidden_size": 64},
    "ProphetNetForConditionalGeneration": {
        "num_hidden_layers": None,
        **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
        **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    },
    "XLNetModel": {"max_position_embeddings": None},
    "NystromformerModel": {"segment_means_seq_len": TOKENS, "num_landmarks": TOKENS},
}
OTHERS = (
    Case("WhisperForConditionalGeneration", {"max_source_positions": 16}, "speech"),
    Case("ViTModel", None, "image"),
    Case("ViTForImageClassification", None, "image"),
    Case("DeiTModel", None, "image"),
    Case("Dinov2Model", None, "image"),
    Case(
        "CLIPModel",
        {
            "text_config": {k: v for k, v in TINY.items() if k != "head_dim"},
            "vision_config": {k: v for k, v in TINY.items() if k != "head_dim"},
        },
        "text and image",
    ),
    Case(
        "Wav2Vec2Model",
        {"conv_dim": [32] * 2, "conv_stride": [4, 2], "conv_kernel": [8, 3]},
        "wave",
    ),
    Case(
        "HubertModel", {"conv_dim": [32] * 2, "conv_stride": [4, 2], "conv_kernel": [8, 3]}, "wave"
    ),
)
CASES = (*(Case(name, OWN_CONFIG.get(name)) for name in TEXT.split()), *OTHERS)


@dataclass(frozen=True)
class Outcome:
    """One row of the table; `error` is the first line of what went wrong, and in which step."""

    name: str
    layers: str = ""
    work: str = ""
    native: str = ""
    difference: str = ""
    error: str = ""


def build(case: Case) -> Any:
    """A tiny model with random weights; some norms and biases that start at 0 are random too."""
    cls = getattr(transformers, case.name)
    default = cls.config_class()
    own = case.config or {}
    tiny = {key: value for key, value in TINY.items() if hasattr(default, key) and key not in own}
    chosen = tiny | {key: value for key, value in own.items() if value is not None}
    torch.manual_seed(0)
    model = cls(cls.config_class(**chosen)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def inputs(model: Any, kind: str) -> list[dict[str, Any]]:
    """Two batches of random inputs."""
    source, made = torch.Generator().manual_seed(1), []
    for _ in range(2):
        ids = torch.randint(2, 96, (2, TOKENS), generator=source)
        batch: dict[str, Any] = {}
        if "text" in kind:
            batch["input_ids"] = ids
        if "image" in kind:
            batch["pixel_values"] = torch.randn(2, 3, 16, 16, generator=source)
        if kind == "speech":
            batch["input_features"] = torch.randn(2, 16, 32, generator=source)
        if kind == "wave":
            batch["input_values"] = torch.randn(2, 400, generator=source)
        if type(model).__name__.endswith("MultipleChoice"):
            batch = {name: given.unsqueeze(1) for name, given in batch.items()}
        if getattr(model.config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = ids[:, :5]
        made.append(batch)
    return made


def attempt(case: Case, folder: Path) -> Outcome:
    """All steps of one architecture."""
    step, found = "build", {}
    try:
        with quiet():
            model = build(case)
            batches = inputs(model, case.inputs)
            step = "load"
            model.save_pretrained(folder / "dense")
            model, source = load_pretrained(folder / "dense")
            step = "prune"
            pruning = se.prune(model, SPARSITY, criterion="wanda", calibration=batches)
            save_checkpoint(model, folder / "pruned", source, pruning.to_dict())
            counted = census(model)
            found["layers"] = str(len(pruning.layers))
            found["work"] = f"{counted.zeros_of_multiply_adds:.0%}"
            step = "convert"
            report = se.sparsify_(model, "csr")
            native = "run natively" in report.native
            found["native"] = "native" if native else "layer by layer"
            se.save(model, folder / "package", report=report, source=folder / "pruned")
            step = "verify"
            checked = verify(folder / "package", against=folder / "pruned", samples=batches)
            found["difference"] = f"{checked.max_relative_error:.0e}"
            step = "run"
            model = se.load(folder / "package")
            with torch.inference_mode():
                model(**batches[0])
    except Exception as error:
        text = " ".join(str(error).split())
        found["error"] = f"{step}: {text[:110] or type(error).__name__}"
    return Outcome(case.name, **found)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of transformers on tiny random models."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def table(rows: list[Outcome]) -> str:
    """Markdown, and how many came through."""
    lines = [
        "| architecture | layers pruned | multiply-adds pruned | runs | largest error "
        "| what fails |",
        "| :-- | --: | --: | :-- | --: | :-- |",
    ]
    lines += [
        f"| {row.name} | {row.layers} | {row.work} | {row.native} | {row.difference} | "
        f"{row.error.replace('|', '/')} |"
        for row in rows
    ]
    whole = sum(not row.error for row in rows)
    native = sum(row.native == "native" and not row.error for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"{whole} of {len(rows)} architectures pass all steps, {native} of them native. "
            f"transformers {transformers.__version__}, torch {torch.__version__}.",
            "",
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", help="comma-separated beginnings of names; prints, writes nothing"
    )
    chosen = parser.parse_args().only
    parts = tuple(chosen.split(",")) if chosen else ("",)
    cases = [case for case in CASES if case.name.startswith(parts)]
    if not cases:
        sys.exit(f"no architecture starts with {chosen}")
    rows = []
    for case in track(cases, "architectures", transient=True):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(attempt(case, Path(folder)))
    text = table(rows)
    if chosen:
        print(text)
        return
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(head + BEGIN + text + END + rest.partition(END)[2])
    print(f"wrote {PAGE}: {text.splitlines()[-1]}")


if __name__ == "__main__":
    main()
