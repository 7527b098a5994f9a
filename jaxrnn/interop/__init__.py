"""Other people's weights: from and to PyTorch, Keras, Flax, Haiku and Equinox, and the files that they come in."""

from jaxrnn.interop.equinox import from_equinox, to_equinox
from jaxrnn.interop.files import load_pytorch, load_safetensors, save_safetensors
from jaxrnn.interop.flax import from_flax, from_nnx, to_flax, to_nnx
from jaxrnn.interop.haiku import from_haiku, to_haiku
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.nets import Imported
from jaxrnn.interop.pytorch import from_pytorch, to_pytorch

__all__ = [
    "Imported",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_nnx",
    "from_pytorch",
    "load_pytorch",
    "load_safetensors",
    "save_safetensors",
    "to_equinox",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_nnx",
    "to_pytorch",
]
