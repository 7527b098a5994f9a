"""What only a GPU can show, in one command and nine minutes: see .ci/gpu.

Every part is a process of its own with a time limit; one that fails, or is cut off, takes no other with it, and
the rows that it had by then are kept. What is not installed is left out, and named. In the folder ($OUT, else
runs/gpu): gpu.md (the machine, and what became of each part), log.txt, and a table and a picture per experiment.

    python3 -m experiments.gpu
    python3 -m experiments.gpu --tiny            small sizes, to try it out, also without a GPU
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = [sys.executable, "-u"]
NEEDED = ("jax", "jaxlib", "flax", "optax", "numpy", "rich", "orbax-checkpoint")
WELCOME = ("matplotlib", "pytest", "pytest-xdist", "hypothesis", "torch", "equinox", "dm-haiku", "keras")
LIMITS = {"scans": 80, "matrix": 70, "speed": 170, "memory": 90, "million": 115}  # seconds
RESULTS = {  # of the run folders: what is kept, under which name
    "speed": {"table.csv": "speed.csv", "speed.png": "speed.png"},
    "memory": {"table.csv": "memory.csv", "curves.png": "memory.png"},
    "million": {"million.csv": "million.csv", "million.png": "million.png"},
}


# The parts, each run in its own process.


def scans(folder: Path, tiny: bool) -> None:
    """Every strategy against `lax.scan`, in float64: values and gradients of a cell and of a graph."""
    del folder
    import jax
    import jax.numpy as jnp

    import jaxrnn as rnn
    from experiments import harness, nets

    def gradients(cell: Any, text: str) -> Any:
        xs = jax.random.normal(jax.random.key(0), (20, 3, 4))
        params = cell.init(jax.random.key(1), xs[0])
        loss = lambda params, xs: jnp.mean(jnp.sin(rnn.unroll(cell, params, xs, scan=harness.scan_named(text))[1]))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, xs)

    texts = ["fissioned", "fissioned(7, separate=True)", "checkpointed(5)", "checkpointed(levels=2)"]
    texts += ["checkpointed(inner=fissioned)", "revolve(3, 2, kept=1)", "within('1MiB')", "truncated(99)"]
    wrong = []
    with jax.enable_x64(True):
        cells = {"lstm": rnn.lstm(8, dtype=jnp.float64), "graph": nets.lstm(8, 3)}
        for name, cell in list(cells.items())[: 1 if tiny else None]:
            plain, limit = gradients(cell, "lax.scan"), 1e-10 if name != "graph" else 1e-5  # its layers are float32
            for text in texts:
                apart = harness.difference(gradients(cell, text), plain)
                print(f"{name:6} {text:32} differs from lax.scan by {apart:.0e}", flush=True)
                wrong += [] if apart < limit else [f"{name} under {text}"]
    if wrong:
        sys.exit(f"not equal to lax.scan: {', '.join(wrong)}")


def matrix(folder: Path, tiny: bool) -> None:
    """A part of the tests' own matrix of cells and scans."""
    del folder
    there = set(installed())
    if not {"pytest", "hypothesis"} <= there:
        sys.exit("left out: pytest and hypothesis are not both installed; the scans above stand for it")
    which = "float64 and mgu and python_loop" if tiny else "float64 and (elman or mgu or graph)"
    options = ["-n", "4"] if "pytest-xdist" in there and not tiny else []
    options += ["-o", "addopts=", "-q", "-m", "not slow", "-k", which]
    sys.exit(subprocess.run([*PYTHON, "-m", "pytest", *options, "tests/scans/test_matrix.py"]).returncode)


def speed(folder: Path, tiny: bool) -> None:
    from experiments import speed as experiment

    shapes = ("9,2,3,4",) if tiny else ("200,64,256,512", "1000,1,64,128", "200,16,128,256")
    experiment.main(experiment.Config(shapes=shapes, scans=("fissioned",), rounds=1 if tiny else 9, run=str(folder)))


