"""What is wrong with a saved model, with what it is given, or with what is to be saved: one sentence that names it."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.serving import ModelError, export, folders, load

X = jnp.zeros(3)


@pytest.fixture(scope="module")
def net():
    cell = rnn.stack(rnn.lstm(4), rnn.lift(lambda x: {"out": x}))
    return cell, cell.init(jax.random.key(0), X)


@pytest.fixture(scope="module")
def written(net, tmp_path_factory):
    return export(*net, tmp_path_factory.mktemp("written") / "net", X, config={"size": 4})


@pytest.fixture
def folder(written, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "net"))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600, text
    return text


def complains(where, *words):
    with pytest.raises(ModelError) as error:
        load(where)
    text = one_sentence(error)
    assert all(word in text for word in words), text


def resealed(folder, change=lambda about: None):
    """about.json after a change, with digests of the files as they are now: what somebody with a will can do."""
    about = json.loads((folder / "about.json").read_text())
    about.pop("seal")
    about["files"] = {name: folders._digest((folder / name).read_bytes()) for name in about["files"]}
    change(about)
    (folder / "about.json").write_text(folders._sealed(about))


def test_each_file_is_sealed(folder):
    names = sorted(f.name for f in folder.iterdir())
    assert names == ["about.json", "start.jax", "step.jax", "weights.npz"]
    for name in names:
        path, content = folder / name, (folder / name).read_bytes()
        for spoilt in (content[:-2], content[:99] + bytes([content[99] ^ 1]) + content[100:], b""):
            path.write_bytes(spoilt)
            complains(folder, "is damaged", f"its file {name} is not as it was written", "export it again")
        path.unlink()
        complains(folder, "has no about.json" if name == "about.json" else f"its file {name} is missing")
        path.write_bytes(content)
    assert load(folder).config == {"size": 4}


def test_what_is_no_saved_model(tmp_path, folder):
    complains(tmp_path / "nothing", "is no folder, so no saved model")
    complains(tmp_path, "is not the folder of a saved model: it has no about.json")
    (folder / "about.json").write_text('{"format": "a cake", "version": 1, "files": {}}')
    complains(folder, "its about.json is something else's")
    for odd in ("[1]", '"x"', "null", "[" * 100_000, '{"format": "jaxrnn model"}', "\xff"):
        (folder / "about.json").write_text(odd)
        complains(folder, "its file about.json is not as it was written")


def test_another_version_is_named(folder):
    resealed(folder, lambda about: about.update(version=7))
    complains(folder, "has version 7 of the format, and this jaxrnn reads version 1")


def weights_of(arrays, compression=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, data in arrays.items():
            file.writestr(name + ".npy", data)
    return content.getvalue()


def as_npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


class Bomb:
    def __reduce__(self):
        return os._exit, (77,)


def test_weights_that_are_hostile_run_nothing_and_are_one_sentence(folder):
    good = {name: as_npy(array) for name, array in np.load(folder / "weights.npz").items()}
    header = as_npy(np.zeros(3))[:64].replace(b"(3,)", b"(%d,)" % 10**13) + b" " * 70
    cases = {
        "Object arrays cannot be loaded": weights_of({**good, "0/U": as_npy(np.array([Bomb()], dtype=object))}),
        "no plain .npz": pickle.dumps(Bomb()),
        "it is compressed": weights_of({**good, "0/U": as_npy(np.zeros(10**6))}, zipfile.ZIP_DEFLATED),
        "0/U should be float32[3, 16] and is float32[4, 16]": weights_of(
            {**good, "0/U": as_npy(np.zeros((4, 16), "f4"))}
        ),
        "0/U should be float32[3, 16] and is float64[3, 16]": weights_of({**good, "0/U": as_npy(np.zeros((3, 16)))}),
        "0/U should be float32[3, 16] and is missing": weights_of({n: a for n, a in good.items() if n != "0/U"}),
        "weights.npz": weights_of({**good, "0/U": header}),
    }
    for complaint, content in cases.items():
        (folder / "weights.npz").write_bytes(content)
        resealed(folder)
        complains(folder, complaint)


def test_a_hostile_description_imports_nothing(folder, tmp_path):
    def change(about):
        state = about["trees"]["state"]["parts"][0]
        assert state["class"] == "jaxrnn.cells.gated.LSTMState"
        state["class"] = "antigravity.LSTMState"

    resealed(folder, change)
    model = load(folder)
    assert "antigravity" not in sys.modules
    assert type(model.cell.initial_state(model.params, ())[0]).__name__ == "LSTMState"

    def escape(about):
        about["files"]["../secret"] = folders._digest(b"x")

    (tmp_path / "secret").write_bytes(b"x")
    resealed(folder, escape)
    complains(folder, "its file ../secret is missing")
    for spoil in (
        lambda about: about["trees"].pop("state"),
        lambda about: about["trees"].update(state={"kind": "cake", "parts": []}),
        lambda about: about["programs"]["step"].update(takes=["params"]),
        lambda about: about.update(batch=None),
        lambda about: about.pop("trees"),
    ):
        resealed(folder, lambda about: about["files"].pop("../secret", None))
        kept = (folder / "about.json").read_bytes()
        resealed(folder, spoil)
        complains(folder, "is damaged")
        (folder / "about.json").write_bytes(kept)


def test_a_program_that_this_jax_cannot_read(folder):
    good = (folder / "step.jax").read_bytes()
    assert good.count(b"ML\xefR") == 1  # with which StableHLO begins
    for program in (good.replace(b"ML\xefR", b"ML\xefX"), b"\x00" * 300, good[: len(good) // 2]):
        (folder / "step.jax").write_bytes(program)
        resealed(folder)
        complains(folder, "the program step.jax", "cannot be read by JAX", "use a JAX as new as the one that wrote it")


def test_what_a_loaded_cell_is_given_is_checked(written):
    model = load(written)
    cell, params = model.cell, model.params
    state = cell.initial_state(params, (2,))
    for args, complaint in (
        ((params, state, jnp.zeros((2, 5))), r"step: x should be float32\[B,3\].*, got float32\[2,5\]"),
        ((params, state, jnp.zeros((2, 3), int)), r"step: x should be float32\[B,3\].*, got int32\[2,3\]"),
        ((params, state, jnp.zeros((4, 3))), r"step: x should be float32\[B,3\], B = \(2,\), got float32\[4,3\]"),
        ((params, state[:1], jnp.zeros((2, 3))), "step: state should have the structure"),
        ((params[:1], state, jnp.zeros((2, 3))), "step: params should have the structure"),
        (
            (jax.tree.map(lambda a: a[:2], params), state, jnp.zeros((2, 3))),
            r"step: params\[0\]\['U'\] should be float32\[3,16\], got float32\[2,16\]",
        ),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            cell.step(*args)
        one_sentence(error)
    with pytest.raises(ModelError, match="was exported without steps; use .cell, or export with steps='T'"):
        _ = model.layer


def printing(x):
    jax.debug.print("{}", x)
    return x


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        (
            {"x": jnp.zeros(5)},
            ValueError,
            r"the step does not take an x of float32\[B,5\] .*one example, without batch",
        ),
        ({"x": jnp.zeros((2, 3))}, ValueError, r"the step does not take an x of float32\[B,2,3\]"),
        ({"platforms": ["gpu"]}, ValueError, "platforms must be one of 'cpu', 'cuda', 'rocm', 'tpu', got 'gpu'"),
        ({"batch": "B, C"}, ValueError, "each free size needs a letter of its own"),
        ({"batch": ("B", "B")}, ValueError, "each free size needs a letter of its own"),
        ({"batch": "B", "steps": "B"}, ValueError, "each free size needs a letter of its own"),
        ({"batch": 0}, ValueError, "must be a whole number of at least 1, got 0"),
        ({"vjp_order": -1}, ValueError, "vjp_order must be one of"),
        ({"config": {"cell": rnn.lstm}}, ValueError, "config must be what JSON can hold"),
        ({"config": {"rate": float("nan")}}, ValueError, "config must be what JSON can hold"),
        ({"model": 3}, TypeError, "export: cell must be a Cell, got int"),
        ({"model": rnn.stack(rnn.lstm(4), rnn.lift(printing))}, ValueError, "the program 'step' cannot be written"),
        ({"scan": 3}, TypeError, "export: scan must be a scan"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(net, options, error, complaint, tmp_path):
    given = {"model": net[0], "params": net[1], "path": tmp_path / "net", "x": X, **options}
    with pytest.raises(error, match=complaint) as raised:
        export(**given)
    one_sentence(raised)
    assert not list(tmp_path.iterdir())


def test_a_program_is_written_outside_of_transformations_and_meshes(net, tmp_path):
    with pytest.raises(TypeError, match="params must be arrays, got tracers; call it outside of jit"):
        jax.jit(lambda params: export(net[0], params, tmp_path / "net", X))(net[1])
    with jax.set_mesh(jax.make_mesh((1,), ("data",))), pytest.raises(ValueError, match="outside of jax.set_mesh"):
        export(*net, tmp_path / "net", X)


def test_a_cell_without_input_has_no_free_batch(tmp_path):
    step = lambda params, state, x, key=None: (state + params, state)
    cell = rnn.Cell(lambda key, x: jnp.float32(1), lambda params, batch: jnp.zeros((*batch, 2)), step)
    with pytest.raises(ValueError, match="the program 'start' cannot be written .* give a number for it"):
        export(cell, jnp.float32(1), tmp_path / "net", ())
    model = load(export(cell, jnp.float32(1), tmp_path / "net", (), batch=3))
    state, y = model.cell.step(model.params, model.cell.initial_state(model.params, (3,)), ())
    assert state.tolist() == [[1, 1]] * 3 and y.tolist() == [[0, 0]] * 3


def test_a_dict_with_odd_keys_cannot_be_written_down(tmp_path):
    cell = rnn.lift(lambda x: {(1, 2): x})
    with pytest.raises(ValueError, match=r"keys must be texts or whole numbers to be written down, got \(1, 2\)"):
        export(cell, (), tmp_path / "net", X)


def test_what_is_there_is_replaced_only_if_asked_and_only_if_it_is_a_model(net, folder, tmp_path):
    before = (folder / "step.jax").read_bytes()
    with pytest.raises(ModelError, match="is there already; choose another folder, or export with overwrite=True"):
        export(*net, folder, X)
    assert (folder / "step.jax").read_bytes() == before
    export(*net, folder, X, batch=2, overwrite=True)
    assert (folder / "step.jax").read_bytes() != before and load(folder)
    for there in (tmp_path / "thesis", tmp_path / "file"):
        (there / "chapter").mkdir(parents=True) if there.name == "thesis" else there.write_text("x")
        with pytest.raises(ModelError, match="is not the folder of a saved model, so it is not replaced"):
            export(*net, there, X, overwrite=True)
        assert there.exists()
    with pytest.raises(ModelError, match="could not be written"):
        export(*net, tmp_path / "file" / "net", X)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "net", "thesis"]


KILLED = """
import os, signal, sys, types
from pathlib import Path

