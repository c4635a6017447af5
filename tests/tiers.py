"""The three tiers of the tests, what gives a test its tier, and what holds a unit test to it.

*unit*: all of it happens in pytest's own process, in less than a second. A stand-in HTTP server in a thread is part of that.
*process*: it starts other processes (stand-in programs, the command line, guards), or it takes longer than a second.
*real*: it needs a model file, a real server, PostgreSQL, systemd or MLX.

The first of these that says something decides:

1. the test's own mark: ``@pytest.mark.unit``, ``.process`` or ``.real``, also as ``pytestmark``;
2. `LISTED` below;
3. its fixtures: `REAL_FIXTURES`, then `PROCESS_FIXTURES`;
4. its code: the test, or what it names of its own module, uses ``subprocess``, ``multiprocessing`` or ``sys.executable``,
   or writes a program;
5. else it is *unit*.

Real tests run two at a time, except those that judge speeds: `ALONE`, marked ``alone``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "ALONE",
    "LISTED",
    "PROCESS",
    "REAL",
    "TESTS",
    "UNIT",
    "SpawnWatch",
    "Tier",
    "assign",
    "runs_alone",
    "spawning_names",
]

TESTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier's name, and how long a test of it may take at most before it is taken for hung."""

    name: str
    timeout_s: int


UNIT = Tier("unit", 60)
PROCESS = Tier("process", 180)
# The first test that asks for a lab model builds it.
REAL = Tier("real", 900)
TIERS = {tier.name: tier for tier in (UNIT, PROCESS, REAL)}

REAL_FIXTURES = frozenset(
    {"by_hand", "lab_models", "llama_server_binary", "mlx", "postgres_url", "router_by_hand"}
)
PROCESS_FIXTURES = frozenset({"fake"})


@dataclass(frozen=True, slots=True)
class Listed:
    """Tests whose fixtures and code do not tell their tier: files, or ``file::test``, below ``tests/``."""

    tier: Tier
    reason: str
    paths: tuple[str, ...]


LISTED = (
    Listed(
        PROCESS,
        "Whole tunes on simulated servers, on the disk: one to ten seconds each.",
        (
            "tuning/test_calibration_idle_draft.py",
            "tuning/test_failing_prompts.py",
            "tuning/test_forecast.py",
            "tuning/test_limits_in_a_tune.py",
            "tuning/test_profiling.py",
            "tuning/test_resume_in_a_tune.py",
            "tuning/test_run.py",
            "tuning/test_runner_up.py",
            "tuning/test_launch_scatter_in_a_tune.py",
            "tuning/test_steady_heat.py",
            "tuning/test_per_request.py::test_a_whole_tune_launches_each_draft_once_to_search_and_once_a_round",
            "tuning/test_per_request.py::test_every_verdict_is_against_true_off",
            "tuning/test_proof.py::test_no_launch_serves_two_rounds_of_a_cell",
            "tuning/test_proof.py::test_winners_in_the_same_round_share_its_off",
            "tuning/test_search.py::test_a_draft_that_is_slow_for_one_type_alone_is_tried_on",
            "tuning/test_search.py::test_a_hopeless_draft_is_launched_once",
            "tuning/test_search.py::test_a_hopeless_draft_stays_known_when_the_tune_goes_on",
            "tuning/test_search.py::test_an_n_gram_mode_that_is_far_behind_takes_no_further_trials",
            "tuning/test_search.py::test_several_modes_are_launched_where_each_gained_alone",
            "tuning/test_search.py::test_several_modes_are_not_launched_blindly",
            "tuning/test_search.py::test_several_modes_stay_known_when_the_tune_goes_on",
            "tuning/test_search.py::test_the_best_setting_of_a_draft_is_found_without_prediction",
            "tuning/test_search.py::test_the_leader_is_asked_the_prompts_that_it_was_not_asked",
        ),
    ),
    Listed(
        PROCESS,
        "Hundreds of simulated measurements, for an error rate or a bias.",
        (
            "measure/test_log_ratios.py::test_mean_stays_unbiased_however_wrong_the_prediction_is",
            "measure/test_launch_scatter.py::test_the_upper_limit_covers_the_truth",
            "measure/test_launch_scatter.py::test_with_one_launch_that_stays_its_own_luck_drops_out",
            "measure/test_log_ratios_estimates.py::test_stratified_error_rate_holds_however_prompts_differ",
            "measure/test_log_ratios_estimates.py::test_stratified_error_rate_holds_where_some_prompts_are_noisy",
            "measure/test_launch_scatter_units.py::test_error_rate_holds_for_any_scatter",
            "measure/test_verdict.py::test_a_large_gain_of_most_prompts_rarely_hides_many_slower_ones",
            "measure/test_verdict.py::test_drafting_at_the_threshold_is_rarely_enabled",
            "measure/test_verdict.py::test_launches_that_differ_rarely_enable_at_the_threshold",
            "predict/test_costs.py::test_noise_does_not_spoil_the_costs",
            "predict/test_predictor.py::test_one_launchs_luck_is_no_contradiction",
        ),
    ),
    Listed(
        PROCESS,
        "Hundreds of generated inputs, one to five seconds each.",
        (
            "backends/test_streamed.py::test_whatever_is_told_of_an_answer_it_is_an_answer",
            "prompts/test_classifier.py::test_whatever_a_body_holds_a_type_is_returned",
            "proxy/test_request.py::test_a_body_is_read_as_the_standard_library_reads_it",
            "proxy/test_request.py::test_fields_are_set_and_all_others_keep_their_value",
        ),
    ),
    Listed(
        PROCESS,
        "The proxy's own waiting times, one to three seconds.",
        (
            "proxy/test_endpoints.py::test_events_tell_what_is_new",
            "serving/test_supervisor.py::test_a_drafting_that_keeps_dying_is_given_up",
            "serving/test_supervisor.py::test_fifty_switches_under_sixty_four_clients_lose_nothing",
        ),
    ),
    Listed(
        PROCESS,
        "autospec starts the processes: guards and their servers, hooks, probes of backends, Optuna's gRPC proxy.",
        (
            "backends/test_records.py",
            "backends/test_llama_cpp_scorer.py::test_a_package_that_dies_of_its_first_matrix",
            "backends/test_process.py",
            "cli/test_doctor.py",
            "service/test_control_hook.py",
            "tuning/test_study_grpc.py",
        ),
    ),
    Listed(
        REAL,
        "The real mlx_lm, systemd or backends, which they find by themselves.",
        (
            "backends/test_contract.py",
            "backends/test_mlx_in_process_child.py",
            "backends/test_llama_cpp_servers.py",
            "backends/test_registry.py::test_available",
            "backends/test_serving_commands.py::test_embedded",
            "report/test_server_config.py::test_mlx_lm_server_reads_its_command_line",
            "service/test_real_systemd.py",
            "service/test_managers_systemd.py::test_systemd_finds_nothing_wrong_with_it",
            "service/test_managers_systemd.py::test_systemd_would_find_a_misspelt_key",
        ),
    ),
)

