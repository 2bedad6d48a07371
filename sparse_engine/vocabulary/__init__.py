"""Cutting vocabularies: tokens that a corpus does not use leave the model and its tokenizer.

models/ tells for each kind of tokenizer which tokens a text needs, rows.py which tensors of a model
have a row for each token, companions.py which files hold tokens or ids.
"""

from sparse_engine.vocabulary.cut import cut_vocabulary
from sparse_engine.vocabulary.report import VocabularyReport

__all__ = ["VocabularyReport", "cut_vocabulary"]
