"""What a run folder says in text: its settings in run.json, and its history in metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxrnn.training.files import RunError, append_line, explained, reason, write_atomically

SETTINGS_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

Settings = dict[str, Any]  # what JSON can hold, by name
Record = dict[str, Any]


class _Line(NamedTuple):
    """A line of metrics.jsonl as it stands there, and what it says."""

    text: bytes
    record: Record


def as_json(settings: Mapping[str, Any]) -> Settings:
    """The settings as they come back from a file: lists for tuples, texts for what JSON does not know."""
    return dict(json.loads(json.dumps(dict(settings), default=str)))


def as_text(value: Any) -> str:
    """JSON of which there is only one for each value."""
    return json.dumps(value, sort_keys=True)


def read_config(folder: str | os.PathLike[str]) -> Settings:
    """run.json of a run folder. Raises: RunError where there is none, or none that can be read."""
    path = Path(folder) / SETTINGS_FILE
    remedy = "put the run's settings back into it (one JSON object), or choose another folder"
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError:
        remedy = "put that back" if (Path(folder) / METRICS_FILE).exists() else "train a run there first"
        raise RunError(f"{Path(folder)} is not a run folder (no {SETTINGS_FILE} in it); {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({reason(error)}); {remedy}") from error
    if not isinstance(settings, dict):
        raise RunError(f"{path} is not a run's configuration (it holds a {type(settings).__name__}); {remedy}")
    return settings


def write_config(folder: Path, settings: Settings) -> None:
    path = folder / SETTINGS_FILE
    with explained(f"{path} cannot be written", "free some space, or choose another folder"):
        write_atomically(path, json.dumps(settings, indent=2) + "\n")


def read_metrics(folder: str | os.PathLike[str]) -> list[Record]:
    """The records of metrics.jsonl; a last line that a kill cut short is left out.

    Raises: RunError where there is no such file, or a line of it is not a record.
    """
    whole, _ = _read(Path(folder) / METRICS_FILE)
    return [line.record for line in whole]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line to metrics.jsonl, whole or not at all. Raises: RunError."""
    line = json.dumps(dict(record))
    with explained(f"{path} cannot be written", "free some space, and start again to go on from the last checkpoint"):
        append_line(path, line)


def mend_last_line(path: Path) -> None:
    """Drops a last line that a kill cut short, so that the next one does not run into it. Makes the file if need be."""
    with explained(f"{path} cannot be written", "free some space, or move away what is there under this name"):
        path.touch()
        content = path.read_bytes()
        cut_short = content[content.rfind(b"\n") + 1 :]
        if not cut_short:
            return
        if _is_record(cut_short):
            append_line(path, "")  # only the line's end was missing
        else:
            os.truncate(path, len(content) - len(cut_short))


def forget_after(path: Path, step: int) -> None:
    """Drops the records of steps after this one; the other lines stay as they are, byte for byte."""
    whole, torn = _read(path)
    kept = [line.text for line in whole if line.record.get("step", 0) <= step]
    if len(kept) < len(whole) or torn:
        with explained(f"{path} cannot be written", "free some space and start again"):
            write_atomically(path, "".join(text.decode() + "\n" for text in kept))


def _read(path: Path) -> tuple[list[_Line], bytes]:
    """(the lines, a last one that was cut short). Raises: RunError naming the first line that is no record."""
    with explained(f"{path} cannot be read", "put the file back, or give the folder of a run"):
        *lines, last = path.read_bytes().split(b"\n")
    if _is_record(last):
        lines, last = [*lines, last], b""
    whole = []
    for number, text in enumerate(lines, 1):
        try:
            whole.append(_Line(text, _record(text)))
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged: line {number} is no record of a run ({reason(error)}); "
                "mend that line or delete it; the checkpoints are not touched by this"
            ) from error
    return whole, last


def _record(text: bytes) -> Record:
    """Raises: ValueError for anything but an object whose "step", if it has one, is a number."""
    record = json.loads(text.decode())
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not an object")
    step = record.get("step", 0)
    if not isinstance(step, (int, float)):
        raise ValueError(f"its step is {step!r}, not a number")
    return record


def _is_record(text: bytes) -> bool:
    try:
        _record(text)
    except (ValueError, RecursionError):
        return False
    return True
