"""The READMEs run: their code as it stands, block after block, and their commands are the project's own."""

import re

import flax.linen as nn
import jax
import pytest

import jaxrnn as rnn
from tests.readme import EXPERIMENTS, IMPORTS, README, ROOT, python_blocks, section

CHECKS = {
    "Three things": """
import numpy as np
plain_h, plain_ys = jax.lax.scan(step, jnp.zeros((16, 64)), xs)
assert jnp.allclose(ys, plain_ys, rtol=1e-5) and jnp.allclose(h, plain_h, rtol=1e-5)
plain = jax.grad(loss)(params, jax.lax.scan)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, grads)
assert round(rnn.analysis.temp_bytes(jax.grad(lambda params: loss(params, jax.lax.scan)), params) / 2**20) == 22
whole = jax.grad(lambda w: jnp.mean(rnn.unroll(net, w, xs)[1][-1] ** 2))(weights)
jax.tree.map(lambda c, w: np.testing.assert_allclose(c.sum(0), w, rtol=1e-3, atol=1e-6), copies, whole)
assert "unrolled over 3 steps" in printed and "->" in printed
""",
    "Functions": """
import numpy as np
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, lean)
assert any(float(jnp.abs(a - b).max()) > 1e-6 for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(short)))
assert ys.shape == (100, 8, 16) and "kept per step" in printed
""",
    "Whole sequences": """
import numpy as np
_, logits = rnn.unroll(net, weights, xs)
optax_s = jnp.mean(optax.ctc_loss(logits.swapaxes(0, 1), jnp.zeros((8, 100)), said, jnp.zeros((8, 5))))
assert abs(ctc_loss(weights) - optax_s) < 1e-3
for grads in (crf_grads, ctc_grads):
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
""",
    "Packing and attention": """
steps, rows = packed.resets.shape
assert steps * rows <= 1.03 * packed.lengths.sum() and beams.tokens.shape == (12, 256, 4)
alone, _ = rnn.unroll(encoder, params, words[17])
np.testing.assert_allclose(alone.h, last[17], atol=1e-5)
np.testing.assert_allclose(alone.c, ends.c[17], atol=1e-5)
assert (jnp.diff(beams.scores) <= 0).all() and "(12, 256, 4)" in printed
""",
    "Learning while time runs": """
import numpy as np
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, exact)
assert losses.shape == (60,) and int(carry.steps) == 60 and "cosine" in printed
""",
    "Parallel in time": """
import numpy as np
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
             jax.jit(mean_square(jax.lax.scan))(weights), jax.jit(mean_square(rnn.parallel()))(weights))
depths = [int(line.split()[0]) for line in printed.splitlines() if "one after the other" in line]
assert depths[0] > 10_000 and depths[1] < 500 < depths[2] < 10_000 and told[0].met, depths
h, params = jnp.zeros((2, 16)), cell.init(jax.random.key(2), sequence[0])
plain, step = [], jax.jit(cell.step)
for x in sequence:
    h, y = step(params, h, x)
    plain.append(y)
np.testing.assert_allclose(ys, jnp.stack(plain), atol=1e-5)
""",
    "Training scripts": """
import pathlib
assert int(trained.step) == 200 and pathlib.Path("runs/sine/metrics.jsonl").exists()
truth = np.sin(np.arange(100, 150) / 9)[:, None]
assert float(jnp.abs(continued - truth).mean()) < 0.2, "the series is not learned"
""",
    "Out of the door": """
assert np.allclose(y, ys[-1], atol=1e-6) and np.allclose(all_at_once, ys, atol=1e-6)
assert model.cell.step(model.params, model.cell.initial_state(model.params, ()), xs[0, 0])[1].shape == (10,)
""",
    "Many devices": """
import numpy as np
alone = rnn.training.fit(forecast_loss, start, windows, **options | {"run": None})
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), weights, alone.params)
metrics = rnn.training.read_metrics("runs/spread")
assert int(spread.step) == 100 and metrics[-1]["loss"] < metrics[0]["loss"] / 2
assert printed.count("float32[") == len(jax.tree.leaves(start)) and "bytes per device" in printed
""",
    "Memory against compute": """
sizes = [rnn.analysis.temp_bytes(last_state(scan), weights) for scan in scans.values()]
assert sizes[0] > 5 * sizes[1] and sizes[2] <= 2 * 2**20, sizes
""",
    "Other people's weights": """
import numpy as np
np.testing.assert_array_equal(ys, rnn.unroll(encoder, params, xs)[1])
assert sorted(state_dict)[0] == "encoder.bias_hh_l0" and len(state_dict) == 16 and ys.shape == (100, 8, 64)
kept_ys, our_ys = (rnn.unroll(cell, w, xs)[1] for cell, w in ((kept, kept.init(None, xs[0])), (ours, weights)))
np.testing.assert_allclose(kept_ys, our_ys, rtol=1e-4, atol=1e-5)
assert [a.shape for a in for_keras] == [(16, 96), (32, 96), (2, 96)]
""",
    "Graphs": """
import pathlib
assert ys.shape == (100, 8, 10) and copies.critical_path[-1] == ("y", 5)
assert "no error comes back" in pathlib.Path("net.svg").read_text()
""",
}


