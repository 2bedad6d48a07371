"""Code in README.md and docs/ works: Python runs, commands parse, and marked commands run.

A comment before a block says how it is tested; without one, Python runs and commands are parsed.

    <!-- test: setup NAME -->          names and files of `SETUPS`, for all blocks of the page
    <!-- test: run -->                 the commands of the next block run, in order, in this process
    <!-- test: skip because REASON --> the next block is not run; its share is bounded below

The blocks of a page share their names and an empty working directory.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]
# A fenced block with the comment before it, if there is one.
FENCE = re.compile(
    r"(?:<!-- test: (?P<how>run|skip because (?P<reason>[^>]+)) -->\s*\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SETUP = re.compile(r"<!-- test: setup (\w+) -->")
MOST_SKIPPED = 0.1
LANGUAGES = ("", "python", "bash", "console", "text", "json", "yaml")


@dataclass(frozen=True)
class CodeBlock:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    skipped: str  # the reason, or ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of every `sparse-engine` command of a shell block."""
        text = re.sub(r"\\\n", " ", self.code)
        found = re.findall(r"\bsparse-engine ([^\n;&|]*)", re.sub(r"(?m)(^|\s)#.*$", "", text))
        return [shlex.split(arguments) for arguments in found]


def read_blocks(page: Path) -> list[CodeBlock]:
    text = page.read_text()
    return [
        CodeBlock(
            page,
            text.count("\n", 0, match.start("code")),
            match["language"],
            match["code"],
            match["how"] == "run",
            (match["reason"] or "").strip(),
        )
        for match in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console")]
RECIPES = [block for block in BLOCKS if block.language == "yaml"]


def write_encoder(folder: Path) -> dict[str, Any]:
    """A tiny BERT with its tokenizer under a name of the Hub, texts, and calibration batches."""
    from task_models import PIECES, WORDS
    from task_models import folder as write_model

    from sparse_engine.io import load_pretrained

    path = write_model(folder / "sentence-transformers" / "all-MiniLM-L6-v2", "BertModel")
    model, _ = load_pretrained(path)
    picks = torch.randint(len(WORDS), (40, 12)).tolist()
    (folder / "texts.txt").write_text("\n".join(" ".join(WORDS[i] for i in row) for row in picks))
    ids = torch.randint(4, len(PIECES), (8, 1, 12))
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]
    return {"model": model, "batches": batches}


SETUPS: dict[str, Callable[[Path], dict[str, Any]]] = {"encoder": write_encoder}


def parse(arguments: list[str]) -> None:
    """Parse a command line as `sparse-engine` does, without running it."""
    import typer

    from sparse_engine.cli.app import app

    command, rest, name = typer.main.get_command(app), arguments, "sparse-engine"
    while hasattr(command, "commands"):
        if rest and rest[0] == "--version":
            return
        assert rest, arguments
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        name, rest, command = rest[0], rest[1:], command.commands[rest[0]]
    command.make_context(name, list(rest))


def run_command(arguments: list[str]) -> int:
    """The exit code of a command, run in this process."""
    from sparse_engine.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparse-engine", *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_most_blocks_are_tested(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [block for block in (*PYTHON, *SHELL) if block.skipped]
    with capsys.disabled():
        for block in skipped:
            print(f"\nskipped {block.place}: {block.skipped}", end="")
    assert len(PYTHON) >= 15
    assert len(SHELL) >= 8
    assert len(skipped) <= MOST_SKIPPED * (len(PYTHON) + len(SHELL))


def test_no_other_language_passes_unseen() -> None:
    """Blocks without a language are drawings; every other language is named here."""
    for block in BLOCKS:
        assert block.language in LANGUAGES, block.place
        if block.language in ("", "text"):
            assert "import sparse_engine" not in block.code, block.place
            assert not block.code.startswith("sparse-engine "), block.place


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.place)
def test_recipes_hold_options_of_prune(block: CodeBlock, tmp_path: Path) -> None:
    import inspect

    from sparse_engine.cli.prune import prune
    from sparse_engine.pruning.recipe import read_recipe
    from sparse_engine.training import read_training_recipe

    (tmp_path / "recipe.yaml").write_text(block.code)
    if "modifiers:" in block.code:
        assert read_training_recipe(tmp_path / "recipe.yaml").modifiers
        return
    options = set(read_recipe(tmp_path / "recipe.yaml").options)
    assert options <= {*inspect.signature(prune).parameters, "overrides", "steps"}
    assert options


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_parse(block: CodeBlock) -> None:
    for arguments in block.commands:
        parse(arguments)
    for target in re.findall(r"^make (\w+)", block.code, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for script, options in re.findall(
        r"python (bench/\w+\.py)([^\n#]*)", re.sub(r"\\\n", " ", block.code)
    ):
        source = (ROOT / script).read_text()
        for option in re.findall(r"\s(--?[a-z][a-z-]*)", options):
            assert f'"{option}"' in source, f"{script} {option}"


def test_a_wrong_option_is_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["prune", "model", "out", "--sparsty", "0.9"])


PAGES_THAT_RUN = [
    page
    for page in PAGES
    if any(b.page == page and (b.language == "python" or b.runs) for b in (*PYTHON, *SHELL))
]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {"__name__": "__main__"}
    for name in SETUP.findall(page.read_text()):
        names |= SETUPS[name](tmp_path)
    torch.manual_seed(0)
    for block in read_blocks(page):
        if block.skipped:
            continue
        if block.language == "python":
            code = "\n" * block.line + block.code  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), names)
        elif block.runs:
            for arguments in block.commands:
                assert run_command(arguments) == 0, (block.place, arguments)
    if page.name == "examples.md":
        check_examples(names, tmp_path)


def check_examples(names: dict[str, Any], folder: Path) -> None:
    """Every example left a package that skips its zeros; the last outputs are finite."""
    import sparse_engine as se

    packages = [path.parent for path in folder.glob("*/sparse_engine.json")]
    saved = re.findall(r"^se\.save\(", (ROOT / "docs/examples.md").read_text(), re.M)
    assert len(packages) == len(saved) >= 7
    for package in packages:
        assert se.io.inspect(package).skipped >= 0.79, package
    assert names["y"].isfinite().all()
    assert names["logits"].isfinite().all()
