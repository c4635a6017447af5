"""Nothing personal stays in a report, and what is not personal does.

The captured lines are made up after public reports of their kind; every name in them is invented.
"""

from __future__ import annotations

import pytest

from tests.lab.redaction import Identity, here, names_of_host, names_of_person, redact

ANNA = Identity(
    folders=(
        ("/Users/anna.berg/src/autospec", "<clone>"),
        ("/Users/anna.berg/.cache/autospec-check-x1", "<check>"),
        ("/Users/anna.berg", "~"),
    ),
    people=names_of_person("anna.berg", "Anna Berg,,,"),
    hosts=names_of_host(["Annas-MacBook-Pro.local", "Anna's MacBook Pro"]),
)
BO = Identity(
    folders=(("/home/bo", "~"),),
    people=names_of_person("bo", "Bo"),
    hosts=names_of_host(["ws7.lab.example.org"]),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A longer folder comes before the home folder that it is in.
        ("/Users/anna.berg/src/autospec/tests", "<clone>/tests"),
        ("/Users/anna.berg/models/x.gguf", "~/models/x.gguf"),
        ("file:///Users/anna.berg/models", "file://~/models"),
        ("/Users/anna.berg/.cache/autospec-check-x1/home/config.toml", "<check>/home/config.toml"),
        # Neither is this the home folder, nor may its name stay.
        ("/Users/anna.berg-old/x", "/Users/<user>-old/x"),
        ("/Users/carl/x and /home/carl/y", "/Users/<user>/x and /home/<user>/y"),
        ("/Users/Shared/models", "/Users/Shared/models"),
        ("/Volumes/Annas SSD/models/x.gguf: denied", "/Volumes/<disk>/models/x.gguf: denied"),
        ("/var/folders/zz/zyxvpxvq6csfx/T/a", "/var/folders/<folder>/T/a"),
        ("/private/var/folders/zz/zyxvpxvq6csfx/T/a", "/private/var/folders/<folder>/T/a"),
        # As ls -l, scutil, a prompt and a log write them.
        ("-rw-r--r--  1 anna.berg  staff  7 x", "-rw-r--r--  1 <user>  staff  7 x"),
        ("ComputerName: Anna's MacBook Pro", "ComputerName: <host>"),
        ("ComputerName: Anna\u2019s MacBook Pro", "ComputerName: <host>"),
        ("Nov 29 Annas-MacBook-Pro com.autospec.daemon[4711]", "Nov 29 <host> com.autospec.daemon[4711]"),
        ("annas-macbook-pro.local is up", "<host> is up"),
        ("Author: Anna Berg, ANNA", "Author: <user>, <user>"),
        ("anna_models", "<user>_models"),
        ("mail anna@example.org", "mail <e-mail>"),
        # Parts of words stay.
        ("iceberg, annals", "iceberg, annals"),
    ],
)
def test_names_and_folders(text, expected):
    """Of a user of a Mac."""
    assert redact(text, ANNA) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bo runs it, BO does not; about", "<user> runs it, BO does not; about"),
        ("/media/bo/Disk of Bo/x.gguf", "/media/<user>/<disk>/x.gguf"),
        ("/mnt/fast ssd/x.gguf", "/mnt/<disk>/x.gguf"),
        ("WS7: ws7.lab.example.org", "WS7: <host>"),
        ("/run/user/1000/bus", "/run/user/1000/bus"),
    ],
)
def test_short_names(text, expected):
    """Only as they are written."""
    assert redact(text, BO) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"IOPlatformSerialNumber" = "C02ABCDEFGH1"', '"IOPlatformSerialNumber" = "<serial>"'),
        ("Serial Number (system): FVFXK0AAQ05D", "Serial Number (system): <serial>"),
        ("GPU-5e2b3c8f-0c8a-4ad5-93bb-2f3d7f4f0a11", "GPU-<uuid>"),
        ("ether a4:83:e7:12:34:56", "ether <hardware address>"),
        ("connect to 192.168.1.5:8080 failed.", "connect to <address>:8080 failed."),
        ("from 10.0.0.7.", "from <address>."),
        ("fe80::1c2d:3e4f:5a6b:7c8d", "<address>"),
        ("2001:db8:0:0:0:0:0:1", "<address>"),
        ("Authorization: Bearer abcd1234efgh", "Authorization: Bearer <key>"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=<key>"),
        ("use sk-abcdefgh1234 for it", "use <key> for it"),
        ("\tOPENAI_API_KEY => abc", "\tOPENAI_API_KEY => <key>"),
        ('{"AUTOSPEC_PROXY_API_KEY": "abc"}', '{"AUTOSPEC_PROXY_API_KEY": <key>}'),
        (
            " sleep                1 (sleep prevented by Music, caffeinate)",
            " sleep                1 (sleep prevented by <programs>)",
        ),
    ],
)
def test_numbers_and_keys(text, expected):
    """What stands for one machine, or opens something."""
    assert redact(text, Identity()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8686/v1, 0.0.0.0, ::1, localhost",
        "12:34:56 prediction 0:01:02",
        "llama-server b11434, xllamacpp 2026.10.11549, driver 570.133.20, macOS 15.5",
        "std::runtime_error: ggml_metal_device_init",
        "recommendedMaxWorkingSetSize = 22906.50 MB",
        '"max_tokens": 96, "accepted_tokens": 256, "key": "value"',
        "gpu-core-count = 38, Apple M2 Max, id apple-m2-max-32g-38c",
        "SmolLM2-Slow-90L.F32.gguf sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ],
)
def test_what_is_needed_stays(text):
    """Versions, times, chips, models, addresses of this machine itself."""
    assert redact(text, Identity(people=("root", "user"), hosts=("localhost",))) == text


def test_an_account_that_says_nothing_stays():
    """`root` is in many texts, and nobody's name."""
    root = Identity((("/root", "~"),), names_of_person("root", "root"), names_of_host(["mac"]))
    assert redact("root owns /root/x and /var/root, mac", root) == "root owns ~/x and /var/root, mac"


@pytest.mark.process  # a Mac asks scutil
def test_this_machine(tmp_path):
    """The names that the system has for it; a folder is replaced however it is spelled."""
    link = tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    identity = here([(link, "<check>")])
    assert redact(f"{link}/a {tmp_path}/real/b", identity) == "<check>/a <check>/b"
    assert identity.hosts
    assert identity.people
