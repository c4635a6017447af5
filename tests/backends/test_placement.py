"""Where the main model's weights are, read from logs of three eras and several kinds of build."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.binaries import Probe
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.placement import Placement, placement_of
from autospec.backends.protocol import LaunchSettings
from autospec.cells import Build
from autospec.drafting import OFF, Drafting, Mode
from tests.backends.conftest import read_help

# b11434 for the processor at verbosity 4, with a draft (captured here, shortened).
B11434_CPU = """\
0.00.013.136 I srv    load_model: loading model '/models/SmolLM2-135M-Instruct.Q4_1.gguf'
0.00.013.183 I common_params_fit_impl: getting device memory data for initial parameters:
0.00.320.686 I common_params_fit_impl: projected to use 167 MiB of host memory vs. 24105 MiB of total host memory
0.00.320.738 I common_fit_params: successfully fit params to free device memory
0.00.409.108 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.414.380 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.416.007 I llama_kv_cache:        CPU KV buffer size =    11.25 MiB
0.00.425.632 I sched_reserve:        CPU compute buffer size =    15.14 MiB
0.03.129.644 I common_speculative_init_result: loading draft model '/models/SmolLM2-Tiny.Q4_1.gguf'
0.03.224.661 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.03.227.275 I load_tensors:   CPU_Mapped model buffer size =    32.92 MiB
"""
# The same build at its own verbosity (captured here): nothing is told.
B11434_QUIET = """\
0.00.005.457 I srv    load_model: loading model '/models/SmolLM2-135M-Instruct.Q4_1.gguf'
0.00.663.264 I cmn          init: llama threadpool init, n_threads = 2
0.01.277.343 I common_speculative_init_result: loading draft model '/models/SmolLM2-Tiny.Q4_1.gguf'
"""
# ggml-org/llama.cpp #22546 (May 2026).
CUDA_FULL = """\
load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)
load_tensors: offloading output layer to GPU
load_tensors: offloading 31 repeating layers to GPU
load_tensors: offloaded 33/33 layers to GPU
load_tensors:   CPU_Mapped model buffer size =  1030.62 MiB
load_tensors:        CUDA0 model buffer size =  8045.05 MiB
llama_context: n_ctx         = 262144
"""
# In the form of fit.cpp and llama-model.cpp of b11434: the neighbour has taken the card, fit leaves eight layers out.
CUDA_FITTED = """\
0.00.320.686 I common_params_fit_impl: projected to use 9900 MiB of device memory vs. 8800 MiB of free device memory
0.00.320.700 I common_params_fit_impl: cannot meet free memory target of 1024 MiB, need to reduce device memory by 2124 MiB
0.00.320.738 I common_params_fit_impl: context size set by user to 4096 -> no change
0.00.350.738 I common_params_fit_impl:   - CUDA0 (NVIDIA GeForce RTX 4090): 25 layers,   7600 MiB used,   1200 MiB free
0.00.409.108 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.409.200 I load_tensors: offloading output layer to GPU
0.00.409.201 I load_tensors: offloading 24 repeating layers to GPU
0.00.409.202 I load_tensors: offloaded 25/33 layers to GPU
0.00.414.380 I load_tensors:   CPU_Mapped model buffer size =  2980.12 MiB
0.00.414.381 I load_tensors:        CUDA0 model buffer size =  6095.55 MiB
"""
# December 2024 and earlier, two cards.
TWO_CARDS_2024 = """\
llm_load_tensors: offloading 80 repeating layers to GPU
llm_load_tensors: offloading output layer to GPU
llm_load_tensors: offloaded 81/81 layers to GPU
llm_load_tensors:   CPU_Mapped model buffer size =   563.62 MiB
llm_load_tensors:        CUDA0 model buffer size = 20038.81 MiB
llm_load_tensors:        CUDA1 model buffer size = 19940.67 MiB
llama_new_context_with_model: n_ctx         = 4096
srv    load_model: loading draft model '/models/draft.gguf'
llm_load_tensors: offloaded 17/17 layers to GPU
llm_load_tensors:        CUDA0 model buffer size =  1252.41 MiB
"""
# A model of several files is mapped file by file.
METAL = """\
load_tensors: loading model tensors, this can take a while... (mmap = true)
load_tensors: offloaded 13/13 layers to GPU
load_tensors: Metal_Mapped model buffer size =    40.73 MiB
load_tensors: Metal_Mapped model buffer size =    10.00 MiB
load_tensors:   CPU_Mapped model buffer size =    23.11 MiB
"""
# A SYCL build on a system with a decimal comma, 2025.
DECIMAL_COMMA = """\
load_tensors: loading model tensors, this can take a while... (mmap = true)
load_tensors: offloaded 29/29 layers to GPU
load_tensors:   CPU_Mapped model buffer size =  1039,50 MiB
load_tensors:        SYCL0 model buffer size = 13486,77 MiB
"""
# journald before each line; AMD, 2026.
ROCM_JOURNAL = """\
Jun 05 12:00:03 strix llama-server[1234]: load_tensors: offloaded 65/65 layers to GPU
Jun 05 12:00:03 strix llama-server[1234]: load_tensors:        CPU model buffer size =   315.32 MiB
Jun 05 12:00:03 strix llama-server[1234]: load_tensors:  ROCm_Host model buffer size =   512.00 MiB
Jun 05 12:00:03 strix llama-server[1234]: load_tensors:      ROCm0 model buffer size = 21504.49 MiB
"""
# A tensor that is read lazily has a message of its own between the buffers (2026).
LAZY = """\
load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
add: tensor per_layer_token_embd.weight (size = 27465 MiB) lazy read enabled
load_tensors:   CPU_Mapped model buffer size = 19240.51 MiB
load_tensors:        SYCL0 model buffer size = 26916.16 MiB
load_tensors:   CPU_Mapped model buffer size = 27465.95 MiB
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (DECIMAL_COMMA, Placement(29, 29, (("CPU_Mapped", 1039.5), ("SYCL0", 13486.77)))),
        (
            ROCM_JOURNAL,
            Placement(65, 65, (("CPU", 315.32), ("ROCm0", 21504.49), ("ROCm_Host", 512.0))),
        ),
        (LAZY, Placement(None, None, (("CPU_Mapped", 46706.46), ("SYCL0", 26916.16)))),
        (B11434_CPU, Placement(None, None, (("CPU_Mapped", 92.10),))),
        (CUDA_FULL, Placement(33, 33, (("CPU_Mapped", 1030.62), ("CUDA0", 8045.05)))),
        (CUDA_FITTED, Placement(25, 33, (("CPU_Mapped", 2980.12), ("CUDA0", 6095.55)))),
        (
            TWO_CARDS_2024,
            Placement(81, 81, (("CPU_Mapped", 563.62), ("CUDA0", 20038.81), ("CUDA1", 19940.67))),
        ),
        (METAL, Placement(13, 13, (("CPU_Mapped", 23.11), ("Metal_Mapped", 50.73)))),
        # With every message shown, fit's trial loads come first.
        (CUDA_FITTED + CUDA_FULL, Placement(33, 33, (("CPU_Mapped", 1030.62), ("CUDA0", 8045.05)))),
        (B11434_QUIET, None),
        ("", None),
        ("load_tensors: loading model tensors\nload_tensors: offloaded x/y layers to GPU\n\x00", None),
    ],
)
def test_the_main_models_place_is_read_and_not_the_drafts(log, expected):
    """Layers on GPUs, and weights by buffer."""
    assert placement_of(log.splitlines()) == expected


def test_a_sentence_names_layers_and_weights():
    """It stands in the reason why a pair is refused."""
    assert (
        str(placement_of(CUDA_FITTED.splitlines())) == "25 of 33 layers, 6.0 of 8.9 GiB of weights on the GPU"
    )
    assert (
        str(placement_of(TWO_CARDS_2024.splitlines()))
        == "81 of 81 layers, 39.0 of 39.6 GiB of weights on the GPU (CUDA0 19.6 GiB, CUDA1 19.5 GiB)"
    )


FULL = placement_of(CUDA_FULL.splitlines())
# The same log with `-ngl 0` and `-ngl 20`.
NONE = placement_of(CUDA_FITTED.replace("offloaded 25/33", "offloaded 0/33").splitlines())
TWENTY = placement_of(CUDA_FITTED.replace("offloaded 25/33", "offloaded 20/33").splitlines())


@pytest.mark.parametrize(
    ("log", "args", "lacks"),
    [
        (FULL, "", False),
        (FULL, "-ngl 20", False),
        (NONE, "-ngl 0", False),
        (NONE, "--gpu-layers=0", False),
        (NONE, "-dev none", False),
        (NONE, "", True),
        (NONE, "-ngl 1", True),
        (TWENTY, "-ngl 20 -c 4096", False),
        (TWENTY, "-ngl 99 --n-gpu-layers 20", False),  # the last one counts
        (TWENTY, "--n_gpu_layers 21", True),
        (TWENTY, "-ngl 99", True),
        (TWENTY, "-ngl all", True),
        (TWENTY, "-ngl auto", True),
        (placement_of(METAL.splitlines()), "-ngl 99", False),
        (placement_of(B11434_CPU.splitlines()), "", False),  # a build without GPUs does not count layers
    ],
)
def test_only_layers_that_were_asked_for_can_be_lacking(log, args, lacks):
    """llama.cpp also logs 0 layers of 33 where the user asked for none."""
    assert log.lacks_layers(args.split()) is lacks


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (FULL, True),
        (placement_of(CUDA_FITTED.splitlines()), False),
        (placement_of(METAL.splitlines()), False),
        # A draft layer of the model's own (MTP), on the GPU with it: nothing was taken away.
        (replace(FULL, buffers=(("CPU_Mapped", 1030.62), ("CUDA0", 8295.05))), True),
        # Experts of a part of a layer went to the system's memory, and all layers count as offloaded.
        (replace(FULL, buffers=(("CPU_Mapped", 1230.62), ("CUDA0", 7845.05))), False),
    ],
)
def test_places_are_compared_by_what_is_not_on_the_gpu(other, same):
    """In whichever order."""
    assert FULL.same_as(other) is same
    assert other.same_as(FULL) is same


