"""Style transfer, texture synthesis and feature inversion: losses, the loop, and the commands."""

import inspect
import os
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from harness import complains
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
for _name in ("sklearn", "matplotlib", "safetensors"):
    pytest.importorskip(_name, reason=f"{_name} is not installed")

from fastrnn import conformance  # noqa: E402
from fastrnn.cli import style as command  # noqa: E402
from fastrnn.cli.main import app  # noqa: E402
from fastrnn.vision import networks, style  # noqa: E402
from fastrnn.vision.images import photographs, preprocess, read_image, resize, save_image  # noqa: E402
from fastrnn.vision.style_pictures import side_by_side  # noqa: E402

NET = networks.RandomNet()
PHOTOS = photographs()
CONTENT = resize(PHOTOS["china"], 32)
STYLE = resize(PHOTOS["flower"], 36)
TRANSFER = {"image_size": 32, "style_size": 32, "network": NET, "num_iterations": 3, "scales": 1}


def transfer(**changes):
    return style.style_transfer(CONTENT, STYLE, **TRANSFER | changes)


def texture(**changes):
    return style.texture_synthesis(STYLE, **TRANSFER | changes)


def invert(**changes):
    return style.feature_inversion(
        CONTENT, **{name: value for name, value in TRANSFER.items() if name != "style_size"} | changes
    )


class Losses(list):
    """A callback that keeps what it is told."""

    __call__ = list.append


# ---- the losses ------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "all": (3e-5, (6.0, 1.0, 0.5), 2e-5),
    "content": (3e-5, (0.0, 0.0, 0.0), 0.0),
    "style": (0.0, (6.0, 1.0, 0.5), 0.0),
    "one style layer": (0.0, (0.0, 1.0, 0.0), 0.0),
    "total variation": (0.0, (0.0, 0.0, 0.0), 2e-5),
}
LAYERS = (1, 4, 7)


def plainly(net, x, content, image, weights):
    """The objective in PyTorch's own words: its value and its gradient."""
    content_weight, style_weights, tv_weight = weights
    x = x.clone().requires_grad_(True)

    def gram(features):
        rows = features[0].flatten(1)
        return rows @ rows.T / rows.numel()

    features, wanted, targets = (net.extract_features(image) for image in (x, content, image))
    loss = content_weight * ((features[4] - wanted[4]) ** 2).sum()
    for layer, weight in zip(LAYERS, style_weights, strict=True):
        loss = loss + weight * ((gram(features[layer]) - gram(targets[layer])) ** 2).sum()
    down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    loss = loss + tv_weight * ((down**2).sum() + (right**2).sum())
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def ours(net, x, content, image, weights):
    content_weight, style_weights, tv_weight = weights
    _, preset = style._network("test", net)
    settings = style._settings("test", net, preset, 4, content_weight, LAYERS, style_weights, tv_weight)
    objective = style._Objective(net, settings, content, image)
    x = x.clone().requires_grad_(True)
    parts = objective(x)
    assert [part is not None for part in parts] == [bool(np.any(weight)) for weight in weights]
    loss = sum(part for part in parts if part is not None)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_objective_is_that_of_plain_pytorch(weights):
    """Loss and gradient, float32 within the tolerance rule, and float64 to its last digits."""
    exact_net = networks.RandomNet().double()
    generator = torch.Generator().manual_seed(1)
    content, image = preprocess(CONTENT), preprocess(STYLE)
    x = content + 0.3 * torch.randn(content.shape, generator=generator)
    exact = plainly(exact_net, x.double(), content.double(), image.double(), weights)
    oracle = plainly(NET, x, content, image, weights)
    for found, plain, true in zip(ours(NET, x, content, image, weights), oracle, exact, strict=True):
        assert found.dtype == torch.float32
        error, bound = conformance.error_and_bound(found.numpy(), plain.numpy(), true.numpy(), np.float32)
        assert conformance.within(error, bound), f"off by {error:.3g}, allowed {bound:.3g}"
    for found, true in zip(ours(exact_net, x.double(), content.double(), image.double(), weights), exact, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12 * float(true.abs().max()))


