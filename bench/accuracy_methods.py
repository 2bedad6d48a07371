"""The task train-methods of bench/accuracy.py: ways to prune while training, compared.

Every method begins with the same dense tagger, and has the same batches, steps, learning rate and
distillation. Half of the steps are its window, in which it prunes; masks are held in the others.
Random weights removed by the same schedule are the control, and pruning in one shot before the
training is what the methods have to beat.
"""

from __future__ import annotations

from typing import Any

from accuracy_train import TrainSetting
from accuracy_train_tasks import TrainTagger

EVENTS = 10  # of a schedule
# Strengths that give about the sparsity of the table.
SOFT_MOVEMENT = {"element": 22.0, "4x1": 18.0}

# Criterion and training. Of a modifier that learns masks, the name stands as the criterion.
METHODS = (
    ("random", "gradual"),
    ("magnitude", "one_shot"),
    ("magnitude", "linear"),
    ("magnitude", "exponential"),
    ("magnitude", "multi_step"),
    ("magnitude", "gradual"),
    ("magnitude", "incremental"),
    ("magnitude", "cyclic"),
    ("obs", "gradual"),
    ("obs", "hold"),  # in one shot
    ("magnitude", "acdc"),
    ("magnitude", "rigl"),
    ("movement", "learned"),
    ("soft_movement", "learned"),
    ("snip_momentum", "learned"),
    ("lasso", "learned"),
    ("l0", "learned"),
)


class TrainMethods(TrainTagger):
    """The tagger of train-tagger, pruned while it is trained.

    Args:
        data: folder of the data.
    """

    name = "train-methods"
    points = (("element", 0.8), ("4x1", 0.8))
    columns = ("accuracy", "reached")
    steps = 600

    def settings(self) -> list[TrainSetting]:
        """The dense model, then all methods at every point."""
        return [
            TrainSetting(),
            *(
                TrainSetting(
                    criterion,
                    "none",
                    granularity,
                    sparsity,
                    self.calibration if criterion == "obs" else "",
                    self.base.samples if criterion == "obs" else 0,
                    seed,
                    training=training,
                    steps=self.steps,
                    batch=self.batch,
                    rate=self.rate,
                )
                for granularity, sparsity in self.points
                for criterion, training in METHODS
                for seed in self.seeds
            ),
        ]

    def recipe(self, setting: TrainSetting) -> list[dict[str, Any]]:
        """The modifiers of a training."""
        window = setting.steps // 2
        every = max(window // EVENTS, 1)
        common = {"granularity": setting.granularity, "layers": self.layers}
        prune = {**common, "sparsity": setting.sparsity, "criterion": setting.criterion}
        learned = {**common, "end": window, "sparsity": setting.sparsity}
        if setting.criterion == "soft_movement":
            learned.pop("sparsity")
            learned["strength"] = SOFT_MOVEMENT[setting.granularity]
        scheduled = {**prune, "end": window}
        freeze = [
            {"freeze": {"share": 0.5, "start": start, "end": start + window // 4}}
            for start in (0, window // 2, window)
        ]
        cycles = {"schedule": "linear", "final": 0.1, "restart": "events", "end": window}
        modifiers = {
            "one_shot": [{"prune": prune}],
            "linear": [{"prune": {**scheduled, "every": every, "schedule": "linear"}}],
            "exponential": [{"prune": {**scheduled, "every": every, "schedule": "exponential"}}],
            "multi_step": [{"prune": {**scheduled, "schedule": "multi_step"}}],
            "incremental": [{"prune": {**scheduled, "schedule": "multi_step(levels=3)"}}, *freeze],
            "cyclic": [
                {"prune": {**scheduled, "schedule": "multi_step"}},
                {"learning_rate": cycles},
            ],
            "gradual": [{"prune": {**prune, "end": window, "every": every}}],
            "acdc": [{"prune": {**prune, "schedule": "acdc", "end": window}}],
            "rigl": [{"prune": prune}, {"regrow": {**common, "end": window, "every": every}}],
            "hold": [{"hold": {}}],
            "learned": [{setting.criterion: learned}],
        }
        return [*modifiers[setting.training], {"distil": self.distil}]
