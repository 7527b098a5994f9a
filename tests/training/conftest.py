"""Settings for the tests of training: dtypes as in optax and orbax, and what is compiled once is not compiled again."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

CACHE = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture(autouse=True)
def as_optax_has_it(lenient):
    """Dtypes of all tests here."""


@pytest.fixture(autouse=True, scope="package")
def compiled_once(tmp_path_factory):
    """Each `fit` is a new function to JAX, but most here are the same program: four fifths of the time is compiling."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *CACHE)}
    folder = tmp_path_factory.getbasetemp() / "compiled"
    for name, value in {"jax_compilation_cache_dir": str(folder), **CACHE}.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
