"""Who may ask the proxy: names in Host, origins of pages, addresses to listen on, the key."""

from __future__ import annotations

import pytest

from autospec.errors import UsageError
from autospec.proxy import access
from autospec.proxy.access import Access, check_bind


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8686", True),
        ("127.0.0.1", True),
        ("[::1]:8686", True),
        ("a.localhost", True),
        ("192.168.1.7:8686", True),
        ("box", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.nip.io", False),
        ("localhost@evil.example", False),
        ("", False),
        ("a b", False),
    ],
)
def test_names_in_host(host, allowed):
    """An address cannot be rebound; a name must be this machine's."""
    access = Access(machine=frozenset({"box"}))
    assert (access.refuse({"Host": host}, "/", "GET") is None) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://0.0.0.0:8080", True),  # Open WebUI's log names its page so
        ("http://[::]:8080", True),
        ("http://0.0.0.1", False),
        ("vscode-webview://abc", True),
        ("file://", True),
        ("https://chat.example.org", True),
        ("http://chat.example.org", False),
        ("https://evil.example", False),
        ("http://192.168.1.7", False),
        ("null", False),
    ],
)
def test_origins(origin, allowed):
    """Local pages and installed apps, and those that the settings name."""
    assert Access(origins=frozenset({"https://chat.example.org"})).allows_origin(origin) is allowed


@pytest.mark.parametrize(
    ("host", "key", "fine"),
    [
        ("127.0.0.1", "", True),
        ("localhost", "", True),
        ("::1", "", True),
        ("0.0.0.0", "k", True),
        ("0.0.0.0", "", False),
        ("::", "", False),
        ("192.168.1.7", "", False),
    ],
)
def test_other_addresses_need_a_key(host, key, fine):
    """Loopback is nobody else's."""
    if fine:
        check_bind(host, key)
    else:
        with pytest.raises(UsageError):
            check_bind(host, key)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/chat/completions", {}, 401),
        # A preflight is an OPTIONS request; a header alone makes none.
        ("POST", "/v1/chat/completions", {"Access-Control-Request-Method": "POST"}, 401),
        ("OPTIONS", "/v1/chat/completions", {"Access-Control-Request-Method": "POST"}, None),
        ("GET", "/health", {}, None),
        ("POST", "/health", {}, 401),
        ("POST", "/v1/chat/completions", {"Authorization": "Bearer secret"}, None),
    ],
)
def test_what_passes_without_the_key(method, path, headers, status):
    """Looking for health and a browser's preflight, and nothing else."""
    access = Access(api_key="secret", machine=frozenset())
    problem = access.refuse({"Host": "127.0.0.1", **headers}, path, method)
    assert (problem.status if problem else None) == status


@pytest.mark.parametrize(("site", "passes"), [("cross-site", False), ("same-origin", True), ("none", True)])
def test_a_page_elsewhere_cannot_use_a_plain_get(site, passes):
    """An image or a script carries no Origin; the browser says where it comes from."""
    problem = Access(machine=frozenset()).refuse({"Host": "127.0.0.1", "Sec-Fetch-Site": site}, "/x", "GET")
    assert (problem is None) is passes


def test_the_short_name_is_published_also_where_the_host_has_a_domain(monkeypatch):
    """Multicast DNS has server.local for server.example.com."""
    monkeypatch.setattr(access.socket, "gethostname", lambda: "server.example.com")
    access._own_names.cache_clear()
    names = access._own_names()
    access._own_names.cache_clear()
    assert names >= {"server.example.com", "server", "server.local"}
