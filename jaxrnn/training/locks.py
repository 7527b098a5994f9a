"""One writer for a folder: a lock that the system drops when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrnn.training.files import RunError, explained

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None  # not on Windows

LOCK_FILE = "run.lock"
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class FolderLock:
    """Held from its making to `release`; while it is held, nobody else gets one of the same folder.

    An advisory lock of the whole file `run.lock`, in which the holder writes its process id and host.
    The file stays when the lock goes (were it removed, two processes could hold two files of one
    name), but it does not stand in anybody's way: what counts is the lock, and the system drops that
    with its process, after `kill -9` too. A forked child lets go of its parent's lock, so that a
    data loader that outlives its parent does not keep the folder.
    Limits: where the system or file system has no such locks, a warning says so, and nothing is kept out.
    Raises: RunError, naming the other process, if it is held; or if the file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._release: Callable[[], object] = lambda: None
        if fcntl is None:
            _warn_of_no_lock(folder, "this system has none")
            return
        path = folder / LOCK_FILE
        with explained(f"{path} cannot be opened", "choose another folder, or remove what is there under this name"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").split()
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise RunError(_who_holds(folder, holder)) from None
            _warn_of_no_lock(folder, error.strerror or str(error))
            return
        # Not with `open`: a lock that is forgotten is let go without a word.
        self._release = weakref.finalize(self, _let_go, descriptor, os.getpid())
        with contextlib.suppress(OSError):  # a name is a courtesy: on a full disk the lock holds without
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Lets go; a second time does nothing."""
        self._release()


def _let_go(descriptor: int, owner: int) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
    os.close(descriptor)  # the lock ends with the last descriptor of its holder


def _who_holds(folder: Path, holder: list[str]) -> str:
    if holder == [str(os.getpid()), socket.gethostname()]:
        return (
            f"run folder {folder} is open in this process already; "
            "close that Run first or use it here, or open this one with read_only=True to read from it"
        )
    who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
    return (
        f"run folder {folder} is in use by {who}; wait until it has ended, or stop it, "
        "or choose another folder (read_only=True opens it for reading)"
    )


def _warn_of_no_lock(folder: Path, why: str) -> None:
    warnings.warn(
        f"run folder {folder} cannot be locked ({why}), so nothing keeps a second process out of it; "
        "let one at a time write there",
        stacklevel=4,
    )


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go_in_a_forked_child() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_a_forked_child)