def test_cards_share_a_model_nearly_alike():
    """How it is split follows free memory; a tenth of it on another card is another place."""
    two = placement_of(TWO_CARDS_2024.splitlines())
    a_little = (("CPU_Mapped", 563.62), ("CUDA0", 19038.81), ("CUDA1", 20940.67))
    a_lot = (("CPU_Mapped", 563.62), ("CUDA0", 15038.81), ("CUDA1", 24940.67))
    assert two.same_as(replace(two, buffers=a_little))
    assert not two.same_as(replace(two, buffers=a_lot))


@pytest.mark.parametrize(
    ("era", "devices", "settings", "told"),
    [
        ("b11434", True, LaunchSettings(), True),
        ("b11434", False, LaunchSettings(), False),  # on the processor everything is in one place
        ("b11434", True, LaunchSettings(serving=True), False),  # users' servers are not changed
        ("b11434", True, LaunchSettings(("-lv", "3")), False),
        ("b11434", True, LaunchSettings(("--verbose",)), False),
        ("pydist012", True, LaunchSettings(), False),  # tells it anyway; 4 would mean another thing there
    ],
)
def test_measured_launches_on_a_gpu_are_told_to_say_it(tmp_path, era, devices, settings, told):
    """Off and drafted alike, and the user's own verbosity comes first."""
    server = LlamaServer(None, tmp_path)
    server._program = tmp_path / "llama-server"
    server._probe = Probe(Build("llama-server", era, "f" * 16), read_help(era), tells_drafts=True)
    server._has_devices = devices
    for drafting in (OFF, Drafting(Mode.DRAFT_MODEL, draft="/draft.gguf", n_max=4, n_min=0, p_min=0.0)):
        command = server.command("/main.gguf", drafting, settings)
        assert ("--log-verbosity" in command) is told
        assert not told or command[command.index("--log-verbosity") + 1] == "4"


@pytest.mark.parametrize("given", [(), ("--fit", "off"), ("-fit", "on", "-ngl", "20")])
def test_fit_is_the_same_with_and_without_drafting(tmp_path, given):
    """Nothing is pinned: what --fit did is read from both logs, and a pair in two places is not measured (`Neighbours`)."""
    server = LlamaServer(None, tmp_path)
    server._program = tmp_path / "llama-server"
    server._probe = Probe(Build("llama-server", "b11434", "f" * 16), read_help("b11434"), tells_drafts=True)
    server._has_devices = True
    drafting = Drafting(Mode.DRAFT_MODEL, draft="/draft.gguf", n_max=4, n_min=0, p_min=0.0)
    settings = LaunchSettings((*given, "-c", "4096"))
    off = server.command("/main.gguf", OFF, settings)
    assert server.command("/main.gguf", drafting, settings)[: len(off)] == off
    assert tuple(off[3 : 3 + len(given)]) == given
    assert sum(word in ("-fit", "--fit") for word in off) == len(given[:1])
    assert "--log-verbosity" in off  # else the log does not tell where --fit has put the weights
