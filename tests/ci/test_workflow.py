"""The forge's workflow runs targets that the Makefile has, on what the metadata promises. `actionlint` says more where it is at hand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
JOBS: dict[str, Any] = WORKFLOW["jobs"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def steps() -> list[dict[str, Any]]:
    """The steps of all jobs."""
    return [step for job in JOBS.values() for step in job["steps"]]


def test_it_runs_by_itself():
    """For each push and each proposal. YAML 1.1 reads the key `on` as true."""
    assert {"push", "pull_request", "workflow_dispatch"} <= WORKFLOW[True].keys()
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_every_target_is_in_the_makefile():
    """Each command is one of make."""
    commands = [step["run"] for step in steps() if "run" in step]
    made = [re.fullmatch(r"make ([\w-]+)(?: PYTEST_ARGS=.*)?", command) for command in commands]
    assert all(made), commands
    assert {match[1] for match in made if match} == {"check", "test", "test-process", "demo-short"}
    assert {match[1] for match in made if match} <= TARGETS


def test_each_python_on_each_system():
    """As the metadata says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pythons = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == pythons
    assert {re.split(r"-", system)[0] for system in matrix["os"]} == {"ubuntu", "macos"}
    assert {re.split(r"-", system)[0] for system in JOBS["tune"]["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "macos",
    }


def test_every_job_ends():
    """A hung test must not use up the forge's hours."""
    assert all(job["timeout-minutes"] <= 60 for job in JOBS.values())


@pytest.mark.parametrize("step", [s for s in steps() if "uses" in s], ids=lambda step: step["uses"])
def test_actions_have_a_version(step):
    """And come from the forge itself."""
    assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_the_lab_is_kept_where_it_is_read():
    """A cache of another folder would be empty."""
    [cache] = [s for s in JOBS["tune"]["steps"] if s.get("uses", "").startswith("actions/cache@")]
    assert JOBS["tune"]["env"]["AUTOSPEC_LAB"] == "${{ github.workspace }}/" + cache["with"]["path"]
