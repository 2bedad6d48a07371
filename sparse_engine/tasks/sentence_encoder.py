"""SentenceEncoder: embeddings of texts, with the arguments that sentence-transformers has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.io import load
from sparse_engine.io.model_files import ModelFiles
from sparse_engine.tasks.embed import Embedder

Precision = Literal["float32", "binary", "ubinary"]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


class SentenceEncoder:
    """Texts to embeddings, by a package or a model with the files of its folder.

    Pooling, dense layers, normalisation and prompts are those of the folder. Texts that are longer
    than the model allows are cut, as sentence-transformers does; `truncate=False` refuses them.

    >>> encoder = se.SentenceEncoder("package")
    >>> encoder.encode(["one text", "another"]).shape
    (2, 384)
    """

    def __init__(
        self,
        package: str | Path,
        model: nn.Module | None = None,
        *,
        device: str = "cpu",
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        truncate: bool = True,
    ) -> None:
        """Load a package.

        Args:
            package: folder of a package; with `model`, any folder with its tokenizer and config.
            model: a model of transformers, sparse or dense, in place of the package's.
            device: "cpu", or "cuda" for a GPU.
            prompts: texts in front of every text, by name; None for those of the folder.
            default_prompt_name: of the prompt where none is named; None for that of the folder.
            similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; None for that of the
                folder, or cosine.
            truncate_dim: keep only so many features of an embedding, for models that were trained
                for that (Kusupati et al. 2022, arXiv:2205.13147).
            truncate: whether to cut texts that are too long, or to refuse them.

        Raises:
            UnsupportedModelError: for a model that gives no embeddings.
            InvalidFileError: for damaged files.
            UsageError: for a name of a prompt or a similarity that there is not.
        """
        folder = Path(package)
        if model is None:
            model = load(folder, device=device)
        self._embedder = Embedder(model, folder)
        given = ModelFiles(folder).json("config_sentence_transformers.json") or {}
        found = given.get("prompts") if prompts is None else prompts
        self.prompts = {str(name): str(text) for name, text in dict(found or {}).items()}
        self.default_prompt_name = default_prompt_name or given.get("default_prompt_name")
        self.similarity_fn_name = similarity_fn_name or given.get("similarity_fn_name") or "cosine"
        self.truncate_dim, self.truncate = truncate_dim, truncate
        self._prompt_of(None, self.default_prompt_name)
        if self.similarity_fn_name not in SIMILARITIES:
            raise UsageError(
                f"similarity {self.similarity_fn_name!r:.40}: use {', '.join(SIMILARITIES)}"
            )
        if truncate:
            self._embedder.tokenizer.enable_truncation(self._embedder.max_length)

    @property
    def max_seq_length(self) -> int:
        """The longest text in tokens, with those that the tokenizer adds."""
        return self._embedder.max_length

    def get_embedding_dimension(self) -> int:
        """Features of an embedding."""
        return min(self._embedder.hidden, self.truncate_dim or self._embedder.hidden)

    get_sentence_embedding_dimension = get_embedding_dimension

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embeddings of texts.

        Args:
            sentences: texts, or one.
            prompt_name: of the prompt that is put in front of each text; None for the default.
            prompt: a prompt itself.
            batch_size: texts in a call of the model; those of similar length run together.
            show_progress_bar: None shows it on a terminal if the work takes more than two seconds.
            precision: "float32"; "binary" and "ubinary" keep the sign of each feature, eight to an
                int8 or uint8.
            convert_to_numpy: return an array.
            convert_to_tensor: return a tensor instead; without either, a list of tensors.
            normalize_embeddings: divide each by its L2 norm.
            truncate_dim: see the class.

        Returns:
            [texts, features], or [features] for one text.

        Raises:
            UsageError: for a text that is not Unicode, or a name that there is not.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        dims = self.truncate_dim if truncate_dim is None else truncate_dim
        if dims is not None and dims < 1:
            raise UsageError(f"truncate_dim {dims}: keep 1 or more features")
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give 1 or more")
        if precision not in ("float32", "binary", "ubinary"):
            raise UsageError(f"precision {precision!r:.40}: use float32, binary or ubinary")
        before = self._prompt_of(prompt, prompt_name or self.default_prompt_name)
        y = self._embed([before + text for text in texts], before, batch_size, show_progress_bar)
        y = y[:, :dims]
        if normalize_embeddings:
            y = F.normalize(y, dim=-1)
        if precision != "float32":
            packed = np.packbits(y.numpy() > 0, axis=-1)
            y = torch.from_numpy(
                packed
                if precision == "ubinary"
                else (packed.astype(np.int16) - 128).astype(np.int8)
            )
        if isinstance(sentences, str):
            y = y[0]
        if convert_to_tensor:
            return y
        if convert_to_numpy:
            return y.numpy()
        return y if isinstance(sentences, str) else list(y)

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the prompt "query", if there is one."""
        return self._encode_as(QUERY, sentences, options)

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the prompt "document", "passage" or "corpus", if there is one."""
        return self._encode_as(DOCUMENT, sentences, options)

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Similarities [m, n] of embeddings a [m, features] and b [n, features]; larger is closer.

        Distances (euclidean, manhattan) have a minus sign.
        """
        x, y = (torch.atleast_2d(torch.as_tensor(z)).float() for z in (a, b))
        if self.similarity_fn_name == "cosine":
            return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
        if self.similarity_fn_name == "dot":
            return x @ y.T
        return -torch.cdist(x, y, p=2.0 if self.similarity_fn_name == "euclidean" else 1.0)

    def _encode_as(
        self, names: tuple[str, ...], sentences: str | Sequence[str], options: dict[str, Any]
    ) -> Any:
        if not options.get("prompt_name") and options.get("prompt") is None:
            options["prompt_name"] = next((name for name in names if name in self.prompts), None)
        return self.encode(sentences, **options)

    def _prompt_of(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            return prompt
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise UsageError(f"prompt_name {name!r:.40}: the model has {known}")
        return self.prompts[name]

    def _embed(self, texts: list[str], prompt: str, batch_size: int, bar: bool | None) -> Tensor:
        embedder = self._embedder
        if self.truncate:
            most = embedder.max_length * embedder.characters_a_token
            texts = [text[:most] for text in texts]
        rows = embedder.encode(texts)
        return embedder.embed_checked(
            rows, self._prompt_tokens(prompt), batch_size=batch_size, show_progress=bar
        )

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens at the beginning of a text that are the prompt's, with those before it."""
        if not prompt or self._embedder.modules.pooling.include_prompt:
            return 0
        (encoding,) = self._embedder.encodings(self._embedder.clean([prompt]))
        special = list(encoding.special_tokens_mask)
        while special and special[-1]:
            special.pop()
        return len(special)
