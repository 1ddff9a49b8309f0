"""fastrnn.torch's recurrent modules against torch.nn's and the NumPy oracle, and what PyTorch does with modules."""

import copy
import io
import itertools
import pickle
import threading
import weakref

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.conformance import BF16_EPS, EXACT, GATES, error_and_bound, within

torch = pytest.importorskip("torch")
ft = pytest.importorskip("fastrnn.torch")
recurrent = pytest.importorskip("fastrnn.torch.recurrent")

from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
N, T, D, H = 3, 4, 3, 5
LENGTHS = [2, 4, 1]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


# ---- the oracle: layers and directions of fastrnn.reference ----------------------------------------------------------


def to_ours(cell, w):
    """Weights of torch.nn (gates H, D) as those of the reference (D, gates H)."""
    if cell == "lstm":
        i, f, g, o = np.split(w, 4)
        w = np.concatenate((i, f, o, g))
    return w.T


def to_torch(cell, dw):
    dw = dw.T
    if cell == "lstm":
        i, f, o, g = np.split(dw, 4)
        dw = np.concatenate((i, f, g, o))
    return dw


def oracle(cell, x, states, weights, directions, lengths, dout, dstates):
    """Outputs, states, and gradients of x, of the states and of all weights, in the dtype of the arrays.

    x (N, T, D), states and dstates: one (layers * directions, N, H) each, or two; weights: a list of four for each.
    """
    layers = len(weights) // directions
    caches, finals = [], []
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            at = layer * directions + direction
            w_ih, w_hh, b_ih, b_hh = weights[at]
            more = {"lengths": lengths, "reverse": direction == 1, "return_state": True}
            b = b_ih + b_hh
            if cell == "lstm":
                more["c0"] = states[1][at]
            if cell == "gru":
                b, more["bh"] = b_ih, b_hh
            wx, wh, b = to_ours(cell, w_ih), to_ours(cell, w_hh), to_ours(cell, b)
            h, last, cache = getattr(reference, f"{cell}_forward")(x, states[0][at], wx, wh, b, **more)
            outs.append(h)
            finals.append(last if cell == "lstm" else (last,))
            caches.append(cache)
        x = np.concatenate(outs, 2)
    out, h_n = x, [np.stack(each) for each in zip(*finals, strict=True)]
    dweights, dinitial = [None] * len(weights), [None] * len(weights)
    for layer in reversed(range(layers)):
        parts = np.split(dout, directions, 2)
        dout = 0
        for direction in range(directions):
            at = layer * directions + direction
            more = {"dh_n": dstates[0][at]}
            if cell == "lstm":
                more["dc_n"] = dstates[1][at]
            dx, dh0, dwx, dwh, db, *last = getattr(reference, f"{cell}_backward")(parts[direction], caches[at], **more)
            dout = dout + dx
            dbh = last[0] if cell == "gru" else db
            dweights[at] = [to_torch(cell, each) for each in (dwx, dwh, db, dbh)]
            dinitial[at] = (dh0, last[0]) if cell == "lstm" else (dh0,)
    dinitial = [np.stack(each) for each in zip(*dinitial, strict=True)]
    return [out, *h_n, dout, *dinitial, *(each for four in dweights for each in four)]


# ---- one module's outputs and gradients ------------------------------------------------------------------------------


def numbers(shape, seed, dtype):
    """Numbers that all dtypes hold, so that every computation starts from the same."""
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) / 2)
    return values.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32).to(dtype)


def fill(module):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(numbers(parameter.shape, 100 + i, parameter.dtype))
    return module


def tensors(x):
    """All tensors of an output: of a packed one its data."""
    x = x.data if isinstance(x, PackedSequence) else x
    return [x] if isinstance(x, torch.Tensor) else [t for each in x for t in tensors(each)]


