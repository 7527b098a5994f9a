"""The folder of a saved model: complete or not there at all, every file sealed by a digest of its bytes.

folder/about.json      the format's version, what goes in and out, platforms, digests
folder/weights.npz     the weights by name
folder/step.jax, ...   the programs
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrnn.training.files import reason

FORMAT, VERSION = "jaxrnn model", 1
ABOUT = "about.json"
About = dict[str, Any]


class ModelError(Exception):
    """A saved model that can't be written, or not used; says which, why, and what to do."""


def check_free(path: Path, overwrite: bool) -> None:
    """Raises: ModelError if something is there that must not be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ModelError(f"{path} is there already; choose another folder, or export with overwrite=True")
    if not _is_model(path):
        raise ModelError(f"{path} is not the folder of a saved model, so it is not replaced; choose another folder")


def _is_model(path: Path) -> bool:
    try:
        return bool(json.loads((path / ABOUT).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def write(path: Path, files: Mapping[str, bytes], about: About, overwrite: bool) -> None:
    """Puts the folder together beside its place, and renames it when all of it is there.

    With `overwrite` the old one is renamed away just before: a kill between the two leaves the old one beside its
    place, whole, under a name with ".replaced" at its end. Raises: ModelError.
    """
    draft, old = (path.with_name(path.name + end) for end in (".unfinished", ".replaced"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # what a kill has left behind
        draft.mkdir()
        for name, content in files.items():
            (draft / name).write_bytes(content)
        (draft / ABOUT).write_text(_sealed({**about, "files": {n: _digest(c) for n, c in files.items()}}))
        check_free(path, overwrite)  # somebody else may have written there since
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        draft.rename(path)
    except OSError as error:
        raise ModelError(f"{path} could not be written ({reason(error)}); choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read(path: Path) -> tuple[About, dict[str, bytes]]:
    """What about.json says, and the other files, each found to be as it was written. Raises: ModelError."""
    if not path.is_dir():
        raise ModelError(f"{path} is no folder, so no saved model; give the folder that export wrote")
    if not (path / ABOUT).is_file():
        raise ModelError(f"{path} is not the folder of a saved model: it has no {ABOUT}; give one that export wrote")
    with readable(path):
        about = _unsealed(path)
    files: dict[str, bytes] = {}
    for name, digest in about["files"].items():
        if Path(name).name != name or not (path / name).is_file():
            raise damaged(path, f"its file {name} is missing")
        with readable(path):
            files[name] = (path / name).read_bytes()
        if _digest(files[name]) != digest:
            raise damaged(path, f"its file {name} is not as it was written")
    return about, files


def damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"the saved model {path} is damaged ({what}); export it again")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"the saved model {path} cannot be read ({reason(error)}); see to that") from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _sealed(about: About) -> str:
    whole = {"format": FORMAT, "version": VERSION, **about}
    return json.dumps({**whole, "seal": _seal(whole)}, indent=1) + "\n"


def _seal(about: About) -> str:
    return _digest(json.dumps(about, sort_keys=True).encode())


def _unsealed(path: Path) -> About:
    try:
        about = json.loads((path / ABOUT).read_bytes())
        seal, kind, version = about.pop("seal", None), about["format"], about["version"]
        texts = all(isinstance(part, str) for item in about["files"].items() for part in item)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its file {ABOUT} is not as it was written") from error
    if kind != FORMAT:
        raise ModelError(f"{path} is not the folder of a saved model: its {ABOUT} is something else's")
    if version != VERSION:
        raise ModelError(
            f"the saved model {path} has version {version!r} of the format, and this jaxrnn reads version {VERSION}; "
            "use the jaxrnn that wrote it, or export it again with this one"
        )
    if not texts or seal != _seal(about):
        raise damaged(path, f"its file {ABOUT} is not as it was written")
    found: About = about
    return found
