"""Checkpoints of a run: numbered folders, each complete or not there at all, each sealed by a digest of its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.training.files import RunError, explained, reason
from jaxrnn.types import Tree

Array = np.ndarray[Any, Any]
Inventory = dict[str, str]  # leaf path -> dtype and shape
Digests = dict[str, str]  # file, from the checkpoint's folder on -> digest of its bytes

_STATE, _ABOUT = "state", "about.json"  # what orbax writes, and what we say about it
_BESIDE = "beside.json"  # what goes with the state but is no array
_BYTES = "bytes"  # the one array in it

# What is not, or no longer, a checkpoint has one of these after its number, until it is gone.
_UNFINISHED, _REMOVED = ".unfinished", ".removed"


class Checkpoints:
    """A folder of checkpoints of a run; at most the `keep` newest stay, or all until `only` says which.

    A checkpoint is put together under another name and gets its own when all of it is there; one that
    goes loses its name first. So whatever has a number for a name is whole, at every instant.
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
        newest = self.steps()[-1:]
        if newest and step <= newest[0]:
            raise RunError(
                f"checkpoint {step} was not written: {self.folder.parent} holds one of step {newest[0]}; "
                "delete that one first, or save in another folder"
            )
        leaves = _plain(state)
        packed = _packed(leaves)
        if not packed.size:
            raise ValueError("Run.save: state has no arrays with elements, so there is nothing to save")
        draft = self.folder / f"{step}{_UNFINISHED}"
        try:
            self.folder.mkdir(exist_ok=True)
            self.clear()
            draft.mkdir()
            with _orbax() as (store, args):
                store.save(draft / _STATE, args=args.StandardSave({_BYTES: packed}))
            if beside:
                (draft / _BESIDE).write_text(json.dumps(beside), encoding="utf-8")
            (draft / _ABOUT).write_text(_sealed(_inventory(leaves), _digests(draft)), encoding="utf-8")
            draft.rename(self.folder / str(step))
        except Exception as error:  # noqa: BLE001  orbax raises whatever its layers raise
            with contextlib.suppress(RunError):
                self.clear()  # half a checkpoint would only fill the disk
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder} ({reason(error)}); "
                "the last complete one is intact: free some space and start again to go on from it"
            ) from error
        if self._keep is not None:
            self.only(self.steps()[-self._keep :])

    def only(self, kept: Collection[int]) -> None:
        """Removes the checkpoints of other steps."""
        for step in sorted(set(self.steps()) - set(kept)):
            old = self.folder / str(step)
            with explained(f"checkpoint {old} cannot be removed", "remove it by hand"):
                gone = old.rename(old.with_name(old.name + _REMOVED))
            shutil.rmtree(gone, ignore_errors=True)

    def restore(self, template: Tree, step: int | None = None) -> Tree:
        """The newest checkpoint (or that of a step), with the structure of `template`; see `Run.restore`."""
        place, inventory = self._found(step)
        wanted = _plain(template)
        if inventory != _inventory(wanted):
            raise _another_model(place, inventory, _inventory(wanted))
        empty = np.empty_like(_packed(wanted))
        try:
            with _orbax() as (store, args):
                packed = store.restore(place / _STATE, args=args.StandardRestore({_BYTES: empty}))[_BYTES]
        except Exception as error:  # noqa: BLE001
            raise self._unusable(place, [], error) from error
        return _like(template, _unpacked(packed, wanted))

    def beside(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the newest state (or that of a step); {} where nothing was. Raises: RunError."""
        place, _ = self._found(step)
        with explained(f"checkpoint {place} cannot be read", "see to that, and start again"):
            text = (place / _BESIDE).read_text(encoding="utf-8") if (place / _BESIDE).exists() else "{}"
        found: dict[str, Any] = json.loads(text)
        return found

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


class _Damaged(ValueError):
    """Which of a checkpoint's files is not as it was saved."""


def _is_remnant(name: str) -> bool:
    number, dot, rest = name.partition(".")
    return number.isdecimal() and f"{dot}{rest}".startswith((_UNFINISHED, _REMOVED))


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """(what saves and restores, its arguments' module), imported where needed: that takes longer than all of jaxrnn."""
    import orbax.checkpoint as ocp

    # It logs errors, each odd file and each save beside what it raises; we say what matters in one sentence.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as store:
            yield store, ocp.args
    finally:
        logger.setLevel(level)


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


# --- states as orbax takes them


def _another_model(place: Path, there: Inventory, here: Inventory) -> RunError:
    odd = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))[0]
    return RunError(
        f"checkpoint {place} holds another model: {odd} is {there.get(odd, 'missing')} there and "
        f"{here.get(odd, 'missing')} here; use the settings it was saved with"
    )


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))


def _plain(tree: Tree) -> Tree:
    """All leaves on the host, PRNG keys as their data."""

    def plain(leaf: Any) -> Array:
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return np.asarray(data, dtype=jnp.result_type(data))

    return jax.tree.map(plain, tree)


def _like(template: Tree, plain: Tree) -> Tree:
    """The inverse of `_plain`."""

    def like(leaf: Any, data: Array) -> jax.Array:
        array = jnp.asarray(data)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    return jax.tree.map(like, template, plain)


def _packed(plain: Tree) -> Array:
    """All leaves' bytes, one leaf after the other [bytes].

    orbax writes and reads arrays all at once, and where several fail it raises what the first raises,
    while what the others raise goes to the terminal; so it is given one.
    """
    leaves = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(plain)]
    return np.concatenate([np.empty(0, np.uint8), *leaves])


def _unpacked(packed: Array, plain: Tree) -> Tree:
    """The inverse of `_packed`; `plain` gives the structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(plain)
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [packed[end - leaf.nbytes : end].copy() for leaf, end in zip(leaves, ends, strict=True)]
    shaped = [part.view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _inventory(plain: Tree) -> Inventory:
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): checks.describe(leaf) for path, leaf in leaves}
