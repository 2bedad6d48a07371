"""Distil: every term equals a loop over texts without padding, for each kind of model."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from distil_cases import PROJECTIONS, STATES, expected_loss, kl, loss_of, pair
from family_models import inputs_of
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:the model is trained in evaluation mode")


@pytest.mark.parametrize("name", list(STATES))
@pytest.mark.parametrize("term", ["outputs", "hidden"])
def test_outputs_and_hidden_states_without_padding(name: str, term: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    options = {"outputs": 0.0, term: 1.0, "temperature": 2.0}
    loss = loss_of(model, dense, given, **options)
    expected = expected_loss(model, dense, given, name, term)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss > 1e-4


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_relations_of_queries_keys_and_values(name: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    loss = loss_of(model, dense, given, outputs=0, attention=1)
    expected = expected_loss(model, dense, given, name, "attention")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss > 1e-5


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_embeddings_of_texts(name: str) -> None:
    model, dense = pair(name)
    given = inputs_of(name)
    loss = loss_of(model, dense, given, outputs=0, embedding=1)
    expected = expected_loss(model, dense, given, name, "embedding")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_terms_add_up_with_their_weights() -> None:
    given = inputs_of("bert")
    parts = {"outputs": 0.5, "hidden": 2.0, "attention": 3.0, "embedding": 0.25}
    whole = loss_of(*pair("bert"), given, weight=0.1, **parts)
    zero = {"outputs": 0.0}
    alone = [
        weight * loss_of(*pair("bert"), given, **(zero | {term: 1.0}))
        for term, weight in parts.items()
    ]
    torch.testing.assert_close(whole, 0.1 * torch.stack(alone).sum())


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 12, "vdim": 10}])
def test_relations_of_torch_attention(
    names: tuple[str, ...], batch_first: bool, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double()
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double()
    inputs = [torch.randn(3, 5, 8 if not sizes else n).double() for n in (8, 12, 10)]
    loss = loss_of(model, dense, tuple(inputs), outputs=0, attention=1)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for index, letter in enumerate("qkv"):
        for i in range(3 if batch_first else 5):
            x = inputs[index][i] if batch_first else inputs[index][:, i]
            relations = []
            for one in (model, dense):
                weight = (
                    getattr(one, f"{letter}_proj_weight")
                    if sizes
                    else one.in_proj_weight[8 * index : 8 * index + 8]
                )
                y = x @ weight.T + one.in_proj_bias[8 * index : 8 * index + 8]
                relations.append([h @ h.T / 2 for h in y.chunk(2, -1)])
            for a, b in zip(*relations, strict=True):
                rows[letter] += [kl(s, d) for s, d in zip(a, b, strict=True)]
    expected = torch.stack([torch.stack(x).mean() for x in rows.values()]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_a_torch_encoder_is_compared_with_one_in_evaluation_mode() -> None:
    torch.manual_seed(0)

    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2)

    loss = loss_of(encoder(), encoder(), (torch.randn(2, 6, 16),), hidden=1, attention=1)
    assert loss.isfinite()
    loss.backward()
