"""Why a launch failed, from how the process ended and what it printed. Pure; the tests use real logs."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autospec.backends.process import Ended
from autospec.errors import LaunchError

__all__ = [
    "MISSING_LIBRARY",
    "QUARANTINE_HINT",
    "REINSTALL_HINT",
    "Failure",
    "classify",
    "projector_refused",
    "speculation_refused",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a launch failed.

    Attributes:
        kind: ``port``, ``memory``, ``flag``, ``draft``, ``vocabulary``, ``mtp``, ``model``, ``killed``,
            ``crash``, ``timeout`` or ``other``.
        message: What went wrong, one sentence.
        hint: What to do next.
        permanent: True if the same launch would fail again. Not true for memory: other programs, and the second
            server of a comparison, may end.
    """

    kind: str
    message: str
    hint: str
    permanent: bool

    def error(self, log_tail: Sequence[str]) -> LaunchError:
        """The error to raise, with the log's last lines."""
        return LaunchError(self.message, self.hint, log_tail=tuple(log_tail), permanent=self.permanent)


def _rule(
    kind: str, pattern: str, message: str, hint: str, *, permanent: bool = True
) -> tuple[re.Pattern[str], Failure]:
    return re.compile(pattern, re.IGNORECASE), Failure(kind, message, hint, permanent)


# macOS's and Linux's words for a program whose libraries are gone or of another version, e.g. after half an upgrade, or for a
# newer system.
MISSING_LIBRARY = re.compile(
    r"(?:dyld(?:\[\d+\])?: (?:Library not loaded|Symbol not found): \(?|error while loading shared libraries: "
    r"|symbol lookup error: .*?undefined symbol: |: version [`'](?=[\w.]+' not found))"
    r"(?P<what>[^\s:'()]+)"
)
REINSTALL_HINT = "Install llama-server again, with Homebrew: brew reinstall ggml llama.cpp. Or set llama_server in the config."
# macOS kills a downloaded program that it has not checked, without a word.
QUARANTINE_HINT = "If it was downloaded, macOS may have it in quarantine: xattr -d com.apple.quarantine"

# The order matters: an earlier rule names the cause of a later one (llama.cpp also reports a draft that did not fit in
# memory as a draft that could not be loaded). The texts are those of b4372, May 2025, b9093 and b11434.
_RULES = (
    _rule(
        "other",
        MISSING_LIBRARY.pattern,
        "The server cannot find {what}: its installation is incomplete.",
        REINSTALL_HINT,
        # No drafting is to blame, and after an installation the same launch works.
        permanent=False,
    ),
    _rule(
        "other",
        r"no backends are loaded",
        "The server finds no library of kernels (ggml) to compute with: its installation is incomplete.",
        REINSTALL_HINT,
        permanent=False,
    ),
    _rule(
        "port",
        r"couldn't bind HTTP server socket.*?port: (?P<what>\d+)",
        "Port {what} was taken by another program.",
        "Try again.",
        permanent=False,
    ),
    _rule(
        "other",
        r"no kernel image is available|invalid device function|PTX was compiled with an unsupported toolchain",
        "This build of the server has no kernels for this GPU.",
        "Install a build for this GPU, or leave the GPU out (--device none).",
        permanent=False,  # no drafting is to blame
    ),
    _rule(
        "flag",
        r"error: (?:invalid argument: |unknown argument: )(?P<what>\S+)",
        "The server does not know {what}.",
        "Remove it from the server arguments.",
    ),
    _rule(
        "flag",
        r"error while handling argument \"(?P<what>[^\"]+)\": (?P<why>.*)",
        "The server refuses the value of {what} ({why}).",
        "llama-server --help lists the values.",
    ),
    _rule(
        "flag",
        r"(?P<what>embedded: .+)",
        "{what}",
        "Correct the server arguments, or install llama-server, which accepts them all.",
    ),
    _rule(
        "memory",
        r"out of memory|insufficient memory|failed to allocate|unable to allocate|bad_alloc|OutOf(?:Device|Host)?Memory"
        r"|cannot allocate memory|MemoryError",
        "There was not enough memory for the models and their caches.",
        "Close other programs, or lower the context (-c) or the layers on the GPU (-ngl).",
        permanent=False,
    ),
    _rule(
        "mtp",
        r"doesn't contain MTP layers|failed to create MTP context",
        "The main model has no MTP layers to draft with.",
        "Do not use the mode mtp with this model.",
    ),
    _rule(
        "vocabulary",
        r"draft model '(?P<what>[^']*)' is not compatible with the target model",
        "The vocabulary of the draft {what} does not fit the main model.",
        "`autospec drafts --model NAME` lists the drafts that fit.",
    ),
    _rule(
        "vocabulary",
        # The words of `common_speculative_are_compatible` since 2024. b11434 goes on without speculation after them; other
        # builds (koboldcpp) end.
        r"draft (?:model )?(?:vocab|special tokens|bos tokens|eos tokens)\b.*must (?:closely )?match"
        r"|target and draft vocabs are not compatible"
        r"|failed to detokenize id_last",  # b9093 translates between vocabularies, and this is how it fails
        "The vocabulary of the draft does not fit the main model.",
        "`autospec drafts --model NAME` lists the drafts that fit.",
    ),
    _rule(
        "draft",
        r"failed to load draft model, '(?P<what>[^']*)'",
        "The draft {what} could not be loaded: it is missing, damaged, or of a kind this build does not know.",
        "Download it again, or tune without it.",
    ),
    _rule(
        "model",
        r"failed to load model,? '(?P<what>[^']*)'",
        "The model {what} could not be loaded: it is missing, damaged, or of a kind this build does not know.",
        "Download it again, or update the backend.",
    ),
)
_REASON = re.compile(r"error loading model: (?P<why>.*)")
_ASSERTION = re.compile(r"(?P<what>\S+:\d+: (?:GGML_ASSERT|fatal error|.*error).*|GGML_ASSERT\(.*\) failed)")
_REFUSED = re.compile(
    r"(vocabs? .*must match.*|vocabs are not compatible|failed to initialize speculative.*"
    r"|speculative decoding not supported.*|requires a draft context)",
    re.IGNORECASE,
)
_NO_PROJECTOR_WITH_DRAFT = re.compile(
    r"speculative decod\w+ (is )?not supported (by|with) multimodal", re.IGNORECASE
)
_PREFIX = re.compile(r"^[\d.]+ [A-Z] ")


