"""The user's own arguments, checked before anything starts."""

from __future__ import annotations

import pytest

from autospec.backends.binaries import Probe
from autospec.backends.flags import parse
from autospec.backends.llama_cpp.embedded import Embedded, user_fields
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import LaunchSettings
from autospec.backends.registry import DraftsAlone
from autospec.backends.user_args import args_of_draft, check
from autospec.cells import Build, options_in
from autospec.drafting import OFF
from autospec.errors import UnsupportedError, UsageError
from tests.backends.conftest import read_help

B11434 = read_help("b11434")


def test_known_arguments_pass():
    """Values, negative ones and switches are told apart as the server does it."""
    given = check(B11434, "b1", ("-ngl", "-1", "-fa", "on", "--jinja", "-c", "8192", "-ot", "exps=CPU"))
    assert [option.names[0] for option in given] == ["-ngl", "-fa", "--jinja", "-c", "-ot"]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ("", []),
        ("-ngl -1 --temp -.5", [("-ngl", ("-1",)), ("--temp", ("-.5",))]),
        ("--jinja -c 8192 more", [("--jinja", ()), ("-c", ("8192", "more"))]),
        ("--ctx_size=8192 --chat-template=", [("--ctx_size", ("8192",)), ("--chat-template", ("",))]),
        ("--override-tensor=exps=CPU -ot=x", [("--override-tensor", ("exps=CPU", "-ot=x"))]),
        ("some words -c 1", [("", ("some", "words")), ("-c", ("1",))]),
    ],
)
def test_arguments_are_split_into_options(args, options):
    """A flag begins with a letter, and only long flags take a sign."""
    assert options_in(args.split()) == options


def test_a_value_may_be_joined_to_its_flag():
    """Only the first sign parts them; a switch takes none."""
    given = check(B11434, "b1", ("--ctx-size=8192", "--override-tensor=exps=CPU", "--jinja"))
    assert [option.names[0] for option in given] == ["-c", "-ot", "--jinja"]
    with pytest.raises(UsageError, match="'on' is not an option"):
        check(B11434, "b1", ("--jinja=on",))


def test_llama_server_gets_flag_and_value_apart(tmp_path):
    """It does not know a flag with its value joined to it."""
    server = LlamaServer(None, tmp_path)
    server._program = tmp_path / "llama-server"
    server._probe = Probe(Build("llama-server", "b1", "f" * 16), B11434, tells_drafts=True)
    command = server.command(
        "/main.gguf", OFF, LaunchSettings(("--ctx-size=8192", "-ngl", "-1"), serving=True)
    )
    assert command[3:7] == ("--ctx-size", "8192", "-ngl", "-1")


