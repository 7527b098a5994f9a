"""Pictures: nothing overlaps, every edge is there, and they are what was seen and found good."""

import shutil
import subprocess
import xml.etree.ElementTree as ET
from itertools import pairwise

import flax.linen as nn
import jax.numpy as jnp
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxrnn as rnn
from jaxrnn.graphs import prev
from jaxrnn.graphs.drawing import scene as panels
from jaxrnn.graphs.drawing.layout import BOX

FEW = settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])


def elman():
    return rnn.graph({"h": (nn.Dense(4), ["x", prev("h")]), "y": (jnp.tanh, "h")}, output="y")


@st.composite
def graphs(draw, most=30):
    """Any wiring of functions: what they compute does not matter here."""
    names = [f"v{n}" for n in range(draw(st.integers(1, most)))]
    vertices = {}
    for n, name in enumerate(names):
        now = draw(st.lists(st.sampled_from(["x", *names[max(0, n - 6) : n]]), max_size=3, unique=True))
        late = draw(st.lists(st.tuples(st.sampled_from(["x", *names]), st.integers(1, 3)), max_size=2, unique=True))
        sources = [*now, *(prev(source, steps=d) for source, d in late)] or ["x"]
        vertices[name] = (rnn.gru(2) if draw(st.integers(0, 9)) == 0 else jnp.add, sources)
    return rnn.graph(vertices, output=tuple(names))


def cells_of(wire):
    """The grid cells along a wire, each with whether it is passed upright or level; and not the ends, in the frames."""
    found = set()
    for (x, y), (to_x, to_y) in pairwise(wire.points):
        assert x == to_x or y == to_y, "wires go straight up, down or sideways"
        upright = x == to_x
        low, high = sorted((y, to_y) if upright else (x, to_x))
        found |= {((x, n) if upright else (n, y), upright) for n in range(low, high + 1)}
    return found - {(wire.points[0], True), (wire.points[-1], True)}


def assert_nothing_overlaps(panel):
    inside = {}
    for box in panel.boxes:
        for x in range(box.left, box.left + box.width):
            for y in range(box.bottom, box.bottom + BOX + 1):
                assert (x, y) not in inside, f"{box.label} covers {inside[x, y]}"
                inside[x, y] = box.label
    taken = {}
    for wire in panel.wires:
        for cell, upright in cells_of(wire):
            assert cell not in inside, f"{wire.reads} runs through {inside[cell]}"
            value = taken.setdefault((cell, upright), (wire.net, wire.source))
            assert value == (wire.net, wire.source), f"{wire.reads} runs along {value}"


@given(net=graphs(), steps=st.integers(1, 4))
@FEW
def test_no_box_covers_another_and_no_wire_a_box_or_another_wire(net, steps):
    for panel in panels.both(rnn.graphs.unrolled(net, steps)):
        assert_nothing_overlaps(panel)


ELMAN = """
as stated           unrolled over 2 steps, depth 3

  ┌─────┐                  ┌─────┐         ┌─────┐
  │  y  │                  │  y₀ │         │  y₁ │
  └─────┘                  └─────┘         └─────┘
     ▲                        ▲               ▲
     │   ╔══╗                 │   ╔══╗        │   ╔════►
┌────┴───╨┐ ║            ┌────┴───╨┐ ║   ┌────┴───╨┐
│    h    │ ║            │    h₀   │ ║   │    h₁   │
└─────────┘ 1            └─────────┘ ║   └─────────┘
 ▲   ▲      ║             ▲   ▲      ║    ▲   ▲
 ╚═══│══════╝        0════╝   │      ╚════╝   │
  ┌──┴──┐                  ┌──┴──┐         ┌──┴──┐
  │  x  │                  │  x₀ │         │  x₁ │
  └─────┘                  └─────┘         └─────┘

                            t = 0           t = 1
"""


def test_elman_in_the_terminal():
    assert rnn.graphs.draw(elman(), steps=2).text(width=100) == ELMAN.strip("\n")


def test_a_narrow_terminal_has_one_picture_under_the_other():
    lines = rnn.graphs.draw(elman(), steps=2).text(width=40).splitlines()
    assert max(map(len, lines)) <= 40 and lines[0] == "as stated"
    assert "unrolled over 2 steps, depth 3" in lines[10:]


def test_truncation_is_marked():
    cut = rnn.graphs.draw(rnn.graphs.unrolled(elman(), 4).truncated(2))
    assert str(cut).count("╳") == 1 and "╳" not in str(rnn.graphs.draw(elman(), steps=4))
    panel = panels.both(cut.net)[1]
    assert [wire.source for wire in panel.wires if wire.is_cut] == [("h", 1)]
    assert [wire.source for wire in panel.wires if wire.has_error and wire.net.delay] == [("h", 0), ("h", 2)]
    assert "no error comes back" in cut.svg() and cut.dot().count("arrowtail=tee") == 1


def lstm():
    gate = lambda fn: (rnn.stack(rnn.layer(nn.Dense(4)), rnn.lift(fn)), ["x", prev("h")])
    return rnn.graph(
        {
            **{name: gate(jnp.tanh) for name in "ifgo"},
            "c": (lambda i, f, g, c: f * c + i * g, ["i", "f", "g", prev("c")]),
            "h": (lambda o, c: o * jnp.tanh(c), ["o", "c"]),
        },
        output="h",
    )


