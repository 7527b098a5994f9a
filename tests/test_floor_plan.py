"""The layers of the library: a module imports only from those above it in this list."""

import ast
import importlib
import types
from pathlib import Path

import jaxrnn

FLOORS = """
types pickling checks trees guards meshes inference
cells.base cells.simple cells.gated cells.held cells.nnx_modules cells.equinox_modules cells.layers cells.linear
cells.diagonal cells.selective cells.xlstm
cells.elementwise cells.convolutional cells.normalisation cells.oscillating cells
combinators.stacking combinators.noise combinators.masking combinators.feedback combinators
engine.rules engine.ir engine.evaluate engine.rewrites engine.minimum_cut engine.placement engine.loop
engine.partition engine.queries engine.step engine.taps engine.linearize engine.deferral engine.segments
engine.program engine.binomial engine.scheduled_loop engine.memory engine.forms engine.thin engine.copies
engine.closed_forms engine.reduce_then_scan engine.semigroups engine.solved engine.newton_iteration
engine.parallel_program engine.dependence engine.sites engine.influence engine.jacobian engine
scans.base scans.loops scans.checkpointing scans.truncation scans.random_truncation scans.fission scans.revolving
scans.linear_recurrences scans.parallel_in_time scans.sharding
scans.planner scans.budget scans
sequence.unrolling sequence.layers sequence.directions sequence.frames sequence.packing sequence.collecting
sequence.pooling sequence.attention sequence.feedback sequence.generation sequence.beams sequence
losses.stepwise losses.alignment losses.ctc_decoding losses.lattice losses.linear_chain
losses.endless losses
online.step online.learner online.remembering online.blocks online.influences online.rank_one online.kronecker
online.truncation online
training.optimizers training.step training.averages training.files training.processes training.sharding
training.over_mesh training.streams training.bucketed training.locks training.records training.states
training.checkpoints training.runs training.batches training.best training.stopping training.progress
training.diagnosis training.fitting training
graphs.statement graphs.delays graphs.assembly graphs.copies
graphs.drawing.layout graphs.drawing.scene graphs.drawing.text graphs.drawing.svg graphs.drawing.pictures
graphs.drawing graphs
analysis.operations analysis.communication analysis.timing analysis.memory analysis.explanation analysis.gradients
analysis.flow analysis.dynamics analysis.learners analysis
interop.tensors interop.nets interop.files interop.pytorch interop.keras interop.haiku interop.flax interop.equinox
interop
serving.layouts serving.weights serving.folders serving.programs serving.functions serving.saving serving.models
serving.loading serving
""".split()

PACKAGE = Path(jaxrnn.__file__).parent
ROOT = Path(__file__).parent.parent  # elsewhere, where the package is installed and tests are run from an sdist


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(p for p in parts if p != "__init__")


def imports(path):
    """Dotted names of ours that a file imports, "jaxrnn." removed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (n if _is_module(n) and not _is_public(n, path) else node.module for n in names)


def _is_public(dotted, path):
    """Whether this is a public function, as seen from outside, though a module has the same name."""
    return PACKAGE not in path.parents and dotted.removeprefix("jaxrnn.") in jaxrnn.__all__


def _is_module(dotted):
    place = (PACKAGE.parent if dotted.startswith("jaxrnn") else ROOT).joinpath(*dotted.split("."))
    return place.with_suffix(".py").exists() or place.is_dir()


def test_every_module_has_a_floor():
    assert sorted(name for _, name in modules() if name) == sorted(FLOORS)


def test_imports_go_up_the_list_only():
    for path, name in modules():
        if not name:
            continue
        for imported in imports(path):
            if imported.startswith("jaxrnn"):
                above = imported.removeprefix("jaxrnn").lstrip(".")
                assert above in FLOORS[: FLOORS.index(name)], f"{name} imports {imported}, which is not above it"


def test_only_public_names_of_jax():
    for path, _ in modules():
        text = path.read_text()
        assert "jax._src" not in text and "jax.core." not in text.replace("jax.core.Tracer", ""), path


def test_experiments_use_the_public_library():
    for path in (ROOT / "experiments").rglob("*.py"):
        for imported in imports(path):
            assert imported == "jaxrnn" or not imported.startswith("jaxrnn"), f"{path.name} imports {imported}"


def test_init_names_what_is_public_and_computes_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in tree.body)
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(jaxrnn.__all__) and list(jaxrnn.__all__) == sorted(jaxrnn.__all__)


def test_public_names_are_documented():
    for name in jaxrnn.__all__:
        assert (getattr(jaxrnn, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_files_are_short_enough_to_read():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 350, path


# --- short enough, and each thing its own name ---------------------------------------------------


def code_lines(function):
    """How many lines a function has beside its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def functions(path):
    return (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_functions_are_short_enough_to_read():
    long = {
        f"{path}:{function.lineno} {function.name}": code_lines(function)
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
        for function in functions(path)
        if code_lines(function) > 50
    }
    assert not long


def test_lines_of_a_docstring_do_not_count():
    (function,) = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body
    assert code_lines(function) == 2


def test_no_function_has_the_name_of_its_module():
    """`from jaxrnn.X import name` would mean the module or the function, by which of them was imported last."""
    for path, name in modules():
        if path.name == "__init__.py":
            siblings = {p.stem for p in path.parent.glob("*.py")} | {
                p.name for p in path.parent.iterdir() if p.is_dir()
            }
            room = importlib.import_module(".".join(["jaxrnn", name]).rstrip("."))
            for public in getattr(room, "__all__", ()):
                both = public in siblings and not isinstance(getattr(room, public), types.ModuleType)
                assert not both, f"{room.__name__}.{public} is a module and not only that"
        else:
            defined = {
                n.name for n in ast.parse(path.read_text()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            }
            assert path.stem not in defined, f"{path} defines {path.stem}"


# --- what is public is tested --------------------------------------------------------------------


def rooms():
    """Every package of ours that says what of it is public."""
    for path, name in modules():
        if path.name == "__init__.py":
            room = importlib.import_module(".".join(["jaxrnn", name]).rstrip("."))
            if hasattr(room, "__all__"):
                yield room


def words_of_tests():
    """Every name that test code uses; comments and strings do not count, and neither does this file."""
    words = set()
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    words.add(node.attr)
                elif isinstance(node, ast.Name):
                    words.add(node.id)
                elif isinstance(node, ast.alias):
                    words.add(node.name.rpartition(".")[2])
    return words


def test_every_public_name_is_used_in_a_test():
    used = words_of_tests()
    missing = [f"{room.__name__}.{name}" for room in rooms() for name in room.__all__ if name not in used]
    assert not missing
