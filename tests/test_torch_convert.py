"""fastrnn.torch.convert and revert: models that exist, changed in place."""

import copy

import pytest

torch = pytest.importorskip("torch")
ft = pytest.importorskip("fastrnn.torch")
nn = torch.nn

from torch.nn.utils import parametrizations  # noqa: E402

D, H = 3, 5
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Own(nn.LSTM):
    """A subclass with a forward of its own."""

    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


class Model(nn.Module):
    """Nested, shared, and unfit modules."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, D), nn.LSTM(D, H, bidirectional=True))
        self.decoder = nn.ModuleDict({"cell": nn.GRUCell(2 * H, H), "again": nn.RNN(H, D)})
        self.shared = self.decoder["again"]
        self.projected = nn.LSTM(D, H, proj_size=2)
        self.own = Own(D, H)
        self.normed = parametrizations.weight_norm(nn.GRU(D, H), "weight_hh_l0")

    def forward(self, x):
        x, _ = self.encoder(x)
        x = torch.stack([self.decoder["cell"](each) for each in x])
        x, _ = self.shared(x)
        return self.projected(x)[0], self.own(x)[0], self.normed(x)[0]


def outputs_and_gradients(model, x):
    out = model(x)
    return [*out, *torch.autograd.grad(sum(each.sum() for each in out), list(model.parameters()))]


def test_a_model_is_converted_in_place_and_back():
    torch.manual_seed(0)
    model = Model()
    x = torch.randn(4, 2, D)
    before = copy.deepcopy(model)
    expected = outputs_and_gradients(model, x)
    names, modules = [list(each) for each in zip(*model.named_modules(), strict=True)]
    parameters = dict(model.named_parameters())
    seen = []
    handle = model.encoder[1].register_forward_hook(lambda *_: seen.append("hook"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.decoder.eval()

    report = ft.convert(model, backend="fastrnn")
    assert report.replaced == {
        "encoder.1": "fastrnn.torch.LSTM",
        "decoder.cell": "fastrnn.torch.GRUCell",
        "decoder.again": "fastrnn.torch.RNN",
    }
    assert report.kept["projected"] == "option proj_size=2 has no kernel here"
    assert "forward of its own" in report.kept["own"] and "parametrized" in report.kept["normed"]
    assert len(report.kept) == 3
    lines = str(report).splitlines()
    assert lines[0] == "convert: 3 modules replaced, 3 left" and len(lines) == 7
    assert "  encoder.1: now fastrnn.torch.LSTM" in lines

    # Objects, hooks, modes and checkpoints are what they were.
    assert [list(each) for each in zip(*model.named_modules(), strict=True)] == [names, modules]
    assert model.shared is model.decoder["again"] and type(model.shared) is ft.RNN
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert model.encoder[1].training and not model.shared.training
    for a, b in zip(expected, outputs_and_gradients(model, x), strict=True):
        torch.testing.assert_close(b, a)
    assert seen == ["hook"]
    before.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(before.state_dict(), strict=True)
    sum(each.sum() for each in model(x)).backward()
    weight = model.encoder[1].weight_hh_l0
    old = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, old)
    assert "already fastrnn.torch.LSTM" in ft.convert(model).kept["encoder.1"]

    report = ft.revert(model)
    assert report.replaced["encoder.1"] == "torch.nn.LSTM"
    assert {name for name, now in report.replaced.items() if now == "torch.nn.LSTM"} == {"encoder.1", "projected"}
    assert list(map(type, model.modules())) == list(map(type, before.modules()))
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all("_backend" not in module.__dict__ for module in model.modules())
    handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_can_be_one(name):
    model = getattr(nn, name)(D, H, dtype=torch.float64)
    x = torch.randn(2, 3, D, dtype=torch.float64) if "Cell" not in name else torch.randn(2, D, dtype=torch.float64)
    expected = repr(model), model(x)
    report = ft.convert(model)
    where = f", runs_on {model.runs_on}" if "Cell" in name else ""
    assert report.replaced == {"": f"fastrnn.torch.{name}{where}"} and "(the model): now" in str(report)
    assert type(model) is getattr(ft, name)
    assert repr(model) == expected[0]
    torch.testing.assert_close(model(x), expected[1])
    ft.revert(model)
    assert type(model) is getattr(nn, name)


def test_auto_converts_what_runs_on_torch_nn_for_now():
    model = nn.ModuleList([nn.LSTM(D, H, proj_size=2), nn.RNN(D, H, nonlinearity="relu"), nn.GRU(D, H).half()])
    report = ft.convert(model)
    assert list(report.replaced.values()) == [
        "fastrnn.torch.LSTM, runs_on torch: option proj_size=2",
        "fastrnn.torch.RNN, runs_on torch: option nonlinearity='relu'",
        "fastrnn.torch.GRU, runs_on torch: dtype float16",
    ]
    assert model.float()[2].runs_on == "fastrnn"
    ft.revert(model)
    ft.convert(model, backend="torch")
    assert all(each.runs_on == "torch: backend='torch' is set" for each in model)


@pytest.mark.parametrize("function", ("convert", "revert"))
def test_what_is_no_model(function):
    with pytest.raises(TypeError, match=f"{function}: argument 'model' must be a torch.nn.Module, got list"):
        getattr(ft, function)([nn.GRU(D, H)])


def test_unknown_backend():
    with pytest.raises(
        ValueError, match="convert: argument 'backend' must be one of 'auto', 'fastrnn', 'torch', got 'cpu'"
    ):
        ft.convert(nn.GRU(D, H), backend="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_turned_down():
    with pytest.raises(TypeError, match="TorchScript"):
        ft.convert(torch.jit.trace(nn.Linear(D, H), torch.zeros(1, D)))


def test_converted_copies_and_models_on_the_meta_device():
    model = Model()
    ft.convert(model)
    again = copy.deepcopy(model)
    assert type(again.encoder[1]) is ft.LSTM and again.encoder[1].weight_ih_l0 is not model.encoder[1].weight_ih_l0
    with torch.device("meta"):
        empty = nn.LSTM(D, H)
    ft.convert(empty)
    assert empty(torch.zeros(4, 2, D, device="meta"))[0].shape == (4, 2, H)
