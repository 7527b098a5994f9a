"""Several processes that train together: what one of them does for all, and what all must agree on.

Here every process calls the same functions in the same order. What is exchanged are short texts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrnn.training.files import RunError, reason

_ROUND = 256  # texts are exchanged in multiples of so many bytes, so that few programs are compiled
_OF_OTHERS = "gloo nccl connection coordination heartbeat barrier peer".split()  # words in what JAX says then
_KINDS: dict[str, type[Exception]] = {"RunError": RunError, "ValueError": ValueError, "TypeError": TypeError}


def count() -> int:
    """How many processes `jax.distributed.initialize` has joined. Asked before that, JAX is left as it is: 1."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints, logs and locks."""
    return count() == 1 or jax.process_index() == 0


def by_the_first(do: Callable[[], Any]) -> Any:
    """do(), by the first process alone; all have its result, as JSON can hold it, or raise what it raised.

    An error of a kind that no other process can raise is a RunError there.
    """
    if count() == 1:
        return do()
    caught: Exception | None = None
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"result": do()}
        except Exception as error:  # noqa: BLE001  whatever it is, the others must not wait for it
            caught, said = error, {"kind": type(error).__name__, "error": str(error), "reason": reason(error)}
    heard = json.loads(_from_the_first(json.dumps(said)))
    if caught is not None:
        raise caught
    if "result" in heard:
        return heard["result"]
    kind = _KINDS.get(heard["kind"])
    raise kind(heard["error"]) if kind else RunError(f"process 0 failed ({heard['reason']}); see what it says")


def texts(mine: str) -> list[str]:
    """Every process's text, in the order of the processes."""
    if count() == 1:
        return [mine]
    own = np.frombuffer(mine.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([len(own)], np.int32)))
    rows = multihost_utils.process_allgather(_padded(own, int(sizes.max())))
    return [bytes(np.asarray(row)[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def agree(where: str, settings: Mapping[str, Any]) -> None:
    """Raises: ValueError in every process, naming the first setting that is not the same in all of them."""
    if count() == 1:
        return
    told: list[dict[str, Any]] = [json.loads(text) for text in texts(json.dumps(settings, default=str))]
    for name in {name: None for settings in told for name in settings}:  # in their order
        values = [settings.get(name) for settings in told]
        other = next((n for n, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ValueError(
                f"{where}: the processes disagree: {name} is {values[0]!r} in process 0 and {values[other]!r} in "
                f"process {other}; start all of them with the same settings"
            )


def is_gone(error: BaseException) -> bool:
    """Whether something failed because another process has ended, however it did."""
    text = str(error).lower()
    return count() > 1 and isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in _OF_OTHERS)


@contextlib.contextmanager
def all_there(remedy: str) -> Iterator[None]:
    """Raises: RunError where another process has ended meanwhile."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_gone(error):
            raise
        raise RunError(f"another of the {count()} processes has ended ({reason(error)}); {remedy}") from error


def _from_the_first(text: str) -> str:
    own = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
    padded = _padded(own[:size], size)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size]).decode()


def _padded(own: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    room = -(-max(size, 1) // _ROUND) * _ROUND
    return np.pad(own[:room], (0, room - min(len(own), room)))
