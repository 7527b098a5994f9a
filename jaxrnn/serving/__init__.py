"""Out of the door: a cell and its parameters as a folder of programs that run without jaxrnn, and the way back."""

from jaxrnn.serving.folders import ModelError
from jaxrnn.serving.loading import load
from jaxrnn.serving.models import Model
from jaxrnn.serving.saving import export

__all__ = ["Model", "ModelError", "export", "load"]
