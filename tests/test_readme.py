"""The README runs: its code as it stands, block after block, and its commands are the project's own."""

import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import pytest

import jaxrnn as rnn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title):
    """The Python of a section, up to the next heading of its level."""
    body = re.split(rf"\n###? {title}\n", README)[1].split("\n### ")[0].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", body, re.S))


IMPORTS = "import flax.linen as nn\nimport jax\nimport jax.numpy as jnp\nimport jaxrnn as rnn\n"
CHECKS = {
    "Functions": """
import numpy as np
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, lean)
assert any(float(jnp.abs(a - b).max()) > 1e-6 for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(short)))
assert ys.shape == (100, 8, 16)
""",
    "Training scripts": """
import pathlib
assert int(trained.step) == 200 and pathlib.Path("runs/sine/metrics.jsonl").exists()
truth = np.sin(np.arange(100, 150) / 9)[:, None]
assert float(jnp.abs(continued - truth).mean()) < 0.2, "the series is not learned"
""",
    "Memory against compute": """
sizes = [rnn.analysis.temp_bytes(last_state(scan), weights) for scan in scans.values()]
assert sizes[0] > 5 * sizes[1] and sizes[2] <= 2 * 2**20, sizes
""",
    "Graphs": """
import pathlib
assert ys.shape == (100, 8, 10) and copies.critical_path[-1] == ("y", 5)
assert "no error comes back" in pathlib.Path("net.svg").read_text()
""",
}


EXAMPLES = {
    "Gradients in every copy": """
whole = jax.grad(lambda p: loss(*rnn.unroll(net, p, xs)))(params)
assert copies["W"].shape == (100, 32, 96) and jnp.allclose(copies["W"].sum(axis=0), whole["W"], atol=1e-6)
""",
}


@pytest.mark.parametrize("title", [*CHECKS, *EXAMPLES])
def test_the_tour_runs_as_printed(title, tmp_path):
    script = tmp_path / "tour.py"
    script.write_text(IMPORTS + section(title) + (CHECKS | EXAMPLES)[title])
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_drawing_is_what_the_terminal_shows():
    elman = rnn.graph({"h": (nn.Dense(4), ["x", rnn.prev("h")]), "y": (nn.Dense(4), "h")}, output="y")
    assert rnn.graphs.draw(elman).text(width=100) in README


def test_each_tour_is_ten_to_thirty_lines():
    for title in CHECKS:
        lines = [line for line in section(title).splitlines() if line.strip()]
        assert 10 <= len(lines) <= 32, (title, len(lines))


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    command = 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest'
    assert command in README
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_public_name_in_the_table_exists():
    table = README.split("## What is there\n")[1].split("\nEach docstring")[0]
    names = re.findall(r"`(\w+)[`(]", table)
    missing = [n for n in names if not hasattr(rnn, n) and n not in ("dtype", "learn_initial_state", "lax")]
    assert len(names) > 30 and not missing, missing
