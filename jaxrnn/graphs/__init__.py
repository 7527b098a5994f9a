"""Nets stated as they are drawn, vertices and edges with cycles; unrolled, and drawn."""

from jaxrnn.graphs.assembly import GraphState, graph
from jaxrnn.graphs.copies import Unrolled, unrolled
from jaxrnn.graphs.drawing import Drawing, draw
from jaxrnn.graphs.statement import prev

__all__ = ["Drawing", "GraphState", "Unrolled", "draw", "graph", "prev", "unrolled"]
