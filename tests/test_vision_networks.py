"""The networks: their parameters against the published ones, their values against formulas, and files of weights."""

import io
import os
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from harness import complains
from test_vision_images import damaged

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
functional = torch.nn.functional

from fastrnn import conformance  # noqa: E402
from fastrnn.cli import vision_options  # noqa: E402
from fastrnn.vision import data, images, networks  # noqa: E402
from fastrnn.vision.networks import VGG16, DigitsNet, RandomNet, SqueezeNet  # noqa: E402

ALL = [SqueezeNet, VGG16, RandomNet, DigitsNet]


def image_for(network, side=None, count=2, seed=0):
    side = side or (28 if network.channels == 1 else 64)
    return torch.rand(count, network.channels, side, side, generator=torch.Generator().manual_seed(seed))


# ---- the published parameters ----------------------------------------------------------------------------------------

# Index among the modules of `features`: input channels, squeezed, expanded by 1 x 1 and as many by 3 x 3.
FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
# Likewise of VGG-16: filters of each convolution.
CONVOLUTIONS = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strict=True,
    )
)


def published_squeezenet():
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    for index, (inputs, squeezed, expanded) in FIRES.items():
        for name, shape in (
            ("squeeze", (squeezed, inputs, 1, 1)),
            ("expand1x1", (expanded, squeezed, 1, 1)),
            ("expand3x3", (expanded, squeezed, 3, 3)),
        ):
            shapes[f"features.{index}.{name}.weight"] = shape
            shapes[f"features.{index}.{name}.bias"] = shape[:1]
    return shapes | {"classifier.1.weight": (1000, 512, 1, 1), "classifier.1.bias": (1000,)}


def published_vgg16():
    shapes, inputs = {}, 3
    for index, filters in CONVOLUTIONS.items():
        shapes[f"features.{index}.weight"] = (filters, inputs, 3, 3)
        shapes[f"features.{index}.bias"] = (filters,)
        inputs = filters
    return shapes


@pytest.mark.parametrize(
    "make, published, tensors, parameters",
    [(SqueezeNet, published_squeezenet, 52, 1_235_496), (VGG16, published_vgg16, 26, 14_714_688)],
)
def test_the_parameters_are_those_of_the_published_checkpoint(make, published, tensors, parameters):
    found = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    assert found == published() and list(found) == list(published())
    assert len(found) == tensors and sum(np.prod(shape) for shape in found.values()) == parameters


def test_another_number_of_classes():
    network = SqueezeNet(num_classes=7)
    assert network.num_classes == 7 and network(image_for(network)).shape == (2, 7)
    for wrong in (0, 2.0, True, "7"):
        with complains(ValueError, "SqueezeNet", "'num_classes'", repr(wrong)):
            SqueezeNet(wrong)


# ---- values ----------------------------------------------------------------------------------------------------------


def squeezenet_by_hand(p, x):
    """Every output of SqueezeNet 1.1, in plain functions: the paper's figure 1, and the changes of version 1.1."""
    out = [functional.conv2d(x, p["features.0.weight"], p["features.0.bias"], stride=2)]
    out.append(out[-1].clamp(min=0))
    for index in range(2, 13):
        x = out[-1]
        if index in FIRES:
            w, b = ({n: p[f"features.{index}.{n}.{k}"] for n in ("squeeze", "expand1x1", "expand3x3")} for k in "wb")
            s = functional.conv2d(x, w["squeeze"], b["squeeze"]).clamp(min=0)
            e1 = functional.conv2d(s, w["expand1x1"], b["expand1x1"])
            e3 = functional.conv2d(functional.pad(s, (1, 1, 1, 1)), w["expand3x3"], b["expand3x3"])
            out.append(torch.cat([e1.clamp(min=0), e3.clamp(min=0)], 1))
        else:
            # Windows of 3 every 2, the last one over the edge where the size asks for it.
            right, below = (-(size - 3) % 2 for size in (x.shape[3], x.shape[2]))
            padded = functional.pad(x, (0, right, 0, below), value=-torch.inf)
            out.append(padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)))
    scores = functional.conv2d(out[-1], p["classifier.1.weight"], p["classifier.1.bias"]).clamp(min=0)
    return [*out, scores.flatten(2).mean(2)]


def vgg16_by_hand(p, x):
    out = []
    for index in range(31):
        if index in CONVOLUTIONS:
            padded = functional.pad(x, (1, 1, 1, 1))
            x = functional.conv2d(padded, p[f"features.{index}.weight"], p[f"features.{index}.bias"])
        elif index in (4, 9, 16, 23, 30):
            n, c, h, w = x.shape
            x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        else:
            x = x.clamp(min=0)
        out.append(x)
    return out


