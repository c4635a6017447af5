"""The list of all settings: names, kinds, defaults, and a sentence for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["KEYS", "PREFIX", "Key"]

PREFIX: Final = "AUTOSPEC_"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting.

    Attributes:
        name: Its name in the file; upper-cased with ``AUTOSPEC_`` before it in the environment.
        kind: ``text``, ``name`` (a name or a path), ``file``, ``path``, ``paths``, ``words``, ``command``, ``duration``, ``number``,
            ``count``, ``flag``, ``hours`` or ``trust``.
        default: What holds when nobody sets it; ``None`` where `load_settings` works it out.
        doc: One sentence for the template and for `config show`.
        in_file: False for the two keys that say where the file is.
    """

    name: str
    kind: str
    default: object
    doc: str
    in_file: bool = True

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()


KEYS: Final = (
    Key("home", "path", None, "One folder for config, state, cache and logs.", in_file=False),
    Key("config_file", "path", None, "The config file.", in_file=False),
    Key("state_dir", "path", None, "Where recommendations and studies are kept."),
    Key("cache_dir", "path", None, "What can be made again: model metadata, recorded texts."),
    Key("log_dir", "path", None, "Server logs and crash reports."),
    Key("model_dirs", "paths", (), "Further folders to look for models in, besides the known caches."),
    Key("storage", "text", None, "SQLAlchemy URL of the database."),
    Key("backend", "text", "", "The kind of server; empty chooses what is installed."),
    Key("llama_server", "name", "", "The llama-server to run; empty takes the one on PATH."),
    Key("server_args", "words", (), "Your own launch settings, given to every server."),
    Key("study", "name", "default", "Study definition: quick, default, thorough, or a TOML file."),
    Key("suite", "file", "", "Prompt suite (JSONL); empty takes the shipped one."),
    Key("budget", "duration", "", "How long a tune may take, e.g. 20m; empty leaves it to the study."),
    Key("temperature", "number", 0.0, "Sampling temperature of measured requests; 0 is greedy."),
    Key(
        "context_tokens",
        "count",
        4096,
        "Context length of measured servers where your own settings name none; memory estimates count with it.",
    ),
    Key("forget_answers", "flag", False, "Forget the recorded answers (token ids) when a tune ends."),
    Key(
        "proxy_host",
        "text",
        "127.0.0.1",
        "Where the proxy listens; another address than loopback needs a key.",
    ),
    Key("proxy_port", "count", 8686, "The proxy's port."),
    Key("proxy_api_key", "text", "", "What clients of the proxy must send; empty for none."),
    Key("proxy_hosts", "words", (), "Further names under which the proxy may be reached."),
    Key("proxy_origins", "words", (), "Web pages that may use the proxy, e.g. https://chat.example.org."),
    Key("request_limit_mib", "number", 64.0, "Largest request that the proxy takes."),
    Key("idle_unload", "duration", "15m", "The proxy stops servers unused for this long; empty never does."),
    Key("memory_limit", "number", 0.0, "GiB that the proxy's servers may take; 0 is 75 % of the memory."),
    Key("queue_limit", "count", 256, "Requests that may wait for a server of the proxy."),
    Key("queue_deadline", "duration", "5m", "How long a request may wait for a server; loading counts."),
    Key(
        "serve_statuses",
        "words",
        ("proven", "stale"),
        "Recommendations that the proxy acts on: proven, stale, provisional, imported; others are off.",
    ),
    Key(
        "trust",
        "trust",
        "proven",
        "What the proxy drafts with: proven, or likely, which is also what is likely while its proof is not finished.",
    ),
    Key(
        "on_change",
        "command",
        (),
        "A command that the daemon gives each change of a recommendation, as JSON on stdin.",
    ),
    Key(
        "daemon_idle",
        "duration",
        "5m",
        "How long nobody must have asked or typed before the daemon measures.",
    ),
    Key("daemon_hours", "hours", "", "When the daemon may measure, e.g. 22:00-07:00; empty is any time."),
    Key("daemon_budget", "duration", "2h", "How long the daemon may measure a day."),
    Key("daemon_step", "duration", "10m", "How long one step of the daemon may take: one cell at a time."),
    Key("attached_url", "text", "", "Address of a server that somebody else runs, for the backend attached."),
    Key("attached_remote", "flag", False, "Allow an attached server that is not on this machine."),
    Key(
        "study_storage",
        "text",
        "",
        "Optuna's gRPC proxy for the studies, e.g. grpc://hub:13000, where `storage` is a PostgreSQL; empty keeps them in `storage`.",
    ),
)
