"""sparse-engine run: one answer of a package, from the shell."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sparse_engine.cli.common import set_threads
from sparse_engine.errors import UsageError
from sparse_engine.reporting.tables import new_table, show

if TYPE_CHECKING:
    from sparse_engine.tasks import Generator, Sampling


def run(
    package: Annotated[Path, typer.Argument(help="A package, as `convert` writes it.")],
    text: Annotated[str, typer.Option("--text", "-t", help="The text; - reads standard input.")],
    pair: Annotated[str | None, typer.Option(help="A second text, to label the two.")] = None,
    question: Annotated[
        str | None, typer.Option(help="A question to answer from the text.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 selects the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest of this total share.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes repetitions less likely.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text to end at; may be repeated.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling, to repeat a text.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Run a package on one text: an embedding, labels, spans, or generated text.

    The result depends on the model's head. Generated text is printed token by token.

    Examples:

      sparse-engine run package --text "Once upon a time" --max-tokens 50 --temperature 0.7

      sparse-engine run sentiment -t "a fine film" -o json

      sparse-engine run squad -t "Ada wrote the first program." --question "Who wrote it?"
    """
    from sparse_engine.io import load
    from sparse_engine.tasks import Answerer, Classifier, Generator, Sampling, open_task

    if output not in ("text", "json"):
        raise UsageError(f"output {output!r}: use text or json")
    sampling = Sampling(
        max_tokens, temperature, top_k, top_p, repetition_penalty, tuple(stop or ()), seed
    )
    set_threads(threads)
    task = open_task(load(package, device=device), package)
    if (question is not None) != isinstance(task, Answerer):
        hint = "give --question" if question is None else "--question is for question answering"
        raise UsageError(f"{package} does {task.task}: {hint}")
    if pair is not None and not isinstance(task, Classifier):
        raise UsageError(f"{package} does {task.task}: --pair is for text classification")
    given = sys.stdin.read() if text == "-" else text
    if isinstance(task, Generator):
        return _generate(task, given, sampling, output)
    found = answer(task, given, pair, question)
    if output == "json":
        print(json.dumps(found))
    elif isinstance(found, list) and found and isinstance(found[0], float):
        print(" ".join(f"{value:.6g}" for value in found))
    else:
        _table(found if isinstance(found, list) else [found])


def answer(task: Any, text: str, pair: str | None, question: str | None) -> Any:
    """The answer as plain values: numbers, or a list of labels or spans."""
    from sparse_engine.tasks import Answerer, Classifier, TokenClassifier

    if isinstance(task, Answerer):
        return asdict(task.answer(question or "", text))
    if isinstance(task, Classifier):
        (labels,) = task.classify([text if pair is None else (text, pair)])
        return [asdict(label) for label in labels]
    if isinstance(task, TokenClassifier):
        (spans,) = task.tag([text])
        return [asdict(span) for span in spans]
    return task.embed([text])[0].tolist()


def _generate(task: Generator, prompt: str, sampling: Sampling, output: str) -> None:
    text, finish, tokens = "", None, 0
    for chunk in task.stream(prompt, sampling):
        text, finish, tokens = text + chunk.text, chunk.finish, chunk.tokens
        if output == "text":
            print(chunk.text, end="", flush=True)
    print(
        json.dumps({"text": text, "tokens": tokens, "finish": finish}) if output == "json" else ""
    )


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("nothing was found")
        return
    table = new_table()
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*map(Text, cells))
    show(table)
