"""Convolutional networks to look into: SqueezeNet 1.1, VGG-16, a small reader of digits, and one of random weights.

Every network is an ``nn.Module`` in eval mode whose `extract_features` gives the outputs of its numbered stages, which
are named in its `stages`. Weights come from files; nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from fastrnn.checks import Arguments
from fastrnn.runs import cache_dir
from fastrnn.vision.data import SIDE, digits
from fastrnn.vision.images import write_file

__all__ = [
    "NETWORKS",
    "DigitsNet",
    "Network",
    "RandomNet",
    "SqueezeNet",
    "VGG16",
    "build",
    "check_size",
    "digits_classifier",
    "load_weights",
]

NETWORKS = ("random", "squeezenet", "vgg16", "digits", "digits-robust")

# The files of torchvision whose parameters have these names, by network.
PUBLISHED = {"squeezenet": "squeezenet1_1-b8a52dc0.pth", "vgg16": "vgg16-397923af.pth"}


class Network(nn.Module):
    """What the networks have in common: a row of stages, and perhaps a classifier after it.

    Attributes
    ----------
    features : nn.Sequential
        The stages.
    stages : tuple of str
        Their names.
    channels : int
        Channels of the images that it takes: 3 as of `images.preprocess`, or 1.
    num_classes : int or None
        How many scores it gives for an image; None if it does not classify.
    ignored : tuple of str
        Parameters of the file last loaded that it has no use for; see `load_weights`.
    """

    features: nn.Sequential
    stages: tuple[str, ...]
    channels = 3
    num_classes: int | None = None
    ignored: tuple[str, ...] = ()

    def extract_features(self, x: torch.Tensor, layers: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Outputs of stages.

        Parameters
        ----------
        x : float Tensor (N, C, H, W)
            Images, of as many channels as the network takes.
        layers : sequence of int, optional
            Indices into `stages`, in any order. Default: all.

        Returns
        -------
        list of Tensor
            One for each of `layers`, in their order. Nothing is computed beyond the last stage wanted.

        Raises
        ------
        ValueError, TypeError, IndexError
            `x` has another shape or dtype or is too small for the stages, or there is no such stage.
        """
        function = f"{type(self).__name__}.extract_features"
        wanted = _layers(function, self, layers)
        self._check(function, x, wanted)
        found = {}
        for index in range(max(wanted, default=-1) + 1):
            x = self.features[index](x)
            if index in wanted:
                found[index] = x
        return [found[index] for index in wanted]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores (N, num_classes) where it classifies, else the output of the last stage."""
        self._check(type(self).__name__, x, range(len(self.stages)))
        return self._classify(self.features(x))

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _check(self, function: str, x: Any, layers: Sequence[int]) -> None:
        expected = f"be a floating-point Tensor (N, {self.channels}, H, W)"
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{function}: argument 'x' must {expected}, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{function}: argument 'x' must {expected}, got {x.dtype}")
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"{function}: argument 'x' must {expected}, got shape {tuple(x.shape)}")
        if len(layers):
            check_size(self, x.shape[2], x.shape[3], layers)


# ---- SqueezeNet ------------------------------------------------------------------------------------------------------


class Fire(nn.Module):
    """A layer of 1 x 1 filters that squeezes the channels, and one of 1 x 1 and 3 x 3 filters side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(Network):
    """SqueezeNet 1.1: AlexNet's accuracy on ImageNet with 1,235,496 parameters.

    Parameters have the names that they have in torchvision's checkpoint.

    Parameters
    ----------
    num_classes : int
        How many classes it tells apart.

    References
    ----------
    Iandola et al. 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"; version
    1.1 is the authors' own, of the same year.
    """

    stages = tuple("conv1 relu1 pool1 fire2 fire3 pool3 fire4 fire5 pool5 fire6 fire7 fire8 fire9".split())

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"SqueezeNet: argument 'num_classes' must be a whole number above 0, got {num_classes!r}")
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, num_classes, 1), nn.ReLU())
        self.eval()

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x).mean((2, 3))


# ---- VGG-16 ----------------------------------------------------------------------------------------------------------


