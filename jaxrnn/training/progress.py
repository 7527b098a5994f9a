"""Showing how far a training is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[int, Mapping[str, float]], None]  # (the step that is done, what is new to tell)


@contextlib.contextmanager
def reporter(done: int, steps: int, progress: bool) -> Iterator[Show]:
    """Shows progress: a bar on a terminal, a line per record elsewhere, or nothing."""
    console = Console()
    if not progress:
        yield lambda step, record: None
    elif not console.is_terminal:
        yield lambda step, record: _print_line(step, steps, record)
    else:
        now = TextColumn("{task.fields[now]}")
        with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), now, console=console) as bar:
            task = bar.add_task("training", total=steps, completed=done, now="")

            def advance(step: int, record: Mapping[str, float]) -> None:
                bar.update(task, completed=step)
                if record:
                    bar.update(task, now=_text(record))

            yield advance


def _print_line(step: int, steps: int, record: Mapping[str, float]) -> None:
    if record:
        print(f"step {step}/{steps}  {_text(record)}", flush=True)


def _text(record: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in record.items())
