"""Saliency maps, fooling images and class visualisations, and their commands."""

import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from harness import complains
from scipy import ndimage
from typer.testing import CliRunner

from fastrnn import conformance
from fastrnn.cli import common
from fastrnn.cli.main import app

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

from fastrnn.vision import networks, visualisation  # noqa: E402
from fastrnn.vision.images import MEAN, STD, photographs, read_image, save_image  # noqa: E402
from fastrnn.vision.visualisation import (  # noqa: E402
    blur,
    compute_saliency_maps,
    create_class_visualization,
    image_bounds,
    make_fooling_image,
)

SHAPE = (3, 6, 5)
CLASSES = 4
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES), ids=str)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(dtype=torch.float64, seed=1):
    """Class scores ``w · x``, with weights of both signs."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), CLASSES)).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + number))
    return model


def perceptron(dtype=torch.float64, hidden=16):
    """Two layers; what it computes is written out in NumPy by `gradients`."""
    size = int(np.prod(SHAPE))
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=10 + number) / 4)
    return model


def gradients(model, X, y, dtype):
    """``∂ score_y / ∂X`` of a perceptron, in NumPy, in this dtype; and its scores."""
    W1, b1, W2, b2 = (parameter.detach().numpy().astype(dtype) for parameter in model.parameters())
    flat = X.reshape(len(X), -1).astype(dtype)
    before = flat @ W1.T + b1
    scores = np.maximum(before, 0) @ W2.T + b2
    return (((before > 0) * W2[y]) @ W1).reshape(X.shape), scores


def convolutional():
    """With layers that training mode changes: batch normalisation and dropout."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(120, 4)
    ).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=20 + number))
        model[1].running_mean.copy_(draw(4, seed=30))
    return model


def assert_rule(result, oracle, exact, dtype):
    """The tolerance rule: at most twice the oracle's error, and 4 eps."""
    assert result.dtype is dtype
    error, bound = conformance.error_and_bound(result.numpy(), oracle, exact, DTYPES[dtype])
    assert conformance.within(error, bound), f"off by {error:.3g}, allowed {bound:.3g}"


# ---- saliency maps ---------------------------------------------------------------------------------------------------


@each_dtype
def test_saliency_is_the_largest_absolute_gradient_over_the_channels(dtype):
    model, X, y = perceptron(dtype), draw(7, *SHAPE, dtype=dtype), torch.arange(7) % CLASSES
    wider = np.float64 if dtype is torch.float32 else np.longdouble
    oracle, exact = (
        abs(gradients(model, X.numpy(), y.numpy(), kind)[0]).max(axis=1) for kind in (DTYPES[dtype], wider)
    )
    maps = compute_saliency_maps(X, y, model)
    assert maps.shape == (7, 6, 5)
    assert_rule(maps, oracle, exact, dtype)


def test_saliency_keeps_the_sign_of_nothing():
    """Where all gradients are below 0 a map without the absolute value would be negative."""
    model = linear()
    with torch.no_grad():
        model[1].weight.copy_(-model[1].weight.abs())
    maps = compute_saliency_maps(draw(1, *SHAPE), [2], model)
    assert torch.equal(maps[0], model[1].weight[2].reshape(SHAPE).abs().amax(0)) and maps.min() > 0