class VGG16(Network):
    """The convolutional part of VGG-16, configuration D: 14,714,688 parameters.

    Parameters have the names that they have in torchvision's checkpoint. It gives features, no class scores: the
    classifier, nine tenths of the file, is not built.

    References
    ----------
    Simonyan, Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition".
    """

    stages = tuple(
        name
        for block, convolutions in enumerate((2, 2, 3, 3, 3), 1)
        for name in (
            *(f"{kind}{block}_{n}" for n in range(1, convolutions + 1) for kind in ("conv", "relu")),
            f"pool{block}",
        )
    )

    def __init__(self) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        inputs = 3
        for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                modules += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.eval()


# ---- random weights --------------------------------------------------------------------------------------------------


class RandomNet(Network):
    """Features like VGG's from weights that nobody trained, the same for the same seed.

    Blocks of 3 x 3 convolutions and ReLU with average pooling between them. The filters are drawn from a normal
    distribution; each is then scaled and shifted so that its outputs have mean 0 and variance 1 on noise with the
    spectrum and the colours of photographs: without this, activations of deep random networks vanish, explode, or all
    look alike. Beyond its border an image goes on with the pixels of the border: zeros there would be a pattern of
    their own, and come back in textures.

    Parameters
    ----------
    seed : int
        Draws the weights.

    References
    ----------
    He, Wang, Hopcroft 2016, "A Powerful Generative Model Using Random Weights for the Deep Image Representation".
    Ustyuzhaninov, Brendel, Gatys, Bethge 2017, "What does it take to generate natural textures?"
    """

    WIDTHS = ((32, 2), (64, 2), (128, 2), (128, 2))
    stages = tuple(
        name
        for block, (_, convolutions) in enumerate(WIDTHS, 1)
        for name in (
            *([f"pool{block - 1}"] if block > 1 else []),
            *(f"conv{block}_{n}" for n in range(1, convolutions + 1)),
        )
    )

    @torch.random.fork_rng(devices=[])  # nn.Module draws from the global generator
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_seed("RandomNet", seed))
        modules: list[nn.Module] = []
        inputs = 3
        for block, (width, convolutions) in enumerate(self.WIDTHS):
            if block:
                modules.append(nn.AvgPool2d(2, 2))
            for _ in range(convolutions):
                convolution = nn.Conv2d(inputs, width, 3, padding=1, padding_mode="replicate")
                modules.append(nn.Sequential(convolution, nn.ReLU()))
                inputs = width
        self.features = nn.Sequential(*modules)
        self._draw(generator)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        x = _pink_noise(4, 128, generator)
        for stage in self.features:
            if isinstance(stage, nn.Sequential):
                weight: Any = stage[0].weight
                bias: Any = stage[0].bias
                weight.copy_(torch.randn(weight.shape, generator=generator))
                out = functional.conv2d(x, weight, padding=1)
                mean, std = out.mean((0, 2, 3)), out.std((0, 2, 3))
                weight.div_(std[:, None, None, None])
                bias.copy_(-mean / std)
            x = stage(x)


# Grey, red against blue, green against both: colours of photographs vary along these axes, most along the first.
_COLOURS = ((1.0, 0.5, 0.2), (1.0, 0.0, -0.3), (1.0, -0.5, 0.3))


def _pink_noise(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Noise (count, 3, side, side) whose amplitude falls with the frequency, as that of photographs does.

    Every channel of every image has about mean 0 and variance 1.
    """
    white = torch.fft.rfft2(torch.randn(count, 3, side, side, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1 / side
    noise = torch.fft.irfft2(white / frequency, s=(side, side))
    noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((2, 3), keepdim=True)
    axes = functional.normalize(torch.tensor(_COLOURS), dim=1)
    return torch.einsum("rc,nchw->nrhw", axes, noise)


# ---- digits ----------------------------------------------------------------------------------------------------------


class DigitsNet(Network):
    """A small network that reads one digit of 28 x 28 pixels.

    It takes images from 0, paper, to 1, ink, of one channel. Pooling takes averages, which leaves smoother gradients
    than maxima do.
    """

    stages = ("conv1", "pool1", "conv2", "pool2", "conv3")
    channels = 1
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU()),
            nn.AvgPool2d(2),
            nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            nn.AvgPool2d(2),
            nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 10))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (N, 10) of images (N, 1, 28, 28)."""
        self._check("DigitsNet", x, ())
        if tuple(x.shape[2:]) != (SIDE, SIDE):
            raise ValueError(
                f"DigitsNet: argument 'x' must be a floating-point Tensor (N, 1, {SIDE}, {SIDE}), got shape "
                f"{tuple(x.shape)}"
            )
        return self._classify(self.features(x))

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x)