def short(state, dtype):
    """Parameters of a dtype; ``.weight`` and ``.bias`` of the modules within a fire module as ``.w`` and ``.b``."""
    found = {name: value.to(dtype) for name, value in state.items()}
    return found | {name.replace(".weight", ".w").replace(".bias", ".b"): value for name, value in found.items()}


@pytest.mark.parametrize("make, by_hand", [(SqueezeNet, squeezenet_by_hand), (VGG16, vgg16_by_hand)])
@pytest.mark.parametrize("size", [(64, 64), (49, 38)])
def test_the_values_are_those_of_the_formulas(make, by_hand, size):
    """At sizes at which every window fits, and at which every pooling reaches over the edge, or leaves a row out."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for value in network.parameters():  # He's, so that the last stages are no smaller than the first ones
            scale = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
            value.copy_(scale * torch.randn(value.shape))
        x = torch.randn(2, 3, *size)
        found = network.extract_features(x)
        if network.num_classes:
            found.append(network(x))
        oracle = by_hand(short(network.state_dict(), torch.float32), x)
        exact = by_hand(short(network.state_dict(), torch.float64), x.double())
    assert len(found) == len(oracle) == len(exact)
    for stage, (a, b, c) in enumerate(zip(found, oracle, exact, strict=True)):
        assert a.shape == b.shape and a.dtype == torch.float32
        assert c.abs().max() > 0.1, stage
        error, bound = conformance.error_and_bound(a.numpy(), b.numpy(), c.numpy(), np.float32)
        assert conformance.within(error, bound), f"stage {stage}: off by {error:.3g}, allowed {bound:.3g}"


def test_the_names_of_vgg16s_stages():
    """conv3_3, say, is the third convolution of the third block; published work names layers so."""
    names = VGG16().stages
    assert [names[i] for i in (0, 1, 4, 5, 8, 14, 15, 16, 22, 28, 30)] == (
        "conv1_1 relu1_1 pool1 conv2_1 relu2_2 conv3_3 relu3_3 pool3 relu4_3 conv5_3 pool5".split()
    )


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ALL)
def test_features_are_the_outputs_of_the_stages(make):
    network = make()
    assert not network.training and not any(module.training for module in network.modules())
    assert len(network.stages) == len(set(network.stages)) == len(network.features)
    x = image_for(network)
    with torch.no_grad():
        every = network.extract_features(x)
        assert len(every) == len(network.stages)
        for stage, out in enumerate(every):
            assert torch.equal(network.features[: stage + 1](x), out)
        last = len(every) - 1
        for layers in ([], [0], [last], [last, 0, 2], [1, 1], (2,), np.array([2, 1]), range(2)):
            found = network.extract_features(x, layers)
            assert [torch.equal(a, every[i]) for a, i in zip(found, layers, strict=True)] == [True] * len(layers)
        if network.num_classes:
            assert network(x).shape == (2, network.num_classes)
        else:
            assert torch.equal(network(x), every[-1])


@pytest.mark.parametrize("make", ALL)
def test_no_stage_is_computed_beyond_the_last_one_wanted(make):
    network = make()
    ran = []
    for stage, module in enumerate(network.features):
        module.register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    network.extract_features(image_for(network), [2, 1])
    assert ran == [0, 1, 2]
    ran.clear()
    network.extract_features(image_for(network), [])
    assert ran == []


@pytest.mark.parametrize("make", ALL)
def test_stages_and_images_that_are_not_there(make):
    network, name = make(), make.__name__
    x = image_for(network)
    count = len(network.stages)
    for layers, word in (([0, count], f"got {count} at position 1"), ([-1], "got -1 at position 0")):
        with complains(IndexError, f"{name}.extract_features", "'layers'", f"[0, {count})", word):
            network.extract_features(x, layers)
    with complains(TypeError, f"{name}.extract_features", "'layers'", "str at position 0"):
        network.extract_features(x, ["conv1"])
    wrong = [
        (TypeError, x.numpy(), "ndarray"),
        (TypeError, (255 * x).to(torch.uint8), "torch.uint8"),
        (ValueError, x[0], f"shape {tuple(x.shape[1:])}"),
        (ValueError, torch.cat([x, x], 1), f"shape (2, {2 * network.channels}, "),
    ]
    for kind, value, word in wrong:
        with complains(kind, f"{name}.extract_features", "'x'", f"(N, {network.channels}, H, W)", word):
            network.extract_features(value)
        with complains(kind, name, "'x'", word):
            network(value)


@pytest.mark.parametrize("make", ALL)
def test_the_smallest_image_is_the_smallest(make):
    """One pixel less, and PyTorch itself refuses it."""
    network = make()
    with torch.no_grad():
        for last in range(len(network.stages)):
            side = 1
            while True:
                try:
                    out = network.features[: last + 1](image_for(network, side, 1))
                    assert out.numel()
                    break
                except RuntimeError:
                    side += 1
            networks.check_size(network, side, side + 1, [0, last])
            assert network.extract_features(image_for(network, side, 1), [last])[0].numel()
            if side > 1:
                words = (f"stage {last} ({network.stages[last]})", make.__name__, f"{side} x {side} pixels")
                with complains(ValueError, "check_size", *words, f"got {side} x {side - 1}"):
                    networks.check_size(network, side, side - 1, [last, 0])
                with complains(ValueError, "check_size", *words):
                    network.extract_features(image_for(network, side - 1, 1), [last])
    networks.check_size(network, 1, 1, [])
    with complains(IndexError, "check_size", "'layers'"):
        networks.check_size(network, 64, 64, [99])
    if make is not DigitsNet:
        with complains(ValueError, "check_size", f"stage {len(network.stages) - 1} "):
            networks.check_size(network, 1, 1)


# ---- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed():
    state = torch.get_rng_state()
    first, again, other = (RandomNet(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    # Other people's draws do not depend on whether a network was made before.
    assert torch.equal(torch.get_rng_state(), state)
    with complains(ValueError, "RandomNet", "'seed'", "-1"):
        RandomNet(-1)
    with complains(TypeError, "RandomNet", "'seed'", "float"):
        RandomNet(1.0)


@pytest.mark.parametrize("name", ["china", "flower"])
def test_random_activations_neither_vanish_nor_explode(name):
    network = RandomNet()
    x = images.preprocess(images.resize(images.photographs()[name], 96))
    for stage, out in zip(network.stages, network.extract_features(x), strict=True):
        assert 0.2 < out.std() < 10, f"{stage}: {out.std():.3g}"
        assert (out.amax((0, 2, 3)) - out.amin((0, 2, 3)) > 0).float().mean() > 0.9, (
            f"{stage}: filters that see nothing"
        )
    assert not any(value.requires_grad for value in network.parameters())


# ---- digits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """A training of a second."""
    monkeypatch.setattr(networks, "TRAINING", networks.Training(epochs=3))
    monkeypatch.setattr(networks, "ROBUST", networks.Training(epochs=3, attack=1.5, attack_steps=1))


def accuracy(network):
    x, labels = data.digits("test")
    with torch.no_grad():
        return (network(x).argmax(1) == labels).float().mean().item()


def gradient_on_ink(network):
    """Share of the gradient of the right score that lies on the strokes."""
    x, labels = data.digits("test")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[torch.arange(len(x)), labels].sum(), x)
    return (gradient.abs()[x > 0.3].sum() / gradient.abs().sum()).item()


def test_digits_are_read():
    """By the networks that the commands use, from the user's cache; where they are not, training takes 25 seconds."""
    plain, robust = (networks.digits_classifier(robust=robust) for robust in (False, True))
    assert accuracy(plain) >= 0.97 and accuracy(robust) >= 0.97
    # Strokes cover a quarter of the image.
    assert gradient_on_ink(robust) > 0.55 and gradient_on_ink(robust) > gradient_on_ink(plain) + 0.08


