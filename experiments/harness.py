"""What experiments share: names and errors on the command line, run folders that go on, tables, pictures.

An experiment is a frozen dataclass and a `main(config)`; `launch` makes it a program. Most are a table whose
rows take long: `records` measures what the run folder does not hold yet, and logs each row as soon as it is there.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxrnn as rnn

CellName = Literal[
    "elman",
    "jordan",
    "ind_rnn",
    "lstm",
    "lstm_peephole",
    "gru",
    "gru_before",
    "mgu",
    "min_gru",
    "min_lstm",
    "sru",
    "lru",
    "s5",
    "rg_lru",
    "selective_ssm",
    "slstm",
    "mlstm",
    "elementwise_gru",
    "elementwise_lstm",
    "layer_norm_lstm",
    "co_rnn",
    "clockwork",
]


def _mixing(cell: Callable[[int], rnn.Cell], *after: rnn.Cell) -> Callable[[int], rnn.Cell]:
    """A cell whose input is as wide as its output, behind a linear layer that makes it so."""
    return lambda size: rnn.stack(rnn.layer(nn.Dense(size)), cell(size), *after)


CELLS: dict[str, Callable[[int], rnn.Cell]] = {
    "elman": rnn.elman,
    "jordan": lambda size: rnn.jordan(size, size),
    "ind_rnn": rnn.ind_rnn,
    "lstm": rnn.lstm,
    "lstm_peephole": lambda size: rnn.lstm(size, peephole=True),
    "gru": rnn.gru,
    "gru_before": lambda size: rnn.gru(size, reset="before"),
    "mgu": rnn.mgu,
    "min_gru": rnn.cells.min_gru,
    "min_lstm": rnn.cells.min_lstm,
    "sru": rnn.cells.sru,
    "lru": _mixing(rnn.cells.lru, rnn.lift(jax.nn.gelu)),  # linear from end to end without it
    "s5": _mixing(rnn.cells.s5, rnn.lift(jax.nn.gelu)),
    "rg_lru": _mixing(rnn.cells.rg_lru),
    "selective_ssm": _mixing(rnn.cells.selective_ssm),
    "slstm": lambda size: rnn.cells.slstm(size, heads=math.gcd(size, 4)),
    "mlstm": lambda size: rnn.cells.mlstm(size, heads=math.gcd(size, 4)),
    "elementwise_gru": rnn.cells.elementwise_gru,
    "elementwise_lstm": rnn.cells.elementwise_lstm,
    "layer_norm_lstm": rnn.cells.layer_norm_lstm,
    "co_rnn": rnn.cells.co_rnn,
    "clockwork": rnn.cells.clockwork,
}

STRATEGIES: dict[str, Callable[..., rnn.Scan]] = {
    "fissioned": rnn.fissioned,
    "python_loop": rnn.python_loop,
    "checkpointed": rnn.checkpointed,
    "truncated": rnn.truncated,
    "revolve": rnn.revolve,
    "within": rnn.within,
    "parallel": rnn.parallel,
}
SETTINGS = {"newton": rnn.scans.newton}  # no scans, but arguments of some


# The command line.


class UsageError(Exception):
    """Something on the command line that makes no sense; the message says what would."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Settings that the library refuses are the user's error, told in its sentence."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def scan_named(text: str) -> rnn.Scan:
    """A scan from its Python expression: "lax.scan", "checkpointed(20, inner=fissioned)", "parallel(newton=newton())".

    Numbers, texts, True and False, and the names in STRATEGIES and SETTINGS with arguments, are all that is
    understood: nothing else is run.
    """
    known: dict[str, Callable[..., Any]] = {**STRATEGIES, **SETTINGS}
    names = ", ".join(["lax.scan", *STRATEGIES])

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, str, type(None))):
            return node.value
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = ast.unparse(node)
            if name in ("lax.scan", "jax.lax.scan"):
                return lax.scan
            node = ast.Call(node, [], [])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in known:
            options = {k.arg: value(k.value) for k in node.keywords if k.arg is not None}
            return known[ast.unparse(node.func)](*map(value, node.args), **options)
        raise UsageError(f"scan {text!r} is not understood; known are {names}, e.g. 'checkpointed(25, levels=2)'")

    try:
        scan = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"scan {text!r} is not understood ({error}); known are {names}") from error
    if not callable(scan):
        raise UsageError(f"scan {text!r} is not a scan; known are {names}")
    return scan


