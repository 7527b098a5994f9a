"""What is published: a wheel of the package alone, and an sdist from which it is built and tested."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
pytest.importorskip("hatchling", reason="hatchling and build are in the extra test")
pytest.importorskip("build", reason="hatchling and build are in the extra test")

# What stands in the repository and must be in the sdist: that and nothing else.
KEPT = ("jaxrnn", "experiments", "tests", ".ci", ".github", "README.md", "LICENSE", "pyproject.toml", ".gitignore")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), the wheel built from the sdist, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def sources():
    """Files of the repository that are to be published, as they stand."""
    for kept in KEPT:
        for path in [ROOT / kept, *(ROOT / kept).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix()


def test_the_sdist_has_all_that_tests_need_and_nothing_else(built):
    with tarfile.open(built[1]) as file:
        names = [member.name for member in file.getmembers() if member.isfile()]
    top = f"jaxrnn-{jaxrnn.__version__}/"
    assert all(name.startswith(top) for name in names)
    assert sorted(name.removeprefix(top) for name in names) == sorted([*sources(), "PKG-INFO"])


def test_the_wheel_has_the_package_alone(built):
    with zipfile.ZipFile(built[0]) as file:
        names = set(file.namelist())
        about = f"jaxrnn-{jaxrnn.__version__}.dist-info"
        for name in ("jaxrnn/py.typed", "jaxrnn/CHANGELOG.md", "jaxrnn/engine/README.md"):
            assert file.read(name) == (ROOT / name).read_bytes()
    package = {name for name in sources() if name.startswith("jaxrnn/")}
    assert {name for name in names if not name.startswith(about)} == package
    assert f"{about}/licenses/LICENSE" in names and built[0].name.endswith("-py3-none-any.whl")


def test_the_metadata_says_what_holds(built):
    with zipfile.ZipFile(built[0]) as file:
        said = email.message_from_bytes(file.read(f"jaxrnn-{jaxrnn.__version__}.dist-info/METADATA"))
    assert said["Name"] == "jaxrnn" and said["Version"] == jaxrnn.__version__ and said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "Apache-2.0" and said["License-File"] == "LICENSE"
    classifiers = said.get_all("Classifier")
    assert "Typing :: Typed" in classifiers and any(c.startswith("Development Status ::") for c in classifiers)
    assert not [c for c in classifiers if c.startswith("License ::")]  # the expression says it
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    needed = {re.split(r"[^\w.-]", r)[0] for r in said.get_all("Requires-Dist") if "extra ==" not in r}
    assert needed == {
        *("jax", "jaxlib", "numpy", "optax", "flax", "chex", "orbax-checkpoint", "rich", "flatbuffers", "safetensors")
    }
    assert said.get_payload().startswith("# jaxrnn") and said["Project-URL"] is None  # none is known


@pytest.mark.slow
def test_the_wheel_is_installed_and_steps_a_net(built, tmp_path):
    """Beside what is installed here, into a folder of its own, and imported from there alone."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "there", built[0]]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, jaxrnn as rnn
assert rnn.__file__.startswith(sys.argv[1])
cell = rnn.lstm(3)
xs = jax.numpy.ones((5, 2, 4))
print(rnn.unroll(cell, cell.init(jax.random.key(0), xs[0]), xs)[1].shape, rnn.__version__)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code, tmp_path / "there"], capture_output=True, text=True)
    assert done.stdout.strip() == f"(5, 2, 3) {jaxrnn.__version__}", done.stderr
