"""Which models clients see, and which one is meant by a request that names none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from autospec.catalog.choice import ambiguous, answering
from autospec.errors import ModelChoiceError
from autospec.proxy.dispatch import Offered
from autospec.proxy.intake import Refused
from autospec.proxy.problems import Problem

__all__ = ["find_offered", "meant_model", "model_document", "models_document", "running_model"]

# The catalogue does not know when a model was made; OpenAI's and Anthropic's clients want a moment.
_EPOCH = "1970-01-01T00:00:00Z"


def models_document(offered: Sequence[Offered]) -> dict[str, Any]:
    """``GET /v1/models``: OpenAI's list with the fields that Anthropic's client reads beside them."""
    data = [model_document(o) for o in offered]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def model_document(offered: Offered) -> dict[str, Any]:
    """``GET /v1/models/ID``."""
    return {
        "id": offered.name,
        "object": "model",
        "created": 0,
        "owned_by": "autospec",
        "type": "model",
        "display_name": offered.name,
        "created_at": _EPOCH,
        "aliases": list(offered.aliases),
        "autospec": {
            "backend": offered.backend,
            "running": [d.to_json() for d in offered.running],
            "size_bytes": offered.size_bytes,
        },
    }


def find_offered(offered: Sequence[Offered], name: str) -> Offered | None:
    """The model that answers to a name, as requests find it; ``None`` if none does.

    Raises:
        ModelChoiceError: Several do.
    """
    found = answering(offered, name, lambda o: (o.name, *o.aliases))
    distinct = {o.fingerprint or o.name: o.name for o in reversed(found)}
    if len(distinct) > 1:
        raise ambiguous(name, reversed(distinct.values()))
    return found[0] if found else None


def running_model(offered: Sequence[Offered], default: str) -> str | None:
    """A model that runs now: the default one, else the first; ``None`` where none runs."""
    running = [o for o in offered if o.running]
    preferred = None
    if default:
        with suppress(ModelChoiceError):  # a request for the default is told so; what runs can still be named
            preferred = find_offered(offered, default)
    chosen = preferred if preferred in running else (running[0] if running else None)
    return chosen.name if chosen else None


def meant_model(offered: Sequence[Offered], default: str) -> str:
    """The model for a request that names none: the default, what runs, or the only one there is.

    Raises:
        Refused: It could be any of several, or there is none.
    """
    if default:
        return default
    if (running := running_model(offered, "")) is not None:
        return running
    if len(offered) == 1:
        return offered[0].name
    if not offered:
        message = "There are no models here. `autospec models` says where they are looked for."
        raise Refused(Problem(404, message, "model_not_found", "model"))
    names = ", ".join(o.name for o in offered)
    message = f"No model runs, and the request names none. Name one in `model`, or start the proxy with --model. The models here are: {names}."
    raise Refused(Problem(400, message, "model_required", "model"))
