"""Experiments on the public API of jaxrnn; each file is one, to be read from top to bottom."""