SLOW = ("Three things", "Functions", "Whole sequences", "Memory against compute", "Gradients in every copy")
EXAMPLES = {
    "Gradients in every copy": """
whole = jax.grad(lambda p: loss(*rnn.unroll(net, p, xs)))(params)
assert copies["W"].shape == (100, 32, 96) and jnp.allclose(copies["W"].sum(axis=0), whole["W"], atol=1e-6)
""",
}


ALONE = ("Character model of the standard library",)  # run by tests/experiments/test_char_lm.py, without jaxrnn


PRINTED = [
    pytest.param(text, title, id=title, marks=[pytest.mark.slow] if title in SLOW else [])
    for text, titles in ((README, CHECKS), (EXPERIMENTS, EXAMPLES))
    for title in titles
]


@pytest.mark.parametrize(("text", "title"), PRINTED)
def test_code_runs_as_printed(text, title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, names = section(text, title), {"__name__": "tour"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have it
        exec(compile(IMPORTS + code, title, "exec"), names)
        names["printed"] = capsys.readouterr().out
        exec(compile((CHECKS | EXAMPLES)[title], title, "exec"), names)


def test_every_block_of_code_is_run():
    for text, titles in ((README, CHECKS), (EXPERIMENTS, EXAMPLES)):
        others = ALONE if text == EXPERIMENTS else ()
        in_sections = "\n".join(section(text, title) for title in (*titles, *others))
        assert all(block in in_sections for block in python_blocks(text))


def test_the_drawing_is_what_the_terminal_shows():
    elman = rnn.graph({"h": (nn.Dense(4), ["x", rnn.prev("h")]), "y": (nn.Dense(4), "h")}, output="y")
    assert rnn.graphs.draw(elman).text(width=100) in README


def test_each_tour_is_ten_to_thirty_lines():
    for title in CHECKS:
        lines = [line for line in section(README, title).splitlines() if line.strip()]
        assert 10 <= len(lines) <= 32, (title, len(lines))


def test_the_first_screen_says_what_installs_and_runs():
    first = README.splitlines()[:30]
    assert first[2].startswith("**") and any("pip install" in line for line in first)
    assert any("experiments.char_lm" in line for line in first) and "## Three things" in README.splitlines()[:40]


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    command = 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest'
    assert command in README.splitlines()
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_every_public_name_in_the_table_exists():
    table = README.split("## What is there\n")[1].split("\nAll of")[0]
    names = [
        n for n in re.findall(r"`([\w.]+)[`(]", table) if n not in ("dtype", "learn_initial_state", "jax.lax.scan")
    ]
    room = lambda dotted: getattr(rnn, dotted.split(".")[0]) if "." in dotted else rnn
    missing = [n for n in names if not hasattr(room(n), n.split(".")[-1])]
    assert len(names) > 45 and not missing, missing


def test_every_experiment_has_a_row_and_links_lead_somewhere():
    row = README.split("## Results\n")[1].split("\n## ")[0]
    programs = [f.stem for f in (ROOT / "experiments").glob("*.py") if "harness.launch(main, Config" in f.read_text()]
    assert len(programs) > 14
    for name in {*programs, "memory_vs_compute --million"} - {"gpu", "million"}:
        assert f"| `experiments.{name}` |" in row, name
    for text, folder in ((README, ROOT), (EXPERIMENTS, ROOT / "experiments")):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("http") or (folder / link).exists(), link
    for file in (ROOT / "experiments").glob("[a-z]*.py"):
        assert f"`{file.name}`" in EXPERIMENTS or file.name == "harness.py", file.name