def test_saliency_is_the_slope_that_finite_differences_see():
    model, X = convolutional().eval(), draw(1, *SHAPE)
    (maps,) = compute_saliency_maps(X, [3], model)
    step = 1e-5
    slopes = torch.zeros(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        for place in np.ndindex(*SHAPE):
            there, back = X.clone(), X.clone()
            there[(0, *place)] += step
            back[(0, *place)] -= step
            slopes[place] = (model(there)[0, 3] - model(back)[0, 3]) / (2 * step)
    torch.testing.assert_close(maps, slopes.abs().amax(0), rtol=1e-7, atol=1e-8)


def test_smoothed_saliency_averages_signed_gradients():
    model, X, y = perceptron(), draw(2, *SHAPE), [1, 3]
    maps = compute_saliency_maps(X, y, model, smooth=5, noise=0.3, seed=4)
    generator = torch.Generator().manual_seed(4)
    spread = (X.flatten(1).amax(1) - X.flatten(1).amin(1))[:, None, None, None]
    total = 0
    for _ in range(5):
        noisy = X + 0.3 * spread * torch.randn(X.shape, generator=generator, dtype=X.dtype)
        total = total + gradients(model, noisy.numpy(), np.array(y), np.float64)[0]
    np.testing.assert_allclose(maps.numpy(), abs(total / 5).max(axis=1), rtol=1e-12)
    plain = compute_saliency_maps(X, y, model)
    for other in ({"smooth": 6}, {"noise": 0.2}, {"seed": 5}):
        options = {"smooth": 5, "noise": 0.3, "seed": 4} | other
        changed = compute_saliency_maps(X, y, model, **options)
        assert not torch.equal(changed, maps) and not torch.equal(changed, plain), other
    # The same gradient everywhere: nothing to smooth.
    torch.testing.assert_close(
        compute_saliency_maps(X, y, linear(), smooth=3), compute_saliency_maps(X, y, linear()), rtol=1e-14, atol=0
    )


def test_saliency_of_no_images():
    assert compute_saliency_maps(torch.zeros(0, *SHAPE), [], linear(torch.float32)).shape == (0, 6, 5)


@pytest.mark.parametrize("kind", ["saliency", "smoothed", "fooling", "class", "failing"])
def test_nothing_of_the_model_or_the_image_changes(kind):
    model = convolutional().train()
    model[3].eval()  # each module has a mode of its own
    model[0].requires_grad_(False)
    model(draw(2, *SHAPE, seed=3)).sum().backward()
    X = draw(1, *SHAPE).requires_grad_()
    before = X.detach().clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    drawn = torch.get_rng_state()
    target = (int(model.eval()(X).argmax()) + 1) % CLASSES
    model.train()
    model[3].eval()
    if kind == "saliency":
        result = compute_saliency_maps(X, [target], model)
    elif kind == "smoothed":
        result = compute_saliency_maps(X, [target], model, smooth=2)
    elif kind == "fooling":
        result = make_fooling_image(X, target, model)
    elif kind == "class":
        result = create_class_visualization(target, model, shape=SHAPE, num_iterations=3, start=X)
    else:
        with pytest.raises(IndexError):
            compute_saliency_maps(X, [CLASSES], model)
        result = torch.zeros(())
    assert not result.requires_grad
    assert torch.equal(X, before) and X.requires_grad and X.grad is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None) and (grad is None or torch.equal(parameter.grad, grad))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert model.training and model[1].training and not model[3].training
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_there_where_the_caller_has_turned_them_off(mode):
    model, X = perceptron(), draw(1, *SHAPE)
    expected = compute_saliency_maps(X, [1], model)
    with mode():
        assert torch.equal(compute_saliency_maps(draw(1, *SHAPE), torch.tensor([1]), model), expected)
        assert make_fooling_image(draw(1, *SHAPE), 1, model).shape == (1, *SHAPE)
        assert (
            create_class_visualization(1, model, shape=SHAPE, num_iterations=2, start=draw(1, *SHAPE)).isfinite().all()
        )


# ---- fooling images --------------------------------------------------------------------------------------------------


@each_dtype
def test_a_fooling_image_is_the_first_on_the_way_that_fools(dtype):
    model, X = perceptron(dtype), draw(1, *SHAPE, seed=1, dtype=dtype)
    target = int(model(X)[0].topk(2).indices[1])
    before, steps = X.clone(), []
    fooling = make_fooling_image(X, target, model, learning_rate=0.02, callback=steps.append)

    def plain(kind):
        image, count = X.numpy().astype(kind), 0
        while gradients(model, image, [target], kind)[1][0].argmax() != target:
            g = gradients(model, image, [target], kind)[0]
            image, count = image + kind(0.02) * g / np.sqrt((g * g).sum()), count + 1
        return image, count

    oracle, exact = plain(DTYPES[dtype]), plain(np.float64 if dtype is torch.float32 else np.longdouble)
    assert steps == list(range(1, exact[1] + 1)) and len(steps) > 2
    assert_rule(fooling, oracle[0], exact[0], dtype)
    assert model(fooling)[0].argmax() == target
    assert torch.equal(X, before) and not torch.equal(fooling, X)


