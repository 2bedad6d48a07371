"""The report of a run that removes structures: text, page, table of the command line, and JSON."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches
from html_page import outside_references, parsed
from torch import nn

import sparse_engine as se
from sparse_engine.cli.prune_tables import prune_tables
from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning import PruneReport
from sparse_engine.pruning.site_report import SiteReport, counts_of
from sparse_engine.reporting.tables import show

pytest.importorskip("matplotlib")
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def cut() -> tuple[nn.Module, PruneReport]:
    model = bert("BertForSequenceClassification")
    structures = ["head", "unit(keep=4)"]
    report = se.prune(
        model, 0.5, structures, "obs", "least_squares", bert_batches(), allocator="raw"
    )
    return model, report


def linear_weights(model: nn.Module) -> dict[str, int]:
    return {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def test_sizes_and_shares_are_those_of_the_models(cut: tuple[nn.Module, PruneReport]) -> None:
    model, report = cut
    dense = bert("BertForSequenceClassification")
    assert report.parameters == tuple(
        sum(p.numel() for p in of.parameters()) for of in (dense, model)
    )
    before, after = linear_weights(dense), linear_weights(model)
    assert report.multiply_adds == (sum(before.values()), sum(after.values()))
    touched = {name for name in before if "layer." in name}
    share = sum(before[name] for name in touched) / sum(before.values())
    assert report.pruned_multiply_adds == pytest.approx(share)
    left = {item.name: item for item in report.left}
    assert touched.isdisjoint(left)
    assert {"bert.pooler.dense", "classifier", "bert.embeddings.word_embeddings"} <= left.keys()
    assert left["classifier"].reason == "a head by its name"
    assert left["classifier"].multiply_adds == before["classifier"] / sum(before.values())
    padding = model.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    zeros = int((padding == 0).sum())
    assert report.zeros_of_parameters == pytest.approx(zeros / report.parameters[1])
    assert report.zeros_of_multiply_adds == 0
    assert report.layers == []
    assert report.granularity == "head, unit(keep=4)"
    assert report.allocator == "raw"
    heads = [len(site.kept) for site in report.sites if site.kind == "head"]
    assert [len(row.kept) for row in report.heads] == heads
    assert all(share == 1.0 for row in report.heads for share in row.kept)


def test_other_layers_of_the_stack_are_listed_as_left() -> None:
    report = se.prune(bert(), 0.5, "unit(keep=4)", ignore=["encoder.layer.1"])
    reasons = {item.name: item.reason for item in report.left}
    assert reasons["encoder.layer.1.intermediate.dense"] == "no unit of it was to be removed"
    assert reasons["encoder.layer.0.attention.self.query"] == "no unit of it was to be removed"
    assert "encoder.layer.0.intermediate.dense" not in reasons


def test_errors_are_those_of_the_layers_that_read() -> None:
    dense, model, bare = bert(), bert(), bert()
    seen: list[torch.Tensor] = []
    down: Any = dense.get_submodule("encoder.layer.0.output.dense")
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    masks = [batch["attention_mask"].bool() for batch in bert_batches()]
    with torch.inference_mode():
        for batch in bert_batches():
            dense(**batch)
    x = torch.cat([of[mask] for of, mask in zip(seen, masks, strict=True)])
    chosen = {"ignore": ["encoder.layer.1"]}
    calibrated = {"calibration": bert_batches(), **chosen}
    report = se.prune(model, 0.5, "unit(keep=4)", "magnitude", "least_squares", **calibrated)
    unread = se.prune(bare, 0.5, "unit(keep=4)", "magnitude", **chosen)
    (site,) = report.sites
    kept = list(site.kept)
    assert site.error_before is not None and site.error_after is not None  # noqa: PT018
    # The bias absorbs the mean.
    centred = x - x.mean(0)
    target = centred @ down.weight.T

    def relative(outputs: torch.Tensor) -> float:
        return float((outputs - target).norm() / target.norm())

    masked = centred[:, kept] @ down.weight[:, kept].T
    assert site.error_before == pytest.approx(
        float((masked - target).norm() / target.norm()), rel=0.02
    )
    found: Any = model.get_submodule("encoder.layer.0.output.dense")
    fitted = centred[:, kept] @ found.weight.T
    assert site.error_after == pytest.approx(
        float((fitted - target).norm() / target.norm()), rel=0.02
    )
    assert site.error_after < site.error_before
    (other,) = unread.sites
    assert other.kept == site.kept
    assert other.error_before is None


def test_text(cut: tuple[nn.Module, PruneReport]) -> None:
    _, report = cut
    text = str(report)
    for site in report.sites:
        assert f"| {site.name} | {len(site.kept)} of {site.groups} {site.kind}s |" in text
    assert counts_of(report.sites) in report.summary
    assert "4 sites (obs, head, unit(keep=4), raw, least_squares)" in report.summary
    before, after = (f"{n / 1e6:.4g}" for n in report.parameters)
    assert f"parameters: {before} to {after} million" in report.summary
    assert "0 layers" not in text


def test_warnings() -> None:
    model = bert()
    first: Any = model.get_submodule("encoder.layer.0")
    for linear in (first.intermediate.dense, first.output.dense):
        linear.weight.data *= 1e-3
    report = se.prune(model, 0.5, "unit(keep=2)", allocator="raw")
    assert report.sites[0].at_floor
    assert not report.sites[1].at_floor
    assert (
        "encoder.layer.0.intermediate.dense: as few units are left as keep allows"
        in report.warnings
    )
    lost = SiteReport("a", "unit", 100, tuple(range(9)))
    made = PruneReport("unit", "obs", None, "raw", sites=[lost, replace(lost, name="b")])
    assert "a and 1 more: more than 90% of the units are gone" in made.warnings
    floor = replace(lost, at_floor=True)
    assert not any("gone" in line for line in replace(made, sites=[floor]).warnings)
    noted = replace(lost, kept=tuple(range(50)), warning="no bias")
    assert "a: no bias" in replace(made, sites=[noted]).warnings


def test_a_layer_without_a_bias_is_named() -> None:
    model = bert()
    model.encoder.layer[0].output.dense.bias = None  # type: ignore[union-attr,index]
    report = se.prune(model, 0.5, "unit(keep=2)", "magnitude", "bias", bert_batches())
    assert report.sites[0].warning == "no bias to absorb the mean of what was removed"
    assert report.sites[1].warning == ""


def test_json(cut: tuple[nn.Module, PruneReport]) -> None:
    _, report = cut
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    again = PruneReport.from_dict(values)
    assert again == report
    assert again.page().html() == report.page().html()
    thin = {"name": "a", "kind": "unit", "groups": 4, "kept": [0, 1]}
    older = PruneReport.from_dict({**values, "sites": [thin]})  # without the later fields
    assert older.sites == [SiteReport("a", "unit", 4, (0, 1))]


def test_page(cut: tuple[nn.Module, PruneReport], tmp_path: Path) -> None:
    _, report = cut
    html = report.page("A model").html()
    assert outside_references(html) == []
    page = parsed(html)
    rows = next(table for table in page.tables if table[0][:2] == ["site", "structure"])[1:]
    assert [row[0] for row in rows] == [site.name for site in report.sites]
    for row, site in zip(rows, report.sites, strict=True):
        assert row[1:4] == [site.kind, str(len(site.kept)), str(site.groups)]
        assert f"{site.error_before:.3f}" in row
        assert f"{site.error_after:.3f}" in row
    bars = [table for table in page.tables if table[0][-1] == "of" and table[0][0] == "block"]
    assert len(bars) == 2
    units = [site for site in report.sites if site.kind == "unit"]
    expected = [[str(i), str(len(s.kept)), str(s.groups)] for i, s in enumerate(units)]
    assert expected in [table[1:] for table in bars]
    for before, after in (report.parameters, report.multiply_adds):
        assert f"{100 * after / before:.1f} %" in page.text
    assert "zeros of the 0 pruned layers" not in page.text
    assert counts_of(report.sites) in page.text
    names = {path.name for path in report.to_png(tmp_path)}
    assert names == {"heads-left.png", "units-left.png"}


def test_page_of_structures_and_zeros(cut: tuple[nn.Module, PruneReport]) -> None:
    model, report = cut
    zeros = se.prune(model, 0.5)
    both = replace(zeros, sites=report.sites, parameters=report.parameters)
    page = parsed(both.page().html())
    assert "50.0 %" in page.text
    assert counts_of(report.sites) in page.text
    assert str(both).count("| layer |") == str(both).count("| site |") == 1


def test_hostile_names() -> None:
    site = SiteReport(EVIL, EVIL, 3, (0,), 0.5, 0.25, True, EVIL)
    report = PruneReport(EVIL, EVIL, EVIL, EVIL, sites=[site, replace(site, name=f"{EVIL}.0.x")])
    html = report.page(EVIL).html()
    assert outside_references(html) == []
    assert parsed(html).text.count(EVIL) > 8
    empty = replace(report, sites=[SiteReport("a", "unit", 0, ())])
    assert empty.page().html()


def test_table_of_the_command_line_fits(cut: tuple[nn.Module, PruneReport]) -> None:
    _, report = cut
    name = "model.decoder.layers.10.encoder_attention.attention.output_projection"
    site = replace(report.sites[0], name=name, groups=100_000, kept=tuple(range(50_000)))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.delenv("COLUMNS", raising=False)
        show(*prune_tables(replace(report, sites=[*report.sites, site])))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert any("50000 of 100000 heads" in line for line in lines)
    for row in report.sites:
        assert any(f"{len(row.kept)} of {row.groups} {row.kind}s" in line for line in lines)
    assert not any("shape" in line for line in lines)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((0, 1), "0-1"),
        ((0, 1, 2, 3, 5, 7, 8), "0-3,5,7-8"),
        ((1, 3, 9), "1,3,9"),
        (tuple(range(10)), "0-9"),
    ],
)
def test_numbers_are_written_as_ranges_and_read_again(kept: tuple[int, ...], text: str) -> None:
    report = PruneReport("head", "obs", None, "uniform")
    report.sites = [SiteReport("layer.0", "head", 10, kept)]
    values = json.loads(json.dumps(report.to_dict()))
    (site,) = values["sites"]
    assert (site["name"], site["kind"], site["groups"]) == ("layer.0", "head", 10)
    assert site["kept"] == text
    assert PruneReport.from_dict(values).sites == report.sites


@pytest.mark.parametrize(
    "change",
    [
        {"kept": "0-10"},
        {"kept": "3-1"},
        {"kept": "3,2"},
        {"kept": "0-3,3"},
        {"kept": "x"},
        {"kept": "-1"},
        {"kept": "0-99999999999999", "groups": 10**14},
        {"kept": "1", "groups": "2"},
        {"kept": 5},
    ],
)
def test_wrong_numbers_are_refused(change: dict[str, Any]) -> None:
    report = PruneReport("head", "obs", None, "uniform", sites=[SiteReport("a", "head", 10, (1,))])
    values = report.to_dict()
    values["sites"][0] |= change
    with pytest.raises(InvalidFileError) as caught:
        PruneReport.from_dict(values)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_has_words() -> None:
    sites = [
        SiteReport("embeddings", "vocabulary", 100, tuple(range(40))),
        SiteReport("attention", "head", 12, (1, 2)),
    ]
    assert counts_of(sites) == "40 of 100 words, 2 of 12 heads"