def results(module, packed, given, gradients=True):
    """As `oracle` gives them, and batch first: outputs, states, gradients of x, states and parameters."""
    dtype = next(module.parameters()).dtype
    x = numbers((N, T, D), 0, dtype).requires_grad_()
    count = module.num_layers * (2 if module.bidirectional else 1)
    lstm = module.mode == "LSTM"
    states = [numbers((count, N, H), 1 + i, dtype).requires_grad_() for i in range(2 if lstm else 1)]
    hx = None if not given else tuple(states) if lstm else states[0]
    given_x = x if module.batch_first else x.transpose(0, 1)
    if packed:
        given_x = pack_padded_sequence(given_x, LENGTHS, batch_first=module.batch_first, enforce_sorted=False)
    out, last = module(given_x, hx)
    if packed:
        assert isinstance(out, PackedSequence)
        out, lengths = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        assert lengths.tolist() == LENGTHS
    elif not module.batch_first:
        out = out.transpose(0, 1)
    last = list(last) if lstm else [last]
    found = [out, *last]
    if gradients:
        dout = numbers(out.shape, 10, dtype)
        dstates = [numbers(each.shape, 11 + i, dtype) for i, each in enumerate(last)]
        wanted = [x, *(states if given else []), *module.parameters()]
        found += torch.autograd.grad([out, *last], wanted, [dout, *dstates])
    return found


def exact_results(cell, module, packed, given, dtype):
    """The oracle in `dtype` on the numbers of `module`, which are those of its own dtype."""
    kind = next(module.parameters()).dtype
    directions = 2 if module.bidirectional else 1
    count = module.num_layers * directions

    def array(tensor):
        return tensor.detach().double().numpy().astype(dtype)

    states = [array(numbers((count, N, H), 1 + i, kind)) for i in range(2 if cell == "lstm" else 1)]
    states = states if given else [np.zeros_like(each) for each in states]
    parameters = [array(p) for p in module.parameters()]
    each = 4 if module.bias else 2
    weights = [parameters[i : i + each] for i in range(0, len(parameters), each)]
    if not module.bias:
        weights = [[*four, *(np.zeros(len(four[0]), dtype) for _ in range(2))] for four in weights]
    dout = array(numbers((N, T, directions * H), 10, kind))
    dstates = [array(numbers((count, N, H), 11 + i, kind)) for i in range(len(states))]
    lengths = np.array(LENGTHS) if packed else None
    found = oracle(
        cell, array(numbers((N, T, D), 0, kind)), states, weights, directions, lengths, dout, dstates
    )  # fmt: skip
    head, rest = found[: 2 + len(states)], found[2 + len(states) :]
    rest = rest if given else rest[len(states) :]
    if not module.bias:
        at = len(states) if given else 0
        rest = rest[:at] + [w for i, w in enumerate(rest[at:]) if i % 4 < 2]
    return head + rest