def test_the_classifier_is_trained_once(tmp_path, quick, monkeypatch):
    state, steps = torch.get_rng_state(), []
    first = networks.digits_classifier(tmp_path, progress=lambda *step: steps.append(step))
    assert accuracy(first) > 0.85
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [(n + 1, 69) for n in range(69)]
    (path,) = (tmp_path / "vision").iterdir()
    assert path.name == "digits-0.safetensors"

    trained = []
    monkeypatch.setattr(networks, "_trained", lambda seed, *_: trained.append(seed) or DigitsNet())
    again = networks.digits_classifier(tmp_path, progress=lambda *_: pytest.fail("nothing was to be done"))
    assert not trained and not again.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))

    def is_replaced(seed=0, robust=False):
        for expected in ([seed], []):
            trained.clear()
            networks.digits_classifier(tmp_path, seed, robust)
            assert trained == expected

    is_replaced(seed=1)  # a file of its own
    is_replaced(robust=True)
    content = path.read_bytes()
    for wrong in (b"", content[:100], content[:-4], content[:-1] + bytes([content[-1] ^ 1]), b"text"):
        path.write_bytes(wrong)
        is_replaced()
    monkeypatch.setattr(networks, "TRAINING", networks.Training(epochs=4))
    is_replaced()
    files = sorted(os.listdir(tmp_path / "vision"))
    assert files == ["digits-0.safetensors", "digits-1.safetensors", "digits-robust-0.safetensors"]


