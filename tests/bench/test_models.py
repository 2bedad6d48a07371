"""bench/models.py: some rows of its table, and a row for what fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import load_script

pytest.importorskip("transformers")

SCRIPT = load_script("models")
Case, attempt = SCRIPT.Case, SCRIPT.attempt


@pytest.mark.parametrize(
    ("name", "layers", "native"),
    [
        ("BertModel", "12", "native"),
        ("MixtralForCausalLM", "24", "layer by layer"),
        ("BartForConditionalGeneration", "32", "native"),
        ("HubertModel", "31", "layer by layer"),
    ],
)
def test_a_row(name: str, layers: str, native: str, tmp_path: Path) -> None:
    (case,) = [case for case in SCRIPT.CASES if case.name == name]
    row = attempt(case, tmp_path)
    assert (row.error, row.layers, row.native) == ("", layers, native)
    assert 0.7 < float(row.work.rstrip("%")) / 100 <= 0.8
    assert float(row.difference) < 1e-5


def test_what_fails_is_a_row_too(tmp_path: Path) -> None:
    rows = [attempt(Case("BertModel", {"hidden_size": 30}), tmp_path)]
    assert rows[0].error.startswith("build: ")
    text = SCRIPT.table(rows)
    assert "0 of 1 architectures pass all steps" in text
