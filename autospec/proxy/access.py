"""Access control: the API key, and checks of Host and Origin against web pages that attack a local server. Pure.

A page in the user's browser can send requests to 127.0.0.1. Two checks stop it:

* Origin: browsers send the page's origin with every cross-site request beyond a plain GET. Local pages and installed apps
  pass, the same list as Ollama's (``OLLAMA_ORIGINS`` in envconfig/config.go), the origins in the settings, and pages that came
  from the proxy's own address. A plain GET (an image, a script) has no Origin, but Sec-Fetch-Site.
* Host: with *DNS rebinding* the page's own name points to 127.0.0.1, so its requests count as same-site. That name is in
  Host. Only names of this machine pass; an IP address cannot be rebound, and nobody can register a name in ``.internal``.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from urllib.parse import urlsplit

from multidict import CIMultiDict

from autospec.errors import UsageError
from autospec.proxy.dashboard import PAGE_PATHS
from autospec.proxy.errors import ProxyProblem

__all__ = ["OPEN_PATHS", "Access", "allow_page", "check_bind", "refuse_action", "refuse_slot_files"]

# Origins of installed programs; a web site cannot have them.
_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file", "capacitor"})
# Load balancers and health checks cannot send a key; these paths reveal nothing.
OPEN_PATHS = frozenset({"/health", "/v1/health"})
_WITHOUT_KEY = OPEN_PATHS | PAGE_PATHS
# Values of Sec-Fetch-Site for pages of other sites; they include links that a person followed.
_FROM_ELSEWHERE = frozenset({"cross-site", "same-site"})
# The names that containers have for this machine: host.docker.internal, host.containers.internal (Podman), Lima's, OrbStack's.
_HOST_OF_CONTAINERS = re.compile(r"host\.[a-z0-9-]+\.internal")
# Most requests have the same few names; parsing one costs 0.1 ms.
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the proxy."""

    api_key: str = ""  # that clients must send; empty for none
    hosts: frozenset[str] = frozenset()  # additional names for Host
    origins: frozenset[str] = frozenset()  # additional origins, e.g. https://chat.example.org
    machine: frozenset[str] | None = None  # this machine's names; None asks the system

    def refuse(self, headers: Mapping[str, str], path: str, method: str) -> ProxyProblem | None:
        """Why a request is refused; ``None`` if it may pass. `path` has no query, `method` is in capitals."""
        host = headers.get("Host")
        if host is not None and not self._known_host(host):  # HTTP/1.0 has none, and no browser uses it
            return ProxyProblem(
                403,
                f"The Host header {host[:100]!r} does not name this machine. "
                "Use 127.0.0.1 or localhost, or add the name to the setting proxy_hosts.",
                "host_not_allowed",
            )
        origin = headers.get("Origin")
        if origin is not None and not (self.allows_origin(origin) or _is_same_origin(origin, host)):
            return ProxyProblem(
                403,
                f"Pages of the origin {origin[:100]!r} may not use this proxy. "
                "To allow them, add the origin to the setting proxy_origins.",
                "origin_not_allowed",
            )
        if origin is None and _is_from_elsewhere(headers.get("Sec-Fetch-Site"), host):
            return ProxyProblem(403, "Pages of other sites may not use this proxy.", "origin_not_allowed")
        # By the standard a preflight has no key; it reveals nothing and does nothing.
        preflight = method == "OPTIONS" and "Access-Control-Request-Method" in headers
        is_open = preflight or (path in _WITHOUT_KEY and method in ("GET", "HEAD"))
        if self.api_key and not is_open and not self._has_key(headers):
            return ProxyProblem(
                401,
                "A valid API key is required: send `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                "invalid_api_key",
            )
        return None

    def allows_origin(self, origin: str) -> bool:
        """True if pages of this origin may use the proxy."""
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
            or _HOST_OF_CONTAINERS.fullmatch(name) is not None
            or name in self.hosts
            or name in (_own_names() if self.machine is None else self.machine)
        )

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        sent = (token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
        wanted = self.api_key.encode()
        # Always compare both, in constant time.
        matches = [hmac.compare_digest(s.encode(errors="surrogateescape"), wanted) for s in sent]
        return any(matches)


def refuse_action(access: Access, headers: Mapping[str, str]) -> ProxyProblem | None:
    """Why a POST to one of the proxy's own actions is refused, after `Access.refuse`; ``None`` if it may pass.

    The API is open to every page of this machine. An action is for the proxy's own page, for origins that the settings name,
    and for programs that are no browser. Each of two checks alone stops another page: a browser says where a request comes from
    (Origin; Sec-Fetch-Site in all browsers since 2023), and a form cannot send JSON.
    """
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        message = "Send the body as JSON, with the header Content-Type: application/json."
        return ProxyProblem(415, message, "unsupported_media_type")
    origin = headers.get("Origin")
    named = origin is not None and (origin in access.origins or _is_same_origin(origin, headers.get("Host")))
    elsewhere = headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if named or (origin is None and not elsewhere):
        return None
    message = "Only the proxy's own page, or one whose origin is in the setting proxy_origins, may do this."
    return ProxyProblem(403, message, "origin_not_allowed")


def allow_page(
    asked: Mapping[str, str], answered: CIMultiDict[str], *, exposed: tuple[str, ...] = ()
) -> None:
    """Let a page read an answer (CORS), after `Access.refuse` has let its request pass.

    Args:
        asked: The headers of the request; without an Origin nothing changes.
        answered: The headers of the answer. A backend's own choice of origins stays.
        exposed: The names of further headers that the page may read.
    """
    origin = asked.get("Origin")
    if origin is None:
        return
    answered.setdefault("Access-Control-Allow-Origin", origin)
    _add_names(answered, "Vary", ("Origin",))
    _add_names(answered, "Access-Control-Expose-Headers", exposed)


def _add_names(headers: CIMultiDict[str], header: str, names: tuple[str, ...]) -> None:
    """Add names to a header that lists names, perhaps on several lines."""
    listed = {word.strip().lower() for line in headers.getall(header, []) for word in line.split(",")}
    missing = [name for name in names if name.lower() not in listed]
    if missing and "*" not in listed:
        headers.add(header, ", ".join(missing))


# cpp-httplib, the HTTP server of llama.cpp, also decodes this form, in paths and in names and values of the query.
_PERCENT_U = re.compile(r"%u[0-9a-f]{4}", re.IGNORECASE)


def refuse_slot_files(path: str, raw_path: str, query: Mapping[str, str]) -> ProxyProblem | None:
    """Why a POST is refused that makes llama-server write or read a file; ``None`` if it may pass.

    ``/slots/N?action=save`` writes to the folder of ``--slot-save-path``. Only ``action=erase`` passes, and only with a query
    that every parser reads in the same way.

    Args:
        path: Decoded, without the query.
        raw_path: As the client wrote it, with the query.
        query: Decoded.
    """
    is_slot = "/slots/" in path or _PERCENT_U.search(raw_path.partition("?")[0]) is not None
    if not is_slot or (
        query.get("action") == "erase" and set(query) <= {"action", "model"} and len(query) == len(set(query))
    ):
        return None
    return ProxyProblem(
        403,
        "The proxy only passes POST /slots/N?action=erase, because the other actions read and write files.",
        "not_allowed",
    )


def check_bind(host: str, api_key: str) -> None:
    """Refuse an address that other machines can reach without a key.

    Raises:
        UsageError: The address is not a loopback address, and there is no key.
    """
    if not api_key and not _is_loopback(host):
        raise UsageError(
            f"The proxy does not start: without a key, everyone on the network could use your models at {host}.",
            "Set a key (AUTOSPEC_PROXY_API_KEY, or proxy_api_key in the config), or serve this machine alone (--host 127.0.0.1).",
        )


def _is_same_origin(origin: str, host: str | None) -> bool:
    """True if the page came from the address that it asks now, whose name has passed `Access.refuse`."""
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and authority.lower() == (host or "").lower()


def _is_from_elsewhere(site: str | None, host: str | None) -> bool:
    """True for a plain GET of another site's page. With a loopback name, "same site" means another page of this machine."""
    if site == "same-site":
        parts = _split(f"http://{host}")
        return parts is None or not _is_local_name(parts[1])
    return site in _FROM_ELSEWHERE


def _is_loopback(host: str) -> bool:
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
        _ = parts.port  # raises if it is invalid
        name = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    # A Host or an Origin has no path, query or user.
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    return (parts.scheme, name) if name and not rest else None


@lru_cache(_REMEMBERED)
def _is_local_name(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: always the loopback
        return True
    # Also 0.0.0.0, which servers print as their address, and a browser opens as this machine.
    return _is_address(name) and (_is_loopback(name) or ipaddress.ip_address(name).is_unspecified)


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
    short = name.partition(".")[0]
    # Multicast DNS publishes the short name, also where the host's name has a domain.
    return frozenset({name, f"{name}.local", short, f"{short}.local"}) if name else frozenset()
