"""What may befall a run folder: kill -9 in the middle of a save, a full disk, damage of any file in it.

Each time one sentence says which file, what is wrong and what to do; nothing else is changed, and what
was saved can be had again.
"""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from tests.training.problems import bits, contents, tiny

ROOT = Path(__file__).parents[2]
Run, RunError = rnn.training.Run, rnn.training.RunError
SETTINGS = {"size": 3}


def state_of(step):
    """More than a page of what cannot be compressed, so that its bytes lie in files of their own."""
    return {
        "w": jax.random.normal(jax.random.key(step), (40, 100)),
        "key": jax.random.key(step),
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    with Run(folder, SETTINGS) as run:
        for step in (1, 2):
            run.save(step, state_of(step))
            run.log({"step": step, "loss": 1 / step})
    return folder


def go_on(folder):
    """What a program does that goes on with a run: the state that it finds."""
    with Run(folder, SETTINGS) as run:
        state = run.restore(state_of(0))
        run.forget_after(int(state["step"]))
        return state


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and ";" in text and len(text) < 600, text
    return text


# --- damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - b for b in content[middle : middle + 4])
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, make_a_folder, remove])
def test_damage_of_any_file_is_named_or_harmless(sound, tmp_path, damage):
    for number, file in enumerate(sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file())):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        damage(folder / file)
        before = contents(folder)
        if file.parts[:2] == ("checkpoints", "2"):
            place = folder / "checkpoints" / "2"
            named = rf"checkpoint {place} is damaged \(.*{file.name}.*\); delete {place} to go on from step 1"
            with pytest.raises(RunError, match=named) as refused:
                go_on(folder)
            one_sentence(refused)
            assert contents(folder) == before
            shutil.rmtree(place)  # as the sentence says
            assert bits(go_on(folder)) == bits(state_of(1))
        elif must_be_refused(file.name, damage):
            with pytest.raises(RunError, match=str(folder)) as refused:
                go_on(folder)
            assert file.name in one_sentence(refused)
            assert contents(folder) == before
            repair(folder / file, sound / file)
            assert bits(go_on(folder)) == bits(state_of(2))
        else:
            assert bits(go_on(folder)) == bits(state_of(2)), file
            changed = {name for name, what in contents(folder).items() if before.get(name) != what}
            assert changed <= {"metrics.jsonl"}, file  # a torn last line is dropped
        shutil.rmtree(folder)


def must_be_refused(name, damage):
    """Whether the run cannot go on without somebody's care, although its checkpoints are sound."""
    if name == "metrics.jsonl":  # half of it is what a kill leaves; without it, or with nothing in it, there is no past
        return damage in (flip, make_a_folder)
    return name == "run.json" or (name == "run.lock" and damage is make_a_folder)