def test_every_edge_and_every_error_is_drawn():
    net = rnn.graphs.unrolled(lstm(), 3)
    cyclic, copies = panels.both(net)
    reads = lambda panel: sorted(wire.reads for wire in panel.wires if not wire.is_open)
    assert len(reads(copies)) == len(set(reads(copies))) == len(net.edges) == 3 * 14
    assert len(reads(cyclic)) == 14 and "c reads c, 1 step earlier" in reads(cyclic)
    # An error comes back to every copy that is read, and not to inputs, nor to what lies before the start.
    errors = [edge for edge in net.edges if edge.source[0] != "x" and edge.source[1] >= 0]
    assert sum(wire.has_error for wire in copies.wires) == len(errors) == 3 * 5 + 2 * 5
    handed_on = {wire.source for wire in copies.wires if wire.is_open}
    assert handed_on == {("h", 2), ("c", 2)}
    assert sorted(mark.text for mark in copies.marks) == ["0"] * 5


def test_svg_draws_what_wires_share_once():
    """Four gates read x and h: along one line with a dot at each branch, and not four times over one another."""
    root = ET.fromstring(rnn.graphs.draw(lstm(), steps=1).svg())
    ns = "{http://www.w3.org/2000/svg}"
    dots = [circle for circle in root.iter(ns + "circle") if circle.get("r") == "2.5"]
    # In each picture x and the delayed h go to four gates: three branches each.
    assert len(dots) == 2 * 3 * 2
    starts = [path.get("d").split("L")[0] for path in root.iter(ns + "path") if path.find(ns + "title") is not None]
    assert len(starts) == len(set(starts)) == 2 * 14 + 2


def test_svg_has_a_box_per_copy_and_one_colour_per_weights():
    drawing = rnn.graphs.draw(lstm(), steps=3)
    root = ET.fromstring(drawing.svg())
    ns = "{http://www.w3.org/2000/svg}"
    fills = [rect.get("fill") for rect in root.iter(ns + "rect") if rect.get("stroke")]
    assert len(fills) == 7 * (3 + 1)
    colours = {fill: fills.count(fill) for fill in fills}
    assert all(len(colour) == 7 and colour[0] == "#" for colour in colours)
    # Four gates of weights, each with a colour of its own; the two functions are white, the input is grey.
    assert sorted(colours.values()) == [4, 4, 4, 4, 4, 8]
    labels = {text.text for text in root.iter(ns + "text")}
    assert {"h", "h₀", "h₁", "h₂", "t = 2", "as stated"} <= labels
    dashed = [path for path in root.iter(ns + "path") if path.get("stroke-dasharray") == "3 2"]
    assert len(dashed) == sum(wire.has_error for wire in panels.both(drawing.net)[1].wires)
    assert drawing._repr_svg_() == drawing.svg()


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz_draws_the_dot():
    plain = subprocess.run(["dot", "-Tplain"], input=rnn.graphs.draw(lstm(), 3).dot(), capture_output=True, text=True)
    lines = plain.stdout.splitlines()
    # The boxes of both pictures and 2 starts; the edges of both and the 25 errors.
    assert sum(line.startswith("node") for line in lines) == 4 * 7 + 2
    assert sum(line.startswith("edge") for line in lines) == 4 * 14 + 25
    assert "<svg" in rnn.graphs.draw(lstm(), 3).graphviz_svg()


def test_dot_states_every_edge():
    lines = rnn.graphs.draw(elman(), steps=2).dot().splitlines()
    assert lines[0] == "digraph {" and lines[-1] == "}"
    edges = [line.split(" [")[0] for line in lines if "->" in line]
    cyclic = ['"x " -> "h "', '"h " -> "h "', '"h " -> "y "']
    forward = [
        '"x 0" -> "h 0"',
        '"0 h -1" -> "h 0"',
        '"h 0" -> "y 0"',
        '"x 1" -> "h 1"',
        '"h 0" -> "h 1"',
        '"h 1" -> "y 1"',
    ]
    errors = ['"h 0" -> "y 0"', '"h 0" -> "h 1"', '"h 1" -> "y 1"']
    assert sorted(edges) == sorted(cyclic + forward + errors)


def test_names_with_quotes_and_angles_are_escaped():
    net = rnn.graph({'a"b': (jnp.tanh, "x"), "<c>": (nn.Dense(2), 'a"b')}, output="<c>")
    ET.fromstring(rnn.graphs.draw(net).svg())
    assert '"a\\"b 0"' in rnn.graphs.draw(net).dot()


@pytest.mark.parametrize("ending", ["svg", "dot", "txt"])
def test_saving(ending, tmp_path):
    drawing = rnn.graphs.draw(elman(), steps=2)
    path = drawing.save(tmp_path / "pictures" / f"net.{ending}")
    expected = {"svg": drawing.svg(), "dot": drawing.dot(), "txt": drawing.text(width=10**6) + "\n"}
    assert path.read_text(encoding="utf-8") == expected[ending]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"path should end in .svg, .dot, .txt, got '.*net.png'"):
        rnn.graphs.draw(elman()).save(tmp_path / "net.png")
    with pytest.raises(TypeError, match="unrolled: net must be a cell made by graph"):
        rnn.graphs.draw(rnn.elman(3))
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        rnn.graphs.draw(elman(), steps=0)
    with pytest.raises(ValueError, match="net is unrolled over 2 steps already, got steps=3; leave steps out"):
        rnn.graphs.draw(rnn.graphs.unrolled(elman(), 2), steps=3)
