"""Checkpoints of a run: numbered folders, each complete or not there at all, each sealed by a digest of its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
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

# What is not, or no longer, a checkpoint has one of these after its number, until it is gone.
_UNFINISHED, _REMOVED = ".unfinished", ".removed"


class Checkpoints:
    """The folder `checkpoints` of a run; at most the `keep` newest stay.

    A checkpoint is put together under another name and gets its own when all of it is there; one that
    goes loses its name first. So whatever has a number for a name is whole, at every instant.
    """

    def __init__(self, folder: Path, keep: int) -> None:
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

    def save(self, step: int, state: Tree) -> None:
        """Writes a checkpoint; when this returns it is complete. Raises: RunError; ValueError for an empty state."""
        newest = self.steps()[-1:]
        if newest and step <= newest[0]:
            raise RunError(
                f"checkpoint {step} was not written: {self.folder.parent} holds one of step {newest[0]}; "
                "delete that one first, or save in another folder"
            )
        plain = _plain(state)
        leaves = _numbered(plain)
        if not leaves:
            raise ValueError("Run.save: state has no arrays with elements, so there is nothing to save")
        draft = self.folder / f"{step}{_UNFINISHED}"
        try:
            self.folder.mkdir(exist_ok=True)
            self.clear()
            with _orbax() as (store, args):
                store.save(
                    draft, args=args.Composite(state=args.StandardSave(leaves), about=args.JsonSave(_seal(plain)))
                )
            draft.rename(self.folder / str(step))
        except Exception as error:  # noqa: BLE001  orbax raises whatever its layers raise
            with contextlib.suppress(RunError):
                self.clear()  # half a checkpoint would only fill the disk
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder} ({reason(error)}); "
                "the last complete one is intact: free some space and start again to go on from it"
            ) from error
        self._drop_old()

    def _drop_old(self) -> None:
        for step in self.steps()[: -self._keep]:
            old = self.folder / str(step)
            with explained(f"checkpoint {old} cannot be removed", "remove it by hand"):
                gone = old.rename(old.with_name(old.name + _REMOVED))
            shutil.rmtree(gone, ignore_errors=True)

    def restore(self, template: Tree, step: int | None = None) -> Tree:
        """The newest checkpoint (or that of a step), with the structure of `template`; see `Run.restore`."""
        known = self.steps()
        step = step if step is not None else (known[-1] if known else None)
        if step is None or step not in known:
            which = "" if step is None else f" of step {step}"
            raise RunError(f"{self.folder.parent} holds no checkpoint{which} to go on from")
        place = self.folder / str(step)
        wanted = _plain(template)
        try:
            inventory, digest = self._about(place)
            if inventory != _inventory(wanted):
                raise _another_model(place, inventory, _inventory(wanted))
            plain = self._leaves(place, wanted)
            if _digest(plain) != digest:
                raise ValueError("its bytes are not those that were saved")
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001
            raise self._damaged(place, [s for s in known if s < step], error) from error
        return _like(template, plain)

    def _about(self, place: Path) -> tuple[Inventory, str]:
        """(what the leaves are, the digest of their bytes). Raises whatever there is to raise if it is damaged."""
        with _orbax() as (store, args):
            about = store.restore(place, args=args.Composite(about=args.JsonRestore())).about
        inventory, digest = about["leaves"], about["digest"]
        if about["seal"] != _digest_of_texts(inventory, digest):
            raise ValueError("what it says about itself is not what was saved")
        return inventory, digest

    def _leaves(self, place: Path, wanted: Tree) -> Tree:
        with _orbax() as (store, args):
            found = store.restore(place, args=args.Composite(state=args.StandardRestore(_numbered(wanted)))).state
        leaves = [np.asarray(found.get(str(n), leaf)) for n, leaf in enumerate(jax.tree.leaves(wanted))]
        return jax.tree.unflatten(jax.tree.structure(wanted), leaves)

    def _damaged(self, place: Path, earlier: list[int], error: Exception) -> RunError:
        if not place.exists():
            return RunError(
                f"checkpoint {place} was removed while it was read, as the process that trains there "
                "keeps only its newest; try again"
            )
        remedy = f"to go on from step {earlier[-1]}" if earlier else "to start anew"
        return RunError(f"checkpoint {place} is damaged ({reason(error)}); delete {place} {remedy}")


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
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "about")) as store:
            yield store, ocp.args
    finally:
        logger.setLevel(level)


def _another_model(place: Path, there: Inventory, here: Inventory) -> RunError:
    odd = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))[0]
    return RunError(
        f"checkpoint {place} holds another model: {odd} is {there.get(odd, 'missing')} there and "
        f"{here.get(odd, 'missing')} here; use the settings it was saved with"
    )


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))


def _plain(tree: Tree) -> Tree:
    """Host copies of all leaves, PRNG keys as their data."""

    def plain(leaf: Any) -> Array:
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return np.array(data, dtype=jnp.result_type(data))

    return jax.tree.map(plain, tree)


def _like(template: Tree, plain: Tree) -> Tree:
    """The inverse of `_plain`."""

    def like(leaf: Any, data: Array) -> jax.Array:
        array = jnp.asarray(data)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    return jax.tree.map(like, template, plain)


def _numbered(plain: Tree) -> dict[str, Array]:
    """What orbax is given: leaves by their place, but for those without elements, which it cannot store."""
    return {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(plain)) if leaf.size}


def _inventory(plain: Tree) -> Inventory:
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): checks.describe(leaf) for path, leaf in leaves}


def _seal(plain: Tree) -> dict[str, Any]:
    """What a checkpoint says about itself, so that no byte of it can change unnoticed."""
    inventory, digest = _inventory(plain), _digest(plain)
    return {"leaves": inventory, "digest": digest, "seal": _digest_of_texts(inventory, digest)}


def _digest(plain: Tree) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(plain):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data if leaf.size else b"")
    return digest.hexdigest()


def _digest_of_texts(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