def repair(path, sound):
    if path.is_dir():
        path.rmdir()
    shutil.copy(sound, path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("checkpoints", r"checkpoints cannot be read \(Not a directory\); move it away, or choose another run folder"),
        ("checkpoints/2", r"checkpoint .*checkpoints/2 is damaged \(.*\); delete .*checkpoints/2 to go on from step 1"),
        ("checkpoints/2/state", r"checkpoint .*checkpoints/2 is damaged \(.*\); delete .* to go on from step 1"),
        ("checkpoints/2/about.json", r"checkpoint .*checkpoints/2 is damaged \(.*\); delete .* to go on from step 1"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_file_or_nothing_where_a_folder_should_be(sound, tmp_path, name, complaint, empty):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    (folder / name).mkdir() if empty else (folder / name).write_text("?")
    before = contents(folder)
    if empty and name == "checkpoints":
        complaint = "holds no checkpoint to go on from"
    with pytest.raises(RunError, match=complaint) as refused:
        go_on(folder)
    assert "\n" not in str(refused.value)
    assert contents(folder) == before


def test_the_only_checkpoint_damaged_is_to_start_anew(tmp_path):
    rnn.training.fit(**tiny(steps=4), run=tmp_path / "run")
    file = max(
        (tmp_path / "run" / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.is_file() * p.stat().st_size
    )
    empty(file)
    with pytest.raises(RunError, match=r"checkpoint .*4 is damaged \(.*\); delete .*4 to start anew"):
        rnn.training.fit(**tiny(), run=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert bits(rnn.training.fit(**tiny(), run=tmp_path / "run")) == bits(rnn.training.fit(**tiny()))


# --- a full disk


@contextlib.contextmanager
def no_file_longer_than(size):
    """The system itself refuses to write on, as on a full disk, in every library of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITING = {
    "save": lambda run: run.save(3, state_of(3)),
    "log": lambda run: run.log({"step": 3, "note": "n" * 20_000}),
    "write": lambda run: run.write("results.json", "n" * 20_000),
}


@pytest.mark.parametrize("size", [0, 1000, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 300, 8000))])
@pytest.mark.parametrize("writing", WRITING)
def test_a_full_disk_loses_nothing(sound, tmp_path, writing, size):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    before = contents(folder)
    with Run(folder, SETTINGS) as run:
        with no_file_longer_than(size), pytest.raises(RunError) as full:
            WRITING[writing](run)
        text = one_sentence(full)
        assert str(folder) in text and "File too large" in text and "free some space" in text, text
        assert contents(folder) == before
        WRITING[writing](run)  # the disk has room again, and nothing stands in the way
    assert bits(go_on(folder)) == bits(state_of(3 if writing == "save" else 2))


def test_a_folder_that_cannot_be_begun_can_be_begun_later(tmp_path):
    with (
        no_file_longer_than(0),
        pytest.raises(RunError, match=r"run.json cannot be written \(File too large\); free some space, or choose"),
    ):
        Run(tmp_path / "run", SETTINGS)
    Run(tmp_path / "run", SETTINGS).close()


def test_metrics_that_cannot_be_shortened_stay(sound, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    before = contents(folder)
    with Run(folder, SETTINGS) as run:
        with (
            no_file_longer_than(3),
            pytest.raises(RunError, match=r"metrics.jsonl cannot be written \(File too large\)"),
        ):
            run.forget_after(1)
        assert contents(folder) == before


@pytest.mark.parametrize("place", ["pathlib.Path.mkdir", "pathlib.Path.rename", "os.replace", "pathlib.Path.touch"])
def test_no_room_for_a_name_either(tmp_path, monkeypatch, place):
    """A disk may be full of names, too: a folder or an entry in one cannot be made."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = bits(rnn.training.fit(**tiny()))
    monkeypatch.setattr(place, full)
    with pytest.raises(RunError, match=r"\(No space left on device\); ") as found:
        rnn.training.fit(**tiny(), run=tmp_path / "run")
    one_sentence(found)
    monkeypatch.undo()
    assert bits(rnn.training.fit(**tiny(), run=tmp_path / "run")) == whole


def test_training_on_a_disk_that_fills_up(tmp_path):
    """A real one, of 200 kB, where the system lets us have it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a disk")
    try:
        (disk / "filler").write_bytes(b"." * 100_000)
        with pytest.raises(RunError, match="No space left on device") as full:
            rnn.training.fit(**tiny(save_every=1), run=disk / "run")
        one_sentence(full)
        with Run(disk / "run", read_only=True) as run:
            last = run.steps()[-1]
        assert last > 0
        (disk / "filler").unlink()
        with Run(disk / "run", keep=1) as run:
            assert bits(rnn.training.fit(**tiny(), run=run)) == bits(rnn.training.fit(**tiny()))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- kill -9 in the middle of a save

KILLS = """
import os, random, signal, sys, time
import numpy as np
import orbax.checkpoint
from jaxrnn.training import Run, read_metrics

def state_of(step):
    return {"w": np.full(100_000, step, np.float32), "step": np.int32(step)}

def save_for_ever(folder, tell):
    with Run(folder, keep=2) as run:
        step = 0
        if run.steps():
            found = run.restore(state_of(0))
            step = run.steps()[-1]
            assert all(np.array_equal(found[name], leaf) for name, leaf in state_of(step).items()), step
        told = [record["step"] for record in read_metrics(folder)]
        assert told == list(range(1, len(told) + 1)) and len(told) in (step - 1, step), (told, step)
        run.forget_after(len(told))
        os.write(tell, b"%d\\n" % step)
        while True:
            if step > len(told):
                run.log({"step": step})
                told.append(step)
            step += 1
            run.save(step, state_of(step))
            os.write(tell, b"%d\\n" % step)

folder, kills = sys.argv[1], int(sys.argv[2])
known = 0
for _ in range(kills):
    hear, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            save_for_ever(folder, tell)
        finally:
            os._exit(1)
    os.close(tell)
    lines = os.fdopen(hear)
    found = int(lines.readline())
    assert found >= known, f"{found} found, though {known} was saved"
    saved = lines.readline()
    time.sleep(random.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    known = int([saved, *lines.read().split()][-1])
print(known)
"""


def test_kill_nine_in_the_middle_of_a_save_loses_nothing_ten_times(tmp_path):
    """One process starts ten that save without a pause, and kills each; the next must find all that was saved."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", KILLS, str(tmp_path / "run"), "10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with Run(tmp_path / "run", keep=2) as run:
        found = run.restore({"w": jnp.zeros(100_000), "step": jnp.int32(0)})
        assert int(found["step"]) >= int(done.stdout) >= 10
        np.testing.assert_array_equal(found["w"], float(found["step"]))
