"""Pictures of a graph, cyclic and unrolled."""

from jaxrnn.graphs.drawing.pictures import Drawing, draw

__all__ = ["Drawing", "draw"]
