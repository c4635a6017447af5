"""Which drafts fit: each rule, and the reason given for each refusal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from autospec.catalog.candidates import Candidate, candidates, count_fits
from autospec.catalog.gguf import read_gguf
from autospec.catalog.model import Head, Model, Vocabulary
from autospec.drafting import Mode
from tests.catalog.making import make_model

GB = 1_000_000_000
MAIN = make_model("Qwen3-32B-Q4_K_M", architecture="qwen3", bytes_per_token=18 * GB, size_bytes=19 * GB)


def small(name: str = "Qwen3-0.6B-Q8_0", **changes: Any) -> Model:
    """A draft that fits `MAIN`."""
    values = {
        "architecture": "qwen3",
        "bytes_per_token": GB // 2,
        "size_bytes": GB,
        "kv_bytes_per_token": 100_000,
    }
    return make_model(name, **{**values, **changes})


def judge(*drafts: Model, main: Model = MAIN, memory: int = 64 * GB, context: int = 4096, **more: Any):
    """The candidates for `main` on a machine with that memory."""
    return candidates(main, [main, *drafts], memory_bytes=memory, context_tokens=context, **more)


def only(*drafts: Model, **more: Any) -> Candidate:
    """The one candidate there is."""
    (candidate,) = judge(*drafts, **more)
    return candidate


def test_a_draft_that_fits_says_why() -> None:
    """Vocabulary, size and family are in the sentence, and the drafting's path is the model's."""
    candidate = only(small())
    assert (candidate.fits, candidate.mode) == (True, Mode.DRAFT_MODEL)
    assert candidate.reason == (
        "Same vocabulary, reads 36.0 times less per token (500 MB of 18.0 GB), same family."
    )
    assert candidate.draft == "/models/Qwen3-0.6B-Q8_0.gguf"


def test_the_main_model_is_no_draft_of_its_own() -> None:
    """It is left out, unless it was named, and then refused."""
    assert judge() == []
    candidate = only(extra=[MAIN])
    assert not candidate.fits
    assert candidate.reason == "Qwen3-32B-Q4_K_M is the main model itself."


def test_copies_of_a_draft_are_one_candidate() -> None:
    """The same file in two places is tried once."""
    assert len(judge(small(), dataclasses.replace(small(), name="copy"))) == 1


def test_another_vocabulary_is_refused() -> None:
    """The vocabulary's sentence begins with the draft's name."""
    vocab = Vocabulary("gpt2", 1000, digest="e" * 64, bos=1, eos=2)
    candidate = only(small(vocab=vocab))
    assert not candidate.fits
    assert candidate.reason.startswith(
        "Qwen3-0.6B-Q8_0 has another vocabulary: 1000 tokens, the main model has 300"
    )


def test_other_bos_and_eos_ids_are_noted() -> None:
    """What old builds would refuse is in the sentence of what fits."""
    vocab = dataclasses.replace(small().vocab, bos=7, eos=8)
    candidate = only(small(vocab=vocab))
    assert candidate.fits
    assert "its BOS and EOS differ, which builds of 2025 refuse" in candidate.reason


@pytest.mark.parametrize(
    ("draft_gb", "fits", "says"),
    [
        (13, True, "1.4 times less"),
        (13.5, True, "1.3 times less"),
        (
            13.6,
            False,
            "is not much smaller than the main model: it reads 13.6 GB per token, the main model 18.0 GB",
        ),
        (18, False, "is not smaller than the main model"),
        (40, False, "is not smaller than the main model: it reads 40.0 GB per token, the main model 18.0 GB"),
    ],
)
def test_much_smaller_is_judged_by_bytes_per_token(draft_gb: float, fits: bool, says: str) -> None:
    """Three quarters of what the main model reads per token is the most."""
    candidate = only(small(bytes_per_token=int(draft_gb * GB)))
    assert candidate.fits is fits
    assert says in candidate.reason


def test_a_sparse_main_model_is_judged_by_its_active_experts() -> None:
    """A 30B-A3B reads 3 B weights per token: a 4B dense draft is no smaller, though its file is."""
    moe = make_model("Qwen3-30B-A3B", architecture="qwen3moe", experts=128, active_experts=8,
                     bytes_per_token=2 * GB, size_bytes=18 * GB, parameters=30 * GB, active_parameters=3 * GB)  # fmt: skip
    dense = small("Qwen3-4B", bytes_per_token=int(2.4 * GB), size_bytes=int(2.5 * GB))
    tiny = small("Qwen3-0.6B")
    by_name = {c.model.name: c for c in judge(dense, tiny, main=moe)}
    assert not by_name["Qwen3-4B"].fits
    assert "not smaller" in by_name["Qwen3-4B"].reason
    assert by_name["Qwen3-0.6B"].fits
    assert "same family" in by_name["Qwen3-0.6B"].reason


class TestMemory:
    """(weights + KV caches) and a tenth, of both, within nine tenths of the memory."""

    MAIN = make_model("main", size_bytes=10 * GB, kv_bytes_per_token=1_000_000)
    DRAFT = make_model("draft", size_bytes=GB, kv_bytes_per_token=1_000_000, bytes_per_token=GB)

    def test_the_edge(self) -> None:
        """At 1000 tokens both need 1.1 × 13 GB; the machine needs 15.89 GB for it."""
        assert only(self.DRAFT, main=self.MAIN, context=1000, memory=15_889 * 10**6).fits
        assert not only(self.DRAFT, main=self.MAIN, context=1000, memory=15_888 * 10**6).fits

    def test_sentence_has_the_figures(self) -> None:
        """What both need, at which context, and what is there."""
        reason = only(self.DRAFT, main=self.MAIN, context=1000, memory=15 * GB).reason
        assert reason == (
            "draft does not fit in memory beside the main model: together they need 14.3 GB with KV caches "
            "for 1000 tokens, and 13.5 GB of this machine's 15.0 GB of memory can be used."
        )

    def test_a_gpu_that_shares_the_memory_has_less(self) -> None:
        """A Mac of 16 GiB: Metal gives 11.5 GB, where nine tenths would be 15.5."""
        found = candidates(
            self.MAIN,
            [self.DRAFT],
            memory_bytes=16 << 30,
            gpu_limit_bytes=(16 << 30) * 2 // 3,
            context_tokens=1000,
        )
        assert [c.fits for c in found] == [False]
        assert "11.5 GB of this machine's 17.2 GB of memory can be used" in found[0].reason

    def test_a_longer_context_refuses(self) -> None:
        """The KV caches of both count at the configured context."""
        assert only(self.DRAFT, main=self.MAIN, context=1000, memory=32 * GB).fits
        assert not only(self.DRAFT, main=self.MAIN, context=10_000, memory=32 * GB).fits

    def test_a_main_model_that_does_not_fit_alone(self) -> None:
        """Then the draft is not to blame."""
        assert "the main model alone needs" in only(self.DRAFT, main=self.MAIN, memory=12 * GB).reason

    def test_unknown_memory_refuses_nothing(self) -> None:
        """Where the memory is not known, every size fits."""
        assert only(self.DRAFT, main=self.MAIN, memory=0).fits


def test_order() -> None:
    """What fits first: same family first, in it the most likely size first; refusals last."""
    found = judge(
        small("huge", bytes_per_token=30 * GB, parameters=1),
        small("Stranger-1B", architecture="llama", bytes_per_token=int(1.5 * GB), parameters=2),
        small("Qwen3-8B", bytes_per_token=9 * GB, parameters=3),
        small("Qwen3-1.7B", bytes_per_token=int(1.8 * GB), parameters=4),
        small("Qwen3-0.6B", bytes_per_token=GB // 2, parameters=5),
    )
    assert [c.model.name for c in found] == ["Qwen3-1.7B", "Qwen3-0.6B", "Qwen3-8B", "Stranger-1B", "huge"]
    assert [c.fits for c in found] == [True, True, True, True, False]


def test_quantizations_of_one_draft_do_not_crowd_out_others() -> None:
    """A study takes the first two or three: they are different drafts before they are the same once more."""
    found = judge(
        *(
            small(f"Qwen3-1.7B-Q{i}", bytes_per_token=int((1 + i / 10) * GB), parameters=17)
            for i in range(4, 9)
        ),
        small("Qwen3-0.6B-Q8", bytes_per_token=GB // 2, parameters=6),
        small("Qwen3-4B-Q4", bytes_per_token=3 * GB, parameters=40),
    )
    assert [c.model.name for c in found][:4] == [
        "Qwen3-1.7B-Q5",
        "Qwen3-4B-Q4",
        "Qwen3-0.6B-Q8",
        "Qwen3-1.7B-Q6",
    ]


def test_other_format() -> None:
    """A GGUF model takes GGUF drafts."""
    assert (
        only(small(format="mlx")).reason
        == "Qwen3-0.6B-Q8_0 is an MLX folder and the main model a GGUF file: no backend runs both together."
    )


class TestStates:
    """llama-server b11434 aborts with a draft that keeps a recurrent state beside a main model that keeps none."""

    @pytest.mark.parametrize(
        ("main_state", "draft_state", "fits"),
        [(False, True, False), (True, True, True), (True, False, True), (False, False, True)],
    )
    def test_pairs(self, main_state: bool, draft_state: bool, fits: bool) -> None:
        """Only that pair is left out, with the reason."""
        main = dataclasses.replace(MAIN, has_recurrent_state=main_state)
        candidate = only(small("mamba", has_recurrent_state=draft_state), main=main)
        assert candidate.fits is fits
        assert ("mamba keeps a recurrent state and the main model does not" in candidate.reason) is not fits


class TestTrainedContext:
    """llama.cpp gives a draft the main model's context, however little the draft was trained for."""

    @pytest.mark.parametrize(
        ("trained", "context", "main_trained", "told"),
        [(2048, 4096, 32768, 4096), (2048, 2048, 32768, 0), (0, 4096, 32768, 0), (2048, 131072, 8192, 8192)],
    )
    def test_a_draft_that_knows_less(self, trained: int, context: int, main_trained: int, told: int) -> None:
        """It is told against what the main model will use, and refuses nothing."""
        main = dataclasses.replace(MAIN, context_length=main_trained, kv_bytes_per_token=1)
        candidate = only(small(context_length=trained, kv_bytes_per_token=1), main=main, context=context)
        assert candidate.fits
        assert (
            f"it was trained for {trained} tokens and the context has {told}" in candidate.reason
        ) is bool(told)
        assert ("trained for" in candidate.reason) is bool(told)