@pytest.mark.parametrize(
    "name",
    [
        *("-m", "--model", "-hf", "--models-dir", "--fim-qwen-7b-spec"),
        *(
            "-md",
            "--spec-type",
            "--spec-draft-n-max",
            "--spec-ngram-mod-n-max",
            "--draft-max",
            "--spec-synth-len",
        ),
        *("--port", "--host", "--api-key", "--ssl-key-file", "--no-slots", "--log-disable", "--help"),
        "--spec_type",
    ],
)
def test_what_autospec_sets_is_refused(name):
    """Each with a reason, as wrong usage."""
    with pytest.raises(UsageError, match=f"^{name} cannot be passed to the server: ") as caught:
        check(B11434, "b1", (name, "x"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    [
        *("-ngld", "-devd", "-ctkd", "-ctvd", "-td", "-tbd", "--spec-draft-threads", "--spec-draft-ngl"),
        *("--spec-draft-type-k", "--spec_draft_device", "--spec-draft-cpu-mask", "--spec-draft-poll-batch"),
        *("--spec-draft-override-tensor", "--spec-draft-n-cpu-moe", "--spec-draft-prio"),
    ],
)
def test_where_the_draft_runs_stays_the_users(name):
    """Placement of the draft is a launch setting, not a drafting."""
    assert check(B11434, "b1", (name, "1"))
    assert check(B11434, "b1", (name, "1"), serving=True)


# Options of forks and of pull requests, as their help prints them; `-sc` is a short name that autospec has never seen.
FORKS = parse(
    """
--model FNAME                           model path
--spec-draft-adaptive                   adapt the number of drafted tokens
--spec-draft-n-min-adaptive N           floor of the adaptive depth (default: 3)
-sc,   --spec-chain N                   chain drafts
--spec-autotune                         automatically tune speculative params to maximize tokens/sec
--spec-from-the-future X                unknown to everybody
--no-spec-fallback                      do not fall back
-draft, --draft-params X                parameters of the draft
"""
)


@pytest.mark.parametrize(
    "name", ["pydist012", "b9093", "b11434", "ik-8337e4c", "llama-27210", "adaptive-2a9d1e4"]
)
def test_of_every_help_only_the_drafts_place_is_the_users(name):
    """No option of speculation passes because nobody has listed it."""
    passed = set()
    text = read_help(name)
    for option in text.options:
        if any("spec-" in spelling or spelling.strip("-").startswith("draft") for spelling in option.names):
            try:
                check(text, "b1", (option.names[0], *["1"] * option.arity))
            except UsageError:
                continue
            passed.add(option.names[0])
    place = (
        "threads",
        "cpu",
        "prio",
        "poll",
        "type-",
        "device",
        "ngl",
        "override-tensor",
        "backend-sampling",
    )
    assert all(
        word.startswith("--spec-draft-") and word[13:].startswith((*place, "n-cpu-moe"))
        for word in passed - {"--spec-ckpt-mode"}
    )
    assert ("--spec-draft-type-k" in passed) is (name in ("b9093", "b11434"))


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("--spec-draft-adaptive", "--spec-draft-n-min-adaptive", "--spec-chain", "-sc", "--spec-autotune"),
        *("--spec-from-the-future", "--no-spec-fallback", "-draft", "--spec-not-in-the-help", "--draft-not"),
        "--speculative-anything",
    ],
)
def test_what_drafts_is_refused_known_or_not(name, serving):
    """Every option of speculation that is not the draft's place, under every name that the help gives it."""
    with pytest.raises(
        UsageError, match=f"^{name} cannot be passed to the server: autospec sets the drafting"
    ) as caught:
        check(FORKS, "b1", (name, "1"), serving=serving)
    assert caught.value.hint == f"Remove {name}."


def test_a_server_that_sleeps_is_not_measured():
    """A request after a pause would load the model again, in one half of a pair."""
    args = ("--sleep-idle-seconds", "5")
    with pytest.raises(
        UsageError, match="--sleep-idle-seconds cannot be passed to a server that is measured"
    ):
        check(B11434, "b1", args)
    assert check(B11434, "b1", args, serving=True)


def test_an_unknown_argument_names_the_nearest():
    """A slip of the finger is found before a server is started."""
    with pytest.raises(UnsupportedError, match="b1 does not know --ctx-sise") as caught:
        check(B11434, "b1", ("--ctx-sise", "8192"))
    assert caught.value.hint == "Did you mean --ctx-size?"


def test_a_removed_argument_says_so():
    """What a build has removed is told with the build's own advice."""
    gone = B11434.gone[-1]
    text = type(B11434)(
        B11434.options, (type(gone)(("--old-thing",), "N", "the argument has been removed. use --new"),)
    )
    with pytest.raises(UnsupportedError, match="has removed --old-thing") as caught:
        check(text, "b1", ("--old-thing", "1"))
    assert caught.value.hint == "Its help says: use --new."


def test_a_missing_value_is_told():
    """The value's name from the help is in the sentence."""
    with pytest.raises(UsageError, match=r"-c needs a value \(N\)"):
        check(B11434, "b1", ("--jinja", "-c"))


