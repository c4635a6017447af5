"""What the proxy tells of its servers: the documents of ``GET /autospec/v1/status`` and ``…/plan``. Pure."""

from __future__ import annotations

from typing import Any

from autospec.proxy.conductor import Conductor
from autospec.proxy.dispatch import Offered
from autospec.proxy.knowledge import is_likely
from autospec.proxy.launch import Launch
from autospec.recommendations import SCHEMA_VERSION, Recommendation, Verdict

__all__ = ["offered_rows", "plan_document", "status_document"]


def offered_rows(conductor: Conductor) -> tuple[Offered, ...]:
    """Every model that may be asked for, in the catalogue's order."""
    offers, fleet = conductor.prospects.offers, conductor.fleet
    return tuple(
        Offered(
            name=model.name,
            aliases=model.aliases,
            backend=offers.engine(model).capabilities.build.backend,
            running=tuple(dict.fromkeys(la.drafting for la in fleet.lendable(model.name))),
            size_bytes=model.size_bytes,
            fingerprint=model.fingerprint,
        )
        for model in offers.models
    )


def plan_document(conductor: Conductor, now_s: float) -> dict[str, Any]:
    """Which launches are kept and why, with what the plan was made from."""
    document = conductor.plan.to_json()
    document["age_s"] = round(now_s - conductor.planned_at_s, 1)
    for part in document["models"]:
        name = part["model"]
        if not conductor.prospects.offers.has(name):
            continue  # it was there when the plan was made
        model, engine = conductor.prospects.served(name)
        build = engine.capabilities.build
        possible = conductor.prospects.launchable(model, now_s)
        part |= {
            "backend": build.backend,
            "backend_build": build.version,
            "drafting_per_request": engine.per_request,
            "off_was_asked_for": conductor.demand.wants_off(name, now_s),
            "recommendations": [_advice(r) for r in conductor.prospects.of(name).recommendations],
            "notes": list(conductor.prospects.of(name).notes),
            "possible": [
                {"drafting": p.drafting.to_json(), "own_bytes": p.footprint.own_bytes,
                 "shared_bytes": sum(p.footprint.shared_bytes.values()), "launch_s": round(p.launch_s, 2)}
                for p in possible
            ],
        }  # fmt: skip
    document["setbacks"] = conductor.setbacks.to_json(now_s)
    return document


def status_document(conductor: Conductor, now_s: float, *, closing: bool) -> dict[str, Any]:
    """Launches with state, use and memory; the queue; how busy the proxy is, for whoever wants to measure beside it."""
    launches = list(conductor.fleet)
    leases = sum(launch.leases for launch in launches)
    demand, waiting = conductor.demand, conductor.waiting
    return {
        "schema": SCHEMA_VERSION,
        "closing": closing,
        "busy": {
            "now": leases > 0 or len(waiting) > 0,
            "leases": leases,
            "waiting": len(waiting),
            "requests": demand.requests,
            "last_request_s_ago": None if demand.last_s is None else round(now_s - demand.last_s, 1),
        },
        "memory": {"limit_bytes": conductor.terms.memory_bytes, "launches_bytes": conductor.fleet.bytes()},
        "queue": {
            "waiting": len(waiting),
            "limit": waiting.limit,
            "deadline_s": waiting.deadline_s,
            "oldest_s": round(max((now_s - t.since_s for t in waiting), default=0.0), 1),
        },
        "idle_unload_s": conductor.terms.idle_s,
        "launches": [_launch(launch, now_s) for launch in launches],
        "setbacks": conductor.setbacks.to_json(now_s),
        "not_served": list(conductor.prospects.offers.refused),
        "traffic": demand.traffic.to_json(now_s),
    }


def _launch(launch: Launch, now_s: float) -> dict[str, Any]:
    server = launch.server
    return {
        "number": launch.number,
        "launch_id": None if server is None else server.launch_id,
        "model": launch.model,
        "drafting": launch.drafting.to_json(),
        "state": str(launch.state),
        "leases": launch.leases,
        "served": launch.served,
        "unused_s": 0.0 if launch.leases else round(now_s - launch.used_at_s, 1),
        "launch_ms": None if server is None else round(server.launch_ms, 1),
        "own_bytes": launch.footprint.own_bytes,
        "shared_bytes": sum(launch.footprint.shared_bytes.values()),
        "pids": [] if server is None else sorted(server.pids),
        "error": None if launch.error is None else str(launch.error),
    }


def _advice(acted: Recommendation) -> dict[str, Any]:
    likely = is_likely(acted)
    return {
        "prompt_type": None if acted.prompt_type is None else str(acted.prompt_type),
        "verdict": str(Verdict.UNDECIDED if likely else acted.verdict),
        "status": str(acted.status),
        "likely": likely,
        "served_with": acted.drafting.to_json(),
    }