class TestHeads:
    """Draft heads have their own modes, and fit the model that they were trained for."""

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [("eagle3", Mode.EAGLE3), ("dflash", Mode.DFLASH), ("dspark", Mode.DSPARK)],
    )
    def test_mode(self, kind: Any, mode: Mode) -> None:
        """The head's kind is the mode, and its limits go along."""
        head = Head(kind, 4096, (2, 16, 29), n_max=7, takes_p_min=False)
        candidate = only(small("head", architecture=kind, head=head))
        assert (candidate.fits, candidate.mode) == (True, mode)
        assert (candidate.n_max, candidate.takes_p_min) == (7, False)

    def test_other_hidden_size(self) -> None:
        """A head for another hidden size cannot listen to this model."""
        candidate = only(small("head", architecture="eagle3", head=Head("eagle3", 5120)))
        assert candidate.reason == (
            "head is a draft head for a main model with hidden size 5120, and this main model has 4096."
        )

    def test_layers_that_the_main_model_has_not(self) -> None:
        """llama.cpp aborts on a target layer beyond the last."""
        candidate = only(small("head", architecture="eagle3", head=Head("eagle3", 4096, (2, 20, 33))))
        assert not candidate.fits
        assert "reads layer 33, and the main model has 32 layers" in candidate.reason

    def test_mtp_head_of_its_own_architecture(self) -> None:
        """A separate MTP head fits its own architecture, Gemma 4's assistant the main model of that name."""
        head = small("mtp", architecture="qwen3", head=Head("mtp", 4096))
        assert (only(head).fits, only(head).mode) == (True, Mode.MTP)
        assert not only(dataclasses.replace(head, architecture="glm4moe")).fits
        gemma = dataclasses.replace(MAIN, architecture="gemma4")
        assert only(dataclasses.replace(head, architecture="gemma4-assistant"), main=gemma).fits

    def test_main_model_with_mtp_layers(self) -> None:
        """Its own layers are the first candidate, without a draft file."""
        main = dataclasses.replace(MAIN, architecture="qwen35", mtp_layers=1)
        own, other = judge(small(), main=main)
        assert (own.model, own.mode, own.fits, own.draft) == (main, Mode.MTP, True, None)
        assert own.reason == "Qwen3-32B-Q4_K_M has 1 MTP layer of its own and needs no draft file."
        assert other.mode is Mode.DRAFT_MODEL

    def test_chained_mtp_layers_limit_the_proposals(self) -> None:
        """With several heads llama.cpp proposes one token per head; one head is applied repeatedly."""
        for layers, n_max in ((1, 0), (3, 3)):
            assert (
                only(main=dataclasses.replace(MAIN, architecture="step35", mtp_layers=layers)).n_max == n_max
            )

    def test_mtp_that_llama_cpp_is_not_known_to_run(self) -> None:
        """It is tried all the same, and the sentence has the doubt."""
        candidate = only(main=dataclasses.replace(MAIN, architecture="exaone-moe", mtp_layers=1))
        assert candidate.fits
        assert "is not known to run the MTP layers of exaone-moe" in candidate.reason


