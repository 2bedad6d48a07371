"""Checkpoints of movement pruning: masks of each method against a slow reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from foreign_layouts import edit_config, write
from tiny_bert import build, output

from sparse_engine.errors import InvalidFileError, SparseEngineError, UnsupportedModelError
from sparse_engine.io import load_pretrained, save_checkpoint

torch.set_num_threads(1)
THRESHOLDS = {"topK": 0.15, "threshold": 0.2, "sigmoied_threshold": 0.55, "l0": None}


def make(
    folder: Path, method: str, rows: int = 1, cols: int = 1, edit: Any = lambda state: None
) -> tuple[Path, dict[str, Tensor]]:
    """A folder with scores, and its tensors."""
    model = build()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in list(state.items()):
        if tensor.dim() == 2 and "encoder" in name and method != "magnitude":
            shape = (tensor.shape[0] // rows, tensor.shape[1] // cols)
            state[name.replace("weight", "mask_scores")] = torch.randn(shape)
    edit(state)
    config = {
        "model_type": "masked_bert",
        "architectures": ["MaskedBertModel"],
        "pruning_method": method,
        "mask_init": "constant",
        "mask_scale": 0.0,
        "mask_block_rows": rows,
        "mask_block_cols": cols,
    }
    if THRESHOLDS.get(method, 0.25) is not None:
        config["final_threshold"] = THRESHOLDS.get(method, 0.25)
    return write(folder, model, config, state), state


def refused(error: type[SparseEngineError], folder: Path, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


def kept(scores: list[float], method: str, threshold: float) -> list[float]:
    """The mask of a list of scores, a score at a time."""
    if method in ("topK", "magnitude"):
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        chosen = set(order[: int(threshold * len(scores))])
        return [float(i in chosen) for i in range(len(scores))]
    gates = [1 / (1 + math.exp(-score)) for score in scores]
    if method == "l0":
        return [min(max(1.2 * gate - 0.1, 0.0), 1.0) for gate in gates]
    compared = scores if method == "threshold" else gates
    mask = [float(value > threshold) for value in compared]
    least = int(0.005 * len(scores)) + 1
    return mask if sum(mask) >= least else kept(scores, "topK", least / len(scores))


def expected(state: dict[str, Tensor], method: str, rows: int, cols: int) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        if name.endswith("mask_scores"):
            continue
        found[name] = tensor
        if tensor.dim() != 2 or "encoder" not in name:
            continue
        scores = state.get(name.replace("weight", "mask_scores"), tensor.abs())
        threshold = THRESHOLDS.get(method, 0.25) or 0.0
        mask = torch.tensor(kept(scores.flatten().tolist(), method, threshold)).view(scores.shape)
        found[name] = tensor * torch.kron(mask, torch.ones(rows, cols))
    return found


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 32)])
@pytest.mark.parametrize("method", ["topK", "threshold", "sigmoied_threshold", "l0", "magnitude"])
def test_masks(method: str, block: tuple[int, int], tmp_path: Path) -> None:
    if method == "magnitude":
        block = (1, 1)
    folder, state = make(tmp_path / "hf", method, *block)
    model, _ = load_pretrained(folder)
    for name, tensor in expected(state, method, *block).items():
        read = model.state_dict()[name]
        torch.testing.assert_close(read, tensor, rtol=1e-6, atol=1e-8)
        assert torch.equal(read == 0, tensor == 0), name


def test_a_threshold_keeps_half_a_percent(tmp_path: Path) -> None:
    folder, state = make(tmp_path / "hf", "threshold")
    edit_config(folder, lambda config: config.update(final_threshold=100))
    weight = load_pretrained(folder)[0].encoder.layer[0].intermediate.dense.weight
    scores = state["encoder.layer.0.intermediate.dense.mask_scores"]
    least = int(0.005 * scores.numel()) + 1
    assert int(weight.count_nonzero()) == least
    assert set(scores[weight != 0].tolist()) == set(scores.flatten().topk(least).values.tolist())


def test_what_is_written_next_is_plain_bert(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf", "topK")
    model, source = load_pretrained(folder)
    again, _ = load_pretrained(save_checkpoint(model, tmp_path / "out", source, {}))
    assert torch.equal(output(again), output(model))
    assert (tmp_path / "out/config.json").read_text().count("ask") == 0


@pytest.mark.parametrize("value", [None, "0.1", True, -0.1, 1.5, [0.1]])
def test_the_threshold_is_needed(value: Any, tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf", "topK")
    edit_config(folder, lambda config: config.update(final_threshold=value))
    refused(InvalidFileError, folder, 'masks of topK need "final_threshold", a number from 0 to 1')


def test_other_masks_are_refused(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "hf", "topK")
    edit_config(folder, lambda config: config.update(pruning_method="os.system"))
    refused(InvalidFileError, folder, "'os.system' is none of topK, threshold")
    edit_config(folder, lambda c: c.update(pruning_method="topK", shuffling_method="annealing"))
    refused(UnsupportedModelError, folder, "masked_bert with shuffling_method is not read")


STEM = "encoder.layer.1.output.dense"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s: s.pop(f"{STEM}.weight"), "is missing: the file has .*mask_scores' alone"),
        (lambda s: s.update({f"{STEM}.mask_scores": torch.zeros(5, 64)}), "32x64 has scores 5x64"),
        (lambda s: s.update({f"{STEM}.mask_scores": torch.zeros(0, 64)}), "has scores 0x64"),
        (lambda s: s.update({f"{STEM}.mask_scores": torch.zeros(32)}), "has scores 32"),
        (lambda s: s[f"{STEM}.mask_scores"].fill_(math.nan), "holds NaN or infinity"),
    ],
)
def test_scores_that_do_not_fit(
    edit: Callable[[dict[str, Tensor]], object], match: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path / "hf", "topK", edit=edit)
    refused(InvalidFileError, folder, match)