ALONE = (
    "cli/test_attached.py",
    "cli/test_bench.py",
    "cli/test_recommend.py",
    "daemon/test_real_daemon.py",
    "daemon/test_three_daemons.py",
    "daemon/test_whole_service.py",
    "lab/test_native_limits.py",
    "proxy/test_chaos.py",
    "proxy/test_soak.py",
    "tuning/test_launch_scatter.py",
    "tuning/test_real_tune.py",
)
"""Files whose real tests compare speeds, or wait for a machine that is not busy: another test beside them would disturb them."""

_SPAWNING: frozenset[object] = frozenset({"subprocess", "multiprocessing", "executable", 0o755})
"""What means another process: two modules, `sys.executable`, and the mode of a program that the test writes."""

_BY_PATH = {path: listed.tier for listed in LISTED for path in listed.paths}

_EVENTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"})
"""Audit events of CPython with which another process begins; asyncio's and psutil's go through `subprocess.Popen`."""


def assign(items: Iterable[pytest.Item], *, with_timeouts: bool) -> None:
    """Mark each test with its tier and, unless the command line has a ``--timeout``, with the tier's.

    Raises:
        pytest.UsageError: A test is marked with two tiers.
    """
    for item in items:
        tier = _marked(item)
        if tier is None:
            tier = _tier_of(item)
            item.add_marker(tier.name)
        if tier is REAL and runs_alone(item.path):
            item.add_marker("alone")
        if with_timeouts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(tier.timeout_s))


def runs_alone(path: Path) -> bool:
    """True if the real tests of a file run one after the other."""
    return path.is_relative_to(TESTS) and path.relative_to(TESTS).as_posix() in ALONE


def _marked(item: pytest.Item) -> Tier | None:
    names = {mark.name for mark in item.iter_markers() if mark.name in TIERS}
    if len(names) > 1:
        raise pytest.UsageError(f"{item.nodeid} is marked with two tiers: {' and '.join(sorted(names))}")
    return TIERS[names.pop()] if names else None


def _tier_of(item: pytest.Item) -> Tier:
    name = getattr(item, "originalname", item.name)
    if item.path.is_relative_to(TESTS):
        path = item.path.relative_to(TESTS).as_posix()
        for listed in (_BY_PATH.get(f"{path}::{name}"), _BY_PATH.get(path)):
            if listed is not None:
                return listed
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & REAL_FIXTURES:
        return REAL
    parent = item.getparent(pytest.Class)
    named = fixtures | {name} | ({parent.name} if parent else set())
    return PROCESS if fixtures & PROCESS_FIXTURES or named & spawning_names(item.path) else UNIT


@cache
def spawning_names(path: Path) -> frozenset[str]:
    """Functions, classes and values of a module that mean another process, directly or by what they name of the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    uses = {name: _names_in(node) for node in tree.body for name in _defined(node)}
    found: frozenset[str] = frozenset()
    while True:
        more = frozenset(name for name, used in uses.items() if used & (_SPAWNING | found))
        if more == found:
            return found
        found = more


def _defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def _names_in(node: ast.AST) -> frozenset[object]:
    """Names, attributes, parameters (a test's parameter is a fixture) and numbers."""
    names: set[object] = set()
    for child in ast.walk(node):
        match child:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.Constant(value=int(number)):
                names.add(number)
    return frozenset(names)


class SpawnWatch:
    """Sees each process that is started while a unit test runs, in whichever thread."""

    def __init__(self) -> None:
        self._started: list[str] | None = None
        sys.addaudithook(self._audit)  # for the life of this process: there is no way to take it away

    def begin(self) -> None:
        """Watch from now on."""
        self._started = []

    def end(self) -> None:
        """Watch no more."""
        self._started = None

    def check(self) -> None:
        """Fail the running test if a process was started since `begin` or the last check."""
        if self._started:
            commands, self._started = self._started, []
            pytest.fail(
                f"This test is in the tier `unit` and started a process ({commands[0]}). Mark it `@pytest.mark.process`, or "
                f"`@pytest.mark.real` if it needs a model, a real server, PostgreSQL, systemd or MLX.",
                pytrace=False,
            )

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._started is not None and event in _EVENTS:
            self._started.append(f"{event} {arguments[:2]}"[:200] if arguments else event)