@dataclass(frozen=True)
class Training:
    """How `digits_classifier` trains. Whatever changes here makes older files in a cache stale."""

    version: int = 3  # to be counted up when something else changes that the weights depend on
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-3
    shift: float = 2.0  # pixels, to either side, up and down
    turn: float = 0.15  # radians
    stretch: float = 0.1  # logarithm of the scale
    noise: float = 0.2  # standard deviation at most; ink is 1
    attack: float = 0.0  # largest L2 norm of a change that is to mislead it
    attack_steps: int = 2


TRAINING = Training()
ROBUST = replace(TRAINING, epochs=18, learning_rate=3e-3, attack=1.5)


def digits_classifier(
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    robust: bool = False,
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> DigitsNet:
    """A `DigitsNet` that reads the digits of `data.digits`, trained once, in seconds, and then kept.

    It sees the training digits shifted, turned, stretched and with noise.

    Parameters
    ----------
    folder : path, optional
        The cache folder. Default: the environment variable ``FASTRNN_CACHE``, or the user's cache folder.
    seed : int
        Of the initial weights and of what happens to the digits.
    robust : bool
        Change each digit a little, too, so as to mislead the network, at every step of the training (adversarial
        training). The gradients of such a network follow the strokes of a digit, and not whatever pixels happen to tell
        one class from another.
    progress : callable, optional
        Called after each step of the training with the steps done and the steps in all; not at all where the network
        comes from the cache.

    Returns
    -------
    DigitsNet
        In eval mode. A file in the cache is used only if it is whole and comes from the same training; else it is
        replaced.

    Raises
    ------
    OSError
        The cache folder cannot be written.
    ImportError
        scikit-learn or safetensors is not installed.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras, Vladu 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", with
    changes of a bounded L2 norm.
    Tsipras, Santurkar, Engstrom, Turner, Madry 2019, "Robustness May Be at Odds with Accuracy": why gradients become
    readable by it.
    """
    seed = _seed("digits_classifier", seed)
    name, training = ("digits-robust", ROBUST) if robust else ("digits", TRAINING)
    path = (Path(folder) if folder is not None else cache_dir()) / "vision" / f"{name}-{seed}.safetensors"
    wanted = json.dumps(asdict(training) | {"seed": seed}, sort_keys=True)
    network = _kept(path, wanted)
    if network is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"digits_classifier: cannot make the folder {path.parent} ({error.strerror or error}); FASTRNN_CACHE "
                "names another"
            ) from error
        network = _trained(seed, training, progress)
        _keep(path, wanted, network)
    return network


