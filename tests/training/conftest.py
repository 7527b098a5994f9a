"""Optax and orbax promote dtypes within themselves; strictness is for our own code."""

import jax
import pytest


@pytest.fixture(autouse=True)
def lenient():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
