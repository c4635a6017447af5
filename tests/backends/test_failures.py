"""Why a launch failed: last lines of real logs."""

from __future__ import annotations

import re
import signal

import pytest

from autospec.backends.failures import classify, speculation_refused
from autospec.backends.process import Ended

FAILED = Ended(code=1)
# Each from a real server of the era in its comment, on the lab's models.
LOGS = {
    # After half an upgrade of Homebrew's ggml: the form of llama.cpp #11321.
    "library, macOS": (
        "other",
        "cannot find @rpath/libllama.dylib: its installation is incomplete",
        False,
        """dyld[4711]: Library not loaded: @rpath/libllama.dylib
  Referenced from: <0A1B2C3D-0000-3000-8000-000000000000> /opt/homebrew/Cellar/llama.cpp/8770/bin/llama-server
  Reason: tried: '/opt/homebrew/lib/libllama.dylib' (no such file)""",
    ),
    "library, Linux": (
        "other",
        "cannot find libllama.so.0: its installation",
        False,
        "llama-server: error while loading shared libraries: libllama.so.0: cannot open shared object file: No such file",
    ),
    # llama.cpp #28684: the program of one release, a library of another.
    "symbol, Linux": (
        "other",
        "cannot find ggml_flash_attn_ext_set_n_kv_max: its installation is incomplete",
        False,
        """0.00.039.417 I srv    load_model: loading model 'MiniCPM5-2B-Q4_K_M.gguf'
llama-server: symbol lookup error: /opt/llama/bin/libllama.so.0: undefined symbol: ggml_flash_attn_ext_set_n_kv_max""",
    ),
    # llama.cpp #9794, QwenPaw #3211: built for a newer system.
    "glibc, Linux": (
        "other",
        "cannot find GLIBC_2.38: its installation is incomplete",
        False,
        "/opt/bin/llama-server: /lib/aarch64-linux-gnu/libm.so.6: version `GLIBC_2.38' not found (required by /opt/bin/llama-server)",
    ),
    "symbol, macOS 13": (
        "other",
        "cannot find _ggml_backend_dev_memory: its installation is incomplete",
        False,
        "dyld[4711]: Symbol not found: (_ggml_backend_dev_memory)\n  Referenced from: '/opt/homebrew/bin/llama-server'",
    ),
    # nanobrew #360: the kernels of another formula are missing; the model was called damaged before.
    "no kernels": (
        "other",
        "finds no library of kernels",
        False,
        """7.34.114.075 E llama_model_load_from_file_impl: no backends are loaded. hint: use ggml_backend_load() or ggml_backend_load_all()
7.34.114.824 E srv    load_model: failed to load model, '/m/t.gguf'""",
    ),
    "draft, b11434": (
        "draft",
        "could not be loaded",
        True,
        """0.00.736.076 E llama_model_load: error loading model: tensor 'blk.15.attn_output.weight' data is not within the file bounds, model is corrupted or incomplete
0.00.744.768 E llama_model_load_from_file_impl: failed to load model
0.00.744.801 E srv    load_model: failed to load draft model, '/m/d.gguf'
0.00.745.215 E srv  llama_server: exiting due to model loading error""",
    ),
    "draft, May 2025": (
        "draft",
        "/nope.gguf",
        True,
        """gguf_init_from_file: failed to open GGUF file '/nope.gguf'
common_init_from_params: failed to load model '/nope.gguf'
srv    load_model: failed to load draft model, '/nope.gguf'
main: exiting due to model loading error""",
    ),
    "model, b11434": (
        "model",
        "not within the file bounds",
        True,
        """0.00.049.254 E llama_model_load: error loading model: tensor 'blk.15.attn_output.weight' data is not within the file bounds, model is corrupted or incomplete
0.00.101.475 E srv    load_model: failed to load model, '/m/main.gguf'""",
    ),
    "vocabulary, May 2025": (
        "vocabulary",
        "does not fit the main model",
        True,
        """common_speculative_are_compatible: draft vocab vocab must match target vocab to use speculation but token 17 content differs - target '!', draft 'ectable'
srv    load_model: the draft model '/m/o.gguf' is not compatible with the target model '/m/t.gguf'""",
    ),
    "port, b11434": (
        "port",
        "Port 36239 was taken",
        False,
        """0.00.023.578 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 36239
0.00.041.031 E srv  llama_server: exiting due to HTTP server error""",
    ),
    "flag, all eras": ("flag", "does not know --bogus", True, "error: invalid argument: --bogus"),
    "value, all eras": (
        "flag",
        r"value of -c \(stoi\)",
        True,
        'error while handling argument "-c": stoi\n\nusage:',
    ),
    "memory, b11434": (
        "memory",
        "not enough memory",
        False,
        """0.54.863.214 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 138240196608
0.55.804.251 E srv    load_model: failed to create_context with model '/m/t.gguf'""",
    ),
    # llama.cpp #15256; before, the model was called damaged.
    "memory, Vulkan": (
        "memory",
        "not enough memory",
        False,
        """ggml_vulkan: Device memory allocation of size 118497280 failed.
ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory
srv    load_model: failed to load model, '/m/t.gguf'""",
    ),
    # llama.cpp #17869, a Mac: the crash before the reason.
    "memory, Metal": (
        "memory",
        "not enough memory",
        False,
        """ggml_metal_synchronize: error: command buffer 0 failed with status 5
/tmp/llama.cpp/ggml/src/ggml-metal/ggml-metal-context.m:235: fatal error
error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)""",
    ),
    # A DGX Spark, an AMD card (llama.cpp #8504) and a Jetson with a build for others.
    "kernels, CUDA": (
        "other",
        "no kernels for this GPU",
        False,
        """ggml_cuda_compute_forward: SCALE failed
CUDA error: no kernel image is available for execution on the device
  current device: 0, in function ggml_cuda_compute_forward at /opt/llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:2761
/opt/llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:97: CUDA error""",
    ),
    "kernels, ROCm": ("other", "no kernels for this GPU", False, "ROCm error: invalid device function"),
    "kernels, Jetson": (
        "other",
        "no kernels for this GPU",
        False,
        "CUDA error: the provided PTX was compiled with an unsupported toolchain",
    ),
    "mtp, b11434": (
        "mtp",
        "no MTP layers",
        True,
        """0.05.130.364 W llama_init_from_model: context type MTP requested but model doesn't contain MTP layers
0.05.130.400 E srv    load_model: failed to create MTP context""",
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_real_logs(name):
    """Each cause is named, and whether trying again can help."""
    kind, said, permanent, log = LOGS[name]
    failure = classify(FAILED, log.splitlines())
    assert (failure.kind, failure.permanent) == (kind, permanent)
    assert re.search(said, failure.message)


def test_a_memory_failure_of_a_draft_is_about_memory():
    """The cause comes before what followed from it."""
    log = ("E alloc: failed to allocate buffer", "E srv load_model: failed to load draft model, '/d.gguf'")
    assert classify(FAILED, log).kind == "memory"


def test_killed_by_the_kernel_for_memory():
    """SIGKILL with the kernel's own count of memory kills gone up."""
    killed = Ended(signal=signal.SIGKILL)
    assert classify(killed, ("loading",), out_of_memory_kills=1).kind == "memory"
    assert classify(killed, ("loading",)).kind == "killed"


def test_a_silent_kill_on_a_mac_may_be_quarantine():
    """Gatekeeper prints nothing; a server that had begun to load was not in quarantine."""
    killed = Ended(signal=signal.SIGKILL)
    assert "com.apple.quarantine" in classify(killed, (), platform="darwin").hint
    assert "quarantine" not in classify(killed, ("loading",), platform="darwin").hint
    assert "quarantine" not in classify(killed, (), platform="linux").hint


def test_a_missing_library_blames_no_drafting():
    """It ends by SIGABRT, which looks like a crash."""
    failure = classify(Ended(signal=signal.SIGABRT), LOGS["library, macOS"][3].splitlines())
    assert "brew reinstall ggml llama.cpp" in failure.hint
    assert not failure.permanent


def test_a_crash_tells_its_assertion():
    """The line that matters, among a backtrace."""
    log = ("ok", '/src/speculative.cpp:1033: GGML_ASSERT(n > 0 && "no layers") failed', "#1 0x00 in abort ()")
    failure = classify(Ended(signal=signal.SIGABRT), log)
    assert failure.kind == "crash"
    assert failure.permanent
    assert 'GGML_ASSERT(n > 0 && "no layers") failed' in failure.message


def test_an_illegal_instruction_is_the_builds_fault():
    """No other drafting helps a server that was built for another processor, so none is suggested."""
    failure = classify(Ended(signal=signal.SIGILL), ("loading model", "threadpool init, n_threads = 2"))
    assert (failure.kind, failure.permanent) == ("crash", True)
    assert "built for another processor" in failure.message
    assert "GGML_NATIVE=OFF" in failure.hint
    assert "drafting" not in failure.hint


def test_what_is_unknown_is_told_by_the_last_line():
    """No cause is made up."""
    failure = classify(Ended(code=3), ("0.01.2 I srv: one", "0.01.3 E srv: something new"))
    assert failure.kind == "other"
    assert (
        failure.message
        == "The server ended with status 3 before it was ready; its last line was: srv: something new."
    )


def test_a_silent_end():
    """Nothing printed is told as that."""
    assert "printed nothing" in classify(FAILED, ()).message


def test_the_reason_for_running_without_speculation():
    """b11434 says it in its log and starts all the same."""
    log = (
        "0.00.765.416 E spec common_specu: the target and draft vocabs are not compatible",
        "0.00.819.054 I srv          init: model loaded",
    )
    assert speculation_refused(log) == "vocabs are not compatible"
    assert speculation_refused(log[1:]) == ""


@pytest.mark.parametrize(
    "line",
    [
        "draft model vocab type must match target model to use speculation but vocab_type_dft = 1 while vocab_type_tgt = 2",
        "Error: draft model vocab type must match target model to use speculation (speculative implementation 'draft-simple')",
        "draft vocab special tokens must match target vocab to use speculation",
        "draft model bos tokens must match target model to use speculation. add: 1 - 0, id: 1 - 2)",
        "draft model vocab must closely match target model to use speculation but target vocab size 10",
        "E spec common_specu: the target and draft vocabs are not compatible",
    ],
)
def test_a_server_that_ends_for_the_vocabulary(line):
    """b11434 logs it and goes on; koboldcpp and builds of 2024 end with it."""
    failure = classify(FAILED, ("loading draft model", line, "exiting"))
    assert (failure.kind, failure.permanent) == ("vocabulary", True)
    assert "autospec drafts" in failure.hint