def test_the_same_seed_trains_the_same_network():
    training = networks.Training(epochs=1, attack=1.0)
    first, again, other = (networks._trained(seed, training) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)


def test_a_cache_that_cannot_be_written(tmp_path, quick, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(networks, "_trained", lambda *_: pytest.fail("found out too late"))
    with complains(OSError, "digits_classifier", tmp_path / "file" / "vision", "FASTRNN_CACHE"):
        networks.digits_classifier(tmp_path / "file")


@pytest.mark.parametrize(
    "changed", [{"shift": 0.0}, {"turn": 0.0}, {"stretch": 0.0}, {"noise": 0.0}, {"attack": 0.5}, {"weight_decay": 0.1}]
)
def test_every_setting_of_the_training_counts(changed, monkeypatch):
    few = data.digits()[0][:64], data.digits()[1][:64]
    monkeypatch.setattr(networks, "digits", lambda split: few)
    base = networks.Training(epochs=2)
    first, other = (networks._trained(0, training) for training in (base, replace(base, **changed)))
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)


def test_misleading_changes_keep_to_their_size():
    training = networks.Training(attack=1.5)
    x, labels = data.digits("test")
    network = DigitsNet()
    changed = networks._misleading(network, x, labels, torch.Generator().manual_seed(0), training)
    sizes = (changed - x).flatten(1).norm(dim=1)
    assert 0.5 < sizes.max() <= 1.5001 and not changed.requires_grad and 0 <= changed.min() and changed.max() <= 1
    with torch.no_grad():
        losses = [functional.cross_entropy(network(shown), labels) for shown in (x, changed)]
    assert losses[1] > losses[0]
    assert all(value.grad is None for value in network.parameters())


def test_an_interrupted_training_leaves_nothing(tmp_path, quick):
    def stop(done, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        networks.digits_classifier(tmp_path, progress=stop)
    assert not os.listdir(tmp_path / "vision")


def test_digits_of_another_size():
    with complains(ValueError, "DigitsNet", "(N, 1, 28, 28)", "(1, 1, 32, 32)"):
        DigitsNet()(torch.zeros(1, 1, 32, 32))


# ---- files of weights ------------------------------------------------------------------------------------------------

KINDS = ("safetensors", "pth", "legacy")


def written(path, state, kind):
    """The file of a state dict, in one of three formats."""
    path = path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        safetensors.save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    return path


def drawn(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in network.state_dict().items()}


def holds(network, state):
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_loaded(tmp_path, kind):
    network = SqueezeNet()
    state = drawn(network)
    path = written(tmp_path, state, kind)
    assert networks.load_weights(network, path) is network and holds(network, state)
    path.unlink()  # it holds them itself
    assert network(image_for(network)).isfinite().all()

    halves = {name: value.half() for name, value in state.items()}
    networks.load_weights(network, written(tmp_path, halves, kind))
    assert holds(network, {name: value.float() for name, value in halves.items()})
    assert network.features[0].weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_classifier_in_a_file_of_vgg16_is_passed_over(tmp_path, kind, capsys, monkeypatch):
    network = VGG16()
    state = drawn(network)
    more = {"classifier.0.weight": torch.zeros(4, 5), "classifier.6.bias": torch.full((3,), torch.nan)}
    path = written(tmp_path, state | more, kind)
    networks.load_weights(network, path)
    assert holds(network, state) and network.ignored == tuple(more)
    vision_options.load_network("vgg16", path)
    assert capsys.readouterr().out == f"weights  {path}: 2 parameters of its classifier are not used\n"
    networks.load_weights(network, written(tmp_path, state, kind))
    assert network.ignored == ()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit(tmp_path, kind):
    network = DigitsNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    good = drawn(network)
    name, shape = "features.0.0.weight", "(16, 1, 5, 5)"
    without = {key: value for key, value in good.items() if key != name}
    for state, *words in (
        (without, f"expected parameter '{name}' of shape {shape}, got none"),
        (good | {name: torch.zeros(16, 1, 3, 3)}, f"'{name}' of shape {shape}, got (16, 1, 3, 3)"),
        (good | {"head.bias": torch.zeros(3)}, "expected no parameter 'head.bias', got one of shape (3,)"),
        (good | {name: torch.zeros(16, 1, 5, 5, dtype=torch.int32)}, f"'{name}'", "torch.int32"),
        (good | {name: torch.full((16, 1, 5, 5), torch.inf)}, f"'{name}'", "NaN or infinity"),
        ({}, f"'{name}'", "and 5 more"),
        (drawn(SqueezeNet(2)), f"'{name}'", "more"),
    ):
        path = written(tmp_path, state, kind)
        with complains(ValueError, "load_weights", f"{path} does not fit DigitsNet", *words):
            networks.load_weights(network, path)
        assert holds(network, before)


def test_files_that_hold_no_weights(tmp_path):
    network = DigitsNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def refused(path, *words):
        with complains(ValueError, "load_weights", path, *words):
            networks.load_weights(network, path)
        assert holds(network, before)

    refused(tmp_path / "none.pth", "found nothing")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "found a folder")
    refused(tmp_path / "weights.h5", ".safetensors", "'.h5'")
    for suffix in ("pth", "safetensors"):
        for content in (b"", b"text", bytes(1000)):
            (tmp_path / f"bad.{suffix}").write_bytes(content)
            refused(tmp_path / f"bad.{suffix}", "truncated, damaged or of another kind", f"{len(content):,} bytes")
    for content, word in (([1, 2], "list"), ({"a": 1}, "int under 'a'"), ({1: torch.zeros(1)}, "Tensor under 1")):
        torch.save(content, tmp_path / "other.pth")
        refused(tmp_path / "other.pth", "expected tensors by name", word)
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 1 << 60))
    refused(tmp_path / "huge.safetensors")


