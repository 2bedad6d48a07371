"""Packages and checkpoints: safetensors and JSON, written atomically, checked before use."""

from __future__ import annotations

from sparse_engine.io.checkpoint import load_pretrained, save_checkpoint
from sparse_engine.io.export import ExportReport, export_transformers
from sparse_engine.io.inspection import Inspection, inspect
from sparse_engine.io.package import is_package
from sparse_engine.io.reader import load
from sparse_engine.io.verification import VerifyReport, verify
from sparse_engine.io.writer import save

__all__ = [
    "ExportReport",
    "Inspection",
    "VerifyReport",
    "export_transformers",
    "inspect",
    "is_package",
    "load",
    "load_pretrained",
    "save",
    "save_checkpoint",
    "verify",
]