def classify(
    ended: Ended, log: Sequence[str], *, out_of_memory_kills: int = 0, platform: str = sys.platform
) -> Failure:
    """Find the cause of a launch that ended before it was ready, or at its first request.

    Args:
        ended: How the process ended.
        log: Its last lines, oldest first.
        out_of_memory_kills: Processes that the kernel killed for memory while it ran, if known.
        platform: As in `sys.platform`.
    """
    text = "\n".join(log)
    for pattern, failure in _RULES:
        found = pattern.search(text)
        if found is not None:
            message = failure.message.format(**found.groupdict())
            return replace(failure, message=message + _why(failure.kind, text))
    if ended.signal == signal.SIGKILL and out_of_memory_kills:
        return Failure(
            "memory",
            "The kernel killed the server because memory ran out.",
            "Close other programs, or lower the context (-c).",
            permanent=False,
        )
    if platform == "darwin" and ended.signal == signal.SIGKILL and not log:
        return Failure(
            "killed",
            "The server was ended by SIGKILL before it printed anything: by macOS, or by another program.",
            f"{QUARANTINE_HINT} PROGRAM.",
            permanent=False,
        )
    if ended.signal in (signal.SIGKILL, signal.SIGTERM):
        return Failure(
            "killed",
            f"The server {ended} before it was ready: another program ended it, or memory ran out.",
            "Try again.",
            permanent=False,
        )
    if ended.signal == signal.SIGILL:
        return Failure(
            "crash",
            "The server crashed on an instruction that this processor does not have: it was built for another processor, or "
            "its compiler made a mistake.",
            "Install a build for this machine. To build your own, use cmake with -DGGML_NATIVE=OFF; or, if the processor "
            "has AMX and the compiler is GCC, CXXFLAGS=-mno-amx-tile.",
            permanent=True,
        )
    assertion = _ASSERTION.search(text)
    if ended.signal is not None or assertion is not None:
        what = f": {assertion['what']}" if assertion is not None else ""
        return Failure(
            "crash", f"The server crashed{what}.", "Try another drafting or a newer build.", permanent=True
        )
    return Failure(
        "other",
        f"The server {ended} before it was ready{_last_words(log)}.",
        "The log below may say more.",
        permanent=True,
    )


def speculation_refused(log: Sequence[str]) -> str:
    """The reason in the log of a server that runs without speculation, or empty."""
    reasons = [found[0] for line in log if (found := _REFUSED.search(line)) is not None]
    return reasons[0] if reasons else ""


def projector_refused(log: Sequence[str]) -> bool:
    """True if the log says that this build does not draft with a projector: all of 2025 and early 2026 end with it.

    The texts are those of May 2025 (and of ik_llama.cpp) and of February 2026; b11434 drafts with a projector.
    """
    return any(_NO_PROJECTOR_WITH_DRAFT.search(line) for line in log)


def _why(kind: str, text: str) -> str:
    """llama.cpp's own reason why a file could not be loaded."""
    if kind not in ("draft", "model"):
        return ""
    reasons = [r for r in _REASON.findall(text) if "failed to load model from" not in r]
    return f" The server says: {reasons[-1]}." if reasons else ""


def _last_words(log: Sequence[str]) -> str:
    return f"; its last line was: {_PREFIX.sub('', log[-1])}" if log else " and printed nothing"
