"""Run folders: what a run is, its metrics and its checkpoints; written so that a kill loses nothing.

folder/run.json         what the run is: the caller's configuration
folder/metrics.jsonl    one JSON object per line, each with its "step"
folder/checkpoints/N/   the training state after N steps, by orbax, complete or not there at all
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.types import Tree


class RunError(Exception):
    """A run folder or checkpoint that can't be used; says which, why, and what to do."""


def _plain(tree: Tree) -> Tree:
    """Host copies of all leaves, PRNG keys as their data."""

    def plain(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf, dtype=jnp.result_type(leaf))

    return jax.tree.map(plain, tree)


def _like(template: Tree, plain: Tree) -> Tree:
    """The inverse of `_plain`."""

    def like(leaf: Any, data: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
        return jnp.asarray(data)

    return jax.tree.map(like, template, plain)


def _numbered(plain: Tree) -> dict[str, Any]:
    """What orbax is given: leaves by their place, but for those without elements, which it cannot store."""
    return {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(plain)) if leaf.size}


def _inventory(plain: Tree) -> dict[str, str]:
    """leaf path -> dtype and shape"""
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): checks.describe(leaf) for path, leaf in leaves}


def _digest(plain: Tree) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(plain):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data if leaf.size else b"")
    return digest.hexdigest()


class Run:
    """An open run folder. Use as a context manager, or call `close`.

    Opening makes the folder, or checks that it holds the same run: a `config` that differs from the
    recorded one is refused, field by field, and so is a folder with foreign files in it. Nothing
    that is already there is touched before those checks.
    Raises: RunError for a folder that cannot be written, is not a run folder, or holds another run.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any] | None = None, *, keep: int = 3):
        self.folder = Path(folder).expanduser().resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim(json.loads(json.dumps(dict(config or {}), default=str)))
            self.metrics_path = self.folder / "metrics.jsonl"
            self.metrics_path.touch()
        except OSError as error:
            raise RunError(
                f"run folder {self.folder} cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        self._keep = keep

    @functools.cached_property
    def _orbax(self) -> Any:
        """The package, imported where first needed: that takes longer than all of jaxrnn."""
        import orbax.checkpoint

        # It reports each save at INFO and each odd file at WARNING; what matters is raised here.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        return self._orbax.CheckpointManager(
            self.folder / "checkpoints",
            options=self._orbax.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=False),
            item_names=("state", "about"),
        )

    def _claim(self, config: dict[str, Any]) -> None:
        about = self.folder / "run.json"
        if about.exists():
            recorded = read_config(self.folder)
            differ = sorted(k for k in recorded.keys() | config.keys() if recorded.get(k) != config.get(k))
            if differ:
                changes = ", ".join(f"{k}: {recorded.get(k)!r} there, {config.get(k)!r} here" for k in differ)
                raise RunError(
                    f"run folder {self.folder} holds a different run ({changes}); "
                    "choose another folder, use the same settings, or delete it"
                )
            return
        strangers = sorted(p.name for p in self.folder.iterdir())
        if strangers:
            raise RunError(
                f"{self.folder} is not a run folder (it holds {', '.join(strangers[:3])} but no run.json); "
                "choose an empty or new folder"
            )
        write_atomically(about, json.dumps(config, indent=2) + "\n")

    def steps(self) -> list[int]:
        """The steps of which there is a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Tree) -> None:
        """Writes a checkpoint; when this returns it is complete. Older ones beyond `keep` are removed.

        Raises: RunError where it cannot be written, or if there is one of this step or a later one.
        """
        if self.steps() and step <= self.steps()[-1]:
            raise RunError(
                f"checkpoint {step} was not written: {self.folder} holds one of step {self.steps()[-1]}; "
                "delete that one first, or save in another folder"
            )
        plain = _plain(state)
        about = {"digest": _digest(plain), "leaves": _inventory(plain)}
        leaves = _numbered(plain)
        if not leaves:
            raise ValueError("Run.save: state has no arrays with elements, so there is nothing to save")
        args = self._orbax.args
        try:
            self._manager.save(step, args=args.Composite(state=args.StandardSave(leaves), about=args.JsonSave(about)))
        except OSError as error:
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder} ({error}); "
                "the last complete one is intact: free some space and start again to go on from it"
            ) from error

    def restore(self, template: Tree, step: int | None = None) -> Tree:
        """The newest checkpoint (or that of a step), with the structure of `template`.

        Every byte is checked against the digest that was saved with it.
        Raises: RunError if there is none, it is damaged, or it holds something else than the template.
        """
        known = self.steps()
        step = step if step is not None else (known[-1] if known else None)
        if step is None or step not in known:
            which = "" if step is None else f" of step {step}"
            raise RunError(f"{self.folder} holds no checkpoint{which} to go on from")
        place = self.folder / "checkpoints" / str(step)
        earlier = [s for s in known if s < step]
        remedy = f"delete {place} to go on from step {earlier[-1]}" if earlier else f"delete {place} to start anew"
        args, wanted = self._orbax.args, _plain(template)
        try:
            about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore())).about
            leaves, inventory = about["leaves"], _inventory(wanted)
        except Exception as error:  # noqa: BLE001  orbax raises whatever its layers raise
            raise RunError(f"checkpoint {place} is damaged ({_first_line(error)}); {remedy}") from error
        if leaves != inventory:
            odd = sorted(k for k in leaves.keys() | inventory.keys() if leaves.get(k) != inventory.get(k))[0]
            raise RunError(
                f"checkpoint {place} holds another model: {odd} is {leaves.get(odd, 'missing')} there and "
                f"{inventory.get(odd, 'missing')} here; use the settings it was saved with"
            )
        try:
            like = _numbered(wanted)
            found = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(like))).state
            all_leaves = [np.asarray(found.get(str(n), leaf)) for n, leaf in enumerate(jax.tree.leaves(wanted))]
            plain = jax.tree.unflatten(jax.tree.structure(wanted), all_leaves)
        except Exception as error:  # noqa: BLE001
            raise RunError(f"checkpoint {place} is damaged ({_first_line(error)}); {remedy}") from error
        if _digest(plain) != about["digest"]:
            raise RunError(f"checkpoint {place} is damaged (its bytes are not those that were saved); {remedy}")
        return _like(template, plain)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def write(self, name: str, text: str) -> None:
        """Puts a text file into the folder, whole or not at all."""
        write_atomically(self.folder / name, text)

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps after this one, and a torn last line: a resumed run writes them again."""
        kept = [json.dumps(r) + "\n" for r in read_metrics(self.folder) if r.get("step", 0) <= step]
        write_atomically(self.metrics_path, "".join(kept))

    def close(self) -> None:
        if "_manager" in self.__dict__:
            self._manager.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """run.json of a run folder. Raises: RunError where there is none, or none that can be read."""
    path = Path(folder) / "run.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{Path(folder)} is not a run folder (no run.json in it); train a run there first") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or delete the run folder") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} is not a run's configuration; restore it, or delete the run folder")
    return config


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a kill cut short is left out."""
    records = []
    for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new, whatever happens in between."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    os.replace(draft, path)
