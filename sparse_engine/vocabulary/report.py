"""What a cut vocabulary came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparse_engine.io.model_files import Files


@dataclass(frozen=True)
class VocabularyReport:
    """Result of `cut_vocabulary`.

    Attributes:
        structure: its text form.
        rows: how many tokens the model had rows for.
        kept: the old ids of those that it still has, in the order of the new ones.
        tensors: names of the tensors that became smaller.
        parameters: of the model, before and after.
        texts: of the corpus.
        tokens: that the corpus has, and how many of them are unknown.
        rare: how many tokens that the corpus uses were removed as rare ones.
        files: of the model's folder, those that are rewritten, for `save` and `save_checkpoint`.
    """

    structure: str
    rows: int
    kept: tuple[int, ...]
    tensors: tuple[str, ...]
    parameters: tuple[int, int]
    texts: int
    tokens: tuple[int, int]
    rare: int
    files: Files = field(repr=False)

    @property
    def share(self) -> float:
        """Of the rows, how many were removed."""
        return 1 - len(self.kept) / self.rows

    @property
    def summary(self) -> str:
        """Lines: rows, parameters, the corpus."""
        tokens, unknown = self.tokens
        before, after = self.parameters
        lines = [
            f"vocabulary: {len(self.kept):,} of {self.rows:,} rows kept ({self.share:.1%} fewer)",
            f"parameters: {before:,} before, {after:,} after ({1 - after / before:.1%} fewer)",
            f"corpus: {self.texts:,} texts, {tokens:,} tokens, {unknown / tokens:.2%} unknown",
        ]
        if self.rare:
            lines.append(f"{self.rare:,} tokens that are rare in it are split into smaller ones")
        if left_out := [name for name, data in self.files.items() if data is None]:
            lines.append(f"{', '.join(left_out)} left out: tokenizer.json replaces it")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary
