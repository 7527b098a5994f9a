"""Memory against compute, the million steps and speed: small ones, going on, and what they say to bad arguments."""

import numpy as np
import pytest

from experiments import speed
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--size 32 --batch 8 --inputs 16 --rounds 1 --lengths 20 200".split()


@pytest.mark.slow
def test_memory_vs_compute_writes_a_row_per_length_and_strategy(tmp_path):
    folder = tmp_path / "run"
    code, _, err = launched("memory_vs_compute", *SMALL, "--run", folder)
    assert code == 0, err
    rows = table(folder / "table.csv")
    at = {r["strategy"]: r for r in rows if r["T"] == "200"}
    assert {r["T"] for r in rows} == {"20", "200"} and len(at) >= 6 + 4  # its own scans, and the planner's plans
    planned = [r for r in rows if r["strategy"].startswith(("plan: ", "within 5%: "))]
    assert planned and all(abs(int(r["predicted_bytes"]) / int(r["temp_bytes"]) - 1) < 0.15 for r in planned)
    assert int(at["checkpointed"]["temp_bytes"]) < int(at["lax.scan"]["temp_bytes"]) / 5
    assert int(at["lax.scan"]["flops"]) < int(at["checkpointed"]["flops"]) < int(at["checkpointed(levels=2)"]["flops"])
    assert all(float(r["difference"]) < 1e-5 for r in rows)
    assert is_picture(folder / "curves.png")
    again = launched("memory_vs_compute", *SMALL, "--run", folder)
    assert again.code == 0 and table(folder / "table.csv") == rows


def test_what_does_not_fit_is_predicted_not_run(tmp_path):
    scans = ["--scans", "lax.scan", "checkpointed(levels=2)", "--no-plans"]
    code, out, err = launched("memory_vs_compute", *SMALL, *scans, "--budget", 0.5, "--run", tmp_path / "run")
    assert code == 0, err
    rows = {(r["T"], r["strategy"]): r for r in table(tmp_path / "run" / "table.csv")}
    plain = rows["200", "lax.scan"]
    assert plain["note"].startswith("not run: needs") and not plain["seconds"] and "not run: needs" in out
    assert rows["200", "checkpointed(levels=2)"]["seconds"] and int(plain["temp_bytes"]) > 2**19
    assert {r["T"] for r in rows.values()} == {"20", "200"} and float(rows["20", "lax.scan"]["difference"]) == 0
    assert float(rows["20", "checkpointed(levels=2)"]["difference"]) < 1e-5
    assert is_picture(tmp_path / "run" / "curves.png")


def test_the_million_steps_in_little(tmp_path):
    arguments = ["--million", "--limit", "1MiB", "--lengths", 20, "--run", tmp_path / "run"]
    code, out, err = launched("memory_vs_compute", *arguments)
    assert code == 0, err
    (row,) = table(tmp_path / "run" / "million.csv")
    assert row["T"] == "20" and row["plan"] in out and row["plan"] == "everything kept" and float(row["passes"]) == 0
    assert int(row["temp_bytes"]) <= 2**20 and float(row["difference"]) < 1e-4
    assert is_picture(tmp_path / "run" / "million.png")


@pytest.mark.slow
def test_a_million_steps_begin_with_a_hundred(tmp_path):
    """The same program and table as for a million, at lengths that suit a test; it goes on from what it has."""
    folder, limited = tmp_path / "run", ["--million", "--limit", "400KiB"]
    code, _, err = launched("memory_vs_compute", *limited, "--run", folder, "--lengths", 100)
    assert code == 0, err
    code, out, err = launched("memory_vs_compute", *limited, "--run", folder, "--lengths", 3000)
    assert code == 0, err
    rows = table(folder / "million.csv")
    assert [r["T"] for r in rows] == ["100", "3000"] and float(rows[1]["passes"]) > 0 and rows[1]["plan"] in out
    assert all(int(r["temp_bytes"]) <= 400 * 1024 and float(r["difference"]) < 1e-4 for r in rows)
    assert is_picture(folder / "million.png")
    too_little = ["--million", "--limit", "1KiB", "--lengths", 100, "--run", tmp_path / "none"]
    complains(launched("memory_vs_compute", *too_little), "error: within: no plan")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--lengths", "0", "10"], "--lengths needs whole numbers of at least 1"),
        (["--million", "--lengths", "0"], "--lengths needs whole numbers of at least 1"),
        (["--scans", "fast"], "is not understood"),
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
    ],
)
def test_memory_vs_compute_says_what_is_wrong_in_one_sentence(arguments, complaint, tmp_path):
    complains(launched("memory_vs_compute", *arguments, "--run", tmp_path / "run"), complaint)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shapes", "1,2,3"], "four whole numbers of at least 1, e.g. 200,4,128,256, got '1,2,3'"),
        (["--shapes", "0,1,1,1"], "four whole numbers of at least 1"),
        (["--peers", "tensorflow"], "are not known; known are textbook"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--scans", "fast"], "is not understood"),
    ],
)
def test_speed_says_what_is_wrong_in_one_sentence(arguments, complaint, tmp_path):
    complains(launched("speed", *arguments, "--run", tmp_path / "run"), complaint)


@pytest.mark.parametrize("cells", [("elman",), pytest.param(("lstm", "gru", "elman"), marks=pytest.mark.slow)])
def test_speed_checks_times_and_writes(cells, tmp_path):
    folder = tmp_path / "speed"
    small = ["--shapes", "9,2,3,4", "--cells", *cells, "--peers", "textbook", "flax", "cudnn"]
    code, out, err = launched("speed", *small, "--rounds", 1, "--run", folder)
    assert code == 0, err
    rows = table(folder / "table.csv")
    assert {r["contender"] for r in rows} >= {"lax.scan", "fissioned", "textbook", "flax"}
    assert {(r["cell"], r["mode"]) for r in rows} == {(c, m) for c in cells for m in speed.MODES}
    assert all(float(r["difference"]) < 1e-5 and float(r["seconds"]) > 0 for r in rows)
    assert "cuDNN's LSTM needs a GPU" in out
    assert is_picture(folder / "speed.png")


@pytest.mark.slow
def test_speed_of_a_whole_model(tmp_path):
    small = ["--cells", "model", "--shapes", "6,2,3,4", "--scans", "fissioned(3)"]
    code, _, err = launched("speed", *small, "--rounds", 1, "--run", tmp_path / "speed")
    assert code == 0, err
    rows = table(tmp_path / "speed" / "table.csv")
    assert {r["contender"] for r in rows} == {"lax.scan", "fissioned(3)", "by hand"}
    assert all(float(r["difference"]) < 1e-5 for r in rows)


def test_a_peer_with_another_gradient_is_not_timed_and_our_own_is_an_error(monkeypatch):
    config = speed.Config(shapes=("3,2,2,2",), scans=("fissioned",), peers=("textbook",), rounds=1)
    idle = dict.fromkeys(speed.MODES, lambda: None)

    def wrong(odd):
        gradients = {name: np.ones(3) + (name == odd) for name in ("lax.scan", "fissioned", "textbook")}
        return lambda *_: ({name: speed.Contender(idle, gradient) for name, gradient in gradients.items()}, {})

    monkeypatch.setattr(speed, "contenders", wrong("textbook"))
    result = speed.rows(config, "lstm", "3,2,2,2")
    assert {row["contender"] for row in result["rows"]} == {"lax.scan", "fissioned"}
    assert "differs from lax.scan's by" in result["absent"]["textbook"]
    monkeypatch.setattr(speed, "contenders", wrong("fissioned"))
    with pytest.raises(speed.harness.UsageError, match="not timed: fissioned at 3,2,2,2; its gradient differs"):
        speed.rows(config, "lstm", "3,2,2,2")


def test_the_legend_of_speed_covers_no_bar():
    """It lies below both panels, however tall the bars and however many the contenders."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    row = {"cell": "lstm", "shape": "1,1,1,1", "speed": 30.0}
    records = [row | {"mode": mode, "contender": f"contender {n}"} for mode in speed.MODES for n in range(11)]
    figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    speed.draw_bars(records, axes)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert all(panel.get_tightbbox().y0 >= legend.y1 for panel in axes)
    looks = {(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in axes[0].containers}
    plt.close(figure)
    assert len(looks) == 11
