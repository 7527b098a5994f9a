"""Stopping a training: what asks for it, and what is raised when it has been done."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from jaxrnn.training.step import TrainState


class Interrupted(KeyboardInterrupt):
    """`fit` was asked to stop, and has: what was done so far is saved in the run folder, if there is one.

    `state` is what `fit` would have gone on with, so that nothing is lost without a run folder
    either: `fit(loss_fn, error.state, ...)` ends with the same bits as if it had not been stopped.
    `signum` is the signal that asked: SIGINT (Ctrl-C) or SIGTERM (what schedulers send).
    """

    def __init__(self, message: str = "", state: TrainState | None = None, signum: int | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.signum = signum


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the signal's number when Ctrl-C or SIGTERM comes. The second one acts as it always does.

    Only the main thread hears signals; in others the list stays empty, and signals do what they did.
    """
    heard: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        heard.append(number)
        put_back()

    def put_back() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    with contextlib.suppress(ValueError):  # raised where this is not the main thread
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not None:  # one that was not set from Python could not be put back
                previous[signum] = signal.signal(signum, note)
    try:
        yield heard
    finally:
        put_back()