place, root = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("jaxrnn", "jaxrnn.serving", "jaxrnn.training"):  # packages without what they import, so without threads
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")))]
from jaxrnn.serving import folders

OLD, NEW = {"a": b"0"}, {"a": b"1" * 99, "b": b"2" * 99}

def killed_after(calls):
    left = [calls]
    for name in ("write_bytes", "write_text", "mkdir", "rename"):
        def counted(self, *args, real=getattr(Path, name), **options):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(self, *args, **options)
        setattr(Path, name, counted)
    folders.write(place, NEW, {"new": True}, overwrite=True)
    os._exit(0)

folders.write(place, OLD, {"new": False}, overwrite=False)
for calls in range(20):
    child = os.fork() or killed_after(calls)
    died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    whole = place if place.exists() else place.with_name("net.replaced")
    about, files = folders.read(whole)
    assert files == (NEW if about["new"] else OLD)
    print(died, about["new"], whole.name)
    whole.rename(place)
    if not died:
        break
print(sorted(p.name for p in place.parent.iterdir()))
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    command = [sys.executable, "-I", "-c", KILLED, str(tmp_path / "net"), str(Path(rnn.__file__).parents[1])]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # Killed before each of: two folders made, three files written, the old one renamed away, the new one renamed.
    assert child.stdout.splitlines() == (
        ["True False net"] * 6 + ["True False net.replaced", "False True net", "['net']"]
    ), child.stderr


def test_without_flatbuffers_one_sentence_says_what_to_install(net, written, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: export(*net, tmp_path / "net", X), lambda: load(written)):
        with pytest.raises(ModuleNotFoundError, match="needs the package flatbuffers: pip install flatbuffers"):
            call()


def test_flax_s_frozen_parameters_come_back_as_dicts(tmp_path):
    from flax.core import freeze

    cell = rnn.layer(nn.Dense(2))
    params = freeze(cell.init(jax.random.key(0), X))
    model = load(export(cell, params, tmp_path / "net", X))
    assert type(model.params) is dict and set(model.params) == {"kernel", "bias"}
    np.testing.assert_array_equal(model.params["kernel"], params["kernel"])
