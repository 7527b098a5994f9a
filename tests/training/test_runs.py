"""Run folders: which is whose, what is in them, and the sentences about what cannot be used."""

import json

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn.training import checkpoints
from tests.training.problems import bits, contents, tiny, tiny_loss

Run, RunError, read_metrics = rnn.training.Run, rnn.training.RunError, rnn.training.read_metrics
STATE = {"a": jnp.arange(3.0), "none": jnp.zeros((0, 3)), "key": jax.random.key(3), "b": jnp.bfloat16(2.5)}


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    with Run(tmp_path / "run", keep=2) as run:
        for step in (1, 2, 9, 10):
            run.save(step, STATE | {"a": STATE["a"] + step})
        assert run.steps() == [9, 10]
        assert bits(run.restore(STATE)) == bits(STATE | {"a": STATE["a"] + 10})
        assert bits(run.restore(STATE, 9)) == bits(STATE | {"a": STATE["a"] + 9})
        assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["10", "9"]


def test_saving_never_fails_silently(tmp_path):
    with Run(tmp_path / "run") as run:
        state = {"a": jnp.ones(2), "none": jnp.zeros((0, 3)), "number": 2.5}
        run.save(10, state)
        for step in (10, 5):
            with pytest.raises(RunError, match=rf"checkpoint {step} was not written: .* holds one of step 10"):
                run.save(step, state)
        assert bits(run.restore(state)) == bits(jax.tree.map(jnp.asarray, state))
        with pytest.raises(ValueError, match="nothing to save"):
            run.save(11, ())


def test_another_model_s_checkpoint_is_refused(tmp_path):
    rnn.training.fit(**tiny(steps=2), run=tmp_path / "run")
    wide = lambda p, b, k, c: tiny_loss({"w": p["w"][:2]}, b, k, c)
    with pytest.raises(
        RunError,
        match=r"holds another model: \.opt_state.* is float32\[2\] there and float32\[3\] here; use the se",
    ):
        rnn.training.fit(**tiny(params={"w": jnp.zeros(3)}, loss_fn=wide), run=tmp_path / "run")


def test_a_run_without_a_checkpoint_has_none_to_restore(tmp_path):
    with Run(tmp_path / "run") as run:
        with pytest.raises(RunError, match="holds no checkpoint to go on from"):
            run.restore({"w": jnp.zeros(2)})
        run.save(3, STATE)
        with pytest.raises(RunError, match="holds no checkpoint of step 2 to go on from"):
            run.restore(STATE, 2)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    """By the process that trains there, which keeps the newest only."""
    with Run(tmp_path / "run", keep=1) as run, Run(tmp_path / "run", read_only=True) as reader:
        run.save(1, STATE)
        read = checkpoints._unsealed
        monkeypatch.setattr(checkpoints, "_unsealed", lambda place: (run.save(2, STATE), read(place))[1])
        with pytest.raises(RunError, match=r"checkpoint .*/1 was removed while it was read, .*; try again"):
            reader.restore(STATE)
        monkeypatch.undo()
        assert bits(reader.restore(STATE)) == bits(STATE)


@pytest.mark.parametrize("where", ["pathlib.Path.open", "orbax.checkpoint.Checkpointer.restore"])
def test_a_sound_checkpoint_that_cannot_be_read_is_not_to_be_deleted(tmp_path, monkeypatch, where):
    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with Run(tmp_path / "run") as run:
        run.save(1, STATE)
        monkeypatch.setattr(where, forbidden)
        with pytest.raises(RunError, match=r"checkpoint .*/1 cannot be read \(Permission denied\); see to that"):
            run.restore(STATE)


# --- whose folder it is


