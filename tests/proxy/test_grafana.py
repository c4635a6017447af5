"""The Grafana dashboard over HTTP, and whether Prometheus would understand its expressions and those of the manual."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from autospec.proxy.access import Access
from autospec.proxy.app import Rules
from autospec.proxy.metrics import grafana_dashboard
from tests.proxy.harness import proxy_over
from tests.proxy.test_metrics import STATUS, exposed, expressions

MANUAL = Path(__file__).parents[2].joinpath("docs/serving.md")
# What Grafana puts in before it asks.
VARIABLES = {"$__rate_interval": "5m", "$model": "a|b"}


def alerts() -> list[str]:
    """The expressions in the manual's table of alerts."""
    table = MANUAL.read_text("utf-8").partition("| alert | expression |")[2].partition("\n\n")[0]
    return re.findall(r"^\|[^|]+\| `([^`]+)` \|$", table, re.MULTILINE)


def asked() -> list[str]:
    """Every expression that Prometheus is asked."""
    of_panels = [text for text in expressions() if not text.startswith("label_values")]
    for variable, value in VARIABLES.items():
        of_panels = [text.replace(variable, value) for text in of_panels]
    return [*of_panels, *alerts()]


def test_it_is_served_whole(proxy):
    """As JSON that Grafana imports, the same as the file; no key and no address of this proxy is in it."""
    answer = httpx.get(f"{proxy.base_url}/autospec/dashboard", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.text == grafana_dashboard()
    assert answer.json()["uid"] == "autospec-proxy"
    assert proxy.base_url not in answer.text
    assert httpx.head(f"{proxy.base_url}/autospec/dashboard", trust_env=False).status_code == 200
    assert httpx.post(f"{proxy.base_url}/autospec/dashboard", trust_env=False).status_code == 405


def test_it_needs_the_key(loop, dispatch, storage):
    """Like every other document."""
    with proxy_over(loop, dispatch, storage, rules=Rules(Access(api_key="secret"))) as proxy:
        url = f"{proxy.base_url}/autospec/dashboard"
        assert httpx.get(url, trust_env=False).status_code == 401
        answer = httpx.get(url, headers={"Authorization": "Bearer secret"}, trust_env=False)
        assert "secret" not in answer.text
        assert json.loads(answer.text)["panels"]


def test_every_variable_is_known():
    """A variable that nobody replaces would reach Prometheus as it is."""
    assert len(asked()) > 30
    assert [text for text in asked() if "$" in text] == []


def test_prometheus_can_parse_every_expression():
    """By the parser of GreptimeDB, a port of Prometheus's own grammar."""
    parser = pytest.importorskip("promql_parser", reason="promql_parser is not installed (extra: clients)")
    for text in asked():
        parser.parse(text)
    with pytest.raises(ValueError, match=r"."):
        parser.parse("sum by (model (autospec_servers)")


def test_a_rate_is_of_a_counter_and_a_quantile_of_a_histogram():
    """A rate of a gauge is a number that means nothing, and Prometheus says nothing."""
    types, _ = exposed(STATUS)
    for text in asked():
        for function, name in re.findall(r"\b(rate|increase|changes)\((\w+)", text):
            kind = types[re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name]
            assert kind == (
                "gauge" if function == "changes" else "histogram" if name.endswith("_bucket") else "counter"
            ), text
        assert ("histogram_quantile(" in text) == ("_bucket" in text), text
        assert "histogram_quantile(" not in text or re.search(r"by \([^)]*\ble\)", text), text
