"""Files of weights: what was written is read, what is damaged is one sentence, and what is hostile does not run."""

import json
import os
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import interop
from tests.interop.by_hand import weights

safetensors = pytest.importorskip("safetensors")
TENSORS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([[1.5], [-3]], jnp.bfloat16),
    "double": np.array(2.5),
    "none": np.zeros((0, 4), np.float32),
    "count": np.array([7]),
    "mask": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def test_what_is_saved_is_loaded(path):
    interop.save_safetensors(path, {**TENSORS, "jax": jnp.ones((2, 2)), "transposed": TENSORS["weights"].T})
    found = interop.load_safetensors(str(path))
    assert set(found) == {*TENSORS, "jax", "transposed"}
    for name, tensor in {**TENSORS, "jax": np.ones((2, 2), "float32"), "transposed": TENSORS["weights"].T}.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        np.testing.assert_array_equal(found[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_it_is_the_published_format(path):
    """Eight bytes of length, a table in JSON, the numbers: written and read by hand."""
    interop.save_safetensors(path, {"a": TENSORS["weights"]})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    about = json.loads(data[8 : 8 + length])["a"]
    begin, end = (8 + length + offset for offset in about["data_offsets"])
    assert about["dtype"] == "F32" and about["shape"] == [2, 3]
    assert np.frombuffer(data[begin:end], "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    path.write_bytes(by_hand({"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\x80\x3f\x00\xc0"))
    assert interop.load_safetensors(path)["b"].astype("float32").tolist() == [1, -2]


def by_hand(table, data):
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_a_net_comes_from_a_file_with_a_prefix(path):
    tensors = weights("lstm", 3, 4, dtype=np.float32)
    interop.save_safetensors(
        path, {f"encoder.lstm.{name}": t for name, t in tensors.items()} | {"head.bias": np.ones(2)}
    )
    net, params = interop.from_pytorch(path, prefix="encoder.lstm")
    assert net == rnn.lstm(4)
    np.testing.assert_array_equal(params["U"], tensors["weight_ih_l0"].T)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": b"",
    "cut short": by_hand({"a": F32}, b"\0" * 5),
    "cut within the table": by_hand({"a": F32}, b"")[:20],
    "a length of exabytes": struct.pack("<Q", 2**63) + b"{}",
    "a table that is none": by_hand(b"[1, 2", b""),
    "not JSON but pickle": by_hand(b"cposix\nsystem\n(S'echo'\ntR.", b""),
    "sizes that do not fit": by_hand({"a": {**F32, "shape": [3]}}, b"\0" * 8),
    "sizes whose product overflows": by_hand({"a": {**F32, "shape": [2**40, 2**40]}}, b"\0" * 8),
    "a negative size": by_hand({"a": {**F32, "shape": [-2]}}, b"\0" * 8),
    "places outside the file": by_hand({"a": {**F32, "data_offsets": [800, 808]}}, b"\0" * 8),
    "places that overlap": by_hand({"a": F32, "b": F32}, b"\0" * 8),
    "an unknown type": by_hand({"a": {**F32, "dtype": "F33"}}, b"\0" * 8),
    "left over bytes": by_hand({"a": F32}, b"\0" * 80),
    "another kind of file": b"GIF89a" + bytes(100),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_hostile_file_is_one_sentence(what, path):
    path.write_bytes(HOSTILE[what])
    with pytest.raises(
        ValueError, match=r"load_safetensors: .*w.safetensors is damaged or no .safetensors file"
    ) as caught:
        interop.load_safetensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_every_way_of_cutting_a_file_short_is_one_sentence(path):
    interop.save_safetensors(path, {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged or no .safetensors file"):
            interop.load_safetensors(path)


def test_a_type_that_numpy_has_not_is_named(path):
    path.write_bytes(by_hand({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"\0\0"))
    with pytest.raises(
        ValueError, match=r"tensor 'a' of .* should be of one of the types F64, .* got F8_E4M3; convert"
    ):
        interop.load_safetensors(path)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load_safetensors: .*none.safetensors cannot be read \(No such file"):
        interop.load_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"from_pytorch: the name of .*weights.zip should end in .safetensors, .pt"):
        interop.from_pytorch(tmp_path / "weights.zip")


def test_what_cannot_be_saved_leaves_the_old_file(path, monkeypatch):
    interop.save_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"save_safetensors: tensor 'b' should be an array, got a str"):
        interop.save_safetensors(path, {"a": np.zeros(2), "b": "text"})
    with pytest.raises(ValueError, match=r"save_safetensors: tensor 'b' is complex128, which cannot be saved"):
        interop.save_safetensors(path, {"a": np.zeros(2), "b": np.zeros(2, complex)})

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"w.safetensors cannot be written \(No space left on device\); what was there"):
        interop.save_safetensors(path, {"a": np.zeros(2)})
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


# --- .pt, where PyTorch is installed --------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def pt(tmp_path):
    return tmp_path / "w.pt"


def sentence(pt, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        interop.load_pytorch(pt)
    text = str(caught.value)
    assert text.startswith("load_pytorch: ") and "\n" not in text and len(text) < 500 and "weights_only" not in text


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pytorch_is_read_tensors_within_mappings_by_their_path(zipped, torch, pt):
    module = torch.nn.LSTM(3, 4)
    whole = {
        "state_dict": {f"net.{k}": v for k, v in module.state_dict().items()},
        "epoch": 3,
        "half": module.bias_hh_l0.bfloat16(),
    }
    torch.save(whole, pt, _use_new_zipfile_serialization=zipped)
    found = interop.load_pytorch(pt)
    assert len(found) == 5 and found["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["state_dict.net.weight_ih_l0"], module.weight_ih_l0.detach().numpy())
    net, params = interop.from_pytorch(pt, prefix="state_dict.net")
    assert net == rnn.lstm(4)
    np.testing.assert_array_equal(params["W"], module.weight_hh_l0.detach().numpy().T)


class Runs:
    """What is called when a file that holds it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pytorch_runs_nothing(zipped, torch, pt, tmp_path):
    torch.save({"weight_ih_l0": torch.ones(2), "x": Runs(tmp_path / "run")}, pt, _use_new_zipfile_serialization=zipped)
    sentence(
        pt, r"w.pt holds more than tensors \(it names (posix|nt).mkdir\) and was not opened, as that could run code"
    )
    assert not (tmp_path / "run").exists()


def test_a_whole_module_of_pytorch_is_not_unpickled(torch, pt):
    torch.save(torch.nn.LSTM(3, 4), pt)
    sentence(pt, r"holds more than tensors \(it names torch.nn.modules.rnn.LSTM\).*state_dict")


def test_damaged_files_of_pytorch_are_one_sentence(torch, pt):
    torch.save(torch.nn.GRU(2, 2).state_dict(), pt)
    whole = pt.read_bytes()
    for data in (b"", b"nonsense", whole[: len(whole) // 2], whole[:100], b"\x80\x02}q\x00.", b"(lp0\n."):
        pt.write_bytes(data)
        sentence(pt, r"w.pt (is damaged|should hold a mapping)")
    torch.save([torch.ones(2)], pt)
    sentence(pt, r"should hold a mapping of names to tensors, got a list; write it with torch.save\(module.state_dict")


@pytest.mark.parametrize("zipped", [True, False])
def test_changed_bytes_in_a_file_of_pytorch_are_one_sentence_or_harmless(zipped, torch, pt):
    torch.save(torch.nn.GRU(1, 1).state_dict(), pt, _use_new_zipfile_serialization=zipped)
    whole, rng = pt.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        data[rng.integers(min(len(data), 900))] = rng.integers(256)
        pt.write_bytes(data)
        try:
            interop.load_pytorch(pt)
        except ValueError as error:
            assert str(error).startswith("load_pytorch: ") and "\n" not in str(error)


def test_a_bit_that_fell_over_in_a_weight_of_pytorch_s_is_found(torch, pt):
    torch.save({"a": torch.ones(1000)}, pt)
    data = pt.read_bytes()
    pt.write_bytes(data.replace(np.ones(1000, "float32").tobytes(), np.r_[np.ones(999), 2].astype("float32").tobytes()))
    sentence(pt, r"is damaged \(the checksum of '\w+/data/0'\); fetch it again")


def test_small_files_of_pytorch_do_not_swell(torch, pt):
    """Strides of 0, a compressed archive, a mapping within itself: each would fill the memory, or the stack."""
    torch.save({"a": torch.ones(1).expand(10**12)}, pt)
    sentence(pt, r"tensor 'a' of .* has more elements, \[1000000000000\], than the file holds")
    torch.save({"a": torch.zeros(1000)}, pt)
    packed = pt.with_name("packed.pt")
    with zipfile.ZipFile(pt) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as tight:
        for name in plain.namelist():
            tight.writestr(name, plain.read(name))
    sentence(packed, r"packed.pt is compressed, as no file of torch.save is")
    loop = {"a": torch.ones(2)}
    loop["itself"] = loop
    torch.save(loop, pt)
    sentence(pt, r"holds a mapping within itself, 'itself.'")


def test_an_old_pytorch_is_not_trusted(torch, pt, monkeypatch):
    torch.save({"a": torch.ones(2)}, pt)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ImportError, match=r"PyTorch 2.9.1\+cpu can be made to run what is in a file; install 2.10"):
        interop.load_pytorch(pt)


def test_pytorch_reads_the_safetensors_that_we_write(torch, path):
    net = rnn.chain(rnn.bidirectional(rnn.lstm(4), rnn.lstm(4)), rnn.bidirectional(rnn.lstm(4), rnn.lstm(4)))
    params = net.init(jax.random.key(0), jnp.zeros(3))
    interop.save_safetensors(path, interop.to_pytorch(net, params, tensors=False))
    from safetensors.torch import load_file

    torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True).load_state_dict(load_file(path), strict=True)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="load_pytorch: needs the package torch; pip install torch"):
        interop.load_pytorch(tmp_path / "w.pt")
