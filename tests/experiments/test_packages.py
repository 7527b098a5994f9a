"""Pinned packages: fetched once by pip out of a folder of ours, checked, kept; what is said where there are none."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from experiments import harness
from experiments.datasets import packages
from experiments.datasets.packages import Missing, Package, digest, fetched
from experiments.training import Settings

WORDS = b"one\ntwo\n"
ABOUT = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of packages, which is all that pip knows, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "wordlist-1.0-py3-none-any.whl", "w") as wheel:
        inside = {"wordlist/words.txt": WORDS, "wordlist/more/a.txt": b"a", "wordlist/more/b.txt": b"b"}
        info = {
            "METADATA": ABOUT.format("wordlist"),
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
            "RECORD": "",
        }
        for name, content in inside.items() | {(f"wordlist-1.0.dist-info/{k}", v) for k, v in info.items()}:
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "cache"))
    return folder


def wordlist(path="wordlist/words.txt", content=WORDS):
    return Package("PyPI", "wordlist", "1.0", {path: hashlib.sha256(content).hexdigest()})


def test_fetched_once_and_again_when_damaged(shelf, monkeypatch):
    path = fetched(wordlist()) / "wordlist/words.txt"
    assert path.read_bytes() == WORDS and not (path.parent / "more").exists()  # only what is read is kept
    path.write_bytes(b"damaged")
    assert (fetched(wordlist()) / "wordlist/words.txt").read_bytes() == WORDS
    monkeypatch.setattr(packages, "_from_pypi", None)  # not called
    assert fetched(wordlist()) == path.parent.parent
    assert [p.name for p in packages.cache().iterdir()] == ["wordlist-1.0"]


def test_a_folder_is_known_by_all_that_is_in_it(shelf):
    lines = "".join(f"{name} {hashlib.sha256(name[:1].encode()).hexdigest()}\n" for name in ("a.txt", "b.txt"))
    folder = fetched(wordlist("wordlist/more", lines.encode())) / "wordlist/more"
    before = digest(folder)
    (folder / "b.txt").rename(folder / "c.txt")
    assert digest(folder) != before


def test_a_source_distribution_is_unpacked_without_its_outer_folder(shelf):
    setup = b"from setuptools import setup\nsetup(name='tales', version='1.0')\n"
    with tarfile.open(shelf / "tales-1.0.tar.gz", "w:gz") as archive:
        parts = {"PKG-INFO": ABOUT.format("tales").encode(), "setup.py": setup, "tales/words.txt": WORDS}
        for name, content in parts.items():
            member = tarfile.TarInfo(f"tales-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    archive = shelf / "tales-1.0.tar.gz"
    folder = shelf.parent / "unpacked"
    folder.mkdir()
    packages.unpacked(archive, folder)
    assert (folder / "tales/words.txt").read_bytes() == WORDS


@pytest.mark.parametrize(
    ("package", "complaint"),
    [
        (wordlist(content=b"other"), "wordlist/words.txt has the sha256"),
        (wordlist("wordlist/none.txt"), "wordlist/none.txt is missing"),
        (wordlist()._replace(version="2.0"), "wordlist 2.0 cannot be had from PyPI"),
        (wordlist()._replace(source="Debian", name="no-such-package"), "no-such-package 1.0 cannot be had from Debian"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(package, complaint, shelf, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no apt-get there
    with pytest.raises(Missing, match=complaint) as caught:
        fetched(package)
    assert isinstance(caught.value, packages.Damaged) == (package.version == "1.0" and package.source == "PyPI")
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in packages.cache().iterdir() if p.name != "apt"] == []


def test_an_experiment_stops_with_that_sentence(capsys):
    def main(config):
        raise Missing("words 1.0 cannot be had from PyPI: no network")

    with pytest.raises(SystemExit, match="error: words 1.0 cannot be had from PyPI: no network"):
        harness.launch(main, Settings, "", [])
