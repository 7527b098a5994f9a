"""Weights of PyTorch: by its published equations in NumPy, and beside PyTorch itself where it is installed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import interop
from tests.choice import slow_but_for
from tests.interop.by_hand import ends, run, unrolled, weights
from tests.reference import assert_close

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(1).normal(size=(T, B, D))

NETS = {
    "rnn": dict(kind="rnn"),
    "rnn without biases, two layers": dict(kind="rnn", bias=False, layers=2),
    "lstm": dict(kind="lstm"),
    "lstm, projected, both ways": dict(kind="lstm", projection=2, directions=2),
    "lstm, both ways, two layers": dict(kind="lstm", directions=2, layers=2),
    "gru": dict(kind="gru"),
    "gru without biases, both ways": dict(kind="gru", bias=False, directions=2),
    "gru, three layers": dict(kind="gru", layers=3),
}


@pytest.mark.parametrize("name", NETS)
def test_values_are_those_of_the_published_equations(name, x64):
    tensors = weights(inputs=D, size=H, **NETS[name])
    net, params = interop.from_pytorch(tensors)
    state, ys = unrolled(net, params, XS)
    expected, h_n, c_n = run(NETS[name]["kind"], tensors, XS)
    np.testing.assert_allclose(ys, expected, rtol=1e-12, atol=1e-12)
    h, c = ends(state)
    np.testing.assert_allclose(h, h_n, rtol=1e-12, atol=1e-12)
    if c is not None:
        np.testing.assert_allclose(c, c_n, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "lstm, projected, both ways", "gru, three layers"])
def test_gradients_are_differences_of_the_published_equations(name, x64):
    """Of each tensor one element is moved a little to both sides; our biases are one, so either of theirs is ours."""
    kind, tensors = NETS[name]["kind"], weights(inputs=D, size=H, **NETS[name])
    net, params = interop.from_pytorch(tensors)
    loss = lambda params: jnp.sum(jnp.sin(unrolled(net, params, XS)[1]))
    grads = interop.to_pytorch(net, jax.grad(loss)(params), tensors=False)
    for tensor in tensors:
        if tensor.startswith("bias_hh"):
            continue
        moved = []
        for sign in (1, -1):
            changed = {**tensors, tensor: tensors[tensor].copy()}
            changed[tensor].flat[-1] += sign * 1e-5
            moved.append(np.sum(np.sin(run(kind, changed, XS)[0])))
        np.testing.assert_allclose(grads[tensor].flat[-1], (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_relu_is_told_as_no_tensor_tells_it(x64):
    tensors = weights("rnn", D, H)
    net, params = interop.from_pytorch(tensors, nonlinearity="relu")
    expected = run("rnn", tensors, XS, lambda a: np.maximum(a, 0))[0]
    np.testing.assert_allclose(unrolled(net, params, XS)[1], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="nonlinearity must be one of 'tanh', 'relu', got 'sigmoid'"):
        interop.from_pytorch(tensors, nonlinearity="sigmoid")


def test_what_they_become_is_our_own_cells():
    made = lambda **options: interop.from_pytorch(weights(inputs=D, size=H, dtype=np.float32, **options)).net
    assert made(kind="rnn") == rnn.elman(H) and made(kind="gru", bias=False) == rnn.gru(H, bias=False)
    assert made(kind="lstm", projection=2) == rnn.lstm(H, projection=2)
    assert made(kind="gru", layers=2) == rnn.stack(rnn.gru(H), rnn.gru(H))
    both = rnn.bidirectional(rnn.lstm(H), rnn.lstm(H))
    assert made(kind="lstm", directions=2) == both
    assert made(kind="lstm", directions=2, layers=2) == rnn.chain(both, both)


@pytest.mark.parametrize("name", NETS)
def test_there_and_back_and_there_changes_nothing(name):
    net, params = interop.from_pytorch(weights(inputs=D, size=H, dtype=np.float32, **NETS[name]))
    tensors = interop.to_pytorch(net, params, prefix="encoder", tensors=False)
    assert {a.dtype.name for a in tensors.values()} == {"float32"}
    again, same = interop.from_pytorch({**tensors, "head.weight": np.zeros(3)}, prefix="encoder")
    assert again == net
    assert_close(same, params, 0)


def test_a_single_cell_has_names_without_layers(x64):
    tensors = weights("gru", D, H)
    cell = {name.removesuffix("_l0"): tensor for name, tensor in tensors.items()}
    net, params = interop.from_pytorch(cell)
    np.testing.assert_allclose(unrolled(net, params, XS)[1], run("gru", tensors, XS)[0], rtol=1e-12)
    assert set(interop.to_pytorch(net, params, is_cell=True, tensors=False)) == set(cell)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_dtype_stays_or_is_cast(dtype):
    tensors = weights("lstm", D, H, dtype=dtype)
    net, params = interop.from_pytorch(tensors)
    assert net == rnn.lstm(H, dtype=dtype) and {a.dtype for a in params.values()} == {jnp.dtype(dtype)}
    wide, params = interop.from_pytorch(tensors, dtype=jnp.float32)
    assert wide == rnn.lstm(H) and params["U"].dtype == jnp.float32
    np.testing.assert_array_equal(params["U"], tensors["weight_ih_l0"].astype("float32").T)


def without(*names):
    tensors = weights("lstm", D, H, layers=2, dtype=np.float32)
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def with_(name, tensor):
    return {**without(), name: tensor}


f32 = lambda *shape: np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("tensors", "options", "complaint"),
    [
        (without("weight_hh_l1"), {}, r"'weight_hh_l1', \[4H, H\] = \[16, 4\], is missing; hand over the state_dict"),
        (without("bias_hh_l0"), {}, r"'bias_hh_l0', \[4H\] = \[16\], is missing"),
        (without("weight_hh_l0"), {}, r"'weight_hh_l0', \[G\*H, H\], is missing"),
        (without("weight_ih_l0"), {}, r"'weight_ih_l0', \[4H, D\], is missing"),
        (with_("weight_ih_l1", f32(16, 5)), {}, r"'weight_ih_l1' should be \[4H, D\] = \[16, 4\], got float32\[16,5\]"),
        (with_("bias_ih_l0", f32(4, 4)), {}, r"'bias_ih_l0' should be \[4H\] = \[16\], got float32\[4,4\]"),
        (with_("weight_hh_l0", f32(16)), {}, r"'weight_hh_l0' should be \[G\*H, H\], got float32\[16\]"),
        (
            with_("weight_hh_l0", f32(8, 4)),
            {},
            r"should be \[G\*H, H\] with G = 1 \(RNN\), 3 \(GRU\) or 4 .* got \[8, 4\]",
        ),
        (
            with_("head.weight", f32(2, 4)),
            {},
            r"'head.weight', float32\[2,4\], is no tensor of a torch.nn net of kind 'lstm'",
        ),
        (with_("weight_ih_l0_reverse", f32(2)), {}, r"'weight_ih_l0_reverse' should be \[4H, D\] = \[16, 3\]"),
        (
            with_("bias_ih_l1", np.zeros(16)),
            {},
            r"'bias_ih_l1' should be float32 as .*'weight_hh_l0' is, got float64\[16\]",
        ),
        (
            with_("bias_ih_l1", np.zeros(16, int)),
            {},
            r"'bias_ih_l1' should hold floating-point numbers.*got int64\[16\]",
        ),
        (with_("bias_ih_l1", 3), {}, r"'bias_ih_l1' should be an array, got a int; leave it out"),
        (
            weights("gru", D, H),
            {},
            r"'weight_hh_l0' is float64, for which JAX needs 64-bit mode; pass dtype=jnp.float32",
        ),
        (with_("weight_hh_l0", f32(0, 0)), {}, r"'weight_hh_l0' should be \[G\*H, H\], got float32\[0,0\]"),
        (with_("x" * 10**6, f32(2)), {}, r"tensor '(x{100})\.\.\.', float32\[2\], is no tensor of"),
        (without(), {"prefix": "enc"}, r"no recurrent net under the prefix 'enc', but under ''"),
        ({f"a.b.{k}": v for k, v in without().items()}, {}, r"no recurrent net at its top, but under 'a.b'; hand"),
        ({}, {}, r"no recurrent net at its top, nor anywhere else in it"),
        ({"state_dict": {}, **without()}, {}, r"'state_dict', a dict, is no tensor of"),
        (without(), {"kind": "gru"}, r"'weight_ih_l0' should be \[3H, D\] = \[12, 3\], got float32\[16,3\]"),
        (without(), {"kind": "mlp"}, r"kind must be one of None, 'rnn', 'lstm', 'gru', got 'mlp'"),
        (with_("weight_ih_l999999", f32(2)), {}, r"'weight_ih_l2', \[4H, D\] = \[16, 4\], is missing"),
    ],
)
def test_bad_tensors_are_one_clear_sentence(tensors, options, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        interop.from_pytorch(tensors, **options)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("from_pytorch: ")


def test_a_source_of_another_kind_is_one_clear_sentence():
    with pytest.raises(TypeError, match="source should be a state_dict, a path or a torch.nn module, got a int"):
        interop.from_pytorch(3)


def given(net, features=D):
    return net, net.init(jax.random.key(0), jnp.zeros(features))


@pytest.mark.parametrize(
    ("net", "complaint"),
    [
        (given(rnn.gru(H, reset="before")), r"params is a gru that resets before the product"),
        (given(rnn.lstm(H, peephole=True)), r"params has peepholes"),
        (given(rnn.lstm(H, learn_initial_state=True)), r"params\['initial_state'\] is learned"),
        (given(rnn.elman(H, activation=jnp.sin)), r"params should have activation tanh or relu"),
        (given(rnn.mgu(H)), r"what params belongs to should be an elman, lstm or gru.*got MGU"),
        (given(rnn.stack(rnn.gru(H), rnn.dropout(rnn.gru(H), 0.5))), r"what params\[1\] belongs to"),
        (given(rnn.stack(rnn.gru(H), rnn.gru(5))), r"params\[1\] is of GRU\(size=5.*one kind, so convert each"),
        (given(rnn.bidirectional(rnn.gru(H), rnn.gru(H), jnp.add)), r"merged by concatenation"),
        ((rnn.gru(H), {"U": jnp.zeros((D, 12))}), r"params should have \['U', 'W', 'b', 'c_n'\], got \['U'\]"),
        ((rnn.gru(H), given(rnn.gru(5))[1]), r"params\['U'\] should be \[3, 12\], got float32\[3,15\]"),
        ((rnn.stack(rnn.gru(H)), given(rnn.gru(H))[1]), r"params should be a tuple of 1, one per layer, got dict"),
        ((jnp.tanh, {}), r"what params belongs to should be"),
    ],
)
def test_nets_without_counterpart_are_one_clear_sentence(net, complaint):
    with pytest.raises(ValueError, match=complaint):
        interop.to_pytorch(*net, tensors=False)


def test_a_stack_has_no_names_of_a_single_cell():
    with pytest.raises(ValueError, match="is_cell is for one layer of one direction, got 2 layers"):
        interop.to_pytorch(*given(rnn.stack(rnn.gru(D), rnn.gru(D))), is_cell=True, tensors=False)


# --- beside PyTorch, where it is installed --------------------------------------------------------

PYTORCH_S = pytest.mark.filterwarnings("default")  # its warnings are its own
KINDS = {
    "RNN": {},
    "RNN relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "LSTM projected": {"proj_size": 2},
    "GRU": {},
}
CASES = list(itertools.product(KINDS, (1, 2, 3), (False, True), (True, False)))
FAST = [("RNN relu", 1, False, True), ("LSTM projected", 2, True, True), ("GRU", 1, True, False)]


def theirs(torch, kind, layers, bidirectional, bias, seed=0):
    torch.manual_seed(seed)
    module = getattr(torch.nn, kind.split()[0])
    return module(D, H, num_layers=layers, bidirectional=bidirectional, bias=bias, **KINDS[kind])


def compared(torch, module, net, params, tolerance):
    """Outputs, last states, and the gradients of all parameters and of the input."""
    x = torch.tensor(XS.astype("float32"), requires_grad=True)
    y, last = module(x)
    torch.sin(y).sum().backward()

    def loss(params, xs):
        state, ys = rnn.unroll(net, params, xs, scan=jax.lax.scan)
        return jnp.sum(jnp.sin(ys)), (state, ys)

    find = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (grads, dx), (state, ys) = find(params, XS.astype("float32"))
    close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    close(ys, y.detach().numpy())
    for ours, h in zip(ends(state), last if isinstance(last, tuple) else (last,), strict=False):
        close(ours, h.detach().numpy())
    close(dx, x.grad.numpy())
    found = interop.to_pytorch(net, grads, tensors=False)
    for name, parameter in module.named_parameters():
        if not name.startswith("bias_hh"):
            close(found[name], parameter.grad.numpy())
        elif isinstance(module, torch.nn.GRU):  # of the second bias the last third is a parameter of its own
            close(found[name][2 * H :], parameter.grad.numpy()[2 * H :])


@PYTORCH_S
@pytest.mark.parametrize(("kind", "layers", "bidirectional", "bias"), slow_but_for(FAST, CASES))
def test_random_nets_of_pytorch_values_and_gradients_there_and_back(kind, layers, bidirectional, bias):
    torch = pytest.importorskip("torch")
    module = theirs(torch, kind, layers, bidirectional, bias)
    nonlinearity = KINDS[kind].get("nonlinearity", "tanh")
    net, params = interop.from_pytorch(module.state_dict(), nonlinearity=nonlinearity)
    compared(torch, module, net, params, 1e-5)
    assert interop.from_pytorch(module).net == net
    other = theirs(torch, kind, layers, bidirectional, bias, seed=1)
    other.load_state_dict(interop.to_pytorch(net, params), strict=True)
    x = torch.tensor(XS.astype("float32"))
    torch.testing.assert_close(other(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)


@PYTORCH_S
@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_single_cells_of_pytorch(kind):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, kind)(D, H)
    net, params = interop.from_pytorch(torch.nn.ModuleDict({"cell": module}), prefix="cell")
    state, ys = unrolled(net, params, XS.astype("float32"))
    last = None
    for x, y in zip(XS.astype("float32"), ys, strict=True):
        last = module(torch.tensor(x), last)
        h = last[0] if isinstance(last, tuple) else last
        np.testing.assert_allclose(y, h.detach().numpy(), rtol=1e-5, atol=1e-6)
    again = getattr(torch.nn, kind)(D, H)
    again.load_state_dict(interop.to_pytorch(net, params, is_cell=True), strict=True)


@PYTORCH_S
def test_bfloat16_of_pytorch_there_and_back():
    torch = pytest.importorskip("torch")
    module = torch.nn.GRU(D, H).bfloat16()
    net, params = interop.from_pytorch(module.state_dict())
    assert net == rnn.gru(H, dtype=jnp.bfloat16)
    back = interop.to_pytorch(net, params)
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}
    assert torch.equal(back["weight_ih_l0"], module.weight_ih_l0)


@PYTORCH_S
def test_tensors_of_pytorch_that_are_no_plain_arrays_are_one_clear_sentence():
    torch = pytest.importorskip("torch")
    tensors = dict(torch.nn.GRU(D, H).state_dict())
    for bad, complaint in (
        (tensors["weight_ih_l0"].to_sparse(), "dense tensor, got one in torch.sparse_coo"),
        (tensors["weight_ih_l0"].to("meta"), "dense tensor, got one without values"),
        (tensors["weight_ih_l0"].to(torch.complex64), "floating-point numbers .* got complex64"),
    ):
        with pytest.raises(ValueError, match=complaint):
            interop.from_pytorch({**tensors, "weight_ih_l0": bad})
