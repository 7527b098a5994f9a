"""What experiments share: names on the command line, one-sentence errors, run folders, pictures."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import tyro
from jax import lax
from rich.console import Console

import jaxrnn

CellName = Literal["elman", "jordan", "ind_rnn", "lstm", "lstm_peephole", "gru", "gru_before", "mgu"]

CELLS: dict[str, Callable[[int], jaxrnn.Cell]] = {
    "elman": jaxrnn.elman,
    "jordan": lambda size: jaxrnn.jordan(size, size),
    "ind_rnn": jaxrnn.ind_rnn,
    "lstm": jaxrnn.lstm,
    "lstm_peephole": lambda size: jaxrnn.lstm(size, peephole=True),
    "gru": jaxrnn.gru,
    "gru_before": lambda size: jaxrnn.gru(size, reset="before"),
    "mgu": jaxrnn.mgu,
}

STRATEGIES: dict[str, Callable[..., jaxrnn.Scan]] = {
    "fissioned": jaxrnn.fissioned,
    "python_loop": jaxrnn.python_loop,
    "checkpointed": jaxrnn.checkpointed,
    "truncated": jaxrnn.truncated,
    "revolve": jaxrnn.revolve,
    "within": jaxrnn.within,
}


class UsageError(Exception):
    """Something on the command line that makes no sense; the message says what would."""


def scan_named(text: str) -> jaxrnn.Scan:
    """A scan from its Python expression: "lax.scan", "checkpointed(20, inner=fissioned)", "within('64MiB')".

    Numbers, texts, True and False, and the names in STRATEGIES with arguments, are all that is understood:
    nothing else is run.
    """
    names = ", ".join(["lax.scan", *STRATEGIES])

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, str, type(None))):
            return node.value
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = ast.unparse(node)
            if name in ("lax.scan", "jax.lax.scan"):
                return lax.scan
            node = ast.Call(node, [], [])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STRATEGIES:
            options = {k.arg: value(k.value) for k in node.keywords if k.arg is not None}
            return STRATEGIES[ast.unparse(node.func)](*map(value, node.args), **options)
        raise UsageError(f"scan {text!r} is not understood; known are {names}, e.g. 'checkpointed(25, levels=2)'")

    try:
        scan = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"scan {text!r} is not understood ({error}); known are {names}") from error
    if not callable(scan):
        raise UsageError(f"scan {text!r} is not a scan; known are {names}")
    return scan


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Settings that the library refuses are the user's error, told in its sentence."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


Config = TypeVar("Config")


def launch(main: Callable[[Config], None], config: type[Config], description: str) -> None:
    """Reads the command line into `config` and runs `main`; what users can mend is one sentence and exit 1.

    Anything else is a bug and keeps its traceback. Ctrl-C exits with 130, as shells expect.
    """
    try:
        main(tyro.cli(config, description=description))
    except (UsageError, jaxrnn.training.RunError, FloatingPointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except jaxrnn.training.Interrupted as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\nstopped; start it again to go on from what is saved", file=sys.stderr)
        sys.exit(130)


def picture(path: Path, draw: Callable[[Any], None], *, columns: int = 1) -> None:
    """A PNG drawn on `columns` panels side by side, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(7 * columns, 5), layout="constrained")
    draw(axes)
    draft = path.with_name(path.name + ".new")
    figure.savefig(draft, dpi=120, format="png")
    plt.close(figure)
    draft.replace(path)


def difference(got: Any, plain: Any) -> float:
    """The largest difference of any gradient, relative to the largest gradient."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True))
    largest = max(float(jnp.max(jnp.abs(b))) for _, b in pairs)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / largest


def as_csv(records: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """A table with a header; what a record lacks stays empty, what is not a column is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def console() -> Console:
    """The terminal; where the output goes to a file instead, wide enough for any of our tables."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
