"""Who may ask: the API key, and Host and Origin against web pages that reach for a local server. Pure.

A page that the user visits can make the browser send requests to 127.0.0.1. Two checks stop it:

* Origin: a browser names the page's origin in every cross-site request that may carry more than a plain GET does. Only
  local pages and installed apps pass, the same list as Ollama's (``OLLAMA_ORIGINS`` in envconfig/config.go), and what the
  settings add. A plain GET (an image, a script) has no Origin and says in Sec-Fetch-Site where it comes from.
* Host: after *DNS rebinding* a page's own name points to 127.0.0.1, so that its requests count as same-site and carry no
  foreign origin; the name stands in Host. Names pass only if they are this machine's own; an address cannot be rebound.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from urllib.parse import urlsplit

from autospec.errors import UsageError
from autospec.proxy.errors import ProxyProblem

__all__ = ["OPEN_PATHS", "Access", "check_bind", "is_loopback"]

# Pages and shells of installed programs: no web site can have such an origin.
_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file", "capacitor"})
# Load balancers and container health checks have no way to send a key, and learn nothing here.
OPEN_PATHS = frozenset({"/health", "/v1/health"})
# What Sec-Fetch-Site says of another site's page; a link that a person followed is one as well, and starts servers no more.
_FROM_ELSEWHERE = frozenset({"cross-site", "same-site"})
# The same few names stand in every request; taking one apart costs 0.1 ms.
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one proxy.

    Attributes:
        api_key: What clients must send; empty for none.
        hosts: Further names that Host may hold.
        origins: Further origins, as a browser writes them (``https://chat.example.org``).
        machine: This machine's own names; asked for where they are not given.
    """

    api_key: str = ""
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    machine: frozenset[str] | None = None

    def refuse(self, headers: Mapping[str, str], path: str, method: str) -> ProxyProblem | None:
        """The problem with a request, or ``None`` if it may pass.

        Args:
            headers: Case-insensitive.
            path: Without the query.
            method: In capitals.
        """
        host = headers.get("Host")
        if host is not None and not self._known_host(host):  # HTTP/1.0 has none, and no browser speaks it
            return ProxyProblem(
                403,
                f"The name in the Host header, {host[:100]!r}, is not this machine's. "
                "Use 127.0.0.1 or localhost, or add the name to the setting proxy_hosts.",
                "host_not_allowed",
            )
        origin = headers.get("Origin")
        if origin is not None and not self.allows_origin(origin):
            return ProxyProblem(
                403,
                f"Pages of the origin {origin[:100]!r} may not use this proxy. "
                "Add it to the setting proxy_origins if it should.",
                "origin_not_allowed",
            )
        if origin is None and headers.get("Sec-Fetch-Site") in _FROM_ELSEWHERE:
            return ProxyProblem(403, "Pages of other sites may not use this proxy.", "origin_not_allowed")
        # A preflight carries no key, by the standard; it tells nothing and does nothing.
        preflight = method == "OPTIONS" and "Access-Control-Request-Method" in headers
        is_open = preflight or (path in OPEN_PATHS and method in ("GET", "HEAD"))
        if self.api_key and not is_open and not self._has_key(headers):
            return ProxyProblem(
                401,
                "A valid API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key`.",
                "invalid_api_key",
            )
        return None

    def allows_origin(self, origin: str) -> bool:
        """True if pages of this origin may ask."""
        if origin in self.origins:
            return True
        parts = _split(origin)
        if parts is None:
            return False
        scheme, host = parts
        return scheme in _APP_SCHEMES or (scheme in ("http", "https") and _is_local_name(host))

    def _known_host(self, host: str) -> bool:
        parts = _split(f"http://{host}")
        if parts is None:
            return False
        name = parts[1]
        return (
            _is_local_name(name)
            or _is_address(name)
            or name in self.hosts
            or name in (_own_names() if self.machine is None else self.machine)
        )

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        sent = (token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        wanted = self.api_key.encode()
        # Both are compared in any case, in a time that does not depend on what was sent.
        matches = [hmac.compare_digest(s.encode(errors="surrogateescape"), wanted) for s in sent]
        return any(matches)


def check_bind(host: str, api_key: str) -> None:
    """Refuse an address that others reach without a key.

    Raises:
        UsageError: The address is not the loopback and there is no key.
    """
    if not api_key and not is_loopback(host):
        raise UsageError(
            f"On {host} others on the network could use your models.",
            "Set a key (AUTOSPEC_PROXY_API_KEY or proxy_api_key in the config), or leave --host out.",
        )


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@lru_cache(_REMEMBERED)
def _split(url: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            return "file", ""
        _ = parts.port  # raises where it is none
        name = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    # Whatever else a Host or an Origin could hide (a path, a user) is no name.
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    return (parts.scheme, name) if name and not rest else None


@lru_cache(_REMEMBERED)
def _is_local_name(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: always the loopback
        return True
    return _is_address(name) and is_loopback(name)


@lru_cache(_REMEMBERED)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@cache
def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower().rstrip(".")
    return frozenset({name, f"{name}.local", name.partition(".")[0]}) if name else frozenset()