def test_a_step_has_the_length_asked_for():
    model, X = linear(), draw(1, *SHAPE)
    target = int(model(X)[0].argmin())
    weights = model[1].weight[target].detach().reshape(1, *SHAPE)
    for rate in (0.25, 2.0):
        steps = []
        fooling = make_fooling_image(X, target, model, rate, max_iter=200, callback=steps.append)
        torch.testing.assert_close(fooling - X, len(steps) * rate * weights / weights.norm(), rtol=1e-9, atol=1e-9)


def test_an_image_that_needs_no_change_is_copied():
    model, X = linear(), draw(1, *SHAPE)
    same = make_fooling_image(X, int(model(X).argmax()), model, callback=lambda step: pytest.fail("a step was taken"))
    assert torch.equal(same, X) and same.data_ptr() != X.data_ptr()


def test_a_fooling_image_stays_within_its_bounds():
    model, X = perceptron(), draw(1, *SHAPE).sigmoid()
    target = int(model(X)[0].argmin())
    free = make_fooling_image(X, target, model, max_iter=1000)
    assert free.min() < 0 or free.max() > 1
    held = make_fooling_image(X, target, model, max_iter=1000, bounds=(0, 1))
    assert held.min() >= 0 and held.max() <= 1 and model(held)[0].argmax() == target
    low, high = (X - 2).clone(), X + torch.tensor([2.0, 0.5, 2.0]).reshape(1, 3, 1, 1)
    held = make_fooling_image(X, target, model, max_iter=1000, bounds=(low, high))
    assert (held >= low).all() and (held <= high).all()


def test_what_cannot_be_fooled_is_said():
    model, X = linear(), draw(1, *SHAPE)
    target = int(model(X)[0].argmin())
    enough = []
    make_fooling_image(X, target, model, 0.1, max_iter=1000, callback=enough.append)
    make_fooling_image(X, target, model, 0.1, max_iter=len(enough))
    seen = int(model(X).argmax())
    with complains(ValueError, "make_fooling_image", f"class {target}", "max_iter = 2", f"got class {seen}"):
        make_fooling_image(X, target, model, 0.1, max_iter=2)
    with torch.no_grad():
        model[1].weight[target] = 0
    with complains(ValueError, "make_fooling_image", f"class {target} does not depend"):
        make_fooling_image(X, target, model)


# ---- class visualisations --------------------------------------------------------------------------------------------

SETTINGS = {
    "l2_reg": 0.02,
    "learning_rate": 0.7,
    "num_iterations": 7,
    "blur_every": 3,
    "max_jitter": 2,
    "blur_sigma": 0.8,
    "seed": 3,
    "shape": SHAPE,
    "bounds": (-1.0, 1.5),
}


