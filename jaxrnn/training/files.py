"""What every file of a run folder has in common: one-sentence errors, and writing whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# What else than the system's own errors tells of, in its words, somewhere within longer ones.
_KNOWN_TROUBLES = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)
_LONGEST = 160


class RunError(Exception):
    """A run folder or checkpoint that can't be used; says which, why, and what to do."""


def reason(error: BaseException) -> str:
    """Why something failed, in a few words on one line, whichever library raised it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    known = [trouble for trouble in _KNOWN_TROUBLES if trouble in text]
    if known:
        return known[0]
    return f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__


@contextlib.contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turns the system's errors into a `RunError`: "{what} ({why}); {remedy}"."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what} ({reason(error)}); {remedy}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file holds the old content or the new, whatever happens in between. Raises: OSError."""
    draft = draft_of(path)
    try:
        draft.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()  # on a full disk, half a draft is only in the way
        raise


def draft_of(path: Path) -> Path:
    """Where the new text is put together; a kill may leave it behind, and the next writer writes over it."""
    return path.with_name(path.name + ".new")


def append_line(path: Path, line: str) -> None:
    """Adds a line, or nothing at all if the disk has no room for the whole of it. Raises: OSError."""
    with path.open("ab", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        rest = line.encode() + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise
