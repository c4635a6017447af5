"""The Markdown of the reference benchmark, made again from its runs."""

from __future__ import annotations

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.bench import RunGroup
from autospec.report.records import benchmark_markdown, find_record, read_record, results_table

HEAD = {"title": "T", "date": "2026-11-23", "hardware": "here", "prompt": "p", "max_tokens": 16}


@pytest.fixture
def text():
    """The reference benchmark as Markdown."""
    record = read_record(find_record("m2-ultra-2025-12-13"))
    return benchmark_markdown(
        record.groups,
        title=record.title,
        date=str(record.date),
        hardware="M2 Ultra Mac Studio 64GB",
        prompt=record.prompt,
        max_tokens=record.max_tokens,
        methodology=record.notes,
    )


@pytest.mark.parametrize(
    "lines",
    [
        "# Speculative Decoding Benchmark\n",
        '**Prompt:** "Escreva um Palindromo em Kotlin"\n**Max Tokens:** 512\n',
        (
            "| Model | Without Draft | With Draft | Difference |\n"
            "|-------|--------------|------------|------------|\n"
            "| Qwen3-4B | 144.3 tok/s | 144.1 tok/s | -0.1% |\n"
            "| Qwen3-Coder-30B-A3B | 86.8 tok/s | 87.5 tok/s | +0.8% |\n"
        ),
        (
            "### GGUF Backend (llama-server)\n\n"
            "| Model | Without Draft | With Draft (n=8) | With Draft (n=4) |\n"
            "|-------|--------------|------------------|------------------|\n"
            "| Qwen3-Coder-30B-A3B | **75.5 tok/s** | 59.0 tok/s (-22%) | 63.2 tok/s (-16%) |\n"
        ),
        (
            "**Qwen3-Coder-30B-A3B (no draft):**\n"
            "- Run 1: 87.1 tok/s\n- Run 2: 87.3 tok/s\n- Run 3: 85.9 tok/s\n- **Average: 86.8 tok/s**\n"
        ),
        "**Qwen3-4B (with draft Qwen3-0.6B):**\n- Run 1: 144.1 tok/s\n",
        (
            "**Qwen3-Coder-30B-A3B (draft_n=4):**\n```\n"
            "llama-server --jinja -ngl 99 -fa auto -c 32768 \\\n"
            "  -m Qwen3-Coder-30B-A3B-Instruct-Q6_K.gguf \\\n"
            "  -md Qwen3-0.6B-Q8_0.gguf \\\n"
            "  --draft-max 4 --draft-p-min 0.8\n```\n- Run 1: 63.2 tok/s\n"
        ),
    ],
)
def test_the_reference_benchmark_comes_out_as_it_was_written(text, lines):
    """Its tables, raw runs, averages and command lines, to the letter."""
    assert lines in text


def test_the_conclusion_has_intervals(text):
    """A difference within the noise is called that, and a loss a loss."""
    assert "+0.8% (-2.5% to +4.3%): no difference that these runs can show" in text
    assert "-16.3% (-26.0% to -5.3%): drafting is slower" in text


def test_draftings_that_differ_in_more_than_n_max_are_named_whole():
    """Two p-mins of one n_max cannot both be called n=8."""
    groups = [
        RunGroup("embedded", "b1", "M", d, (10.0,))
        for d in (
            OFF,
            Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8, p_min=0.5),
            Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8, p_min=0.8),
        )
    ]
    assert "With Draft (draft-model d n_max=8 p_min=0.5)" in results_table(groups)


def test_single_runs_without_any_repeat_claim_nothing():
    """Where nothing was repeated, nothing is known about noise."""
    groups = (
        RunGroup("embedded", "b1", "M", OFF, (10.0,)),
        RunGroup("embedded", "b1", "M", Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8), (12.0,)),
    )
    text = benchmark_markdown(groups, **HEAD)
    assert "the noise is unknown" in text


def test_whole_requests_have_a_table_of_their_own():
    """Where they were measured, prompt processing is not hidden."""
    groups = (
        RunGroup("embedded", "b1", "M", OFF, (10.0, 10.0), request_tps=(9.0, 9.0)),
        RunGroup(
            "embedded",
            "b1",
            "M",
            Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8),
            (12.0, 12.0),
            request_tps=(8.0, 8.0),
        ),
    )
    text = benchmark_markdown(groups, **HEAD)
    assert "| M | 10.0 tok/s | 12.0 tok/s | +20% |" in text
    assert "| M | 9.0 tok/s | 8.0 tok/s | -11% |" in text


def test_an_interval_that_says_nothing_is_not_printed():
    """Two runs that differ by a factor of thirty leave nothing to say but that."""
    groups = (
        RunGroup("embedded", "b1", "M", OFF, (2.0, 60.0)),
        RunGroup("embedded", "b1", "M", Drafting(Mode.DRAFT_MODEL, draft="d", n_max=8), (12.0, 12.0)),
    )
    text = benchmark_markdown(groups, **HEAD)
    assert "too few or vary too much for a conclusion" in text
