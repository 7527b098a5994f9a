"""Files of weights: read without running anything that is in them, written whole or not at all."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.tensors import Array, as_numpy, shown
from jaxrnn.training.files import reason, write_atomically

# Earlier ones could be made to run code of the file's even with weights_only: CVE-2025-32434, CVE-2026-24747.
_SAFE_TORCH = (2, 10)

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a `.safetensors` file by name, in NumPy (bfloat16 too).

    The format holds numbers and a table of their names, types and places; nothing in it can run. Neither PyTorch nor
    any other library than `safetensors` is needed.
    Cost: the file is read into memory, at most twice its size for a moment.
    Raises: ValueError for a file that is damaged, cut short or of another kind, and for a tensor of a type that NumPy
    has not; OSError for one that cannot be read; ImportError without the `safetensors` package.
    """
    safetensors = _package("load_safetensors", "safetensors")
    path = Path(path)
    data = _read("load_safetensors", path)
    try:
        found = safetensors.deserialize(data)
    except Exception as error:  # the package's own class, and whatever a damaged table leads to
        raise ValueError(
            f"load_safetensors: {path} is damaged or no .safetensors file ({reason(error)}); fetch it again"
        ) from error
    return {name: _tensor(path, name, about) for name, about in found}


def _tensor(path: Path, name: str, about: Mapping[str, Any]) -> Array:
    if about["dtype"] not in _DTYPES:
        raise ValueError(
            f"load_safetensors: tensor {shown(name)} of {path} should be of one of the types {', '.join(_DTYPES)}, got "
            f"{about['dtype']}; convert it first, to F32 say"
        )
    return np.frombuffer(about["data"], np.dtype(_DTYPES[about["dtype"]])).reshape(about["shape"])


def save_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Writes tensors by name into a `.safetensors` file, whole or not at all: what was there before stays until then.

    Tensors are arrays of NumPy, JAX or PyTorch, as `to_pytorch` gives them; a dict of Flax's or Haiku's is flattened
    first.
    Cost: twice their bytes of memory for a moment.
    Raises: ValueError for what is no array, naming it; OSError if it cannot be written; ImportError without the
    `safetensors` package.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_safetensors(f"{folder}/w.safetensors", {"w": jnp.ones((2, 3), jnp.bfloat16)})
    ...     load_safetensors(f"{folder}/w.safetensors")["w"].dtype.name
    'bfloat16'
    """
    _package("save_safetensors", "safetensors")
    from safetensors.numpy import save

    path = Path(path)
    arrays = {name: as_numpy("save_safetensors", f"tensor {shown(name)}", tensor) for name, tensor in tensors.items()}
    known = {np.dtype(dtype) for dtype in _DTYPES.values()}
    for name, array in arrays.items():
        if array.dtype not in known:
            raise ValueError(
                f"save_safetensors: tensor {shown(name)} is {array.dtype}, which cannot be saved; convert it first"
            )
    data = save({name: np.array(array, order="C") for name, array in arrays.items()})
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OSError(
            f"save_safetensors: {path} cannot be written ({reason(error)}); what was there before is as it was"
        ) from error


def load_pytorch(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a `.pt` or `.pth` file of PyTorch's by name, in NumPy.

    Such a file is a program for Python's unpickler. It is read by `torch.load(..., weights_only=True)`, which runs
    nothing but the making of tensors and containers, and only by a PyTorch in which no way around that is known;
    nothing is tried a second time in a less careful way. Mappings within mappings are flattened, as in
    "state_dict.encoder.weight_ih_l0"; what is no tensor (a step's number, options) is left out.
    Raises: ValueError for a file that is damaged, compressed, or holds anything else than such data; OSError for one
    that cannot be read; ImportError without PyTorch 2.10 or newer.
    """
    torch = _package("load_pytorch", "torch")
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < _SAFE_TORCH:
        raise ImportError(
            f"load_pytorch: PyTorch {torch.__version__} can be made to run what is in a file; install 2.10 or newer"
        )
    path = Path(path)
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in the file; it is an error, or it does not matter
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file leads to
        raise ValueError(f"load_pytorch: {path} {_why_not(error)}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"load_pytorch: {path} should hold a mapping of names to tensors, got a {type(loaded).__name__}; write it "
            "with torch.save(module.state_dict(), path)"
        )
    return {name: _plain(torch, path, name, tensor) for name, tensor in _tensors(torch, path, loaded)}