def whole_numbers(option: str, names: str, example: str, text: str) -> list[int]:
    """ "200,4,128,256" as numbers of at least 1, as many as there are names "T,B,D,H"."""
    numbers = [int(n) if n.strip().isdecimal() else 0 for n in text.split(",")]
    if len(numbers) != len(names.split(",")) or min(numbers) < 1:
        count = {2: "two", 3: "three", 4: "four"}[len(names.split(","))]
        raise UsageError(f"{option} takes {names} as {count} whole numbers of at least 1, e.g. {example}, got {text!r}")
    return numbers


Config = TypeVar("Config")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends: an interruption like Ctrl-C."""

    signum = signal.SIGTERM


def _terminate(number: int, frame: Any) -> None:
    del number, frame
    raise Terminated


def launch(
    main: Callable[[Config], None], config: type[Config], description: str | None, args: Sequence[str] | None = None
) -> None:
    """Reads the command line (or `args`) into `config` and runs `main`; what users can mend is one sentence and exit 1.

    Anything else is a bug and keeps its traceback. Ctrl-C exits with 130 and SIGTERM with 143, as shells
    expect, after one sentence that says how to go on.
    """
    import tyro  # here, so that the experiments can be called where it is not installed

    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        main(tyro.cli(config, description=description or "", args=args))
    except (UsageError, rnn.training.RunError, rnn.serving.ModelError, FloatingPointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:  # `fit` raises its own, which says what it saved, and knows the signal
        print(f"\n{str(stopped) or 'stopped; start it again to go on from what is saved'}", file=sys.stderr)
        sys.exit(128 + (getattr(stopped, "signum", None) or signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)


# Run folders.


def is_finished(folder: str) -> bool:
    """Whether this is the folder of a run that has come to the end of its `steps`."""
    if not (Path(folder) / "run.json").exists():
        return False
    with rnn.training.Run(folder, read_only=True) as run:
        return run.steps()[-1:] == [rnn.training.read_config(folder).get("steps")]


def records(
    run: rnn.training.Run,
    work: Sequence[dict[str, Any]],
    measure: Callable[..., dict[str, Any]],
    console: Console,
    *,
    then: Callable[[list[dict[str, Any]]], None] = lambda done: None,
    bar: bool = True,
) -> list[dict[str, Any]]:
    """[item | measure(**item) for item in work]; what the run folder holds already is not measured again.

    Each record is logged as soon as it is there, so a run that is stopped loses the one at hand; `then` is
    called after each with all that there are, to write them where people look. `bar=False`: `measure` shows
    progress itself.
    """
    names = tuple(work[0])
    known = {tuple(record.get(n) for n in names): record for record in rnn.training.read_metrics(run.folder)}
    done: list[dict[str, Any]] = []
    with Progress(console=console, transient=True, disable=not bar) as progress:
        task = progress.add_task("", total=len(work))
        for item in work:
            what = ", ".join(f"{name} {value}" for name, value in item.items())
            progress.update(task, description=what)
            record = known.get(tuple(item.values()))
            if record is None:
                try:
                    record = item | measure(**item)
                except rnn.training.Interrupted as stopped:
                    stopped.args = (f"stopped at {what}; start it again to go on after what is done",)
                    raise
                run.log(record)
            done.append(record)
            then(done)
            progress.advance(task)
    return done


def as_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A table with a header; what a row lacks stays empty. Columns: those of the first row, or as given."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def picture(path: Path, draw: Callable[[Any], None], *, columns: int = 1) -> None:
    """A PNG drawn on `columns` panels side by side, without a screen; a sentence where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} is not drawn: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(7 * columns, 5), layout="constrained")
    draw(axes)
    draft = path.with_name(path.name + ".new")
    figure.savefig(draft, dpi=120, format="png")
    plt.close(figure)
    draft.replace(path)


# The terminal.


def console() -> Console:
    """The terminal; where the output goes to a file instead, wide enough for any of our tables."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def print_table(
    console: Console,
    title: str,
    rows: Sequence[dict[str, str]],
    *,
    left: Sequence[str] = (),
    section: str | None = None,
) -> None:
    """Rows of texts, by column; numbers to the right, the columns `left` to the left.

    A line is drawn where the column `section` changes.
    """
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = section is not None and (following is None or following[section] != row[section])
        table.add_row(*row.values(), end_section=ends)
    console.print(table)


def text(value: float | None, form: str) -> str:
    """A number in a format, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


# Numbers.


def difference(got: Any, plain: Any) -> float:
    """The largest difference of any leaf, relative to the largest entry of any."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True))
    largest = max(float(jnp.max(jnp.abs(b))) for _, b in pairs)
    return max(float(jnp.max(jnp.abs(jnp.asarray(a) - b))) for a, b in pairs) / largest
