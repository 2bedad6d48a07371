"""Units of experts and whole experts: cut models against references built by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_models import EXPERTS, INNER, experts, routed
from safetensors import safe_open
from torch import Tensor, nn
from whole_models import ids, mixture

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load_pretrained
from sparse_engine.io.fused import fused_shapes
from sparse_engine.structures import check_resizable, find_sites, resize_

KINDS = ("mixtral", "qwen3-moe")


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = mixture(kind).double().eval()
    model.config._experts_implementation = "eager"  # the one that computes in float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def logits(model: Any) -> Tensor:
    given = torch.arange(14).view(2, 7)
    mask = torch.ones_like(given)
    mask[1, 5:] = 0
    with torch.inference_mode():
        return model(given, attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3", "aria", "clamped", "no_gate", "gpt_oss"])
def test_units_of_every_layout(kind: str) -> None:
    """Experts lose units of their own; zeros in the layers that read them are the reference."""
    torch.manual_seed(0)
    module = experts(kind)
    holder, reference = nn.ModuleDict({"experts": module}), copy.deepcopy(module)
    sites = find_sites(holder, ("unit",))
    assert len(sites) == EXPERTS
    assert {site.groups for site in sites} == {INNER}
    kept = {site.name: torch.randperm(INNER)[:11].sort().values for site in sites}
    down = reference.down_proj.data
    down = down if module.is_transposed else down.transpose(1, 2)  # [experts, inner, hidden]
    for expert, groups in enumerate(kept.values()):
        gone = torch.ones(INNER, dtype=torch.bool)
        gone[groups] = False
        down[expert, gone] = 0
    check_resizable(holder, sites)
    resize_(holder, kept, sites)
    given = routed()
    with torch.inference_mode():
        torch.testing.assert_close(module(*given), reference(*given))
    assert module.down_proj.numel() * INNER == reference.down_proj.numel() * 11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
def test_units_of_a_model(kind: str, criterion: str) -> None:
    model = model_of(kind)
    reference = copy.deepcopy(model)
    calibration = None if criterion == "magnitude" else [{"input_ids": ids(4, 9)}]
    report = se.prune(model, 0.3, "unit", criterion, calibration=calibration)
    assert {len(site.kept) for site in report.sites} == {40}  # a multiple of 8
    assert len({site.kept for site in report.sites}) > 1
    for site in report.sites:
        name, _, expert = site.name.rpartition(".")
        gone = [unit for unit in range(site.groups) if unit not in site.kept]
        module: Any = reference.get_submodule(name.rpartition(".")[0])
        module.down_proj.data[int(expert), :, gone] = 0
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-6, rtol=1e-6)
    for name, module in model.named_modules():
        if name.endswith("experts"):
            assert module.intermediate_dim == 40
            assert module.gate_up_proj.shape == (4, 80, 32)
    assert "sparse" in str(se.sparsify_(model, "csr"))
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=1e-4)
    se.densify_(model)
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=1e-4)


def fewer_experts(model: Any, report: Any) -> Any:
    """The model with blocks of a config of fewer experts, filled by hand."""
    reference = copy.deepcopy(model)
    for site in report.sites:
        layer = reference.get_submodule(site.name.removesuffix(".mlp.experts"))
        config = copy.deepcopy(reference.config)
        config.num_local_experts = config.num_experts = len(site.kept)
        block = type(layer.mlp)(config).double()
        kept = list(site.kept)
        block.gate.weight.data = layer.mlp.gate.weight.data[kept]
        block.experts.gate_up_proj.data = layer.mlp.experts.gate_up_proj.data[kept]
        block.experts.down_proj.data = layer.mlp.experts.down_proj.data[kept]
        layer.mlp = block
    return reference.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", ["magnitude", "activation", "obs", "taylor", "random"])
def test_whole_experts(kind: str, criterion: str) -> None:
    model = model_of(kind)
    dense = copy.deepcopy(model)
    calibration = None if criterion in ("magnitude", "random") else [{"input_ids": ids(4, 9)}]
    report = se.prune(model, 0.25, se.Expert(), criterion, calibration=calibration, allocator="raw")
    assert sum(len(site.kept) for site in report.sites) == 6
    torch.testing.assert_close(logits(model), logits(fewer_experts(dense, report)))
    for site in report.sites:
        block = model.get_submodule(site.name.removesuffix(".experts"))
        assert block.gate.num_experts == block.experts.num_experts == len(site.kept)
        assert block.gate.top_k == 2
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    se.sparsify_(again, "csr")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)


def test_as_many_experts_stay_as_a_token_chooses() -> None:
    model = model_of("mixtral")
    report = se.prune(model, 0.9, "expert", "magnitude")
    assert [len(site.kept) for site in report.sites] == [2, 2]


def test_scores_are_energies_of_the_tokens_that_an_expert_gets() -> None:
    """The expert with the least energy of its outputs goes."""
    model = model_of("mixtral")
    given = ids(4, 9)
    energies: dict[str, Tensor] = {}

    def read(name: str, module: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        states, chosen, _ = args
        energies[name] = torch.zeros(4, dtype=torch.float64)
        for expert in range(4):
            rows = states[(chosen == expert).any(-1)]
            gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, -1)
            output = (module.act_fn(gate) * up) @ module.down_proj[expert].T
            energies[name][expert] = output.square().sum()

    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: read(name, m, args))
        for name, module in model.named_modules()
        if name.endswith("experts")
    ]
    with torch.inference_mode():
        model(given)
    for hook in hooks:
        hook.remove()
    report = se.prune(model, 0.25, "expert", "activation", calibration=[{"input_ids": given}])
    for site in report.sites:
        assert {0, 1, 2, 3} - set(site.kept) == {int(energies[site.name].argmin())}


def test_units_and_experts_together_and_refits() -> None:
    model = model_of("qwen3-moe")
    dense, given = copy.deepcopy(model), [{"input_ids": ids(8, 9)}]
    report = se.prune(
        model,
        0.25,
        ["unit", "expert"],
        "activation",
        recovery="least_squares",
        calibration=given,
    )
    assert {site.kind: len(site.kept) for site in report.sites} == {"unit": 40, "expert": 3}
    assert model.model.layers[0].mlp.experts.down_proj.shape == (3, 32, 40)
    assert logits(model).isfinite().all()
    plain = copy.deepcopy(dense)
    se.prune(plain, 0.25, ["unit", "expert"], "activation", calibration=given)
    assert not torch.equal(logits(plain), logits(model))


def test_experts_that_are_not_known_are_refused() -> None:
    torch.manual_seed(0)
    alone = nn.ModuleDict({"experts": experts("mixtral")})
    with pytest.raises(UsageError, match="experts: it is not known which layer chooses"):
        se.prune(alone, 0.5, "expert")
    model = model_of("mixtral")
    model.model.layers[1].mlp.experts.act_fn = nn.Dropout(0.5).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.experts"):
        se.prune(model, 0.5, "unit")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("structures", [["unit"], ["expert"], ["unit", "expert"]])
def test_packages_of_cut_mixtures(structures: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = mixture("qwen3-moe").eval()
    model.save_pretrained(tmp_path / "dense")
    se.prune(model, 0.3, structures, "magnitude", allocator="raw")
    expected = logits(model)
    se.sparsify_(model, "csr")
    se.save(model, tmp_path / "package", source=tmp_path / "dense")
    torch.testing.assert_close(logits(se.load(tmp_path / "package")), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structures", [["unit"], ["expert"], ["unit", "expert"]])
def test_folders_that_transformers_wrote_of_cut_mixtures(
    kind: str, structures: list[str], tmp_path: Path
) -> None:
    """transformers splits fused experts as it writes them, a tensor for each."""
    torch.manual_seed(0)
    model: Any = mixture(kind).eval()
    report = se.prune(model, 0.4, structures, "magnitude", allocator="raw")
    model.save_pretrained(tmp_path / "cut")
    with safe_open(tmp_path / "cut/model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert any(".experts.0." in name for name in stored)
    loaded: Any = load_pretrained(tmp_path / "cut")[0]
    assert torch.equal(logits(loaded), logits(model))
    for site in report.sites:
        if site.kind == "expert":
            assert loaded.get_submodule(site.name).num_experts == len(site.kept)


def test_experts_of_files_that_cannot_be_fused() -> None:
    def stored(*shapes: tuple[int, int], part: str = "w1") -> dict[str, tuple[int, ...]]:
        experts = "model.layers.0.block_sparse_moe.experts"
        return {f"{experts}.{i}.{part}.weight": shape for i, shape in enumerate(shapes)}

    fused = "model.layers.0.mlp.experts"
    whole = stored((8, 4), (8, 4)) | stored((8, 4), (8, 4), part="w3")
    whole |= stored((4, 8), (4, 8), part="w2")
    found = fused_shapes(whole)
    assert found[f"{fused}.gate_up_proj"] == (2, 16, 4)
    assert found[f"{fused}.down_proj"] == (2, 4, 8)
    for wrong in (
        whole | stored((8, 4), (7, 4)),  # shapes that differ
        whole | stored((8, 4), (8, 4), (8, 4)),  # one without its other weights
        {n: s for n, s in whole.items() if ".experts.0." not in n},  # the first is missing
        {n: (*s, 1) for n, s in whole.items()},  # no matrices
    ):
        assert not any(name.startswith(f"{fused}.") and name.endswith("proj")
                       for name in fused_shapes(wrong))  # fmt: skip