def peers(name, *args, **kwargs):
    """A module of torch.nn and one of fastrnn with the same numbers."""
    theirs = fill(getattr(torch.nn, name)(*args, **kwargs))
    ours = getattr(ft, name)(*args, **kwargs, backend="fastrnn")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def assert_rule(found, naive, exact, dtype, what):
    """The tolerance rule, with torch.nn as the naive computation in the same dtype."""
    assert len(found) == len(naive) == len(exact)
    for i, (a, b, c) in enumerate(zip(found, naive, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape == c.shape, (what, i)
        kind = np.float32 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
        eps = BF16_EPS if dtype == torch.bfloat16 else None
        a, b = (each.detach().to(torch.float64).numpy() for each in (a, b))
        error, bound = error_and_bound(a, b, c, kind, eps)
        assert within(error, bound), f"{what}, result {i}: error {error}, bound {bound}"


@pytest.mark.parametrize("packed", (False, True), ids=("padded", "packed"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_torch_nn(name, dtype, packed):
    kind, cell = DTYPES[dtype], name.lower()
    exact_dtype = EXACT.get(dtype, np.float64)
    options = itertools.product((1, 2), (False, True), (False, True), (True, False), (False, True))
    for layers, bidirectional, batch_first, bias, given in options:
        theirs, ours = peers(
            name, D, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=kind
        )  # fmt: skip
        what = f"layers={layers} bidirectional={bidirectional} batch_first={batch_first} bias={bias} given={given}"
        exact = exact_results(cell, theirs, packed, given, exact_dtype)
        assert_rule(results(ours, packed, given), results(theirs, packed, given), exact, kind, what)
        assert ft.last_backend() != "torch"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_cells_are_torch_nn(name, dtype):
    kind, cell = DTYPES[dtype], name.lower().removesuffix("cell")
    for bias, given, batched in itertools.product((True, False), (True, False), (True, False)):
        theirs, ours = peers(name, D, H, bias=bias, dtype=kind)
        found = []
        for module in (theirs, ours):
            x = numbers((N, D), 0, kind)
            states = [numbers((N, H), 1 + i, kind) for i in range(2 if cell == "lstm" else 1)]
            douts = [numbers((N, H), 11 + i, kind) for i in range(len(states))]
            if not batched:
                x, states, douts = x[0], [s[0] for s in states], [d[0] for d in douts]
            wanted = [x, *(states if given else []), *module.parameters()]
            for each in wanted:
                each.requires_grad_()
            hx = None if not given else tuple(states) if cell == "lstm" else states[0]
            out = module(x, hx)
            out = list(out) if cell == "lstm" else [out]
            found.append([*out, *torch.autograd.grad(out, wanted, douts)])
        exact_dtype = EXACT.get(dtype, np.float64)

        def array(t, to=exact_dtype):
            return t.detach().double().numpy().astype(to)

        weights = [array(p) for p in theirs.parameters()]
        weights += [np.zeros(GATES[cell] * H, exact_dtype)] * (4 - len(weights))
        rows = N if batched else 1
        initial = [array(numbers((N, H), 1 + i, kind))[None, :rows] * given for i in range(2 if cell == "lstm" else 1)]
        dstates = [array(numbers((N, H), 11 + i, kind))[None, :rows] for i in range(len(initial))]
        dout = np.zeros((rows, 1, H), exact_dtype)
        x = array(numbers((N, D), 0, kind))[:rows, None]
        _, *exact = oracle(cell, x, initial, [weights], 1, None, dout, dstates)
        states, dx, rest = exact[: len(initial)], exact[len(initial)][:, 0], exact[len(initial) + 1 :]
        dstates, dweights = rest[: len(initial)], rest[len(initial) : len(initial) + (4 if bias else 2)]
        rowed = [each[0] for each in states] + [dx] + [each[0] for each in dstates] * given
        rowed = rowed if batched else [each[0] for each in rowed]
        assert_rule(found[1], found[0], rowed + dweights, kind, f"bias={bias} given={given} batched={batched}")


# ---- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_unbatched_sorted_and_strided_inputs(name):
    theirs, ours = peers(name, D, H, 2, bidirectional=True)
    x = numbers((T, D), 0, torch.float32)
    state = numbers((4, H), 1, torch.float32)
    hx = (state, state * 2) if name == "LSTM" else state
    packed = pack_padded_sequence(numbers((T, N, D), 0, torch.float32), [4, 3, 1])
    strided = numbers((T, N, 2 * D), 0, torch.float32)[:, :, ::2]
    for given in ((x,), (x, hx), (packed,), (strided,), (x.expand(T, D)[None].expand(T, T, D),)):
        for a, b in zip(tensors(theirs(*given)), tensors(ours(*given)), strict=True):
            torch.testing.assert_close(b, a)
    out, _ = ours(numbers((T, N, D), 0, torch.float32))
    out.view(T * N, 2 * H)  # as torch.nn's can be
    for module in (getattr(ft, name)(D, H), getattr(ft, name)(D, H, 2)):
        assert module(numbers((T, N, D), 0, torch.float32))[0].is_contiguous()
        assert module(numbers((N, T, D), 0, torch.float32).transpose(0, 1))[0].is_contiguous()


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_that_of_torch_nn_from_the_same_seed(name, packed):
    for dropout in (0.4, 1.0):
        theirs, ours = peers(name, D, H, 3, bidirectional=True, batch_first=True, dropout=dropout)
        found = []
        for module in (theirs, ours):
            torch.manual_seed(7)
            found.append(results(module, packed, True))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a)
        ours.eval()
        torch.testing.assert_close(results(ours, packed, True)[0], results(ours, packed, True)[0], rtol=0, atol=0)
    ours.train()
    ours.dropout = 0.4
    assert not torch.equal(results(ours, packed, True)[0], results(ours, packed, True)[0])


def test_dropout_keeps_the_mean_and_the_share():
    module = ft.GRU(D, 64, 2, dropout=0.3)
    x = torch.ones(50, 40, 64)
    dropped = module._drop(x, None)
    assert abs((dropped == 0).double().mean().item() - 0.3) < 0.01  # 128,000 draws: eight standard deviations
    assert set(dropped.unique().tolist()) == {0.0, np.float32(1 / 0.7)}


# ---- torch.nn's ways -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_constructor_state_dict_repr_and_initialisation(name):
    layers = name in LAYERS
    arguments = (D, H, 2) if layers else (D, H)
    kwargs = {"bias": True, "dtype": torch.float64, **({"bidirectional": True, "dropout": 0.1} if layers else {})}
    torch.manual_seed(3)
    theirs = getattr(torch.nn, name)(*arguments, **kwargs)
    torch.manual_seed(3)
    ours = getattr(ft, name)(*arguments, **kwargs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float64
    fill(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.reset_parameters()
    assert all(p.abs().max() <= H**-0.5 for p in ours.parameters())
    assert isinstance(ours, torch.nn.RNNBase if layers else getattr(torch.nn, name))
    meta = getattr(ft, name)(*arguments, **kwargs, device="meta")
    x = torch.empty((T, N, D) if layers else (N, D), device="meta", dtype=torch.float64)
    for a, b in zip(tensors(meta(x)), tensors(ours(torch.zeros_like(x, device="cpu"))), strict=True):
        assert a.is_meta and a.shape == b.shape and a.stride() == b.stride()


def test_bad_input_gets_the_errors_of_torch_nn():
    x = torch.zeros(T, N, D)
    for name in LAYERS:
        theirs, ours = peers(name, D, H)
        bad_state = torch.zeros(1, N, H + 1)
        for given in (
            (torch.zeros(T, N, D + 1),),
            (torch.zeros(T, N, D, 1),),
            (x.double(),),
            (x, (bad_state, bad_state) if name == "LSTM" else bad_state),
        ):
            with pytest.raises(Exception) as expected:
                theirs(*given)
            with pytest.raises(type(expected.value)) as found:
                ours(*given)
            assert found.type is expected.type
        for kwargs in ({"dropout": 2}, {"num_layers": 0}, {"bias": 1}):
            with pytest.raises((ValueError, TypeError)):
                getattr(ft, name)(D, H, **kwargs)
    for name in ("RNN", "GRU"):
        with pytest.raises(ValueError, match="proj_size"):
            getattr(ft, name)(D, H, proj_size=2)
    with pytest.raises(ValueError, match="nonlinearity"):
        ft.RNN(D, H, nonlinearity="sine")
    for name in CELLS:
        ours = getattr(ft, name)(D, H, backend="fastrnn")
        with pytest.raises(RuntimeError, match="input_size"):
            ours(torch.zeros(N, D + 1))
        with pytest.raises(ValueError, match="1D or 2D"):
            ours(torch.zeros(1, N, D))
        state = torch.zeros(N, H + 1)
        with pytest.raises(RuntimeError, match="h_0"):
            ours(torch.zeros(N, D), (state, state) if name == "LSTMCell" else state)
        with pytest.raises(RuntimeError, match="dtype"):
            ours(torch.zeros(N, D, dtype=torch.float64))
    state = torch.zeros(1, N, H)
    with pytest.raises(ValueError, match="LSTM: argument 'hx' must be a tuple .h_0, c_0., got 3 tensors"):
        ft.LSTM(D, H)(x, (state, state, state))
    with pytest.raises(ValueError, match="LSTMCell: argument 'hx' must be a tuple .h_0, c_0., got 3 tensors"):
        ft.LSTMCell(D, H, backend="fastrnn")(x[0], (state[0], state[0], state[0]))


# ---- which kernels run -----------------------------------------------------------------------------------------------


def test_what_has_no_kernel_runs_on_torch_nn_and_says_so():
    cases = (
        ("LSTM", {"proj_size": 2}, "option proj_size=2"),
        ("RNN", {"nonlinearity": "relu"}, "option nonlinearity='relu'"),
        ("RNNCell", {"nonlinearity": "relu"}, "option nonlinearity='relu'"),
        ("GRU", {"dtype": torch.float16}, "dtype float16"),
    )
    for name, kwargs, reason in cases:
        theirs = fill(getattr(torch.nn, name)(D, H, **kwargs))
        ours = getattr(ft, name)(D, H, **kwargs)
        ours.load_state_dict(theirs.state_dict())
        x = numbers((T, N, D) if name in LAYERS else (N, D), 0, kwargs.get("dtype", torch.float32))
        for a, b in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
            assert torch.equal(a, b)
        assert ours.runs_on == f"torch: {reason}" and reason in repr(ours)
        last = ft.last_backend()
        assert last == "torch" and last.reason == reason and last.function == name
        if reason.startswith("option"):
            with pytest.raises(NotImplementedError, match="torch.nn"):
                getattr(ft, name)(D, H, **kwargs, backend="fastrnn")
        else:
            ours.backend = "fastrnn"
            with pytest.raises(NotImplementedError, match=f"fastrnn.torch.{name}: {reason}"):
                ours(x)
    with pytest.raises(ValueError, match="'backend' must be one of 'auto', 'fastrnn', 'torch', got 'cuda'"):
        ft.GRU(D, H, backend="cuda")
    ours = ft.GRU(D, H)
    assert ours.runs_on == "fastrnn"
    ours(torch.zeros(T, N, D))
    assert ft.last_backend() == fastrnn.last_backend() and fastrnn.last_backend().function == "gru_forward"
    cell = ft.GRUCell(D, H)  # where the choice is free, and torch.nn is faster
    cell(torch.zeros(N, D))
    assert ft.last_backend() == "torch" and ft.last_backend().reason in cell.runs_on
    assert repr(cell) == repr(torch.nn.GRUCell(D, H))
    ours.backend = "torch"
    ours(torch.zeros(T, N, D))
    assert ft.last_backend() == "torch" and "backend='torch'" in repr(ours)


@pytest.mark.parametrize("name", LAYERS)
def test_every_backend_of_fastrnn_serves(name):
    theirs, ours = peers(name, D, H, 2, bidirectional=True, dtype=torch.float64)
    for backend in fastrnn.available_backends():
        if backend == "cuda":
            continue
        with fastrnn.backend(backend):
            for packed, bias in itertools.product((False, True), (True, False)):
                theirs, ours = peers(name, D, H, 2, bidirectional=True, bias=bias, dtype=torch.float64)
                for a, b in zip(results(theirs, packed, True), results(ours, packed, True), strict=True):
                    torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
                assert fastrnn.last_backend() == backend


def test_backward_on_another_backend_is_an_error():
    module = ft.LSTM(D, H)
    if len(fastrnn.available_backends()) < 2 or "cpu" not in fastrnn.available_backends():
        pytest.skip("one backend only")
    out, _ = module(torch.zeros(T, N, D))
    with fastrnn.backend("numba"), pytest.raises(RuntimeError, match="'reserve' must be what forward gave"):
        out.sum().backward()


# ---- operations ------------------------------------------------------------------------------------------------------


def arguments(cell, dtype=torch.float64, bias=True, requires_grad=True):
    gates = GATES[cell] * H
    shapes = [(N, T, D), (N, H), *([(N, H)] if cell == "lstm" else []), (gates, D), (gates, H), (gates,), (gates,)]
    made = [numbers(shape, i, dtype).requires_grad_(requires_grad) for i, shape in enumerate(shapes)]
    return made if bias else [*made[:-2], None, None]


@pytest.mark.parametrize("cell", GATES)
def test_operations_pass_opcheck(cell):
    lengths = torch.tensor(LENGTHS)
    for bias, more in itertools.product((True, False), ((), (lengths, True, False))):
        torch.library.opcheck(getattr(torch.ops.fastrnn, cell).default, (*arguments(cell, bias=bias), *more))
    x, *rest = arguments(cell)
    time_first = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    torch.library.opcheck(getattr(torch.ops.fastrnn, cell).default, (time_first, *rest))
    given = [time_first.float(), *arguments(cell, torch.float32, requires_grad=False)[1:]]
    *out, reserve = getattr(torch.ops.fastrnn, cell)(*given)
    backward = getattr(torch.ops.fastrnn, f"{cell}_backward").default
    torch.library.opcheck(backward, (*map(torch.ones_like, out), *given, None, reserve))


@pytest.mark.parametrize("cell", GATES)
def test_gradients_by_finite_differences(cell):
    operation = getattr(torch.ops.fastrnn, cell)
    for lengths, reverse in ((None, False), (torch.tensor(LENGTHS), True)):
        given = arguments(cell)
        assert torch.autograd.gradcheck(lambda *a: operation(*a, lengths, reverse)[:-1], given)  # noqa: B023
        c0 = given[2:3] if cell == "lstm" else [None]
        rest = given[3:] if cell == "lstm" else given[2:]
        assert torch.autograd.gradcheck(
            lambda *a: recurrent.sequence(cell, *a, lengths, reverse), (*given[:2], *c0, *rest)  # noqa: B023
        )  # fmt: skip


def test_operations_check_their_arguments():
    good = arguments("lstm", requires_grad=False)
    bad = (
        (0, torch.zeros(N, D).double(), ValueError, "'x' must have shape (N, T, D), got (3, 3)"),
        (
            0,
            torch.zeros(N, T, D, dtype=torch.bfloat16),
            TypeError,
            "'x' must be float32 or float64, got torch.bfloat16",
        ),
        (1, torch.zeros(N, H + 1).double(), ValueError, "'weight_hh' must have shape (4H, H) = (24, 6)"),
        (2, torch.zeros(N, H), TypeError, "'c0' must have the dtype of 'x', torch.float64, got torch.float32"),
        (3, torch.zeros(4 * H, D + 1).double(), ValueError, "'weight_ih' must have shape (4H, D) = (20, 3)"),
        (5, None, ValueError, "'bias_ih' must be given with 'bias_hh', got None"),
        (6, torch.zeros(H).double(), ValueError, "'bias_hh' must have shape (4H) = (20,), got (5,)"),
    )
    for at, value, error, words in bad:
        given = [value if i == at else each for i, each in enumerate(good)]
        with pytest.raises(error) as caught:
            torch.ops.fastrnn.lstm(*given)
        if at != 1:
            assert f"torch.ops.fastrnn.lstm: argument {words}" in str(caught.value)
        with pytest.raises(error):
            recurrent.sequence("lstm", *given)
    for lengths, words in (
        (torch.tensor([1, 2]), "(N) = (3,)"),
        (torch.tensor([1, 2, 5]), "between 0 and T = 4"),
        (torch.tensor([1, 2, -1]), "between 0 and T = 4"),
        (torch.tensor([1.0, 2, 3]), "int64"),
    ):
        with pytest.raises(ValueError, match="'lengths'") as caught:
            torch.ops.fastrnn.lstm(*good, lengths)
        assert words in str(caught.value)
    *_, reserve = torch.ops.fastrnn.lstm(*good)
    with pytest.raises(ValueError, match="lstm_backward: argument 'dh' must have shape"):
        torch.ops.fastrnn.lstm_backward(torch.zeros(N, T), None, None, *good, None, reserve)
    with pytest.raises(RuntimeError, match="'reserve' must be what forward gave"):
        torch.ops.fastrnn.lstm_backward(torch.zeros(N, T, H).double(), None, None, *good, None, reserve[:-1])


@pytest.mark.parametrize("name", LAYERS)
def test_no_sequences_and_no_steps(name):
    ours = getattr(ft, name)(D, H)
    for shape in ((T, 0, D), (0, N, D)):
        x = torch.zeros(shape, requires_grad=True)
        out, _ = ours(x)
        out.sum().backward()
        assert out.shape == (*shape[:2], H) and x.grad.shape == shape
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in ours.parameters())


# ---- transformations -------------------------------------------------------------------------------------------------


def assert_compiled_alike(module, compiled, x):
    found = []
    for each in (module, compiled):
        given = x.clone().requires_grad_()
        out = tensors(each(given))
        found.append([*out, *torch.autograd.grad(sum((t * t).sum() for t in out), [given, *module.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_compile_without_graph_breaks(name):
    torch.compiler.reset()
    layers = name in LAYERS
    options = {"num_layers": 2, "bidirectional": True} if layers else {}
    module = getattr(ft, name)(D, H, **options, backend="fastrnn")
    # Inductor needs a C++ compiler and some seconds: "aot_eager" traces forward and backward as it does.
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_compiled_alike(module, compiled, numbers((T, N, D) if layers else (N, D), 0, torch.float32))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compile_with_sizes_that_change_is_one_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    module = ft.LSTM(D, H, batch_first=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for sizes in ((2, 6), (4, 7), (6, 5), (3, 9)):  # the first all unlike each other and D: equal sizes are one symbol
        assert_compiled_alike(module, compiled, numbers((*sizes, D), 0, torch.float32))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("strict", (False, True))
def test_export(strict):
    module = ft.GRU(D, H, batch_first=True).eval()
    n, t = torch.export.Dim("n"), torch.export.Dim("t")
    x = numbers((N, T, D), 0, torch.float32)
    program = torch.export.export(module, (x,), strict=strict, dynamic_shapes=({0: n, 1: t},))
    assert "fastrnn.gru.default" in [str(node.target) for node in program.graph.nodes]
    for sizes in ((N, T), (5, 7)):
        x = numbers((*sizes, D), 0, torch.float32)
        assert torch.equal(program.module()(x)[0], module(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_of_data_of_models_and_of_gradients(name):
    models = [getattr(ft, name)(D, H) for _ in range(3)]
    x = numbers((3, T, N, D), 0, torch.float32)
    expected = torch.stack([models[0](each)[0] for each in x])
    assert torch.equal(vmap(lambda each: models[0](each)[0])(x), expected)
    parameters, _ = stack_module_state(models)
    found = vmap(lambda p, each: functional_call(models[0], p, (each,))[0])(parameters, x)
    assert torch.equal(found, torch.stack([model(each)[0] for model, each in zip(models, x, strict=True)]))
    parameters = dict(models[0].named_parameters())
    found = vmap(grad(lambda p, each: functional_call(models[0], p, (each,))[0].sum()), in_dims=(None, 0))(
        parameters, x
    )
    for i, each in enumerate(x):
        expected = torch.autograd.grad(models[0](each)[0].sum(), list(parameters.values()))
        for key, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[key][i], value)


def test_vmap_of_the_operation():
    given = arguments("gru", requires_grad=False)
    x = torch.stack((given[0], given[0] * 2))
    found = vmap(lambda each: torch.ops.fastrnn.gru(each, *given[1:])[0])(x)
    assert torch.equal(found[1], torch.ops.fastrnn.gru(x[1], *given[1:])[0])


def test_what_has_no_derivative_names_the_way_around():
    module = ft.LSTM(D, H).double()
    x = numbers((T, N, D), 0, torch.float64).requires_grad_()
    operation = arguments("gru")

    def twice(out, by):
        (first,) = torch.autograd.grad(out.sum(), by, create_graph=True)
        torch.autograd.grad(first.sum(), by)

    for call in (
        lambda: twice(module(x)[0], x),
        lambda: twice(torch.ops.fastrnn.gru(*operation)[0], operation[0]),
        lambda: jvp(lambda each: module(each)[0], (x.detach(),), (x.detach(),)),
        lambda: hessian(lambda each: module(each)[0].sum())(x.detach()),
    ):
        with pytest.raises(RuntimeError, match="no kernel; .*backend = 'torch'"):
            call()
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        with pytest.raises(RuntimeError, match="forward-mode"):
            module(torch.autograd.forward_ad.make_dual(x.detach(), x.detach()))
    module.backend = "torch"
    twice(module(x)[0], x)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_precision_is_left_set():
    yield
    assert fastrnn.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_autocast_selects_bf16_products(name, no_precision_is_left_set):
    theirs, ours = peers(name, D, H)
    shape = (T, N, D) if name in LAYERS else (N, D)
    x = numbers(shape, 0, torch.bfloat16).float()
    plain = tensors(ours(x))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            for a, b, c in zip(tensors(theirs(given)), tensors(ours(given)), plain, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a.float(), b.float(), rtol=4 * BF16_EPS, atol=4 * BF16_EPS)
                if has_bf16():
                    assert not torch.equal(b.float(), c)
        assert fastrnn.last_backend().precision == ("medium" if has_bf16() else "highest")
        sum(t.float().sum() for t in tensors(ours(x))).backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    with torch.autocast("cpu", torch.float16):
        assert ours._reason(x) == "autocast to float16"
    ours(x)
    assert fastrnn.last_backend().precision == "highest"


def has_bf16():
    """Whether the kernels that last ran have products in bfloat16 here."""
    if fastrnn.last_backend() != "cpu":
        return False
    from fastrnn import _cpu

    return _cpu.has_precision("medium")


def test_bf16_in_one_thread_leaves_float32_in_another_alone(no_precision_is_left_set):
    exact, rough = ft.GRU(64, 64), ft.GRU(64, 64).bfloat16()
    x = numbers((8, 16, 64), 0, torch.float32)
    expected = exact(x)[0].detach()
    wrong, done = [], threading.Event()

    def medium():
        while not done.is_set():
            rough(x.bfloat16())

    thread = threading.Thread(target=medium)
    thread.start()
    try:
        for _ in range(150):
            if not torch.equal(exact(x)[0], expected):
                wrong.append(1)
    finally:
        done.set()
        thread.join()
    assert not wrong


def test_deterministic_algorithms_change_nothing():
    module = ft.LSTM(D, H, 2, bidirectional=True)
    expected = results(module, True, True)
    torch.use_deterministic_algorithms(True)
    try:
        found = results(module, True, True)
        torch.ops.fastrnn.lstm(*arguments("lstm"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


# ---- memory, copies, processes ---------------------------------------------------------------------------------------


def test_inference_keeps_nothing_of_what_backward_needs(monkeypatch):
    reserves = []
    original = recurrent._forward

    def watched(*args, **kwargs):
        out = original(*args, **kwargs)
        reserves.append(weakref.ref(out[-1]))
        return out

    monkeypatch.setattr(recurrent, "_forward", watched)
    module = ft.LSTM(D, H)
    x = torch.zeros(T, N, D)
    with torch.no_grad():
        kept = module(x)
    assert reserves.pop()() is None
    kept = module(x)
    assert reserves[0]() is not None
    kept[0].sum().backward()
    del kept
    assert reserves[0]() is None


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_copies_pickles_and_moves(name):
    module = getattr(ft, name)(D, H, backend="fastrnn")
    x = numbers((T, N, D) if name in LAYERS else (N, D), 0, torch.float32)
    expected = tensors(module(x))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
    copies += [module.share_memory(), copy.deepcopy(module).double().float()]
    for each in copies:
        assert each.backend == "fastrnn" and type(each) is type(module)
        assert all(torch.equal(a, b) for a, b in zip(expected, tensors(each(x)), strict=True))
    moved = copy.deepcopy(module).to(torch.float64)
    assert tensors(moved(x.double()))[0].dtype == torch.float64


def test_weights_that_are_not_parameters():
    for wrap in (
        lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: torch.nn.utils.parametrizations.spectral_norm(m, "weight_ih_l0"),
        lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    ):
        theirs, ours = peers("LSTM", D, H)
        torch.manual_seed(0)
        theirs = wrap(theirs)
        torch.manual_seed(0)
        ours = wrap(ours)
        theirs.eval(), ours.eval()
        x = numbers((T, N, D), 0, torch.float32)
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])


class Sequences(torch.utils.data.Dataset):
    """Items that a module made: in a worker, its kernels run there."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, i):
        with torch.no_grad():
            return self.module(numbers((16, 8, 64), i, torch.float32))[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ("fork", "spawn"))
def test_workers_of_a_data_loader(method):
    items = Sequences(ft.GRU(64, 64))
    expected = [items[i] for i in range(len(items))]
    # One worker; PyTorch's own threads do not survive a fork either.
    loader = torch.utils.data.DataLoader(items, 1, num_workers=1, multiprocessing_context=method, timeout=50)
    for a, b in zip(expected, loader, strict=True):
        assert torch.equal(a, b[0])


# ---- packing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("trailing", [(), (5,), (2, 3)])
def test_packing_and_padding_are_pytorchs(batch_first, enforce_sorted, trailing):
    theirs = torch.nn.utils.rnn
    lengths = torch.tensor([7, 6, 6, 2, 1] if enforce_sorted else [2, 6, 1, 7, 6])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((5, 8, *trailing) if batch_first else (8, 5, *trailing), generator=generator, requires_grad=True)
    made = {}
    for library in (ft, theirs):
        packed = library.pack_padded_sequence(x, lengths, batch_first, enforce_sorted)
        padded, again = library.pad_packed_sequence(packed, batch_first, padding_value=0.5, total_length=9)
        short, _ = library.pad_packed_sequence(packed, batch_first)
        weights = torch.arange(padded.numel(), dtype=x.dtype).reshape(padded.shape)
        gradient = torch.autograd.grad((weights * padded.square()).sum() + short.sum(), x)[0]
        made[library] = [*packed, padded, again, short, gradient]
    for ours, expected in zip(*made.values(), strict=True):
        assert ours is expected is None or (torch.equal(ours, expected) and ours.is_contiguous())
    both = theirs.pad_packed_sequence(ft.pack_padded_sequence(x, lengths, batch_first, enforce_sorted), batch_first)[0]
    assert torch.equal(both, made[theirs][-2])


def test_packing_can_be_differentiated_twice():
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        packed = ft.pack_padded_sequence(x, [2, 4, 3], batch_first=True, enforce_sorted=False)
        return ft.pad_packed_sequence(packed, batch_first=True)[0].pow(3)

    assert torch.autograd.gradgradcheck(there_and_back, x)


def test_packing_refuses_what_pytorch_refuses():
    x = torch.randn(3, 4, 2)
    for lengths, words in (([4, 2, 0], "greater than 0"), ([1, 4, 2], "sorted"), ([4, 3], "batch_size|lengths")):
        with pytest.raises((RuntimeError, ValueError), match=words):
            ft.pack_padded_sequence(x, lengths, batch_first=True)
    packed = ft.pack_padded_sequence(x, torch.tensor([3, 2, 2]), batch_first=True)
    with pytest.raises(ValueError, match="total_length"):
        ft.pad_packed_sequence(packed, batch_first=True, total_length=2)