def _trained(seed: int, training: Training, progress: Callable[[int, int], Any] | None = None) -> DigitsNet:
    images, labels = digits("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # nn.Module draws from the global generator
        torch.manual_seed(seed)
        network = DigitsNet()
    steps, done = training.epochs * -(-len(images) // training.batch_size), 0
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, steps)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(training.batch_size):
            shown = _distorted(images[rows], generator, training)
            if training.attack:
                shown = _misleading(network, shown, labels[rows], generator, training)
            loss = functional.cross_entropy(network(shown), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress(done, steps)
    return network


def _distorted(images: torch.Tensor, generator: torch.Generator, training: Training) -> torch.Tensor:
    """Each image shifted, turned, stretched, and with noise of a strength of its own."""
    count = len(images)
    turned, scaled, right, down = 2 * torch.rand(4, count, generator=generator) - 1
    angle = training.turn * turned
    scale = torch.exp(training.stretch * scaled)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    pixel = 2 / SIDE  # in affine_grid's units
    rows = (cos, -sin, training.shift * pixel * right, sin, cos, training.shift * pixel * down)
    grid = functional.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    strength = training.noise * torch.rand(count, 1, 1, 1, generator=generator)
    return moved + strength * torch.randn(images.shape, generator=generator)


def _misleading(
    network: DigitsNet, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, training: Training
) -> torch.Tensor:
    """Images changed along the gradient of the loss, each at most by an L2 norm of its own."""
    largest = training.attack * torch.rand(len(images), 1, 1, 1, generator=generator)
    change = torch.zeros_like(images)
    for _ in range(training.attack_steps):
        change.requires_grad_()
        loss = functional.cross_entropy(network((images + change).clamp(0, 1)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, change)
        # Twice as far in all as is allowed, so that the last step can still turn.
        change = change.detach() + 2 * largest / training.attack_steps * gradient / _norms(gradient)
        change = change * (largest / _norms(change)).clamp(max=1)
    return (images + change).clamp(0, 1)


def _norms(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).norm(dim=1).clamp_min(1e-9)[:, None, None, None]


def _digest(content: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(content.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _keep(path: Path, wanted: str, network: DigitsNet) -> None:
    from safetensors.torch import save

    content = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_file("digits_classifier", path, save(content, {"training": wanted, "sha256": _digest(content)}))


def _kept(path: Path, wanted: str) -> DigitsNet | None:
    """The network in the cache, if it is there, whole, and of this training."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            if notes.get("training") != wanted:
                return None
            content = {name: file.get_tensor(name) for name in file.keys()}
        if notes.get("sha256") != _digest(content):
            return None
        network = DigitsNet()
        network.load_state_dict(content)
    except (SafetensorError, OSError, RuntimeError):
        return None
    return network


# ---- weights ---------------------------------------------------------------------------------------------------------

N = TypeVar("N", bound=nn.Module)

_KINDS = (".pth", ".pt", ".safetensors")
_SHOWN = 3


def load_weights(network: N, path: str | os.PathLike[str]) -> N:
    """Give a network the parameters that a file holds.

    Parameters
    ----------
    network : nn.Module
        Changed only if all is right.
    path : path
        A ``.safetensors`` file, or a ``.pth`` or ``.pt`` file of a state dict, which is read without running any code
        that it may hold.

    Returns
    -------
    nn.Module
        The network. For `VGG16`, parameters of the file's classifier are passed over and named in `network.ignored`.

    Raises
    ------
    ValueError
        There is no such file, it is damaged or of another kind, a parameter is missing, unexpected or of another shape
        or dtype, or holds NaN or infinity. The message names the file, the parameter, what was expected and what came.
    """
    path = Path(path)
    content = _state_dict(path)
    ignored: tuple[str, ...] = ()
    if isinstance(network, VGG16):
        ignored = tuple(name for name in content if name.startswith("classifier."))
        content = {name: value for name, value in content.items() if name not in ignored}
    wanted = network.state_dict()
    wrong = []
    for name, value in wanted.items():
        shape = tuple(value.shape)
        if name not in content:
            wrong.append(f"expected parameter {name!r} of shape {shape}, got none")
        elif tuple(content[name].shape) != shape:
            wrong.append(f"expected parameter {name!r} of shape {shape}, got {tuple(content[name].shape)}")
        elif not content[name].is_floating_point():
            wrong.append(f"expected parameter {name!r} of floating-point numbers, got {content[name].dtype}")
        elif not bool(torch.isfinite(content[name]).all()):
            wrong.append(f"expected parameter {name!r} of finite numbers, got NaN or infinity")
    for name, value in content.items():
        if name not in wanted:
            wrong.append(f"expected no parameter {name!r}, got one of shape {tuple(value.shape)}")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"load_weights: {path} does not fit {type(network).__name__}: {'; '.join(wrong[:_SHOWN])}{more}"
        )
    with torch.no_grad():
        for name, value in wanted.items():  # views of the network's own
            value.copy_(content[name])
    if isinstance(network, Network):
        network.ignored = ignored
    return network


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, by name; as far as the format allows, they stay on disk until they are used."""
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"load_weights: {path}: expected a file of weights, {', '.join(_KINDS)}, got {path.suffix!r}")
    if not path.is_file():
        found = "found a folder" if path.is_dir() else "found nothing"
        raise ValueError(f"load_weights: {path}: expected a file of weights, {found}")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"load_weights: cannot read {path}: {error.strerror or error}") from error
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = _torch_file(path)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # what the readers raise on damage depends on where it is
        reason = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        raise ValueError(
            f"load_weights: {path}: the file is truncated, damaged or of another kind ({path.stat().st_size:,} bytes; "
            f"its reader says: {reason})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"load_weights: {path}: expected tensors by name, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"load_weights: {path}: expected tensors by name, got {type(value).__name__} under {name!r}"
            )
    return dict(content)


def _torch_file(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the reader finds odd, for its errors say enough
        return _loaded(path)


def _loaded(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # written before PyTorch 1.6
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        # PyTorch stores without compressing; an archive that says otherwise could unpack to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("a compressed archive, which PyTorch does not write")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def build(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    device: Any = "cpu",
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> Network:
    """A network by its name, ready to look into.

    Parameters
    ----------
    name : {'random', 'squeezenet', 'vgg16', 'digits', 'digits-robust'}
        Which one.
    weights : path, optional
        A file for `load_weights`. ``squeezenet`` and ``vgg16`` need it; ``digits`` and ``digits-robust`` are trained by
        `digits_classifier` without one, and ``random`` takes none.
    device : str or torch.device
        Where it is to be.
    progress : callable, optional
        For `digits_classifier`.

    Returns
    -------
    Network
        In eval mode, its parameters without gradients: only those of images are wanted.

    Raises
    ------
    ValueError
        An unknown name, or weights that are missing, not taken, or do not fit.
    """
    if name not in NETWORKS:
        raise ValueError(f"build: argument 'name' must be one of {', '.join(NETWORKS)}, got {name!r}")
    network: Network
    if name in PUBLISHED:
        if weights is None:
            raise ValueError(
                f"build: network {name!r} needs a file of weights, got none: download torchvision's {PUBLISHED[name]} "
                f"from https://download.pytorch.org/models/{PUBLISHED[name]} and name it"
            )
        network = load_weights(SqueezeNet() if name == "squeezenet" else VGG16(), weights)
    elif name != "random":
        robust = name == "digits-robust"
        if weights is None:
            network = digits_classifier(robust=robust, progress=progress)
        else:
            network = load_weights(DigitsNet(), weights)
    else:
        if weights is not None:
            raise ValueError(f"build: network 'random' draws its weights and takes no file of them, got {weights}")
        network = RandomNet()
    return network.requires_grad_(False).to(device).eval()


# ---- sizes -----------------------------------------------------------------------------------------------------------


def check_size(network: Network, height: int, width: int, layers: Sequence[int] | None = None) -> None:
    """Refuse an image that is too small for stages of a network: somewhere on the way nothing would be left of it.

    Parameters
    ----------
    network : Network
    height, width : int
        Of the image, in pixels.
    layers : sequence of int, optional
        Indices into its `stages`. Default: all.

    Raises
    ------
    ValueError
        It is too small; the message says how large it has to be.
    IndexError, TypeError
        There is no such stage.
    """
    wanted = _layers("check_size", network, layers)
    if not wanted:
        return
    last = max(wanted)
    smallest = 1
    while not _survives(network, smallest, last):
        smallest += 1
    if min(height, width) < smallest:
        raise ValueError(
            f"check_size: stage {last} ({network.stages[last]}) of {type(network).__name__} needs an image of at least "
            f"{smallest} x {smallest} pixels, got {height} x {width}"
        )


def _survives(network: Network, side: int, last: int) -> bool:
    """Whether anything is left of an image with this side after the stage `last`."""
    for stage in list(network.features)[: last + 1]:
        for module in stage.modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                kernel, stride, padding = (_first(getattr(module, n)) for n in ("kernel_size", "stride", "padding"))
                up = stride - 1 if getattr(module, "ceil_mode", False) else 0
                side = (side + 2 * padding - kernel + up) // stride + 1
                if side < 1:
                    return False
    return True


def _first(value: Any) -> int:
    """Of the height: what a module was given for both axes, or for each."""
    return int(value[0] if isinstance(value, tuple) else value)


def _layers(function: str, network: Network, layers: Sequence[int] | None) -> list[int]:
    count = len(network.stages)
    if layers is None:
        return list(range(count))
    found = []
    for position, layer in enumerate(layers):
        try:
            index = operator.index(layer)
        except TypeError:
            raise TypeError(
                f"{function}: argument 'layers' must hold whole numbers, got {type(layer).__name__} at position "
                f"{position}"
            ) from None
        if not 0 <= index < count:
            raise IndexError(
                f"{function}: argument 'layers' must hold ids in [0, {count}), the {count} stages of "
                f"{type(network).__name__}, got {index} at position {position}"
            )
        found.append(index)
    return found


def _seed(function: str, seed: Any) -> int:
    check = Arguments(function)
    value = check.whole("seed", seed, 0)
    if value >= 2**63:
        raise check.fail(ValueError, "seed", "be below 2**63", str(value))
    return value
