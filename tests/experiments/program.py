"""Running an experiment as its command line does: in this process, or in one of its own."""

import contextlib
import csv
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import tyro  # noqa: F401  (an example in a docstring leaves `builtins._`, at which a later import fails)

from experiments import harness
from experiments.datasets import packages

ROOT = Path(__file__).parent.parent.parent


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def launched(name, *arguments):
    """An experiment's command line in this process, with JAX as strict as it is for users."""
    module = importlib.import_module(f"experiments.{name}")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            harness.launch(module.main, module.Config, module.__doc__, [str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            err.write("" if isinstance(stop.code, int) else f"{stop.code}\n")  # as Python does
    return Ended(code, out.getvalue(), err.getvalue())


def started(name, *arguments, package="experiments", **environment):
    """The same in a process of its own, which is not waited for."""
    command = [sys.executable, "-m", f"{package}.{name}", *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "default", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(child):
    out, err = child.communicate(timeout=400)
    return Ended(child.returncode, out, err)


def complains(result, complaint):
    """Exit 1, after one sentence that has this in it."""
    assert result.code == 1, result
    assert complaint in result.err and result.err.startswith("error: "), result.err
    assert len(result.err.strip().splitlines()) == 1, result.err


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


def held(load):
    """What a loader gives; the test is skipped where a package cannot be had, and fails where it holds other data."""
    try:
        return load()
    except packages.Damaged:
        raise
    except packages.Missing as missing:
        pytest.skip(str(missing))
