"""Files around the code agree with it: version, citation, workflow, issue forms, hooks."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import sparse_engine

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text())


def test_the_version_is_written_once() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert version("sparse-engine") == sparse_engine.__version__
    assert "version" not in read_yaml(ROOT / "CITATION.cff")


def test_the_package_is_typed() -> None:
    assert (Path(sparse_engine.__file__).parent / "py.typed").is_file()


def test_citation_has_its_required_keys() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("name", ["bug", "performance", "feature"])
def test_issue_forms(name: str) -> None:
    form = read_yaml(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert all(item["attributes"]["label"] for item in fields)
    ids = [item["id"] for item in fields]
    assert len(set(ids)) == len(ids)


def test_the_workflow_runs_the_make_targets() -> None:
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    commands = {step.get("run") for job in jobs.values() for step in job["steps"]}
    assert {"make check", "make test", "make sanitize"} <= commands


def test_hooks_run_what_make_check_runs() -> None:
    hooks = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    made = {line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()}
    made = {re.sub(r" (\.|\$\(.*\))$", "", line) for line in made}  # hooks get their files
    assert {hook["entry"] for hook in hooks} == made


def test_changelog_is_in_keep_a_changelog_order() -> None:
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    first, *versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert "keepachangelog.com" in first
    assert versions[0].startswith("[Unreleased]")
    for text in versions:
        found = re.findall(r"^### (\w+)$", text, re.MULTILINE)
        assert found == [kind for kind in kinds if kind in found]
        assert found
