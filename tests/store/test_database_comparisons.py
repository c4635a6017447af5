"""Comparisons of launches come back as they were written, for the same machine and build only."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import Build
from autospec.measure.launch_scatter import LaunchComparison
from autospec.store.database import open_store

BUILD = Build("llama-server", "b1", "f" * 8)
COMPARISON = LaunchComparison(at=100.0, old="l0", new="l1", difference=0.004, error=0.006, pairs=8)


def test_comparisons_come_back_for_their_machine_and_build(tmp_path):
    """Another machine, another backend or another build of it may place its memory otherwise."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    later = replace(COMPARISON, at=200.0, old="l1", new="l2", difference=-0.01)
    for comparison in (COMPARISON, later):
        store.add_launch_comparison("here", BUILD, "main", comparison)
    assert store.launch_comparisons("here", BUILD) == [COMPARISON, later]
    assert store.launch_comparisons("there", BUILD) == []
    assert store.launch_comparisons("here", replace(BUILD, fingerprint="e" * 8)) == []
    assert store.launch_comparisons("here", replace(BUILD, backend="embedded")) == []
    store.close()


def test_a_build_without_a_fingerprint_is_known_by_its_version(tmp_path):
    """An MLX package has a version only."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    plain = Build("mlx", "0.32.2")
    store.add_launch_comparison("here", plain, "main", COMPARISON)
    assert store.launch_comparisons("here", plain) == [COMPARISON]
    assert store.launch_comparisons("here", replace(plain, version="0.33")) == []
    store.close()


def test_the_newest_forty_count(tmp_path):
    """What a driver or a system did before its last upgrade fades out."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    for k in range(43):
        store.add_launch_comparison("here", BUILD, "main", replace(COMPARISON, at=float(k)))
    assert [c.at for c in store.launch_comparisons("here", BUILD)] == [float(k) for k in range(3, 43)]
    store.close()