def memory(folder: Path, tiny: bool) -> None:
    from experiments import memory_vs_compute as experiment

    some = ("fissioned", "checkpointed", "checkpointed(inner=fissioned)")
    config = experiment.Config(lengths=(1000,), scans=some, run=str(folder))
    small = {"size": 8, "batch": 2, "inputs": 4, "lengths": (40,), "rounds": 1, "plans": False}
    experiment.main(experiment.dataclasses.replace(config, **small) if tiny else config)


def million(folder: Path, tiny: bool) -> None:
    from experiments import memory_vs_compute as experiment

    lengths = (20,) if tiny else (1000, 100_000, 1_000_000)
    experiment.main(experiment.Config(million=True, lengths=lengths, run=str(folder)))


PARTS: dict[str, Callable[[Path, bool], None]] = {
    "scans": scans,
    "matrix": matrix,
    "speed": speed,
    "memory": memory,
    "million": million,
}


# The command.


def installed() -> dict[str, str]:
    """Packages of interest and their versions."""
    found = {}
    for name in (*NEEDED, *WELCOME):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(part: str, arguments: list[str], log: Any) -> str:
    """Runs one part; what it prints goes to the terminal and the log. Returns what became of it."""
    started = time.monotonic()
    # In full float32, so that everybody computes the same; and side by side with PyTorch on one device.
    env = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "float32", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [*PYTHON, "-m", "experiments.gpu", "--part", part, *arguments]
    child = subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    over = threading.Event()

    def stop() -> None:
        over.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(LIMITS[part], stop)
    timer.start()
    last = ""
    try:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
            last = line.strip() or last
        code = child.wait()
    except KeyboardInterrupt:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    seconds = f"{time.monotonic() - started:.0f} s"
    if over.is_set():
        return f"cut off after {seconds}"
    return f"done in {seconds}" if code == 0 else f"failed after {seconds}, exit {code}: {last}"


def device() -> str:
    """What JAX computes on, asked in a process of its own, so that this one holds no memory of it."""
    ask = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=': ')"
    asked = subprocess.run([*PYTHON, "-c", ask], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"error: JAX finds no device: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.strip().splitlines()[-1]


def everything(tiny: bool) -> int:
    there = installed()
    missing = [name for name in NEEDED if name not in there]
    if missing:
        sys.exit(f"error: jaxrnn needs {', '.join(missing)}, which this Python ({sys.executable}) does not have")
    folder = Path(os.environ.get("OUT") or "runs/gpu")
    folder.mkdir(parents=True, exist_ok=True)
    about = [f"Python {sys.version.split()[0]}; {', '.join(f'{n} {v}' for n, v in there.items())}"]
    about += [f"left out, not installed: {', '.join(n for n in WELCOME if n not in there) or 'nothing'}"]
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if device().startswith("cpu") else "cuda,cpu")
    about.insert(0, device())
    print("\n".join(about), flush=True)
    became: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work, (folder / "log.txt").open("w") as log:
        for part in PARTS:
            print(f"\n=== {part}, at most {LIMITS[part]} s", flush=True)
            arguments = ["--folder", f"{work}/{part}", *(["--tiny"] if tiny else [])]
            became[part] = run(part, arguments, log)
            print(f"--- {part}: {became[part]}", flush=True)
            for name, kept in RESULTS.get(part, {}).items():
                if (source := Path(work, part, name)).exists():
                    shutil.copy(source, folder / kept)
            lines = [*about, "", *(f"- {name}: {what}" for name, what in became.items())]
            (folder / "gpu.md").write_text("\n".join(lines) + "\n")
    print(f"\nwritten: {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")
    return 0 if all(what.startswith("done") for what in became.values()) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it out")
    parser.add_argument("--part", choices=PARTS, help="only this part, in this process, without a time limit")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu/part"), help="where --part leaves its run")
    given = parser.parse_args()
    if given.part:
        PARTS[given.part](given.folder, given.tiny)
    else:
        sys.exit(everything(given.tiny))


if __name__ == "__main__":
    main()