def test_the_gradient_of_the_whole_objective():
    """Against finite differences, through the network, all three losses at once."""
    net = networks.RandomNet().double()
    content, image = (preprocess(resize(photo, 12)).double()[..., :12] for photo in (CONTENT, STYLE))
    settings = style._settings("test", net, style.PRESETS[networks.RandomNet], 4, 1e-3, LAYERS, (6.0, 1.0, 0.5), 1e-3)
    objective = style._Objective(net, settings, content, image)
    x = (content + 0.3 * torch.randn(content.shape, generator=torch.Generator().manual_seed(2))).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: sum(objective(x)), x, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_nothing_is_computed_for_a_weight_of_zero(monkeypatch):
    """Neither a loss nor a stage beyond those that are needed."""
    net = networks.RandomNet()
    deepest = []
    for index, stage in enumerate(net.features):
        stage.register_forward_hook(lambda *_, index=index: deepest.append(index))

    def never(*_):
        raise AssertionError("computed, although its weight is 0")

    with monkeypatch.context() as patch:
        patch.setattr(style, "style_loss", never)
        patch.setattr(style, "gram_matrix", never)
        patch.setattr(style, "tv_loss", never)
        transfer(network=net, style_weights=[0.0] * 8, content_layer=3)
        invert(network=net, content_layer=3, tv_weight=0.0)
        assert max(deepest) == 3
    deepest.clear()
    with monkeypatch.context() as patch:
        patch.setattr(style, "content_loss", never)
        transfer(network=net, content_weight=0.0, style_layers=(1, 4), style_weights=(1.0, 1.0))
        texture(network=net, style_layers=(1, 6), style_weights=(1.0, 0.0))
        assert max(deepest) == 4
    deepest.clear()
    transfer(network=net, content_weight=0.0, style_weights=[0.0] * 8, tv_weight=1e-3)
    assert not deepest


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_the_schedule(monkeypatch):
    rates = [style.learning_rate_at(step, 200, 3.0, 0.1) for step in range(200)]
    assert rates == [3.0] * 180 + [0.1] * 20
    assert [style.learning_rate_at(step, 10, 3.0, 0.1) for step in range(10)] == [3.0] * 9 + [0.1]
    used = []

    class Adam(torch.optim.Adam):
        def step(self):
            used.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    transfer(num_iterations=10, learning_rate=0.5)
    assert used == pytest.approx([0.5] * 9 + [0.1])
    used.clear()
    squeezenet = networks.SqueezeNet()
    transfer(network=squeezenet, num_iterations=10, image_size=40, style_size=40)
    assert used == pytest.approx([3.0] * 9 + [0.1])


def test_the_published_settings_are_those_of_squeezenet():
    preset = style.PRESETS[networks.SqueezeNet]
    assert (preset.image_size, preset.style_size) == (192, 192)
    assert (preset.content_layer, preset.content_weight) == (3, 6e-2)
    assert (preset.style_layers, preset.style_weights) == ((1, 4, 6, 7), (20000, 500, 12, 1))
    assert (preset.tv_weight, preset.learning_rate, preset.final_rate) == (5e-2, 3.0, 0.1)
    assert (preset.scales, preset.pixels, preset.match_colors) == (1, None, False)  # as it was: nothing added


