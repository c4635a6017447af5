"""`autospec.daemon.finder_process.FileWatch`: which changes cause another look for work."""

from __future__ import annotations

import os
import selectors
import threading
from pathlib import Path
from typing import Any

import pytest

from autospec.daemon.finder_process import FileWatch, Outlook
from autospec.daemon.work import Memory
from tests.backends.waiting import wait_until
from tests.daemon.test_work import SetClock


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with one model, whose time of change is not now."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "main.gguf").write_bytes(b"1")
    os.utime(folder, (1.0, 1.0))
    return folder


def watching(*paths: Path) -> FileWatch:
    """A watch that has seen these paths."""
    files = FileWatch()
    files.watch(map(str, paths))
    assert files.changed() == []
    return files


def test_a_file_that_appears_is_a_change_of_its_folder_once(models: Path):
    """A model that is copied into it."""
    files = watching(models)
    (models / "draft.gguf").write_bytes(b"1")
    assert files.changed() == [str(models)]
    assert files.changed() == []


def test_a_file_that_appears_while_a_survey_runs_is_not_missed(models: Path):
    """Issue 17, item 9: the survey had read the folder before, and the daemon took the new state for what it had read."""
    files = watching(models)
    (models / "draft.gguf").write_bytes(b"1")  # after the survey has read the folder
    files.watch([str(models), str(models / "main.gguf")])  # its answer
    assert files.changed() == [str(models)]
    assert files.changed() == []


def test_a_file_that_disappears_or_comes_back_while_a_survey_runs(models: Path):
    """A build that is replaced."""
    main = models / "main.gguf"
    files = watching(main)
    main.unlink()
    files.watch([str(main)])
    assert files.changed() == [str(main)]
    main.write_bytes(b"1")
    files.watch([str(main)])
    assert files.changed() == [str(main)]
    assert files.changed() == []


def test_what_is_newly_watched_counts_from_now(models: Path):
    """The survey that names it has just read it. What is watched no longer is forgotten."""
    files = watching(models)
    files.watch([str(models / "main.gguf")])
    assert files.changed() == []
    (models / "draft.gguf").write_bytes(b"1")
    assert files.changed() == []
    (models / "main.gguf").write_bytes(b"22")
    assert files.changed() == [str(models / "main.gguf")]


def test_a_change_is_told_once_until_a_survey(models: Path, monkeypatch: pytest.MonkeyPatch):
    """Issue 17, item 9: while pip installed packages, or a model is copied, each look told the same again."""
    told: list[str] = []
    outlook = Outlook(Memory(models / "memory"), SetClock(), None, selectors.DefaultSelector(), told.append)
    outlook._files.watch([str(models)])
    for number in range(3):
        (models / f"part-{number}.gguf").write_bytes(b"1")
        os.utime(models, (number + 2.0, number + 2.0))
        assert outlook.due()
    assert told == [f"{models} changed."]
    monkeypatch.setattr("autospec.daemon.finder_process.SurveyRun", lambda *_: None)
    outlook.look()
    os.utime(models, (9.0, 9.0))
    assert outlook.due()
    assert told == [f"{models} changed."] * 2


def test_a_folder_that_does_not_answer_holds_nobody_up(models: Path, monkeypatch: pytest.MonkeyPatch):
    """Issue 17: the daemon itself waited for a dead mount. Its change is seen when it answers again."""
    files, answers = FileWatch(limit_s=0.02), threading.Event()
    files.watch([str(models)])
    ask, asked = os.stat, []

    def stat(path: str, **more: Any) -> os.stat_result:
        if path == str(models):
            asked.append(path)
            answers.wait(20)
        return ask(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    (models / "draft.gguf").write_bytes(b"1")
    assert [files.changed() for _ in range(3)] == [[], [], []]
    assert len(asked) == 1  # no thread more for each look
    answers.set()
    wait_until(lambda: files.changed() == [str(models)])
    assert files.changed() == []


def test_a_folder_that_always_answers_late_is_watched(models: Path, monkeypatch: pytest.MonkeyPatch):
    """Each answer comes after the limit: it counts at the next look."""
    files, ask, answers = FileWatch(limit_s=0.0), os.stat, threading.Semaphore(0)

    def late(path: str, **more: Any) -> os.stat_result:
        if path == str(models):
            assert answers.acquire(timeout=20)
        return ask(path, **more)

    def look() -> list[str]:
        changed = files.changed()
        if files._asking is not None and files._asking.is_alive():
            answers.release()  # after the look
            files._asking.join()
        return changed

    monkeypatch.setattr(os, "stat", late)
    files.watch([str(models)])
    assert [look(), look()] == [[], [str(models)]]  # known at last
    (models / "draft.gguf").write_bytes(b"1")
    assert [look(), look()] == [[], [str(models)]]
