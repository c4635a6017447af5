"""The embedded server's process: ``python -m autospec.backends.llama_cpp.embedded_child '{"n_ctx": 4096, …}'``.

It is a process of its own because xllamacpp can stop a server only by dropping it, and because an assertion in
llama.cpp ends the whole process. With ``--probe`` it prints what the installed wheel offers and loads no model.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Serve until killed, or answer ``--probe``; returns the exit status. Fields are those of `embedded.user_fields`."""
    import xllamacpp  # noqa: PLC0415 - this process exists so that this import may fail without harm

    if argv == ["--probe"]:
        print(  # noqa: T201 - the answer
            json.dumps(
                {
                    "version": xllamacpp.__version__,
                    "library": xllamacpp.xllamacpp.__file__,
                    "types": [member.name for member in xllamacpp.common_speculative_type],
                    "devices": _devices(xllamacpp),
                }
            )
        )
        return 0
    params = xllamacpp.CommonParams()
    for path, value in json.loads(argv[0]).items():
        try:
            _set(params, path, _decoded(xllamacpp, value))
        except (AttributeError, TypeError, ValueError, OverflowError, KeyError) as error:
            print(f"embedded: {path} cannot be set to {value!r}: {error}", file=sys.stderr)  # noqa: T201 - the log
            return 2
    try:
        server = xllamacpp.Server(params)  # returns when it is ready
    except RuntimeError as error:
        # llama.cpp has printed the reason above.
        print(error, file=sys.stderr)  # noqa: T201 - the log
        return 1
    print(f"serving on {server.listening_address}", file=sys.stderr, flush=True)  # noqa: T201 - the log
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        signal.pause()


def _devices(xllamacpp: Any) -> list[dict[str, Any]]:
    """The wheel's devices; empty for wheels that do not list them."""
    ask = getattr(xllamacpp, "get_device_info", None)
    return [
        {
            "name": d["name"],
            "description": d["description"],
            "total": d["memory_total"],
            "free": d["memory_free"],
            "type": d["type"].name,
        }
        for d in (ask() if ask is not None else ())
    ]


def _decoded(xllamacpp: Any, value: Any) -> Any:
    """The value with enum members and xllamacpp's objects in place of their names."""
    if isinstance(value, list):
        return [_decoded(xllamacpp, item) for item in value]
    if isinstance(value, dict) and set(value) == {"enum", "name"}:
        return getattr(xllamacpp, value["enum"])[value["name"]]
    if isinstance(value, dict) and "object" in value:
        made = getattr(xllamacpp, value["object"])()
        for name, part in value.items():
            if name != "object":
                setattr(made, name, part)
        return made
    return value


def _set(params: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    target = params
    for parent in parents:
        target = getattr(target, parent)
    current = getattr(target, name)
    if isinstance(current, set):
        value = set(value)
    elif isinstance(current, str) and isinstance(value, list):
        value = value[0]  # older wheels have one alias
    setattr(target, name, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
