"""The READMEs as tests read them: their sections and their code."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()

IMPORTS = "import flax.linen as nn\nimport jax\nimport jax.numpy as jnp\nimport optax\nimport jaxrnn as rnn\n"


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def section(text, title):
    """The Python of a section, up to the next heading."""
    body = re.split(rf"\n###? {title}\n", text)[1].split("\n### ")[0].split("\n## ")[0]
    return "\n".join(python_blocks(body))