class TestMlx:
    """mlx_lm: no MTP, and no drafts where a cache cannot be rolled back."""

    MAIN = dataclasses.replace(MAIN, format="mlx")
    DRAFT = dataclasses.replace(small(), format="mlx")

    def test_fits(self) -> None:
        """Two MLX models of one vocabulary."""
        assert only(self.DRAFT, main=self.MAIN).fits

    @pytest.mark.parametrize("which", ["main", "draft"])
    def test_recurrent_state(self, which: str) -> None:
        """A hybrid on either side is refused."""
        main = dataclasses.replace(self.MAIN, has_recurrent_state=which == "main")
        draft = dataclasses.replace(self.DRAFT, has_recurrent_state=which == "draft")
        candidate = only(draft, main=main)
        assert not candidate.fits
        assert "which mlx_lm cannot roll back" in candidate.reason

    @pytest.mark.parametrize("which", ["main", "draft"])
    def test_a_window_that_turns_over(self, which: str) -> None:
        """Rejected tokens would stay in its cache: wrong text of a main model, worse proposals of a draft."""
        main = dataclasses.replace(self.MAIN, sliding_window=512 if which == "main" else 0)
        draft = dataclasses.replace(self.DRAFT, sliding_window=512 if which == "draft" else 0)
        candidate = only(draft, main=main)
        assert not candidate.fits
        assert "a window of 512 tokens, which mlx_lm cannot roll back" in candidate.reason

    def test_mtp_is_refused(self) -> None:
        """mlx_lm drops MTP layers when it loads a model."""
        candidate = only(main=dataclasses.replace(self.MAIN, mtp_layers=1))
        assert (candidate.fits, candidate.mode) == (False, Mode.MTP)