def plain_visualisation(model, target, dtype, settings, seed):
    """The same in NumPy and SciPy; shifts and noise are drawn as there."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((1, *SHAPE), generator=generator).numpy().astype(dtype).clip(-1, 1.5)
    for step in range(1, settings["num_iterations"] + 1):
        jitter = settings["max_jitter"]
        shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        image = np.roll(image, shift, axis=(2, 3))
        g = gradients(model, image, [target], dtype)[0] - dtype(2 * settings["l2_reg"]) * image
        image = image + dtype(settings["learning_rate"]) * g / np.sqrt((g * g).sum())
        image = np.roll(image, [-shift[0], -shift[1]], axis=(2, 3)).clip(-1, 1.5)
        if settings["blur_every"] and step % settings["blur_every"] == 0 and step < settings["num_iterations"]:
            # SciPy's filter has float64 inside and no long double.
            sigma = (0, 0, settings["blur_sigma"], settings["blur_sigma"])
            image = ndimage.gaussian_filter(image.astype(np.float64), sigma, mode="nearest").astype(dtype)
    return image


@pytest.mark.parametrize("steps", [6, 7])  # of 6 the last would be one to blur after
def test_a_class_visualisation_is_that_of_plain_numpy(steps):
    model, settings = perceptron(torch.float32), SETTINGS | {"num_iterations": steps}
    made = create_class_visualization(2, model, **settings)
    oracle, exact = (plain_visualisation(model, 2, kind, settings, 3) for kind in (np.float32, np.float64))
    assert made.shape == (1, *SHAPE)
    assert_rule(made, oracle, exact, torch.float32)
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(3))
    assert model(made)[0, 2] > model(noise)[0, 2]


def test_every_option_of_a_class_visualisation_changes_it():
    model = perceptron()
    base = create_class_visualization(2, model, **SETTINGS)
    assert torch.equal(create_class_visualization(2, model, **SETTINGS), base)
    others = {
        "l2_reg": 0.5,
        "learning_rate": 0.4,
        "num_iterations": 8,
        "blur_every": 0,
        "max_jitter": 0,
        "blur_sigma": 0.5,
        "seed": 4,
        "bounds": (-0.5, 0.5),
        "start": draw(1, *SHAPE),
    }
    for name, value in others.items():
        assert not torch.allclose(create_class_visualization(2, model, **SETTINGS | {name: value}), base), name
    assert not torch.allclose(create_class_visualization(1, model, **SETTINGS), base)


def test_several_classes_are_made_as_each_alone():
    model, steps = perceptron(), []
    together = create_class_visualization([3, 0, 3], model, **SETTINGS, callback=steps.append)
    assert together.shape == (3, *SHAPE) and steps == list(range(1, 8))
    for made, target in zip(together.split(1), (3, 0, 3), strict=True):
        torch.testing.assert_close(made, create_class_visualization(target, model, **SETTINGS), rtol=1e-12, atol=1e-12)


def test_a_start_is_used_and_left_as_it_is():
    model, start = perceptron(), draw(2, *SHAPE, dtype=torch.float32)
    before = start.clone()
    made = create_class_visualization([0, 1], model, **SETTINGS | {"num_iterations": 0}, start=start)
    assert torch.equal(made, start.double().clamp(-1, 1.5)) and torch.equal(start, before)


def test_images_in_colour_stay_between_black_and_white():
    low, high = image_bounds(3)
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(low * std + mean, torch.zeros(1, 3, 1, 1, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(high * std + mean, torch.ones(1, 3, 1, 1, dtype=torch.float64), rtol=0, atol=1e-15)
    assert image_bounds(1) == (0.0, 1.0)
    made = create_class_visualization(1, perceptron(), shape=SHAPE, num_iterations=3, blur_every=0)
    assert (made >= low).all() and (made <= high).all() and ((made == low) | (made == high)).any()


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 2.7])
@each_dtype
def test_blur_is_scipys(sigma, dtype):
    images = draw(2, 3, 9, 4, dtype=dtype)
    exact = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
    oracle = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest")
    before = images.clone()
    assert_rule(blur(images, sigma), oracle, exact, dtype)
    assert torch.equal(images, before)


def test_no_blur_is_a_copy():
    images = draw(1, 1, 3, 3)
    assert torch.equal(blur(images, 0), images) and blur(images, 0).data_ptr() != images.data_ptr()


# ---- bad arguments ---------------------------------------------------------------------------------------------------

X = draw(2, *SHAPE)
ONE = X[:1]


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, (X.numpy(), [0, 1]), ["'X'", "torch.Tensor", "ndarray"]),
        (TypeError, ((X * 50).to(torch.uint8), [0, 1]), ["'X'", "floating", "torch.uint8", "preprocess"]),
        (ValueError, (X[0], [0, 1]), ["'X'", "(N, C, H, W)", "(3, 6, 5)"]),
        (ValueError, (X[:, :, :0], [0, 1]), ["'X'", "(2, 3, 0, 5)"]),
        (ValueError, (X, [0]), ["'y'", "2 images", "got 1"]),
        (ValueError, (X, [[0], [1]]), ["'y'", "(N,)", "(2, 1)"]),
        (TypeError, (X, [0.0, 1.0]), ["'y'", "integers", "float32"]),
        (TypeError, (X, [True, False]), ["'y'", "integers", "bool"]),
        (TypeError, (X, "01"), ["'y'", "integers", "str"]),
        (IndexError, (X, [0, CLASSES]), ["'y'", f"[0, {CLASSES})", f"got {CLASSES}"]),
        (IndexError, (X, [0, -1]), ["'y'", "got -1"]),
        (ValueError, (X * np.nan, [0, 1]), ["finite gradients"]),
    ],
)
def test_bad_arguments_of_saliency_maps(error, arguments, words):
    model = nn.Sequential(linear(), nn.Softplus())
    with complains(error, "compute_saliency_maps", *words):
        compute_saliency_maps(*arguments, model)


def test_bad_options_and_models():
    with complains(ValueError, "compute_saliency_maps", "'smooth'", "at least 0", "-1"):
        compute_saliency_maps(X, [0, 1], linear(), smooth=-1)
    with complains(TypeError, "compute_saliency_maps", "'smooth'", "whole number", "1.5"):
        compute_saliency_maps(X, [0, 1], linear(), smooth=1.5)
    with complains(ValueError, "compute_saliency_maps", "'noise'", "nan"):
        compute_saliency_maps(X, [0, 1], linear(), noise=float("nan"))
    with complains(ValueError, "compute_saliency_maps", "'model'", "(2, num_classes)", "(2, 3, 6, 5)"):
        compute_saliency_maps(X, [0, 1], nn.ReLU())
    with complains(ValueError, "compute_saliency_maps", "'model'", "differentiable"):
        compute_saliency_maps(X, [0, 1], lambda x: linear()(x.detach()).detach())
    with complains(ValueError, "make_fooling_image", "'X'", "one image", "(2, 3, 6, 5)"):
        make_fooling_image(X, 0, linear())
    with complains(TypeError, "make_fooling_image", "'target_y'", "1.0"):
        make_fooling_image(ONE, 1.0, linear())
    with complains(IndexError, "make_fooling_image", "'target_y'", f"[0, {CLASSES})", "got 9"):
        make_fooling_image(ONE, 9, linear())
    with complains(ValueError, "make_fooling_image", "'learning_rate'", "above 0", "got 0"):
        make_fooling_image(ONE, 0, linear(), 0)
    with complains(ValueError, "make_fooling_image", "'max_iter'", "at least 1", "got 0"):
        make_fooling_image(ONE, 0, linear(), max_iter=0)
    for bounds in ((1, 0), (0,), 3, (torch.zeros(2, 3, 6, 5), 1), ("a", "b")):
        with complains(ValueError, "make_fooling_image", "'bounds'", "the least and the greatest"):
            make_fooling_image(ONE, 0, linear(), bounds=bounds)


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (IndexError, {"target_y": CLASSES}, ["'target_y'", f"[0, {CLASSES})"]),
        (IndexError, {"target_y": -1}, ["'target_y'", "-1"]),
        (TypeError, {"target_y": 1.5}, ["'target_y'", "integers"]),
        (ValueError, {"target_y": []}, ["'target_y'", "at least one"]),
        (ValueError, {"shape": (3, 6)}, ["'shape'", "(C, H, W)", "(3, 6)"]),
        (ValueError, {"shape": (3, 0, 5)}, ["'shape'", "(3, 0, 5)"]),
        (ValueError, {"start": draw(1, 3, 5, 5)}, ["'start'", "(1 or 1, 3, 6, 5)", "(1, 3, 5, 5)"]),
        (TypeError, {"start": np.zeros((1, *SHAPE))}, ["'start'", "ndarray"]),
        (ValueError, {"l2_reg": -1}, ["'l2_reg'", "at least 0", "-1"]),
        (ValueError, {"learning_rate": float("inf")}, ["'learning_rate'", "inf"]),
        (ValueError, {"num_iterations": -1}, ["'num_iterations'", "-1"]),
        (ValueError, {"blur_every": -2}, ["'blur_every'", "-2"]),
        (TypeError, {"max_jitter": 1.5}, ["'max_jitter'", "1.5"]),
        (ValueError, {"blur_sigma": -0.5}, ["'blur_sigma'", "-0.5"]),
        (ValueError, {"seed": -1}, ["'seed'", "-1"]),
        (ValueError, {"bounds": (2, 1)}, ["'bounds'"]),
    ],
)
def test_bad_arguments_of_class_visualisations(error, options, words):
    options = {"target_y": 0, "model": linear(), "shape": SHAPE} | options
    with complains(error, "create_class_visualization", *words):
        create_class_visualization(**options)


# ---- the commands ----------------------------------------------------------------------------------------------------

needs_libraries = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "matplotlib", "PIL", "safetensors")),
    reason="the commands need scikit-learn, Matplotlib, Pillow and safetensors",
)
COMMANDS = ("saliency", "fool", "visualize")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with both networks for digits, trained for 4 epochs instead of 20."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRNN_CACHE", str(folder))
        patch.setattr(networks, "TRAINING", replace(networks.TRAINING, epochs=4))
        patch.setattr(networks, "ROBUST", replace(networks.ROBUST, epochs=4))
        networks.build("digits")
        networks.build("digits-robust")
    return folder


@pytest.fixture
def run(cache, tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTRNN_CACHE", str(cache))
    monkeypatch.setattr(networks, "TRAINING", replace(networks.TRAINING, epochs=4))
    monkeypatch.setattr(networks, "ROBUST", replace(networks.ROBUST, epochs=4))

    def invoke(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        if code == 2:
            assert result.stderr.startswith("fastrnn: ") and result.stderr.count("\n") == 1, result.stderr
            assert not result.stdout
        return result.stderr if code else result.stdout

    return invoke


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """A file of random weights, scaled so that the scores depend on the image."""
    torch.manual_seed(0)
    network = networks.SqueezeNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


@needs_libraries
def test_the_robust_networks_saliency_lies_more_on_the_strokes(run):
    from fastrnn.cli.saliency import on_stroke
    from fastrnn.vision.data import digits

    images, labels = digits("test")
    parts = {}
    for name in ("digits", "digits-robust"):
        maps = compute_saliency_maps(images, labels, networks.build(name))
        parts[name] = np.mean([on_stroke(image[None], values)[0] for image, values in zip(images, maps, strict=True)])
    assert parts["digits-robust"] > parts["digits"] + 0.05, parts


@needs_libraries
def test_saliency_of_the_embedded_digits(run, tmp_path):
    said = run("saliency")
    part, area = map(int, re.search(r"saliency (\d+) % of it lies on the strokes, which are (\d+) % of", said).groups())
    assert part > 1.5 * area, said
    assert re.search(r"images +10 handwritten digits that", said) and re.search(r"digits-robust reads \d+ of 10", said)
    assert said.splitlines()[-1] == f"picture  {tmp_path / 'fastrnn-saliency.png'}"
    first = read_image(tmp_path / "fastrnn-saliency.png")
    assert [path.name for path in tmp_path.iterdir()] == ["fastrnn-saliency.png"]
    for number, options in enumerate(
        (
            ["--network", "digits"],
            ["--class", "3"],
            ["--smooth", "3"],
            ["--smooth", "3", "--noise", "0.4"],
            ["--seed", "1"],
        )
    ):
        run("saliency", *options, "--out", f"{number}.png")
        assert not np.array_equal(read_image(tmp_path / f"{number}.png"), first), options
    assert not np.array_equal(read_image(tmp_path / "2.png"), read_image(tmp_path / "3.png"))


@needs_libraries
def test_fooling_the_embedded_digits(run, tmp_path):
    said = run("fool")
    low, high = map(int, re.search(r"fooled +10 of 10: after (\d+) to (\d+) steps of 0.05", said).groups())
    mean, most = map(float, re.search(r"change +([\d.]+) % .* average, ([\d.]+) % at most", said).groups())
    assert 1 <= low < high <= 500 and 0 < mean < 2 and most < 30 and "those that take the least change" in said, said
    drawn = run("fool", "--seed", "0", "--out", "drawn.png")
    assert mean < float(re.search(r"change +([\d.]+) %", drawn).group(1)) and "the least change" not in drawn
    first = read_image(tmp_path / "fastrnn-fool.png")
    said = run("fool", "--class", "3", "--learning-rate", "0.2", "--out", "three.png")
    assert re.search(r"fooled +9 of 9: after .* steps of 0.2 it", said)  # one is a 3 already
    assert not np.array_equal(read_image(tmp_path / "three.png").shape, first.shape)
    assert "max_iter = 1 " in run("fool", "--steps", "1", "--learning-rate", "0.001", "--out", "no.png", code=2)
    assert not (tmp_path / "no.png").exists()


@needs_libraries
def test_visualizing_the_embedded_digits(run, tmp_path):
    said = run("visualize", "--steps", "40")
    right = int(re.search(r"sees what was asked for in (\d+) of 10", said).group(1))
    assert right >= 9 and "in 40 steps of 0.3" in said
    first = read_image(tmp_path / "fastrnn-visualize.png")
    said = run("visualize", "--class", "7", "--class", "2", "--class", "7", "--steps", "40", "--out", "few.png")
    assert "of 2," in said
    base = ["--class", "2", "--steps", "10"]
    run("visualize", *base, "--out", "base.png")
    for option, value in {
        "--network": "digits",
        "--learning-rate": 0.2,
        "--l2-reg": 0.2,
        "--blur-every": 2,
        "--max-jitter": 4,
        "--seed": 1,
        "--steps": 11,
    }.items():
        run("visualize", *base, option, value, "--out", "other.png")
        assert not np.array_equal(read_image(tmp_path / "other.png"), read_image(tmp_path / "base.png")), option
    assert first.shape[1] > read_image(tmp_path / "few.png").shape[1]


@needs_libraries
def test_pictures_of_ones_own(run, tmp_path):
    """A digit drawn white on black, anywhere, is read as those that were trained on."""
    from fastrnn.cli.saliency import as_digit
    from fastrnn.vision.data import digits

    images, labels = digits("test")
    row = int((labels == 0).nonzero()[1])
    pixels = np.zeros((150, 220, 3), np.uint8)
    large = torch.nn.functional.interpolate(images[row : row + 1], scale_factor=3, mode="bicubic").clamp(0, 1)
    pixels[20:104, 120:204] = (200 * large[0, 0].numpy()).astype(np.uint8)[..., None]
    save_image("light.png", pixels)
    save_image("dark.png", 255 - pixels)
    assert torch.allclose(as_digit(tmp_path / "light.png"), as_digit(tmp_path / "dark.png"), atol=1e-5)
    digit = as_digit(tmp_path / "dark.png")
    assert digit.shape == (1, 1, 28, 28) and digit.max() > 0.9
    ink = (digit[0, 0] > 0.4).nonzero()
    assert int((ink.amax(0) - ink.amin(0)).max()) in range(19, 24)
    said = run("saliency", "--image", "light.png", "--image", "dark.png")
    assert "images   light.png, dark.png" in said and len(re.findall(r"\b0, ", said)) == 2, said
    assert re.search(r"digits sees 0, .*\n.*1 of 1: after \d+ steps", run("fool", "--image", "dark.png"))
    save_image("blank.png", np.full((30, 30, 3), 7, np.uint8))
    assert "blank.png: expected a digit" in run("saliency", "--image", "blank.png", code=2)


@needs_libraries
def test_a_network_for_photographs(run, squeezenet, tmp_path):
    save_image("flower.png", photographs()["flower"])
    network = ["--network", "squeezenet", "--weights", squeezenet]
    image = [*network, "--image", "flower.png", "--size", "48"]
    assert re.search(r"squeezenet sees class \d+, ", run("saliency", *image, "--class", "5"))
    said = run("fool", *image)
    mean, most = map(float, re.search(r"change +([\d.e-]+) % .* average, ([\d.e-]+) % at most", said).groups())
    assert 0 < mean < 2 and mean < most < 20, said
    said = run("visualize", *network, "--class", "3", "--class", "8", "--size", "40", "--steps", "3")
    assert "images   2, each from noise in 3 steps of 25" in said
    for command in COMMANDS:
        assert (tmp_path / f"fastrnn-{command}.png").is_file()
    assert "needs an image: --image FILE" in run("saliency", *network, code=2)
    assert "1000 classes: name some" in run("visualize", *network, code=2)
    assert "--class must be below 1000" in run("visualize", *network, "--class", "1000", code=2)
    assert "at least" in run("fool", *image[:-1], "5", code=2)


@needs_libraries
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_usage_is_one_line(run, command, tmp_path):
    image = [] if command == "visualize" else ["--image", "none.png"]
    for options, words in (
        (["--network", "random"], "unknown network 'random'; there are digits, digits-robust, squeezenet"),
        (["--network", "squeezenet", *image], "needs a file of weights"),
        (["--weights", "none.pth"], "none.pth"),
        (["--size", "64"], "--size is for --network squeezenet"),
        (["--class", "10"], "--class must be below 10"),
        (["--class", "-1"], "--class"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--out", "picture.docx"], ".png"),
        (["--out", "no/picture.png"], "there is no folder"),
        (image or ["--steps", "0"], "none.png" if image else "--steps"),
    ):
        assert words in run(command, *options, code=2), options
    assert not list(tmp_path.iterdir())


@needs_libraries
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_command_leaves_nothing(run, command, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(visualisation, "_evaluating", interrupt)
    assert run(command, code=common.INTERRUPTED)
    assert not list(tmp_path.iterdir())