class Harmful:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_in_a_file_is_not_run(tmp_path):
    for name, write in (
        ("a.pth", lambda path: torch.save({"a": Harmful(tmp_path / "ran")}, path)),
        ("b.pth", lambda path: path.write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))),
    ):
        write(tmp_path / name)
        with complains(ValueError, "load_weights", name):
            networks.load_weights(DigitsNet(), tmp_path / name)
        assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_an_archive_that_unpacks_to_more(tmp_path):
    path = written(tmp_path, drawn(DigitsNet()), "pth")
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    with complains(ValueError, "load_weights", "packed.pth", "compressed"):
        networks.load_weights(DigitsNet(), tmp_path / "packed.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_of_weights_end_in_a_value_error(tmp_path, kind):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 3, 3)

    network = Small()
    path = written(tmp_path, drawn(network), kind)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        path.write_bytes(damaged(content, rng))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        try:
            networks.load_weights(network, path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith("load_weights: ") and len(str(error)) < 1000
            assert holds(network, before)
        assert all(value.isfinite().all() for value in network.parameters())
    assert refused > 100


# ---- by name ---------------------------------------------------------------------------------------------------------


def test_networks_by_name(tmp_path, monkeypatch):
    plain, strong = DigitsNet(), DigitsNet()
    monkeypatch.setattr(networks, "digits_classifier", lambda robust, progress: [plain, strong][robust])
    assert networks.build("digits") is plain and networks.build("digits-robust") is strong
    assert isinstance(networks.build("random"), RandomNet)
    for name, make in (("squeezenet", SqueezeNet), ("vgg16", VGG16), ("digits", DigitsNet)):
        state = drawn(make())
        network = networks.build(name, written(tmp_path, state, "pth"))
        assert type(network) is make and holds(network, state)
        assert not network.training and not any(value.requires_grad for value in network.parameters())


def test_networks_that_cannot_be_built(tmp_path):
    with complains(ValueError, "build", "'name'", *networks.NETWORKS, "'alexnet'"):
        networks.build("alexnet")
    for name, file in (("squeezenet", "squeezenet1_1-b8a52dc0.pth"), ("vgg16", "vgg16-397923af.pth")):
        with complains(ValueError, "build", name, "needs a file of weights", file):
            networks.build(name)
    with complains(ValueError, "build", "'random'", "x.pth"):
        networks.build("random", "x.pth")
    with complains(ValueError, "load_weights", "none.pth"):
        networks.build("squeezenet", tmp_path / "none.pth")


def test_the_bar_of_the_training(monkeypatch, capsys):
    """Where someone watches, from the first step on; nowhere else."""
    from rich.console import Console

    from fastrnn.cli import common

    for watched in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(common, "interactive", lambda watched=watched: watched)
        monkeypatch.setattr(
            common, "Console", lambda screen=screen, **_: Console(file=screen, force_terminal=True, width=120)
        )
        with vision_options.training_bar() as progress:
            assert "training" not in screen.getvalue()
            progress(3, 8)
            progress(8, 8)
        assert ("3/8" in screen.getvalue() or "8/8" in screen.getvalue()) == watched
