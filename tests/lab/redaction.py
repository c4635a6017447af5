"""Takes personal data out of a text: names of people, machines and disks, addresses, identifiers, keys. Pure but for `here`."""

from __future__ import annotations

import ipaddress
import os
import platform
import pwd
import re
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Identity", "here", "names_of_host", "names_of_person", "redact"]

# Names of accounts and machines that say nothing about a person.
_COMMON = frozenset({"admin", "debian", "linux", "localhost", "mac", "root", "runner", "ubuntu", "user"})
# Shorter ones would be found in every text; in paths they are replaced all the same.
_SHORTEST = 2
# Up to this length a name is replaced only as it is written: `ms` is a user, `MS` is none.
_EXACT = 3

_APOSTROPHE = "['\u2019]"
_UUID = re.compile(r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_HARDWARE_ADDRESS = re.compile(r"\b[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}\b")
_ADDRESSES = (
    re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"),
    re.compile(r"(?<![\w.:])[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}(?![\w:])"),
)
_KEY = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[\w-]{8,}|(?i:(?<=bearer )[\w.~+/=-]{4,})")
# A variable of an environment, as shells, `env` and launchctl write it.
_SECRET = re.compile(r"\b([A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD)[A-Z0-9_]*\"?\s*(?:=>|=|:)\s*)[^\s,}]+")
# Of pmset: programs that somebody runs.
_AWAKE = re.compile(r"(sleep prevented by )[^)\n]+")
_SERIAL = re.compile(r"(?i)(serial(?:[ _-]?(?:number|no))?(?: \(\w+\))?\W{1,6})[A-Z0-9]{6,}")
# Folders whose next part is somebody's name, or a name that somebody chose.
_NAMED_FOLDERS = (
    (re.compile(r"(?<![>~])(/Users/|/home/)(?!<)(?!Shared\b)[^/\s:'\"]+"), r"\1<user>"),
    (re.compile(r"(/Volumes/|/media/<user>/|/media/|/run/media/<user>/|/mnt/)(?!<)[^/\n:'\"]+"), r"\1<disk>"),
    (re.compile(r"(/var/folders/)[^/\s]+/[^/\s]+"), r"\1<folder>"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and where this is.

    Attributes:
        folders: A path, and what stands for it. A longer path is replaced before a shorter one.
        people: Account and full names.
        hosts: Names of the machine.
    """

    folders: tuple[tuple[str, str], ...] = ()
    people: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def redact(text: str, identity: Identity) -> str:
    """Return the text without personal data; what stands for it says what it was."""
    for path, label in sorted(identity.folders, key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![\w.~-]){re.escape(path)}(?![\w-])", label, text)
    text = _EMAIL.sub("<e-mail>", text)
    text = _KEY.sub("<key>", text)
    text = _SECRET.sub(r"\1<key>", text)
    text = _AWAKE.sub(r"\1<programs>", text)
    text = _UUID.sub("<uuid>", text)
    text = _SERIAL.sub(r"\1<serial>", text)
    text = _HARDWARE_ADDRESS.sub("<hardware address>", text)
    for pattern in _ADDRESSES:
        text = pattern.sub(_without_address, text)
    text = _without_names(text, identity.hosts, "<host>")
    text = _without_names(text, identity.people, "<user>")
    for pattern, replacement in _NAMED_FOLDERS:
        text = pattern.sub(replacement, text)
    return text


def names_of_host(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a machine, and each without its domain."""
    found: dict[str, None] = {}
    for name in filter(None, (name.strip() for name in names)):
        found[name] = None
        if " " not in name:
            found[name.partition(".")[0]] = None
    return tuple(found)


def names_of_person(account: str, full_name: str) -> tuple[str, ...]:
    """The account, the full name (the first field of GECOS) and its parts."""
    full = full_name.partition(",")[0].strip()
    return tuple(dict.fromkeys(filter(None, (account, full, *full.split()))))


def here(folders: Iterable[tuple[Path, str]]) -> Identity:
    """The user and machine of this process; `folders` are replaced besides the home folder."""
    account = pwd.getpwuid(os.getuid())
    hosts = [socket.gethostname(), platform.node()]
    if sys.platform == "darwin":
        hosts += [
            _said("/usr/sbin/scutil", "--get", n) for n in ("ComputerName", "LocalHostName", "HostName")
        ]
    pairs: dict[str, str] = {}
    for path, label in (*folders, (Path.home(), "~"), (Path(account.pw_dir), "~")):
        # On a Mac, /var and /tmp are links into /private.
        for spelling in (str(path), os.path.realpath(path)):
            if spelling != "/":
                pairs.setdefault(spelling, label)
    people = names_of_person(account.pw_name, account.pw_gecos)
    return Identity(tuple(pairs.items()), people, names_of_host(hosts))


def _without_names(text: str, names: Iterable[str], label: str) -> str:
    wanted = {name for name in names if len(name) >= _SHORTEST and name.casefold() not in _COMMON}
    for name in sorted(wanted, key=len, reverse=True):
        flags = re.IGNORECASE if len(name) > _EXACT else re.NOFLAG
        # An apostrophe may be straight or curly: Anna's MacBook.
        pattern = re.sub(_APOSTROPHE, _APOSTROPHE, re.escape(name))
        text = re.sub(rf"(?<![^\W_]){pattern}(?![^\W_])", label, text, flags=flags)
    return text


def _without_address(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:  # a time, a version
        return match[0]
    return match[0] if address.is_loopback or address.is_unspecified else "<address>"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
