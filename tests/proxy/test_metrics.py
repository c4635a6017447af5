"""The metrics of the queue and the servers, and the dashboard: it shows every metric, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.proxy.metrics import Metrics, grafana_dashboard
from autospec.proxy.usage import RequestOutcome, TokenCounts, sample_of

LOOKUP = Drafting(Mode.NGRAM_MOD, ngram_n=12, n_max=16, n_min=0)
# As `Supervisor.status` says it.
STATUS: dict[str, Any] = {
    "queue": {"waiting": 3, "limit": 256, "deadline_s": 300.0, "oldest_s": 1.5},
    "memory": {"limit_bytes": 1000, "launches_bytes": 600},
    "launches": [
        {"number": 1, "model": "main", "drafting": OFF.to_json(), "state": "ready", "leases": 2},
        {"number": 2, "model": "main", "drafting": OFF.to_json(), "state": "ready", "leases": 1},
        {"number": 3, "model": "main", "drafting": LOOKUP.to_json(), "state": "starting", "leases": 0},
    ],
    "totals": [
        {
            "model": "main",
            "drafting": OFF.to_json(),
            "started": 5,
            "did_not_start": 0,
            "died": 2,
            "killed": 1,
        }
    ],
}
# Families of the metrics that no panel shows.
NOT_SHOWN: frozenset[str] = frozenset()
ALERTS = Path(__file__).parents[2].joinpath("docs/serving.md")
_WORD = re.compile(r"\bautospec_\w+")


def exposed(status: dict[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    """The types of the families by their names, and the values of the series."""
    text = Metrics(lambda: 4, lambda: 0, lambda: status).exposition().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    # prometheus_client's own, in some versions and not in others.
    types = {name: kind for name, kind in types.items() if not name.endswith("_created")}
    return types, {
        name: float(value) for name, value in re.findall(r"^([^#]\S*.*) (\S+)$", text, re.MULTILINE)
    }


def family(name: str, types: dict[str, str]) -> str:
    """The family that a series belongs to."""
    part = re.sub(r"_(bucket|sum|count)$", "", name)
    return part if types.get(part) == "histogram" else name


def expressions() -> Iterator[str]:
    """Every expression of the dashboard: of its panels and of its variables."""
    document = json.loads(grafana_dashboard())
    for panel in document["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (v["definition"] for v in document["templating"]["list"] if v["type"] == "query")


def test_queue_and_servers():
    """Servers of one kind are counted together."""
    _, values = exposed(STATUS)
    off, lookup = (f'model="main",drafting="{d.label}"' for d in (OFF, LOOKUP))
    labelled = {re.sub(r"\{.*", "", name): {} for name in values}
    for name, value in values.items():
        labelled[re.sub(r"\{.*", "", name)][frozenset(re.findall(r'\w+="[^"]*"', name))] = value

    def value(name: str, labels: str = "") -> float:
        return labelled[name][frozenset(re.findall(r'\w+="[^"]*"', labels))]

    assert value("autospec_waiting_requests") == 3
    assert value("autospec_waiting_requests_limit") == 256
    assert value("autospec_waiting_oldest_seconds") == 1.5
    assert value("autospec_servers", off + ',state="ready"') == 2
    assert value("autospec_servers", lookup + ',state="starting"') == 1
    assert value("autospec_server_requests_in_flight", off) == 3
    assert value("autospec_server_requests_in_flight", lookup) == 0
    assert value("autospec_server_memory_bytes") == 600
    assert value("autospec_server_memory_limit_bytes") == 1000
    assert value("autospec_server_starts_total", off) == 5
    failures = {
        c: value("autospec_server_failures_total", f'{off},cause="{c}"')
        for c in ("died", "killed", "did_not_start")
    }
    assert failures == {"died": 2, "killed": 1, "did_not_start": 0}
    assert value("autospec_start_time_seconds") > 1e9


@pytest.mark.parametrize(("tokens", "told"), [(1, 0), (7, 0), (8, 1)])
def test_a_short_answer_tells_no_speed(tokens, told):
    """`max_tokens: 1` warms a server up: llama-server says 0.001 ms, which is a million tokens per second."""
    counts = TokenCounts(5, tokens, 10.0, 0.001 if tokens == 1 else 10.0 * tokens)
    outcome = RequestOutcome(
        1.0, "/v1/completions", "main", "llama-server", "b1", None, OFF,
        status=200, complete=True, counts=counts,
    )  # fmt: skip
    metrics = Metrics(lambda: 0, lambda: 0, dict)
    metrics.forwarded(outcome, sample_of(outcome))
    text = metrics.exposition().decode()
    seen = re.findall(r"^autospec_generation_tokens_per_second_count\{.*\} (\S+)$", text, re.MULTILINE)
    assert sum(map(float, seen)) == told
    assert f'kind="predicted",model="main",prompt_type=""}} {tokens}.0' in text


def test_names_are_as_prometheus_asks():
    """Counters end with `_total`, and nothing else does; a time is in seconds, a size in bytes."""
    types, _ = exposed(STATUS)
    assert len(types) > 15
    for name, kind in types.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|us|minutes|kib|mib|mb|percent)(_|$)", name), name


@pytest.mark.parametrize("status", [{}, {"launches": []}, STATUS])
def test_every_family_is_there_before_anything_happens(status):
    """An alert must not name a metric that does not exist yet."""
    assert set(exposed(status)[0]) == set(exposed(STATUS)[0])


def test_the_dashboard_shows_what_there_is():
    """Each name in a panel is exported, and each exported family is in a panel or left out on purpose."""
    types, _ = exposed(STATUS)
    shown = {family(name, types) for text in expressions() for name in _WORD.findall(text)}
    assert shown - set(types) == set()
    assert set(types) - shown == NOT_SHOWN


def test_the_dashboard_asks_only_for_labels_that_exist():
    """A wrong label matches nothing and looks like a calm proxy."""
    known = {"model", "prompt_type", "drafting", "status", "code", "kind", "limit", "state", "cause", "le"}
    document = json.loads(grafana_dashboard())
    for panel in document["panels"]:
        for target in panel["targets"]:
            by = {w for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for w in group.split(", ")}
            matched = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert by | matched <= known, target["expr"]
            assert named <= by, target


def test_panels_have_places_of_their_own():
    """No two panels have one id or lie on each other."""
    panels = json.loads(grafana_dashboard())["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len({p["id"] for p in panels}) == len(set(places)) == len(panels)


def test_the_documented_alerts_name_what_there_is():
    """The metrics in the manual are exported."""
    types, _ = exposed(STATUS)
    named = {family(name, types) for name in _WORD.findall(ALERTS.read_text(encoding="utf-8"))}
    assert "autospec_server_failures_total" in named
    assert named <= set(types)
