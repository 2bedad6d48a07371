"""Distil: the outputs and inner states of the dense model are the labels.

The text needs no labels of its own. Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", arXiv:1503.02531; Sanh et al. 2020, arXiv:1910.01108, for hidden states; Wang et al. 2020,
arXiv:2002.10957, for attention.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.training.distillation.captured import Captured, check_gradients
from sparse_engine.training.distillation.distances import (
    check_shapes,
    embedding_distance,
    mean_rows,
    relative_distance,
    scores_of,
    softened_divergence,
    states_of,
    token_mask,
    token_rows,
    without_padding,
)
from sparse_engine.training.distillation.hidden import capture_hidden
from sparse_engine.training.distillation.relations import capture_relations, relation_distance
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training

TERMS = ("outputs", "hidden", "attention", "embedding")
# Kinds of classifiers of transformers whose scores are no logits of exclusive classes.
INDEPENDENT = ("multi_label_classification", "regression")


class Distil(Modifier):
    """The loss of the distance to the teacher: loss = task * loss + weight * sum of the terms.

    A batch with labels has the loss of the task too, one without only the distance. Tokens that
    attention_mask leaves out do not count.

    Attributes:
        weight: of the distance.
        task: weight of the loss of the task.
        outputs: weight of the distance of the outputs. That of class scores is the Kullback-Leibler
            divergence of the probabilities at the temperature T, times T^2, the mean over tokens.
            That of other outputs is |y - d|^2 / |d|^2.
        logits: whether the outputs are class scores. The default is those that a model of
            transformers calls logits; a plain tensor, or the first of a tuple, is compared by its
            squared distance unless this is true.
        temperature: that softens the probabilities.
        hidden: weight of the distance |h - d|^2 / |d|^2 of the states after each module of the
            stacks, or each recurrent network, the mean over them.
        attention: weight of the divergence of the relations between tokens, of queries, keys and
            values, the mean over layers. The teacher may have another width and other heads.
        embedding: weight of 1 - cosine of the outputs, the mean over the tokens of a text, for
            encoders of sentences.
        padding: the id of padding in the first input, for models that take no attention_mask.

    Example:
        Distil(temperature=2.0, hidden=1.0)
    """

    name: ClassVar[str] = "distil"
    weight: float = Field(default=1.0, gt=0)
    task: float = Field(default=1.0, ge=0)
    outputs: float = Field(default=1.0, ge=0)
    logits: bool | None = None
    temperature: float = Field(default=1.0, gt=0)
    hidden: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    embedding: float = Field(default=0.0, ge=0)
    padding: int | None = None

    _hidden: tuple[Captured, Captured] | None = PrivateAttr(default=None)
    _attention: tuple[Captured, Captured] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _has_a_term(self) -> Distil:
        if not any(getattr(self, term) for term in TERMS):
            raise ValueError(f"{', '.join(TERMS)} are all 0: nothing is compared")
        return self

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def gives_loss(self) -> bool:
        return True

    def begin(self, training: Training) -> None:
        self._capture(training)
        # A cut replaces modules, and takes some of them out of a stack.
        training.followers.append(lambda change: self._capture(training))

    def _capture(self, training: Training) -> None:
        """Read the inner states of the modules that the model has now."""
        assert training.teacher is not None
        self.finish(training)
        if self.hidden:
            self._hidden = capture_hidden(training.model, training.teacher)
        if self.attention:
            self._attention = capture_relations(training.model, training.teacher)

    def before_forward(self, training: Training) -> None:
        if self.is_active(training):
            for captured in (*(self._hidden or ()), *(self._attention or ())):
                captured.open()

    def add_loss(self, training: Training, batch: Batch, output: Any, loss: Tensor) -> Tensor:
        if not self.is_active(training):
            return loss
        expected = training.teacher_output(batch)
        batch = self._with_padding(batch)
        config = getattr(training.model, "config", None)
        exclusive = getattr(config, "problem_type", None) not in INDEPENDENT
        terms = []
        with torch.autocast(loss.device.type, enabled=False):  # 16 bits are for the models alone
            if self.outputs:
                terms.append(self.outputs * self._of_outputs(batch, output, expected, exclusive))
            if self.embedding:
                pooled = [mean_rows(batch, states_of(x)) for x in (output, expected)]
                check_shapes("the outputs", *pooled)
                terms.append(self.embedding * embedding_distance(*pooled))
            if self._hidden is not None:
                terms.append(self.hidden * self._of_hidden(batch, self._hidden))
            if self._attention is not None:
                terms.append(self.attention * self._of_attention(batch, self._attention))
            distance = self.weight * torch.stack(terms).sum()
        if not distance.isfinite():
            raise UsageError(
                f"distil: the distance to the teacher is {distance.item()}: lower the learning "
                "rate, or check the teacher"
            )
        return self.task * loss + distance

    def _of_outputs(self, batch: Batch, output: Any, expected: Any, exclusive: bool) -> Tensor:
        found, dense = scores_of(output), dict(scores_of(expected))
        if self.logits is False or (self.logits is None and not exclusive):
            found = []
        if not found:
            pair = states_of(output), states_of(expected)
            check_shapes("the outputs", *pair)
            state, target = (token_rows(batch, x) for x in pair)
            if self.logits:
                return softened_divergence(state, target, self.temperature)
            return relative_distance(state, target)
        terms = []
        for name, x in found:
            if name not in dense:
                raise UsageError(f"distil: the model returns {name}, and the teacher does not")
            check_shapes(name, x, dense[name])
            state, target = (
                token_rows(batch, without_padding(batch, name, y)) for y in (x, dense[name])
            )
            terms.append(softened_divergence(state, target, self.temperature))
        return torch.stack(terms).mean()

    def _of_hidden(self, batch: Batch, captured: tuple[Captured, Captured]) -> Tensor:
        own, dense = (part.take() for part in captured)
        check_gradients(own)
        terms = []
        for state, target in zip(own, dense, strict=True):
            check_shapes("the hidden states", state, target)
            terms.append(relative_distance(token_rows(batch, state), token_rows(batch, target)))
        return torch.stack(terms).mean()

    def _of_attention(self, batch: Batch, captured: tuple[Captured, Captured]) -> Tensor:
        own, dense = (part.take() for part in captured)
        check_gradients(own)
        terms = []
        for state, target in zip(own, dense, strict=True):
            check_shapes("the texts and tokens", state[..., 0, 0], target[..., 0, 0])
            terms.append(relation_distance(state, target, token_mask(batch, state)))
        return torch.stack(terms).mean()

    def _with_padding(self, batch: Batch) -> Batch:
        if self.padding is None:
            return batch
        ids = next(x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor))
        return replace(batch, masks=(ids != self.padding,))

    def finish(self, training: Training) -> None:
        for captured in (*(self._hidden or ()), *(self._attention or ())):
            captured.close()
