"""Strict settings for all tests: no silent promotion of dtypes or ranks; warnings are errors (pyproject.toml)."""

import gc
import importlib.metadata
import os
import signal

# A shell that starts its tests in the background has them ignore Ctrl-C, of which some of them are.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: let LLVM do less, in one piece. What XLA allocates is not affected.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# Without MLIR a fused operation compiles three times as fast. JAX 0.12 has no such flag, and XLA ends the process
# at a flag that it does not know.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes millions of small objects, nearly all of which are freed without the collector: a tenth of the time.
gc.set_threshold(50_000, 50, 100)

# `pytest`: the same few examples every time. `pytest --hypothesis-profile=long`: new ones, for about 20 minutes.
settings.register_profile("few", max_examples=3, derandomize=True, deadline=None)
settings.register_profile("long", max_examples=130, derandomize=False, deadline=None, print_blob=True)
settings.load_profile("few")


def pytest_configure(config):
    """What was compiled is kept for the next run, each worker's by itself: JAX writes such a folder without locks."""
    if cache := getattr(config, "cache", None):
        folder = cache.mkdir("compiled") / os.environ.get("PYTEST_XDIST_WORKER", "alone")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def lenient():
    """Dtypes and ranks as optax and orbax have them; strictness is for our own code."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Programs that tests start in processes of their own, with four devices: not to be imported in search of doctests.
collect_ignore = [
    "sequence/on_four_devices.py",
    "scans/on_a_mesh.py",
    "scans/parallel_on_a_mesh.py",
    "online/on_four_devices.py",
    "training/on_devices.py",
    "training/in_processes.py",
    "experiments/char_lm_on_devices.py",
]
