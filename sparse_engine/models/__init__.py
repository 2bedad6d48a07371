"""The supported model architectures: one file for each family."""

from __future__ import annotations

from torch import nn

from sparse_engine.models.bart import Bart
from sparse_engine.models.base import (
    AttentionNames,
    Family,
    FeedForwardNames,
    LayerGeometry,
    LayerNames,
    LayerStack,
    Residual,
    model_type,
    uniform,
)
from sparse_engine.models.bert import Bert
from sparse_engine.models.distilbert import DistilBert
from sparse_engine.models.eurobert import EuroBert
from sparse_engine.models.gemma import Gemma
from sparse_engine.models.gpt2 import GPT2
from sparse_engine.models.gpt_neox import GPTNeoX
from sparse_engine.models.llama import Llama
from sparse_engine.models.marian import Marian
from sparse_engine.models.modernbert import ModernBert
from sparse_engine.models.mpnet import MPNet
from sparse_engine.models.nomic_bert import NomicBert
from sparse_engine.models.opt import OPT
from sparse_engine.models.phi import Phi
from sparse_engine.models.phi3 import Phi3
from sparse_engine.models.t5 import T5

FAMILIES: tuple[type[Family], ...] = (
    Bert,
    DistilBert,
    MPNet,
    ModernBert,
    EuroBert,
    NomicBert,
    GPT2,
    GPTNeoX,
    OPT,
    Llama,
    Gemma,
    Phi,
    Phi3,
    T5,
    Marian,
    Bart,
)


def find_family(model: nn.Module) -> Family | None:
    """The family that a model belongs to, or None."""
    return next((family() for family in FAMILIES if family.matches(model)), None)


__all__ = [
    "FAMILIES",
    "GPT2",
    "OPT",
    "T5",
    "AttentionNames",
    "Bart",
    "Bert",
    "DistilBert",
    "EuroBert",
    "Family",
    "FeedForwardNames",
    "GPTNeoX",
    "Gemma",
    "LayerGeometry",
    "LayerNames",
    "LayerStack",
    "Llama",
    "MPNet",
    "Marian",
    "ModernBert",
    "NomicBert",
    "Phi",
    "Phi3",
    "Residual",
    "find_family",
    "model_type",
    "uniform",
]
