"""Real data, found on the machine or fetched from a package; nothing is shipped with the project."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Tests, and somebody else's packages; tables that a program wrote (code pages, help topics) are no text to learn.
_LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages"}


class Text(NamedTuple):
    """Modules one after the other, as UTF-8 bytes."""

    content: bytes
    starts: np.ndarray  # [N] bool: true at each module's first byte

    @property
    def characters(self) -> int:
        return len(self.content.decode("utf-8"))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:16]


def standard_library(held_out: int = 20) -> tuple[Text, Text]:
    """The running Python's own standard library: (training text, held-out text), no download.

    All `*.py` files but tests and generated tables. A module's path decides where it stands: about
    one in `held_out` is held out, and the order is that of the paths' hashes, so that neighbours
    in the text are not neighbours in a package.
    Raises: FileNotFoundError where the library has no sources (some embedded Pythons).
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]] = ([], [])
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if _LEFT_OUT & set(path.relative_to(root).parts):
            continue
        content = path.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a module in another encoding, kept by Python to test for it
        if not content:
            continue
        digest = hashlib.sha256(name.encode()).hexdigest()
        parts[int(digest, 16) % held_out == 0].append((digest, content))
    if not all(parts):
        raise FileNotFoundError(f"no Python sources under {root}; use a Python with its standard library in files")
    train, held = (_joined([content for _, content in sorted(part)]) for part in parts)
    return train, held


def shuffled(text: Text, piece: int, seed: int) -> Text:
    """The same text cut into pieces of up to `piece` bytes, none across modules, in random order.

    Read side by side, whole modules would give each gradient only as many topics as there are streams.
    """
    ends = [*np.flatnonzero(text.starts)[1:], len(text.content)]
    modules = zip(np.flatnonzero(text.starts), ends, strict=True)
    pieces = [text.content[i : min(i + piece, end)] for start, end in modules for i in range(start, end, piece)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return _joined([pieces[k] for k in order])


def symbols(text: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input, target, whether a module begins) for every byte; a module's first byte follows a newline."""
    targets = np.frombuffer(text.content, np.uint8).astype(np.int32)
    inputs = np.concatenate([[ord("\n")], targets[:-1]]).astype(np.int32)
    return np.where(text.starts, ord("\n"), inputs).astype(np.int32), targets, text.starts


def side_by_side(text: Text, streams: int, window: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """All of a text as parallel streams, padded to whole windows: (inputs, targets) and starts [T, B], lengths [B]."""
    inputs, targets, starts = symbols(text)
    streams = min(streams, len(targets))
    steps = -(-len(targets) // (streams * window)) * window
    pad = [(0, steps * streams - len(targets))]
    columns = [np.pad(a, pad).reshape(streams, steps).T for a in (inputs, targets, starts)]
    lengths = np.clip(len(targets) - steps * np.arange(streams), 0, steps)
    return (columns[0], columns[1]), columns[2], lengths


def _joined(modules: list[bytes]) -> Text:
    lengths = [len(module) for module in modules]
    starts = np.zeros(sum(lengths), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return Text(b"".join(modules), starts)