def test_the_signature_is_the_published_one():
    parameters = inspect.signature(style.style_transfer).parameters
    names = [name for name, one in parameters.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert (
        names
        == (
            "content_image style_image image_size style_size content_layer content_weight style_layers style_weights "
            "tv_weight init_random"
        ).split()
    )
    assert parameters["init_random"].default is False


# VGG-16 is slow: one use shows that its settings work.
USES = [(kind, make) for kind in style.PRESETS for make in (transfer, texture, invert)]
USES = [(kind, make) for kind, make in USES if kind is not networks.VGG16 or make is transfer]


@pytest.mark.parametrize(("kind", "make"), USES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("optimizer", style.OPTIMIZERS)
def test_the_loss_falls(make, optimizer, kind):
    """In every use, on every network that has settings, by both optimisers; and the network is left as it was."""
    torch.manual_seed(0)
    net = NET if kind is networks.RandomNet else kind()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    losses = Losses()
    image = make(network=net, image_size=40, optimizer=optimizer, num_iterations=8, learning_rate=0.1, callback=losses)
    assert image.dtype == np.uint8 and image.ndim == 3 and min(image.shape[:2]) == 40
    assert losses[-1].loss < 0.98 * losses[0].loss
    assert [one.iteration for one in losses] == list(range(1, len(losses) + 1)) and losses[0].total == 8
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == wanted
    assert all(parameter.grad is None for parameter in net.parameters())


def test_values_are_held_to_what_an_image_shows():
    seen = []
    transfer(learning_rate=3.0, callback=lambda progress: seen.append(progress.tensor.clone()))
    low, high = preprocess(np.zeros((1, 1, 3), np.uint8)), preprocess(np.full((1, 1, 3), 255, np.uint8))
    assert all(bool(((x >= low - 1e-6) & (x <= high + 1e-6)).all()) for x in seen)
    assert (seen[1] == seen[1].amax((0, 2, 3), keepdim=True)).float().mean() > 0.1  # a step of 3 goes to the limits


def test_texture_and_inversion_are_transfer_with_a_weight_of_zero():
    height, width = CONTENT.shape[:2]
    made = transfer(content_weight=0.0, init_random=True)
    assert np.array_equal(made, texture(image_size=(height, width)))
    preset = style.PRESETS[networks.RandomNet]
    options = {"content_layer": 3, "content_weight": 1e-5, "tv_weight": preset.inversion_tv_weight, "init_random": True}
    made = transfer(style_weights=[0.0] * 8, match_colors=False, **options)
    assert np.array_equal(made, invert(**options))


@pytest.mark.parametrize("optimizer", style.OPTIMIZERS)
def test_the_same_seed_gives_the_same_bytes(optimizer):
    options = {"optimizer": optimizer, "scales": 2, "init_random": True}
    images = [transfer(seed=seed, **options) for seed in (0, 0, 1)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


CHANGES = {
    "image_size": 33,
    "style_size": 24,
    "content_layer": 1,
    "content_weight": 1.0,
    "style_layers": (0, 1, 3, 4, 6, 7, 9, 9),
    "style_weights": (6.0,) * 8,
    "tv_weight": 1e-2,
    "init_random": True,
    "network": networks.RandomNet(1),
    "optimizer": "lbfgs",
    "num_iterations": 4,
    "learning_rate": 0.2,
    "scales": 2,
    "match_colors": False,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_result(name):
    changes = {name: CHANGES[name]}
    if name == "style_layers":
        changes["style_weights"] = style.PRESETS[networks.RandomNet].style_weights
    plain, changed = transfer(), transfer(**changes)
    assert plain.shape != changed.shape or not np.array_equal(plain, changed)


def test_scales():
    """From coarse to fine; those at which an image is too small for the network are left out."""
    shapes = []
    options = {"num_iterations": 2, "callback": lambda progress: shapes.append(progress.image().shape[:2])}
    assert transfer(scales=2, **options).shape == CONTENT.shape
    full, half = CONTENT.shape[:2], tuple(side // 2 for side in CONTENT.shape[:2])
    assert shapes == [half, half, full, full]
    shapes.clear()
    transfer(scales=9, **options)
    assert shapes[0] == tuple(side // 4 for side in CONTENT.shape[:2]) and len(shapes) == 6  # 8 pixels: one is left


def test_weights_are_of_the_same_balance_at_every_scale():
    settings = style._settings("test", NET, style.PRESETS[networks.RandomNet], None, None, None, None, 0.5)
    pixels = 256 * 384
    assert settings.at(pixels, pixels).content_weight == pytest.approx(settings.content_weight)
    assert settings.at(pixels // 4, pixels).content_weight == pytest.approx(4 * settings.content_weight)
    assert settings.at(pixels // 4, pixels // 4).content_weight == pytest.approx(4 * settings.content_weight)
    # What the user says is meant for the size that the user says.
    assert settings.at(pixels // 4, pixels // 4).tv_weight == 0.5
    assert settings.at(pixels // 16, pixels // 4).tv_weight == 2.0
    published = networks.SqueezeNet()
    settings = style._settings("test", published, style.PRESETS[networks.SqueezeNet], None, None, None, None, None)
    assert settings.at(100, 100).content_weight == 6e-2


def test_what_comes_out(tmp_path):
    """What the three are for, in numbers: colours of the style, shapes of the content, the image from its features."""
    options = {"network": NET, "num_iterations": 25, "scales": 2}
    image = resize(PHOTOS["china"], 48)
    bloom = PHOTOS["flower"][85:355, 170:450]
    painted = style.style_transfer(image, bloom, 48, 48, **options).astype(float)
    colors = [one.reshape(-1, 3).mean(0) for one in (image, painted, resize(bloom, 48))]
    assert np.abs(colors[1] - colors[2]).max() < 0.3 * np.abs(colors[0] - colors[2]).max()
    edges = [np.hypot(*np.gradient(one.astype(float).mean(2))) for one in (image, painted)]
    assert np.corrcoef(edges[0].ravel(), edges[1].ravel())[0, 1] > 0.35
    found = style.feature_inversion(image, 48, **options | {"num_iterations": 80})
    assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.9
    made = style.texture_synthesis(bloom, 48, 48, **options).astype(float)
    assert np.abs(made.reshape(-1, 3).mean(0) - colors[2]).max() < 25
    assert abs(np.corrcoef(made.ravel(), resize(bloom, 48)[:48, :48].ravel())[0, 1]) < 0.8


def test_images_from_files_of_any_kind(tmp_path):
    Image.fromarray(CONTENT).convert("L").save(tmp_path / "grey.gif")
    Image.fromarray(np.dstack([STYLE, np.full(STYLE.shape[:2], 128, np.uint8)])).save(tmp_path / "clear.png")
    made = style.style_transfer(tmp_path / "grey.gif", str(tmp_path / "clear.png"), **TRANSFER)
    content, image = read_image(tmp_path / "grey.gif"), read_image(tmp_path / "clear.png")
    assert np.array_equal(made, style.style_transfer(content, image, **TRANSFER))
    thin = np.zeros((17, 90, 3), np.uint8)
    assert style.style_transfer(thin, STYLE[:, ::-1], **TRANSFER).shape == (32, 169, 3)


@pytest.mark.parametrize("make", [transfer, texture, invert])
def test_losses_that_are_no_numbers(make):
    broken = networks.RandomNet()
    with torch.no_grad():
        broken.features[0][0].bias[0] = float("nan")
    for optimizer in style.OPTIMIZERS:
        with complains(FloatingPointError, _function(make), "became nan", "iteration 1 of 3", "learning rate"):
            make(network=broken, optimizer=optimizer, **({} if make is invert else {}))
    with complains(FloatingPointError, "style_transfer", "became inf", "content inf"):
        transfer(content_weight=1e38, init_random=True)


def _function(make):
    return {transfer: "style_transfer", texture: "texture_synthesis", invert: "feature_inversion"}[make]


BAD = [
    (transfer, {"content_weight": -1}, ValueError, "content_weight"),
    (transfer, {"content_weight": float("nan")}, ValueError, "content_weight"),
    (transfer, {"tv_weight": "much"}, TypeError, "tv_weight"),
    (transfer, {"style_weights": (1.0, 2.0)}, ValueError, "style_weights", "8 style_layers", "2 entries"),
    (transfer, {"style_layers": (1, 2)}, ValueError, "style_weights", "2 style_layers", "0 entries"),
    (transfer, {"style_layers": (99,), "style_weights": (1,)}, IndexError, "style_layers[0]", "[0, 11)", "99"),
    (transfer, {"content_layer": -1}, IndexError, "content_layer", "-1"),
    (transfer, {"content_layer": 1.5}, TypeError, "content_layer", "float"),
    (transfer, {"image_size": 0}, ValueError, "image_size", "at least 1"),
    (transfer, {"image_size": 7}, ValueError, "conv4_2", "8 x 8", "got 7 x"),
    (transfer, {"style_size": 7}, ValueError, "conv4_2", "8 x 8", "got 7 x"),
    (transfer, {"optimizer": "sgd"}, ValueError, "optimizer", "adam, lbfgs", "'sgd'"),
    (transfer, {"num_iterations": 0}, ValueError, "num_iterations"),
    (transfer, {"scales": 0}, ValueError, "scales"),
    (transfer, {"seed": -1}, ValueError, "seed"),
    (transfer, {"seed": 2**63}, ValueError, "seed"),
    (transfer, {"learning_rate": 0}, ValueError, "learning_rate", "above 0"),
    (transfer, {"device": "tpu:x"}, ValueError, "device", "tpu:x"),
    (transfer, {"network": torch.nn.ReLU()}, TypeError, "network", "ReLU"),
    (transfer, {"network": networks.DigitsNet()}, ValueError, "network", "3 channels", "DigitsNet"),
    (transfer, {"content_weight": 0, "style_weights": [0] * 8}, ValueError, "above 0"),
    (texture, {"style_weights": [0] * 8}, ValueError, "style_weights"),
    (texture, {"image_size": (1, 2, 3)}, ValueError, "image_size", "got 3"),
    (invert, {"content_weight": 0}, ValueError, "content_weight"),
]


@pytest.mark.parametrize(("make", "changes", "error", "words"), [(*case[:3], case[3:]) for case in BAD])
def test_bad_arguments(make, changes, error, words):
    with complains(error, _function(make), *words):
        make(**changes)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (CONTENT.astype(np.float32), ValueError, ("content_image", "float32")),
        (CONTENT[..., 0], ValueError, ("content_image", "(32,")),
        (CONTENT[:0], ValueError, ("content_image", "(0,")),
        (17, TypeError, ("content_image", "a path or", "int")),
    ],
)
def test_bad_images(image, error, words):
    with complains(error, "style_transfer", *words):
        style.style_transfer(image, STYLE, **TRANSFER)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device():
    with complains(ValueError, "style_transfer", "device", "no CUDA device"):
        transfer(device="cuda")


# ---- colours and pictures --------------------------------------------------------------------------------------------


def test_match_colors():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 3))
    image = np.clip(128 + 20 * rng.normal(size=(50, 60, 3)), 0, 255).astype(np.uint8)
    palette = np.clip((100, 120, 140) + 9 * rng.normal(size=(40, 30, 3)) @ mix, 0, 255).astype(np.uint8)
    found = style.match_colors(image, palette)
    assert found.dtype == np.uint8 and found.shape == image.shape
    got, wanted = (one.reshape(-1, 3).astype(float) for one in (found, palette))
    np.testing.assert_allclose(got.mean(0), wanted.mean(0), atol=0.2)
    covariance = np.cov(wanted.T)
    np.testing.assert_allclose(np.cov(got.T), covariance, atol=0.03 * np.abs(covariance).max() + 0.3)
    assert np.abs(style.match_colors(image, image).astype(int) - image).max() <= 1
    # Bright stays bright: the map is that of a positive definite matrix.
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    bright = style.match_colors(grey, palette).astype(int).sum(2)[0]
    assert np.diff(bright).min() >= -2 and bright[-1] > bright[0] + 30  # but for rounding
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert np.abs(style.match_colors(flat, palette).reshape(-1, 3) - wanted.mean(0)).max() <= 1
    assert np.abs(style.match_colors(palette, flat).astype(int) - 7).max() <= 5
    with complains(TypeError, "match_colors", "'palette'", "list"):
        style.match_colors(image, [1])
    with complains(ValueError, "match_colors", "'image'", "(50, 60)"):
        style.match_colors(image[..., 0], palette)


def test_side_by_side():
    page = side_by_side([CONTENT, STYLE], ["one", "two words and then some more of them"])
    assert page.shape[0] > STYLE.shape[0] and page.shape[1] > CONTENT.shape[1] + STYLE.shape[1]
    for image in (CONTENT, STYLE):  # pixel for pixel
        windows = np.lib.stride_tricks.sliding_window_view(page, image.shape)[..., 0, :, :, :]
        assert (windows == image).all((-1, -2, -3)).any()
    below = page[STYLE.shape[0] + 16 :]
    assert below.min() < 100  # a caption
    with complains(ValueError, "side_by_side", "images"):
        side_by_side([], [])
    with complains(ValueError, "side_by_side", "captions", "2 images", "got 1"):
        side_by_side([CONTENT, STYLE], ["one"])


# ---- the commands ----------------------------------------------------------------------------------------------------

COMMANDS = ("style", "texture", "invert")
QUICK = ("--size", "32", "--steps", "2", "--scales", "2")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "RandomNet", lambda: NET)  # drawn once for all tests: it takes a tenth of a second
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command(run, name, tmp_path):
    result = run(name, *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert 2 <= len(lines) <= 6
    assert lines[-1] == f"picture  {tmp_path / f'fastrnn-{name}.png'}"
    first, last, iterations = re.search(
        r"^loss +(\S+), then (\S+) .* after (\d+) iterations", result.stdout, re.M
    ).groups()
    assert float(first) > float(last) > 0 and int(iterations) == 4
    assert os.listdir(tmp_path) == [f"fastrnn-{name}.png"]
    picture = read_image(tmp_path / f"fastrnn-{name}.png")
    assert picture.shape[0] > 32 and picture.shape[1] > 2 * 32


@pytest.mark.parametrize("name", COMMANDS)
def test_files_frames_and_the_result_alone(run, name, tmp_path):
    save_image(tmp_path / "a.png", CONTENT)
    save_image(tmp_path / "b.jpg", STYLE)
    images = ("a.png", "b.jpg") if name == "style" else ("a.png",)
    options = ("--frames", "frames", "--frame-every", "2", "--steps", "5", "--scales", "2", "--size", "40")
    result = run(name, *images, *options, "--result", "r.png", "--out", "o.jpg", "--optimizer", "adam")
    assert result.exit_code == 0, result.output
    assert all(image in result.stdout for image in images)
    assert f"frames   6 in {tmp_path / 'frames'}" in result.stdout
    assert f"result   {tmp_path / 'r.png'}" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.jpg", "frames", "o.jpg", "r.png"]
    # 1, 3, 5, 7, 9 of the 10 iterations and the result, all of its size.
    frames = sorted(os.listdir("frames"))
    assert frames == [f"frame-{n:04d}.png" for n in range(1, 7)]
    made = read_image("r.png")
    assert all(read_image(Path("frames") / frame).shape == made.shape for frame in frames)
    assert np.array_equal(read_image(Path("frames") / frames[-1]), made)
    again = run(name, *images, "--steps", "5", "--scales", "2", "--size", "40", "--result", "again.png")
    assert again.exit_code == 0 and Path("again.png").read_bytes() == Path("r.png").read_bytes()


STYLE_OPTIONS = [
    ("--style-size", "20"),
    ("--content-weight", "1"),
    ("--style-strength", "100"),
    ("--tv-weight", "0.1"),
    ("--keep-colors",),
    ("--init-random",),
    ("--optimizer", "lbfgs"),
    ("--scales", "1"),
    ("--steps", "3"),
    ("--seed", "1", "--init-random"),
]


def test_every_option_of_style_changes_the_result(run):
    found = []
    for options in [(), *STYLE_OPTIONS]:
        result = run("style", *QUICK, *options, "--result", "r.png")
        assert result.exit_code == 0, result.output
        found.append(Path("r.png").read_bytes())
    assert len(set(found)) == len(found)


def test_options_of_texture_and_invert(run):
    for name, all_options in {
        "texture": [("--texture-size", "20"), ("--tv-weight", "0.1"), ("--seed", "1"), ("--size", "33")],
        "invert": [("--layer", "conv1_2"), ("--layer", "9"), ("--tv-weight", "0.1"), ("--seed", "1")],
    }.items():
        found = []
        for options in [(), *all_options]:
            result = run(name, *QUICK, *options, "--result", "r.png")
            assert result.exit_code == 0, result.output
            found.append(Path("r.png").read_bytes())
        assert len(set(found)) == len(found)


def test_squeezenet_from_a_file(run):
    torch.manual_seed(0)
    torch.save(networks.SqueezeNet().state_dict(), "squeezenet.pth")
    for name in COMMANDS:
        result = run(name, "--network", "squeezenet", "--weights", "squeezenet.pth", "--size", "48", "--steps", "2")
        assert result.exit_code == 0, result.output
        assert "SqueezeNet" in result.stdout and " 2 iterations" in result.stdout


def _files(folder):
    save_image(folder / "tiny.png", CONTENT[:5, :5])
    (folder / "torn.png").write_bytes((folder / "tiny.png").read_bytes()[:60])
    (folder / "text.png").write_text("no image")
    (folder / "folder").mkdir()
    torch.save({"features.0.weight": torch.zeros(2, 2)}, folder / "other.pth")
    (folder / "junk.pth").write_bytes(b"junk")


WRONG = [
    (("nowhere.png",), ("nowhere.png",)),
    (("torn.png",), ("torn.png",)),
    (("text.png",), ("text.png",)),
    (("folder",), ("folder",)),
    (("--size", "3"), ("conv4_2|conv3_2", "got 3 x")),
    (("--size", "0"), ("--size",)),
    (("--steps", "0"), ("--steps",)),
    (("--seed", "-1"), ("--seed",)),
    (("--tv-weight", "-1"), ("tv_weight", "-1")),
    (("--tv-weight", "nan"), ("tv_weight", "nan")),
    (("--optimizer", "sgd"), ("sgd", "adam, lbfgs")),
    (("--network", "digits"), ("digits", "squeezenet")),
    (("--network", "squeezenet"), ("squeezenet1_1-b8a52dc0.pth",)),
    (("--network", "vgg16"), ("vgg16-397923af.pth",)),
    (("--network", "squeezenet", "--weights", "nowhere.pth"), ("nowhere.pth",)),
    (("--network", "squeezenet", "--weights", "junk.pth"), ("junk.pth",)),
    (("--network", "squeezenet", "--weights", "other.pth"), ("other.pth", "features.0.weight", "(64, 3, 3, 3)")),
    (("--weights", "other.pth"), ("random",)),
    (("--device", "tpu"), ("tpu", "cpu, cuda")),
    (("--out", "picture.doc"), ("picture.doc",)),
    (("--out", "nowhere/picture.png"), ("nowhere",)),
    (("--result", "folder"), ("folder",)),
    (("--frames", "text.png"), ("text.png",)),
    (("--frames", "nowhere/frames"), ("nowhere",)),
]
# What every command passes on by itself; the rest is one and the same code.
EACH = "nowhere.png --size --tv-weight --optimizer --network --weights --out --result --frames".split()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (name, *case)
        for name in COMMANDS
        for number, case in enumerate(WRONG)
        if name == "style" or case[0][0] in EACH and case[0][0] not in [before[0][0] for before in WRONG[:number]]
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_is_wrong_ends_in_one_line(run, tmp_path, name, arguments, words):
    _files(tmp_path)
    before = sorted(os.listdir(tmp_path))
    result = run(name, *arguments, *(() if "--size" in arguments else ("--size", "32")))
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert all(re.search(word.replace("(", r"\(").replace(")", r"\)"), result.stderr) for word in words), result.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_wrong_with_one_command(run, tmp_path):
    _files(tmp_path)
    for arguments, word in [
        (("style", "tiny.png", "torn.png"), "torn.png"),
        (("style", "--style-size", "3"), "conv4_2"),
        (("style", "--style-strength", "-1"), "style_weights"),
        (("style", "--content-weight", "inf"), "content_weight"),
        (("texture", "--texture-size", "3"), "conv4_2"),
        (("invert", "--layer", "conv9_9"), "conv9_9"),
        (("invert", "--layer", "11"), "0 to 10"),
    ]:
        result = run(*arguments, "--size", "32", "--steps", "1")
        assert result.exit_code == 2 and result.stdout == "", result.output
        assert len(result.stderr.splitlines()) == 1 and word in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", COMMANDS)
def test_cuda_that_is_not_there(run, name):
    result = run(name, "--device", "cuda")
    assert result.exit_code == 2 and "no CUDA device" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_loss_that_is_no_number_ends_in_one_line(run, name, monkeypatch, tmp_path):
    broken = deepcopy(NET)
    with torch.no_grad():
        broken.features[0][0].bias[0] = float("nan")
    monkeypatch.setattr(networks, "RandomNet", lambda: broken)
    result = run(name, *QUICK)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "became nan" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_nothing_half_done(run, name, monkeypatch, tmp_path):
    evaluate = style._Run._evaluate

    def interrupted(self, *arguments):
        if self.done == 3:
            raise KeyboardInterrupt
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(style._Run, "_evaluate", interrupted)
        result = run(name, *QUICK, "--result", "r.png", "--frames", "f", "--frame-every", "1")
    assert result.exit_code == 130 and result.stderr.strip() == "fastrnn: interrupted"
    assert os.listdir(tmp_path) == ["f"]
    assert sorted(os.listdir("f")) == ["frame-0001.png", "frame-0002.png", "frame-0003.png"]  # whole ones
    assert all(read_image(Path("f") / frame).shape[0] == 32 for frame in os.listdir("f"))

    def no_room(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrnn.vision.style_pictures.side_by_side", no_room)
    assert run(name, *QUICK, "--result", "r.png").exit_code == 130
    assert os.listdir(tmp_path) == ["f"]


def test_frames_and_crops_are_where_they_should_be():
    for name, rows, columns in command.CROPS.values():
        height, width = PHOTOS[name][rows, columns].shape[:2]
        assert min(height, width) >= 190
