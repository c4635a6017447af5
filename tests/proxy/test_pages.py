"""`autospec.proxy.access`: pages, containers, and what a browser may read of an answer."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict
from yarl import URL

from autospec.proxy.access import Access, allow_page, refuse_slot_files


def passes(**headers: str) -> bool:
    """True if a GET with these headers may pass on a machine without names, with one more host in the settings."""
    access = Access(machine=frozenset(), hosts=frozenset({"chat.example.org"}))
    return (
        access.refuse({name.replace("_", "-"): value for name, value in headers.items()}, "/x", "GET") is None
    )


@pytest.mark.parametrize(
    ("host", "origin", "fine"),
    [
        ("192.168.1.5:8686", "http://192.168.1.5:8686", True),
        ("chat.example.org", "https://chat.example.org", True),
        ("CHAT.example.org", "https://chat.example.org", True),
        ("[fd00::1]:8686", "http://[fd00::1]:8686", True),
        ("192.168.1.5:8686", "http://192.168.1.5:3000", False),
        ("192.168.1.5:8686", "http://192.168.1.50:8686", False),
        ("chat.example.org", "https://evil.example.org", False),
        ("chat.example.org", "null", False),
        ("chat.example.org", "ftp://chat.example.org", False),
        ("evil.example.com", "http://evil.example.com", False),  # its name points here by DNS rebinding
    ],
)
def test_a_page_from_the_proxys_own_address_passes(host, origin, fine):
    """A page that came from Host may ask Host, once that name has passed (Proxy review 24)."""
    assert passes(Host=host, Origin=origin) is fine


@pytest.mark.parametrize(
    ("host", "site", "fine"),
    [
        ("localhost:8686", "same-site", True),
        ("127.0.0.1:8686", "same-site", True),
        ("192.168.1.5:8686", "same-site", False),
        ("chat.example.org", "same-site", False),  # also pages of other users of that domain
        ("localhost:8686", "cross-site", False),
    ],
)
def test_a_link_on_a_local_page_passes(host, site, fine):
    """A link on http://localhost:3000 to the proxy has no Origin, and its fetch passes, too (Proxy review 24)."""
    assert passes(Host=host, Sec_Fetch_Site=site) is fine


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("host.docker.internal", True),
        ("host.containers.internal", True),
        ("HOST.docker.internal", True),
        ("host.docker.internal.example.com", False),
        ("xhost.docker.internal", False),
        ("evil.internal", False),
    ],
)
def test_containers_reach_the_proxy_by_their_name_for_this_machine(name, fine):
    """Docker's and Podman's names pass (issue 17, item 4), and pages that came from there."""
    assert passes(Host=f"{name}:8686") is fine
    assert passes(Host=f"{name}:8686", Origin=f"http://{name}:8686") is fine


def test_what_a_page_may_read_is_said_once():
    """A backend's own origin stays, Vary gets longer, and the proxy's headers are named (Proxy review 23)."""
    answered = CIMultiDict([("Access-Control-Allow-Origin", "*"), ("Vary", "Accept"), ("Vary", "X, Y")])
    for _ in range(2):
        allow_page({"Origin": "http://localhost"}, answered, exposed=("x-autospec-drafting", "x-two"))
    assert list(answered.items()) == [
        ("Access-Control-Allow-Origin", "*"),
        ("Vary", "Accept"),
        ("Vary", "X, Y"),
        ("Vary", "Origin"),
        ("Access-Control-Expose-Headers", "x-autospec-drafting, x-two"),
    ]
    untouched: CIMultiDict[str] = CIMultiDict()
    allow_page({}, untouched, exposed=("x",))
    assert not untouched


@pytest.mark.parametrize(
    ("target", "fine"),
    [
        ("/slots/0?action=erase", True),
        ("/slots/0?action=erase&model=main", True),
        ("/v1/chat/completions", True),
        ("/slots/0?action=save", False),
        ("/slots/0?action=restore", False),
        ("/prefix/slots/0?action=save", False),
        ("/%73lots/0?action=save", False),
        ("/slots%2F0?action=save", False),
        ("/%u0073lots/0?action=save", False),
        ("/slots/0?action=%73ave", False),
        ("/slots/0?action=erase&action=save", False),
        ("/slots/0?action=save&action=erase", False),
        ("/slots/0?%u0061ction=save&action=erase", False),
        ("/slots/0", False),  # a form in the body may name the action
    ],
)
def test_no_client_makes_a_server_write_a_file(target, fine):
    """Builds of 2025 write to the folder that they are started with, whoever asks (Proxy review 4)."""
    url = URL(target, encoded=True)
    problem = refuse_slot_files(url.path, target, url.query)
    assert (problem is None) is fine
    assert problem is None or problem.status == 403