def test_a_stray_word_is_told():
    """A value without its option is most likely a quoting mistake."""
    with pytest.raises(UsageError, match="'8192' is not an option"):
        check(B11434, "b1", ("8192",))


def test_the_era_decides_about_values():
    """`-fa on` is right for b11434 and wrong for May 2025, where -fa is a switch."""
    assert check(read_help("pydist012"), "b1", ("-fa", "-c", "1"))
    with pytest.raises(UsageError, match="'on'"):
        check(read_help("pydist012"), "b1", ("-fa", "on"))


@pytest.mark.parametrize(
    ("args", "alone"),
    [
        # Files and texts of the main model, and what only its requests are about.
        ("--mmproj /eyes.gguf --no-mmproj-offload --lora /a.gguf --lora-scaled /b.gguf:0.5 --jinja", ""),
        ("--chat-template chatml --chat-template-file /t.jinja --control-vector /v.gguf -np 4 --temp 0.7", ""),
        ("--reasoning-format deepseek --alias big -lv 3 --metrics --slot-save-path /tmp/s", ""),
        # How both compute.
        ("-c 8192 -t 6 -tb 12 -fa on -b 512 --ubatch_size 256", "-c 8192 -t 6 -tb 12 -fa on -b 512 --ubatch-size 256"),
        ("-lm mlock --numa isolate -nkvo --swa-full", "-lm mlock --numa isolate -nkvo --swa-full"),
        ("--rope-scaling yarn --yarn-orig-ctx 4096", "--rope-scaling yarn --yarn-orig-ctx 4096"),
        ("-ts 3,1 -mg 1 --fit off", "-ts 3,1 -mg 1 --fit off"),
        # Where the main model is, and its cache types: llama-server does not ask its draft to follow.
        ("-ngl 20 -dev CUDA1 -ot exps=CPU -ncmoe 12 -ctk q8_0 --cache-type-v q8_0", ""),
        ("-ngl 20 -ngld 99 -dev CUDA0 -devd CUDA1 -ctkd q8_0 -otd x=CPU", "-ngl 99 -dev CUDA1 -ctk q8_0 -ot x=CPU"),
        ("--spec-draft-ngl=0 --spec-draft-device none", "-ngl 0 -dev none"),
        # A draft with its own threads computes batches with them, too, unless it has others for those.
        ("-t 8 -tb 16 -td 2 -c 8192", "-t 8 -c 8192 -t 2"),
        ("-t 8 -tb 16 -td 2 -tbd 4", "-t 8 -t 2 -tb 4"),
        ("some words -c 1 --no-mmap --unheard-of x", "-c 1 --no-mmap"),
    ],
)  # fmt: skip
def test_what_a_draft_gets_where_it_is_launched_alone(args, alone):
    """Nothing that could keep it from loading, and it runs where and as it runs beside the main model."""
    assert args_of_draft(args.split()) == tuple(alone.split())
    if "words" not in args and "/" not in args:
        check(B11434, "b1", args_of_draft(args.split()))


def test_each_backend_that_drafts_from_gguf_files_says_what_a_draft_gets(tmp_path):
    """The embedded one lacks an option for a main model's devices, though its draft's can be chosen."""
    settings = LaunchSettings(("--mmproj", "/eyes.gguf", "-t", "2", "-devd", "CUDA1", "-ngld", "3"), 7.0)
    for backend, expected in (
        (LlamaServer(None, tmp_path), ("-t", "2", "-dev", "CUDA1", "-ngl", "3")),
        (Embedded(tmp_path), ("-t", "2", "-ngl", "3")),
    ):
        assert isinstance(backend, DraftsAlone)
        assert backend.settings_of_draft(settings) == LaunchSettings(expected, 7.0)
    assert user_fields(Embedded(tmp_path).settings_of_draft(settings).args)["n_gpu_layers"] == 3
