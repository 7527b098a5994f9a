"""Run folders: what a run is, its metrics and its checkpoints; written so that a kill loses nothing.

folder/run.json         what the run is: the caller's configuration
folder/metrics.jsonl    one JSON object per line, each with its "step"
folder/checkpoints/N/   the training state after N steps, by orbax, complete or not there at all;
                        about.json in it has the digest of each file, beside.json what goes with the state
folder/best/N/          the best parameters, those after N steps, in the same way
folder/run.lock         held by the process that writes here, and by nobody once that has ended
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrnn import checks
from jaxrnn.training import processes, records
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.files import RunError, draft_of, explained, write_atomically
from jaxrnn.training.locks import LOCK_FILE, FolderLock
from jaxrnn.training.records import METRICS_FILE, SETTINGS_FILE, Settings
from jaxrnn.types import Tree

_CHECKPOINTS, _BEST = "checkpoints", "best"


class Run:
    """An open run folder. Use as a context manager, or call `close`.

    Opening makes the folder, or checks that it holds the same run: a `config` that differs from the
    recorded one is refused, field by field, and so is a folder with foreign files in it. Nothing
    that is already there is touched before those checks. While it is open no other process, and no
    other `Run`, can write there; a process that was killed is in nobody's way.

    `read_only=True` reads a folder that is there, also while another process trains in it: `steps`,
    `restore`, `read_config` and `read_metrics` work, nothing is changed, and `config` is compared
    only if it is given.

    Several processes (`jax.distributed.initialize`), which share the disk, open the folder all together and do with it
    together what they do; the first of them writes and holds the lock, each saves and restores its own part of the
    arrays, and what fails in the first one is raised in all. `read_only` is for each by itself.
    Raises: RunError for a folder that cannot be written, is not a run folder, holds another run, or
    is in use by another process, which it names.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        *,
        keep: int = 3,
        read_only: bool = False,
    ) -> None:
        keep = checks.positive_int("Run", "keep", keep)
        self.folder = Path(folder).expanduser().resolve()
        self.metrics_path = self.folder / METRICS_FILE
        self.read_only = read_only
        self._checkpoints = Checkpoints(self.folder / _CHECKPOINTS, keep)
        self._best = Checkpoints(self.folder / _BEST, None)
        self._lock: FolderLock | None = None
        self._writes = False
        if read_only:
            _check_config(self.folder, None if config is None else records.as_json(config))
            return
        settings = records.as_json(config or {})
        processes.agree("Run", {"folder": str(self.folder), **settings})
        processes.by_the_first(lambda: self._open(settings))
        self._writes = True

    def _open(self, settings: Settings) -> None:
        _check_before_touching(self.folder, settings)
        with explained(f"run folder {self.folder} cannot be written", "choose another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        try:
            self._begin(settings)
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: Settings) -> None:
        """What only the one who holds the lock may do."""
        _check_before_touching(self.folder, settings)  # another process may have begun a run since
        if not (self.folder / SETTINGS_FILE).exists():
            records.write_config(self.folder, settings)
        records.mend_last_line(self.metrics_path)
        self._checkpoints.clear()
        self._best.clear()

    def steps(self) -> list[int]:
        """The steps of which there is a complete checkpoint, the earliest first."""
        return list(self._by_the_first(self._checkpoints.steps))

    def save(self, step: int, state: Tree, beside: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint; when this returns it is complete. Older ones beyond `keep` are removed.

        `beside` is what goes with the state but is no array, as JSON; `Run.beside` reads it.
        Raises: RunError where it cannot be written (what was there before is intact), or if there is
        one of this step or a later one; ValueError for a state without elements.
        """
        self._must_write()
        self._checkpoints.save(step, state, beside)
        self._by_the_first(self._keep_best)

    def _keep_best(self) -> None:
        """Of the best parameters those that were the best at a checkpoint: a run can go on from any of them."""
        best, kept = self._best.steps(), self._checkpoints.steps()
        self._best.only([max(earlier) for n in kept if (earlier := [b for b in best if b <= n])])

    def restore(self, template: Tree, step: int | None = None) -> Tree:
        """The newest checkpoint (or that of a step), with the structure of `template`.

        Every file is checked against the digest that was saved with it, before it is used.
        Raises: RunError if there is none, it is damaged, or it holds something else than the template.
        """
        return self._checkpoints.restore(template, step, together=not self.read_only)

    def beside(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the newest state (or that of a step); {} where nothing was. Raises: RunError."""
        return dict(self._by_the_first(lambda: self._checkpoints.beside(step)))

    def save_best(self, step: int, params: Tree) -> None:
        """Writes the best parameters so far, those of a step. Raises: as `save`."""
        self._must_write()
        self._best.save(step, params)

    def best(self, template: Tree, step: int | None = None) -> Tree:
        """The best parameters (or those that were the best at a step), as `restore` reads a state."""
        return self._best.restore(template, step, together=not self.read_only)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl, whole or not at all. Raises: RunError where it cannot be written."""
        self._must_write()
        self._by_the_first(lambda: records.append_record(self.metrics_path, record))

    def write(self, name: str, text: str) -> None:
        """Puts a text file into the folder, whole or not at all. Raises: RunError where it cannot be written."""
        self._must_write()
        self._by_the_first(lambda: self._write(self.folder / name, text))

    def _write(self, path: Path, text: str) -> None:
        with explained(f"{path} cannot be written", "free some space, or move away what is there under this name"):
            write_atomically(path, text)

    def forget_after(self, step: int) -> None:
        """Drops metrics and best parameters of steps after this one: a resumed run writes them again.

        Raises: RunError where metrics.jsonl is damaged or cannot be written; it is then as it was.
        """
        self._must_write()
        self._by_the_first(lambda: self._forget_after(step))

    def _forget_after(self, step: int) -> None:
        records.forget_after(self.metrics_path, step)
        self._best.only([b for b in self._best.steps() if b <= step])

    def close(self) -> None:
        """Lets go of the folder; a second time does nothing."""
        self._writes = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _by_the_first(self, do: Callable[[], Any]) -> Any:
        """Done by the first process for all; by each for itself where each reads for itself."""
        return do() if self.read_only else processes.by_the_first(do)

    def _must_write(self) -> None:
        if not self._writes:
            how = "open for reading only; open it without read_only" if self.read_only else "closed; open it again"
            raise RunError(f"run folder {self.folder} is {how} to write there")


def _check_before_touching(folder: Path, settings: Settings) -> None:
    """Raises: RunError unless this is, or could become, the folder of the run with these settings."""
    with explained(f"run folder {folder} cannot be written", "choose another folder"):
        found = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if SETTINGS_FILE in found:
        _check_config(folder, settings)
        return
    ours = {METRICS_FILE, _CHECKPOINTS} & set(found)
    if ours:
        raise RunError(
            f"{folder} holds {' and '.join(sorted(ours))} of a run but no {SETTINGS_FILE}; "
            "put that back (the run's settings as one JSON object), or choose an empty or new folder"
        )
    left_by_a_kill = {LOCK_FILE, draft_of(folder / SETTINGS_FILE).name}
    strangers = [name for name in found if name not in left_by_a_kill]
    if strangers:
        raise RunError(
            f"{folder} is not a run folder (it holds {', '.join(strangers[:3])} but no {SETTINGS_FILE}); "
            "choose an empty or new folder"
        )


def _check_config(folder: Path, settings: Settings | None) -> None:
    """Raises: RunError if the folder is not a run's, or not that of the run with these settings."""
    recorded = records.read_config(folder)
    if settings is None:
        return
    differ = sorted(k for k in recorded.keys() | settings.keys() if not _same(recorded.get(k), settings.get(k)))
    if differ:
        changes = ", ".join(f"{k}: {recorded.get(k)!r} there, {settings.get(k)!r} here" for k in differ)
        raise RunError(
            f"run folder {folder} holds a different run ({changes}); "
            "choose another folder, use the same settings, or delete it"
        )


def _same(a: Any, b: Any) -> bool:
    """As JSON: a NaN is the same as a NaN."""
    return records.as_text(a) == records.as_text(b)
