"""The tasks learn-*: scripts of examples/ with their options, and the patterns of zeros."""

from __future__ import annotations

from accuracy_scripts import CUT, ScriptTask

CLASSIFIER = (("element", 0.9), ("16x1", 0.8))
BROWN = "lm/brown"
LSTM = "--model lstm --words 5000 --layers 1 --dropout 0.3 --bfloat16 --batch 32"
GPT = "--model gpt --words 5000 --layers 4 --bfloat16 --batch 32"

LEARNED = (
    ScriptTask(
        "learn-brown-lstm",
        "language_model",
        BROWN,
        LSTM + " --steps 3000 --prune-steps 900",
        512,
        352,
        (("element", 0.8), ("element", 0.9), ("8x1", 0.9), ("16x1", 0.8)),
        (("element", 0.8),),
    ),
    ScriptTask(
        "learn-brown-gpt",
        "language_model",
        BROWN,
        GPT + " --steps 3000 --prune-steps 900",
        256,
        128,
        (("element", 0.5), ("element", 0.7)),
        (("element", 0.7),),
    ),
    *(
        ScriptTask(
            f"learn-{name}-{model}",
            "classify",
            f"cls/{name}",
            f"--model {model} --words 10000 {steps} {options}",
            256,
            small,
            CLASSIFIER,
            CLASSIFIER[:1] if name == "mr" else CLASSIFIER,
            seeds=tuple(range(10)) if name == "mr" else (0, 1),
            folds=name == "mr",
        )
        for name, steps in (
            ("trec", "--steps 1200 --prune-steps 800"),
            ("sst2", "--steps 1500 --prune-steps 1000 --batch 50"),
            ("mr", "--steps 1200 --prune-steps 800 --batch 50"),
        )
        for model, small, options in (
            ("cnn", 160, "--rate 1e-3"),
            ("lstm", 80, "--rate 3e-3 --dropout 0.5"),
        )
    ),
    ScriptTask(
        "learn-wnut17-bilstm",
        "tag",
        "ner/wnut17",
        "--model bilstm --dropout 0.3 --steps 1000 --prune-steps 600",
        128,
        24,
        (("element", 0.8), ("16x1", 0.8)),
        (("element", 0.8), ("16x1", 0.8)),
        pretrained=True,
    ),
    ScriptTask(
        "learn-sick-bert",
        "match",
        "match/sick",
        "--model bert --bfloat16 --rate 2e-4 --steps 500 --prune-steps 1000",
        6,
        1,
        (("4x1", 0.8),),
        (("4x1", 0.8),),
        training=CUT,
        distil=(("hidden", 1.0),),
        pretrained=True,
        unit="layers",
    ),
)
