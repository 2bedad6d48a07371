"""All steps on a real sentence encoder: prune, convert, verify, time, serve, and a table."""

from __future__ import annotations

from sparse_engine.demo.run import run

__all__ = ["run"]