def test_every_reason_is_one_sentence() -> None:
    """Fits and refusals alike end in one full stop and have no line breaks."""
    drafts = [
        small(),
        small("b", vocab=None),
        small("c", format="mlx"),
        small("d", bytes_per_token=20 * GB),
        small("e", size_bytes=200 * GB),
        small("f", head=Head("eagle3", 1)),
    ]
    reasons = [c.reason for c in judge(*drafts)]
    assert len(reasons) == len(drafts)
    for reason in reasons:
        assert reason.endswith(".")
        assert not reason.endswith("..")
        assert "\n" not in reason


def test_the_count_is_that_of_the_list() -> None:
    """The quick count agrees with the candidates that fit."""
    drafts = [
        small(),
        small("b", bytes_per_token=14 * GB),
        small("c", size_bytes=90 * GB),
        small("copy", fingerprint=small().fingerprint),
        small("d", vocab=None),
    ]
    for main in (MAIN, dataclasses.replace(MAIN, mtp_layers=1)):
        fits = [c for c in judge(*drafts, main=main) if c.fits]
        assert count_fits(main, [main, *drafts], memory_bytes=64 * GB, context_tokens=4096) == len(fits)


def test_json_form() -> None:
    """What `autospec drafts --json` prints of a candidate."""
    document = only(small()).to_json()
    assert (document["fits"], document["mode"], document["name"]) == (True, "draft-model", "Qwen3-0.6B-Q8_0")
    assert document["reason"]
    assert document["n_max"] is None


def test_the_lab_s_pairs(lab_models) -> None:
    """SmolLM2's Q4_1 fits its own Q8_0 (the fast main), and a foreign vocabulary does not."""
    smollm2, fast = read_gguf(lab_models.smollm2), read_gguf(lab_models.fast_main)
    candidate = only(smollm2, main=fast, memory=8 * GB)
    assert candidate.fits, candidate.reason
    assert not only(fast, main=smollm2, memory=8 * GB).fits
