"""Checkpoints of a run: numbered folders, each complete or not there at all, each sealed by a digest of its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrnn.training import processes, states
from jaxrnn.training.files import RunError, explained, reason
from jaxrnn.training.states import Inventory
from jaxrnn.types import Tree

Digests = dict[str, str]  # file, from the checkpoint's folder on -> digest of its bytes

_ABOUT = "about.json"  # what we say about what orbax writes
_BESIDE = "beside.json"  # what goes with the state but is no array

# What is not, or no longer, a checkpoint has one of these after its number, until it is gone.
_UNFINISHED, _REMOVED = ".unfinished", ".removed"


class Checkpoints:
    """A folder of checkpoints of a run; at most the `keep` newest stay, or all until `only` says which.

    A checkpoint is put together under another name and gets its own when all of it is there; one that
    goes loses its name first. So whatever has a number for a name is whole, at every instant.
    Several processes (which share the disk) save and restore together: the first one makes, seals, names and
    checks, and each writes and reads its own part of the arrays.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint. Raises: RunError where that cannot be read."""
        with explained(f"{self.folder} cannot be read", "move it away, or choose another run folder"):
            names = [p.name for p in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def clear(self) -> None:
        """Removes what a kill has left behind. Only for the one who writes here."""
        with explained(f"{self.folder} cannot be read", "move it away, or choose another run folder"):
            left = [p for p in self.folder.iterdir() if _is_remnant(p.name)] if self.folder.exists() else []
        for path in left:
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, state: Tree, beside: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint; when this returns it is complete. Raises: RunError; ValueError for an empty state.

        `beside` goes with it as JSON.
        """
        processes.by_the_first(lambda: self._must_be_next(step))
        if not any(np.size(leaf) for leaf in jax.tree.leaves(state)):
            raise ValueError("Run.save: state has no arrays with elements, so there is nothing to save")
        draft = self.folder / f"{step}{_UNFINISHED}"
        try:
            processes.by_the_first(lambda: self._begin(draft))
            states.write(draft, state)
            processes.by_the_first(lambda: _finish(draft, self.folder / str(step), states.inventory(state), beside))
        except Exception as error:  # noqa: BLE001  orbax raises whatever its layers raise
            if processes.is_gone(error):
                raise
            if processes.is_first():
                with contextlib.suppress(RunError):
                    self.clear()  # half a checkpoint would only fill the disk
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder} ({reason(error)}); "
                "the last complete one is intact: free some space and start again to go on from it"
            ) from error
        if self._keep is not None:
            newest = self._keep
            processes.by_the_first(lambda: self.only(self.steps()[-newest:]))

    def _must_be_next(self, step: int) -> None:
        newest = self.steps()[-1:]
        if newest and step <= newest[0]:
            raise RunError(
                f"checkpoint {step} was not written: {self.folder.parent} holds one of step {newest[0]}; "
                "delete that one first, or save in another folder"
            )

    def _begin(self, draft: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        self.clear()
        draft.mkdir()

    def only(self, kept: Collection[int]) -> None:
        """Removes the checkpoints of other steps."""
        for step in sorted(set(self.steps()) - set(kept)):
            old = self.folder / str(step)
            with explained(f"checkpoint {old} cannot be removed", "remove it by hand"):
                gone = old.rename(old.with_name(old.name + _REMOVED))
            shutil.rmtree(gone, ignore_errors=True)

    def restore(self, template: Tree, step: int | None = None, *, together: bool = True) -> Tree:
        """The newest checkpoint (or that of a step), with the structure of `template`; see `Run.restore`.

        Not `together`: each of several processes reads for itself.
        """
        fitting = lambda: str(self._fitting(template, step))
        place = Path(processes.by_the_first(fitting) if together else fitting())
        try:
            return states.read(place, template)
        except Exception as error:  # noqa: BLE001
            if processes.is_gone(error):
                raise
            raise self._unusable(place, [], error) from error

    def beside(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the newest state (or that of a step); {} where nothing was. Raises: RunError."""
        place, _ = self._found(step)
        with explained(f"checkpoint {place} cannot be read", "see to that, and start again"):
            text = (place / _BESIDE).read_text(encoding="utf-8") if (place / _BESIDE).exists() else "{}"
        found: dict[str, Any] = json.loads(text)
        return found

    def _fitting(self, template: Tree, step: int | None) -> Path:
        """The newest checkpoint (or that of a step), sound and of the template's leaves."""
        place, inventory = self._found(step)
        wanted = states.inventory(template)
        if inventory != wanted:
            raise _another_model(place, inventory, wanted)
        return place

    def _found(self, step: int | None) -> tuple[Path, Inventory]:
        """The newest checkpoint (or that of a step) and what is in it, every byte being as it was saved."""
        known = self.steps()
        step = step if step is not None else (known[-1] if known else None)
        if step is None or step not in known:
            which = "" if step is None else f" of step {step}"
            raise RunError(f"{self.folder.parent} holds no checkpoint{which} to go on from")
        place = self.folder / str(step)
        try:
            return place, _unsealed(place)
        except (_Damaged, OSError) as error:
            raise self._unusable(place, [s for s in known if s < step], error) from error

    def _unusable(self, place: Path, earlier: list[int], error: Exception) -> RunError:
        """Of what is wrong with a checkpoint the kindest reading: gone, not to be read, or else damaged."""
        if not place.exists():
            return RunError(
                f"checkpoint {place} was removed while it was read, as the process that trains there "
                "keeps only its newest; try again"
            )
        if not isinstance(error, _Damaged):
            return RunError(f"checkpoint {place} cannot be read ({reason(error)}); see to that, and start again")
        remedy = f"to go on from step {earlier[-1]}" if earlier else "to start anew"
        return RunError(f"checkpoint {place} is damaged ({error}); delete {place} {remedy}")


def _finish(draft: Path, place: Path, inventory: Inventory, beside: Mapping[str, Any] | None) -> None:
    """Adds what goes with the arrays and the seal; then the checkpoint gets its name."""
    if beside:
        (draft / _BESIDE).write_text(json.dumps(beside), encoding="utf-8")
    (draft / _ABOUT).write_text(_sealed(inventory, _digests(draft)), encoding="utf-8")
    draft.rename(place)


class _Damaged(ValueError):
    """Which of a checkpoint's files is not as it was saved."""


def _is_remnant(name: str) -> bool:
    number, dot, rest = name.partition(".")
    return number.isdecimal() and f"{dot}{rest}".startswith((_UNFINISHED, _REMOVED))


# --- the seal: a checkpoint says what is in it, and the digest of each of its files


def _sealed(inventory: Inventory, digests: Digests) -> str:
    return json.dumps({"leaves": inventory, "files": digests, "seal": _digest_of_texts(inventory, digests)}, indent=1)


def _unsealed(place: Path) -> Inventory:
    """What is in a checkpoint, once every byte of it is found to be what was saved.

    Files are read here before orbax reads them: what it raises about a damaged one depends on which of
    its threads comes first, and some of it goes to the terminal.
    Raises: _Damaged, naming the file; OSError where one cannot be read.
    """
    if not (place / _ABOUT).is_file():
        raise _Damaged(f"its file {_ABOUT} is missing")
    text = (place / _ABOUT).read_bytes()
    try:
        about = json.loads(text)
        inventory, digests = about["leaves"], about["files"]
        sound = about["seal"] == _digest_of_texts(inventory, digests)
    except (ValueError, LookupError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise _Damaged(f"its file {_ABOUT} is not as it was saved")
    for name, digest in digests.items():
        if not (place / name).is_file():
            raise _Damaged(f"its file {name} is missing")
        if _digest_of_file(place / name) != digest:
            raise _Damaged(f"its file {name} is not as it was saved")
    return inventory


def _digests(folder: Path) -> Digests:
    return {str(p.relative_to(folder)): _digest_of_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _digest_of_texts(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _another_model(place: Path, there: Inventory, here: Inventory) -> RunError:
    odd = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))[0]
    return RunError(
        f"checkpoint {place} holds another model: {odd} is {there.get(odd, 'missing')} there and "
        f"{here.get(odd, 'missing')} here; use the settings it was saved with"
    )