def load(where: str, path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a file of either kind, told apart by the ends of their names."""
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return load_safetensors(path)
    if suffix in (".pt", ".pth", ".bin"):
        return load_pytorch(path)
    raise ValueError(f"{where}: the name of {path} should end in .safetensors, .pt, .pth or .bin; rename the file")


def _package(where: str, name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"{where}: needs the package {name}; pip install {name}") from error


def _read(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise type(error)(f"{where}: {path} cannot be read ({reason(error)}); check the path") from error


def _check_archive(path: Path) -> None:
    """PyTorch stores what it writes as it is: a small file that swells to fill the memory is none of its own.

    Its checksums are looked at as well, which PyTorch does not do: a bit that fell over would be a wrong weight.
    """
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise type(error)(f"load_pytorch: {path} cannot be read ({reason(error)}); check the path") from error
    try:
        if not zipfile.is_zipfile(path):
            return  # PyTorch's older format, or damaged: it will say
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
            swells = any(f.compress_type != zipfile.ZIP_STORED for f in files) or sum(f.file_size for f in files) > size
            damaged = None if swells else archive.testzip()
    except Exception as error:  # of damaged archives
        raise ValueError(f"load_pytorch: {path} is damaged ({reason(error)}); fetch it again") from error
    if swells:
        raise ValueError(
            f"load_pytorch: {path} is compressed, as no file of torch.save is, and was not opened; ask for one that "
            "is not"
        )
    if damaged is not None:
        raise ValueError(
            f"load_pytorch: {path} is damaged (the checksum of {shown(damaged)}); fetch it again, or write it again if "
            "it was with torch.serialization.set_crc32_options(False)"
        )


def _why_not(error: Exception) -> str:
    """What is wrong with a file, without PyTorch's advice to open it in the other, dangerous way."""
    if type(error).__name__ == "UnpicklingError" and (named := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return (
            f"holds more than tensors (it names {named[1]}) and was not opened, as that could run code; ask for a "
            ".safetensors file, or for one of torch.save(module.state_dict(), path)"
        )
    why = "no data that is safe to read" if type(error).__name__ == "UnpicklingError" else reason(error)
    return f"is damaged or no file of tensors ({why}); fetch it again, or ask for a .safetensors file"


def _tensors(torch: Any, path: Path, loaded: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """All tensors, by their names within mappings. A mapping that is found twice could be found without end."""
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()

    def visit(prefix: str, mapping: Mapping[Any, Any]) -> None:
        if id(mapping) in seen or prefix.count(".") > 100:
            raise ValueError(
                f"load_pytorch: {path} holds a mapping within itself, {shown(prefix)}; ask for a plain state_dict"
            )
        seen.add(id(mapping))
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                visit(f"{prefix}{name}.", value)
            elif isinstance(value, torch.Tensor):
                found.append((f"{prefix}{name}", value))

    visit("", loaded)
    return found


def _plain(torch: Any, path: Path, name: str, tensor: Any) -> Array:
    """The tensor, if all its elements are in the file: a stride of 0 could make terabytes of a few bytes."""
    is_plain = tensor.layout is torch.strided and not tensor.is_meta
    if is_plain and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"load_pytorch: tensor {shown(name)} of {path} has more elements, {list(tensor.shape)}, than the file "
            "holds for it; ask for one that is written out"
        )
    return as_numpy("load_pytorch", f"tensor {shown(name)} of {path}", tensor)
