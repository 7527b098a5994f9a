"""`draw`: pictures of a graph, cyclic and unrolled, as text, as SVG and as DOT."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxrnn.graphs.copies import Unrolled, unrolled
from jaxrnn.graphs.drawing import scene, svg, text
from jaxrnn.types import Cell


def draw(net: Cell | Unrolled, steps: int | None = None) -> Drawing:
    """A graph's picture: on the left as stated, with its cycles, on the right unrolled over `steps` steps (3).

        print(draw(net))                     text for the terminal
        draw(net, steps=5).save("net.svg")   or "net.dot", or "net.txt"; a notebook shows a Drawing as it is

    Values flow upwards within a step, from the inputs to the outputs, and to the right from step to
    step. Copies of a vertex, which share their weights, have one colour; functions, which have none,
    are white, inputs grey, and outputs have a thick frame. Undelayed values are dark lines, delayed
    ones and the states of recurrent vertices blue ones (double lines in text); numbers on them are
    delays. A value from before the first step is 0, or s where it is learned, stated or a cell's own.
    Red dashed lines are the errors that flow back, from each copy to those that it read.
    `net` may be `unrolled(net, steps).truncated(segment)`: then a red cross marks the edges on which
    no error comes back.
    Raises: TypeError for what was not made by `graph`; ValueError for steps below 1, or other than
    those of a net that is unrolled already.

    >>> import jaxrnn as rnn
    >>> net = rnn.graph({"h": (lambda x, h: x - h, ["x", rnn.prev("h")])}, output="h")
    >>> draw(net, steps=2).text(width=80).splitlines()[0].strip()
    'as stated       unrolled over 2 steps, depth 2'
    """
    if not isinstance(net, Unrolled):
        return Drawing(unrolled(net, 3 if steps is None else steps))
    if steps not in (None, net.steps):
        raise ValueError(f"draw: net is unrolled over {net.steps} steps already, got steps={steps}; leave steps out")
    return Drawing(net)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture of a graph; made by `draw`."""

    net: Unrolled

    def text(self, width: int | None = None) -> str:
        """Both pictures in box-drawing characters, side by side if `width` (the terminal's) has room for it."""
        width = shutil.get_terminal_size().columns if width is None else width
        left, right = (text.lines(panel) for panel in scene.both(self.net))
        wide = max(map(len, left)) + 6
        if wide + max(map(len, right)) > width:
            lines = [*left, "", *right]
        else:
            rows = max(len(left), len(right))
            blank = [""] * rows
            lines = [a.ljust(wide) + b for a, b in zip([*left, *blank][:rows], [*right, *blank][:rows], strict=True)]
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.text()

    def svg(self) -> str:
        """Both pictures as SVG, laid out by ourselves: the same everywhere, whatever is installed."""
        return svg.side_by_side(scene.both(self.net), self.fills(), self.net.graph.output_names)

    _repr_svg_ = svg  # what a notebook asks for

    def graphviz_svg(self) -> str:
        """`dot()` as SVG, laid out by graphviz. Raises RuntimeError where its program `dot` is missing or fails."""
        program = shutil.which("dot")
        if program is None:
            raise RuntimeError("draw: graphviz's program dot is not installed; svg() needs nothing")
        done = subprocess.run([program, "-Tsvg"], input=self.dot(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"draw: graphviz failed: {done.stderr.strip()}")
        return done.stdout

    def dot(self) -> str:
        """Both pictures in graphviz's language, for `dot` and for programs that read it."""
        return "\n".join(["digraph {", "rankdir=BT", "node [shape=box style=filled]", *self.statements(), "}"]) + "\n"

    def statements(self) -> Iterator[str]:
        graph, fills = self.net.graph, self.fills()
        read = {edge.source[0] for edge in self.net.edges}
        names = [name for name in (*graph.input_names, *graph.order) if name in read or name in graph.vertices]

        def node(name: str, t: int | str) -> str:
            bold = " penwidth=2.5" if name in graph.output_names else ""
            label = name if t == "" else f"{name} {t}"
            return f"{_quoted(f'{name} {t}')} [label={_quoted(label)} fillcolor={_quoted(fills[name])}{bold}]"

        yield 'subgraph "cluster as stated" {\nlabel="as stated"'
        yield from (node(name, "") for name in names)
        for edge in self.net.edges:
            if edge.target[1] == 0:
                way = f' [color="{svg.DELAYED}" label={edge.delay} constraint=false]' if edge.delay else ""
                yield f"{_quoted(edge.source[0] + ' ')} -> {_quoted(edge.target[0] + ' ')}{way}"
        yield "}"
        for t in range(self.net.steps):
            yield f'subgraph "cluster {t}" {{\nlabel="t = {t}"'
            yield from (node(name, t) for name in names)
            yield "}"
        for edge in self.net.edges:
            source, target = (_quoted(f"{name} {t}") for name, t in (edge.source, edge.target))
            if edge.source[1] < 0:
                mark = scene.start_mark(self.net, edge.source[0], edge.is_state)
                source = _quoted(f"{mark} {edge.source[0]} {edge.source[1]}{' state' * edge.is_state}")
                yield f'{source} [label="{mark}" shape=circle fillcolor="{svg.PLAIN}"]'
            way = f'color="{svg.DELAYED}"' if edge.delay else f'color="{svg.FORWARD}"'
            yield f"{source} -> {target} [{way}{' arrowtail=tee dir=both' * edge.is_cut}]"
            if edge.source[1] >= 0 and edge.source[0] in graph.vertices and not edge.is_cut:
                yield f'{source} -> {target} [color="{svg.ERROR}" style=dashed dir=back]'

    def save(self, path: str | Path) -> Path:
        """Writes the picture that the name's ending asks for: .svg, .dot or .txt. Returns the path."""
        path = Path(path)
        makers = {".svg": self.svg, ".dot": self.dot, ".txt": lambda: self.text(width=10**6) + "\n"}
        if path.suffix not in makers:
            raise ValueError(f"draw: path should end in {', '.join(makers)}, got {str(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(makers[path.suffix](), encoding="utf-8")
        return path

    def fills(self) -> dict[str, str]:
        """The colour of each vertex and input: that of its weights, which all its copies share."""
        graph = self.net.graph
        with_weights = [name for name in graph.order if not graph.vertices[name].is_function]
        fills = dict.fromkeys(graph.input_names, svg.GREY) | dict.fromkeys(graph.order, svg.PLAIN)
        return fills | svg.colours(with_weights)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
