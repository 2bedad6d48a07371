"""Models of every kind that is pruned and run whole, small, with inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]


class TextCnn(nn.Module):
    """Kim 2014: an embedding, convolutions of three widths, the maximum over time, a linear
    layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 24, k, padding=k - 1) for k in (2, 3, 4))
        self.mix = nn.Linear(72, 64)
        self.classify = nn.Linear(64, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        pooled = [conv(x).relu().amax(-1) for conv in self.convs]
        return self.classify(self.mix(torch.cat(pooled, -1)).relu())


class Tagger(nn.Module):
    """A bidirectional LSTM that gives each word one of nine tags."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 32, 2, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(64, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.lstm(self.embed(ids))[0])


class Seq2Seq(nn.Module):
    """Cho et al. 2014: a GRU reads, a GRU cell writes word by word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.encoder = nn.GRU(24, 32)
        self.decoder = nn.GRUCell(24, 32)
        self.words = nn.Linear(32, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        state = self.encoder(self.embed(source))[1][0]
        outputs = []
        for word in self.embed(target):
            state = self.decoder(word, state)
            outputs.append(self.words(state))
        return torch.stack(outputs)


class Encoder(nn.Module):
    """torch.nn.TransformerEncoder over an embedding, with padding."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), not norm_first)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.encoder(self.embed(ids), src_key_padding_mask=padding)
        if padding is not None:
            y = y.masked_fill(padding[..., None], 0)
        return self.head(y)


class Translator(nn.Module):
    """torch.nn.Transformer with a causal target."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.words = nn.Linear(32, 50)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        y = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=mask,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return self.words(y)


def mixture(kind: str = "mixtral") -> nn.Module:
    """A tiny random mixture of experts from transformers."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 50,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if kind == "mixtral":
        config: Any = transformers.MixtralConfig(**sizes, num_local_experts=4)
        return transformers.MixtralForCausalLM(config)
    config = transformers.Qwen3MoeConfig(
        **sizes, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2, head_dim=8
    )
    return transformers.Qwen3MoeForCausalLM(config)


def ids(*shape: int) -> Tensor:
    """Words."""
    return torch.randint(0, 50, shape)


def padding() -> Tensor:
    """Of 3 sequences of 7, the last words of two; true hides."""
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[1, 5:] = hidden[2, 3:] = True
    return hidden


MODELS: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 4)),
    "textcnn": TextCnn,
    "tagger": Tagger,
    "seq2seq": Seq2Seq,
    "encoder": Encoder,
    "encoder, norm first": lambda: Encoder(norm_first=True),
    "transformer": Translator,
    "mixtral": mixture,
    "qwen3-moe": lambda: mixture("qwen3-moe"),
}


def inputs(name: str) -> Inputs:
    """What the model of this name is called with."""
    if name == "mlp":
        return {"input": torch.randn(5, 32)}
    if name in ("textcnn", "tagger"):
        return {"ids": ids(3, 7)}
    if name == "seq2seq":
        return {"source": ids(7, 3), "target": ids(4, 3)}
    if name.startswith("encoder"):
        return {"ids": ids(3, 7), "padding": padding()}
    if name == "transformer":
        return {"source": ids(3, 7), "target": ids(3, 5), "padding": padding()}
    return {"input_ids": ids(2, 7)}


def output(model: nn.Module, given: Inputs) -> Tensor:
    """Its output, or logits."""
    with torch.inference_mode():
        y = model(**given)
    return y if isinstance(y, Tensor) else y.logits


def cut_(model: nn.Module, share: float = 0.8) -> nn.Module:
    """Zero the smallest weights of every matrix that is multiplied with."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and id(parameter) not in embeddings:
                rank = parameter.abs().flatten().argsort().argsort().view_as(parameter)
                parameter[rank < share * parameter.numel()] = 0
    return model