def test_foreign_and_unwritable_folders_are_refused_untouched(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear to someone")
    with pytest.raises(RunError, match=r"is not a run folder \(it holds thesis.txt but no run.json\)"):
        Run(foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]
    for place in (foreign / "thesis.txt" / "run", foreign / "thesis.txt"):
        with pytest.raises(RunError, match=r"cannot be written \(Not a directory\); choose another folder"):
            Run(place)
    assert contents(tmp_path).keys() == {"foreign", "foreign/thesis.txt"}


def test_another_run_s_folder_is_refused(tmp_path):
    Run(tmp_path / "run", {"size": 3, "rate": float("nan"), "cells": ("gru", "lstm")}).close()
    Run(tmp_path / "run", {"size": 3, "rate": float("nan"), "cells": ("gru", "lstm")}).close()
    with pytest.raises(RunError, match=r"holds a different run \(cells: \['gru', 'lstm'\] there, None here, size: 3"):
        Run(tmp_path / "run", {"size": 4, "rate": float("nan")})


@pytest.mark.parametrize("gone", ["run.json", "metrics.jsonl"])
def test_what_is_left_of_a_run_without_its_settings_is_refused_untouched(tmp_path, gone):
    with Run(tmp_path / "run", {"size": 3}) as run:
        run.save(1, STATE)
    before = contents(tmp_path / "run")
    (tmp_path / "run" / gone).rename(tmp_path / gone)
    if gone == "metrics.jsonl":
        Run(tmp_path / "run", {"size": 3}).close()
    else:
        with pytest.raises(RunError, match="holds checkpoints and metrics.jsonl of a run but no run.json; put that"):
            Run(tmp_path / "run", {"size": 3})
        with pytest.raises(RunError, match=r"is not a run folder \(no run.json in it\); put that back"):
            rnn.training.read_config(tmp_path / "run")
        (tmp_path / gone).rename(tmp_path / "run" / gone)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"{", r"run.json cannot be read \(JSONDecodeError: .*\); put the run's settings back into it"),
        (b"\xff\xfe\x00", r"run.json cannot be read \(UnicodeDecodeError: .*\); put the run's settings back"),
        (b"[1, 2]", r"run.json is not a run's configuration \(it holds a list\); put the run's settings back"),
        (b"", r"run.json cannot be read \(JSONDecodeError: .*\); put"),
        (b"[" * 100_000, r"run.json cannot be read \(RecursionError: .*\); put"),
        (None, r"run.json cannot be read \(Is a directory\); put"),
    ],
)
def test_settings_that_are_none(tmp_path, text, complaint):
    Run(tmp_path / "run", {"size": 3}).close()
    settings = tmp_path / "run" / "run.json"
    settings.unlink()
    settings.mkdir() if text is None else settings.write_bytes(text)
    before = contents(tmp_path / "run")
    for read in (lambda: Run(tmp_path / "run", {"size": 3}), lambda: rnn.training.read_config(tmp_path / "run")):
        with pytest.raises(RunError, match=complaint) as refused:
            read()
        assert "\n" not in str(refused.value)
    assert contents(tmp_path / "run") == before


# --- metrics


def test_a_torn_metrics_line_is_forgotten(tmp_path):
    with Run(tmp_path / "run") as run:
        run.log({"step": 1})
        run.log({"step": 2})
        with run.metrics_path.open("a") as file:
            file.write('{"step": 3, "lo')
        assert [r["step"] for r in read_metrics(run.folder)] == [1, 2]
        run.forget_after(1)
        run.log({"step": 2})
        assert run.metrics_path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"text": "\xc3', b"\0\0\0\0", b'{"step": 3}'])
def test_the_next_line_does_not_run_into_a_torn_one(tmp_path, torn):
    """Also where nobody calls `forget_after`, and where only the line's end is missing."""
    with Run(tmp_path / "run") as run:
        run.log({"step": 1})
        with run.metrics_path.open("ab") as file:
            file.write(torn)
    with Run(tmp_path / "run") as run:
        run.log({"step": 4})
        assert [r["step"] for r in read_metrics(run.folder)] == ([1, 3, 4] if torn.endswith(b"}") else [1, 4])


def test_lines_that_stay_are_not_touched(tmp_path):
    kept = '{"step":  1.0, "loss": NaN}\n{"note": "\u2028 \u00e4"}\n'
    with Run(tmp_path / "run") as run:
        run.metrics_path.write_text(kept + '{"step": 5}\n', encoding="utf-8")
        run.forget_after(3)
        assert run.metrics_path.read_text(encoding="utf-8") == kept


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"[1,2]", "it holds a list, not an object"),
        (b"12", "it holds a int, not an object"),
        (b'{"step": 2, "lo', "JSONDecodeError: .*"),
        (b"", "JSONDecodeError: .*"),
        (b'\xff\xfe{"step": 2}', "UnicodeDecodeError: .*"),
        (b'{"step": "two"}', "its step is 'two', not a number"),
        (b'{"step": null}', "its step is None, not a number"),
        (b"[" * 100_000, "RecursionError: .*"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line, complaint):
    rnn.training.fit(**tiny(steps=20), run=tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    before = contents(tmp_path / "run")
    sentence = rf"metrics.jsonl is damaged: line 2 is no record of a run \(.*{complaint}\); mend that line or delete it"
    with pytest.raises(RunError, match=sentence) as refused:
        read_metrics(tmp_path / "run")
    assert "\n" not in str(refused.value)
    with pytest.raises(RunError, match=sentence):
        rnn.training.fit(**tiny(), run=tmp_path / "run")
    assert contents(tmp_path / "run") == before
    path.write_bytes(whole)  # as the sentence says
    assert int(rnn.training.fit(**tiny(), run=tmp_path / "run").step) == 30


def test_metrics_that_are_not_there(tmp_path):
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be read \(No such file or directory\); put the file"):
        read_metrics(tmp_path)
    Run(tmp_path / "run").close()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be read \(Is a directory\); put the file back"):
        read_metrics(tmp_path / "run")
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be written \(Is a directory\); .*move away what is"):
        Run(tmp_path / "run")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with Run(tmp_path / "run") as run:
        run.write("results.json", json.dumps({"a": 1}))
        (run.folder / "pictures").mkdir()
        for name in ("pictures", "nowhere/a.txt"):
            with pytest.raises(RunError, match=rf"{name} cannot be written \(.*\); free some space, or move away"):
                run.write(name, "text")
        assert contents(run.folder).keys() == {"run.json", "metrics.jsonl", "results.json", "pictures"}
