"""Style transfer, texture synthesis and feature inversion: three uses of one loop that changes an image.

The image is changed until the features that a convolutional network finds in it are near to those of other images:
nearness of features keeps the content, nearness of their Gram matrices the style. PyTorch computes the convolutions and
goes back through them; the losses and their gradients are the kernels of `fastrnn.torch`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fastrnn.checks import Arguments
from fastrnn.torch import content_loss, gram_matrix, style_loss, tv_loss
from fastrnn.vision.images import clamp_, deprocess, preprocess, read_image, resize
from fastrnn.vision.networks import VGG16, Network, RandomNet, SqueezeNet, check_size

__all__ = [
    "PRESETS",
    "Preset",
    "Progress",
    "feature_inversion",
    "learning_rate_at",
    "match_colors",
    "style_transfer",
    "texture_synthesis",
]

OPTIMIZERS = ("adam", "lbfgs")
# Standard deviation of the noise that images begin as: near enough to grey that every colour is as far away.
NOISE = 0.1
# What L-BFGS brings the loss to at first. PyTorch's forgets all curvature below an absolute bound, 1e-10.
LBFGS_SCALE = 1e4

Image = str | os.PathLike[str] | np.ndarray


@dataclass(frozen=True)
class Preset:
    """Settings that suit a network; see `style_transfer`.

    Attributes
    ----------
    image_size, style_size : int
        Shorter sides of the images, in pixels.
    content_layer : int
        Stage of the network whose features keep the content.
    content_weight : float
    style_layers : tuple of int
        Stages whose Gram matrices keep the style.
    style_weights : tuple of float
        One for each of them.
    tv_weight : float
    learning_rate, final_rate : float
        Of Adam, before and after nine tenths of the way.
    scales : int
        How often the images are halved, and once more, for a start from coarse to fine.
    pixels : int or None
        The content loss and the total variation are sums over an image. Their weights are meant for one of so many
        pixels, and those of larger ones are less in proportion; None: they are meant as they are.
    match_colors : bool
        Whether the content image takes the colours of the style first.
    inversion_layer, inversion_tv_weight
        Of `feature_inversion`, in the place of `content_layer` and `tv_weight`.
    """

    image_size: int
    style_size: int
    content_layer: int
    content_weight: float
    style_layers: tuple[int, ...]
    style_weights: tuple[float, ...]
    tv_weight: float
    learning_rate: float
    final_rate: float
    scales: int
    pixels: int | None
    match_colors: bool
    inversion_layer: int
    inversion_tv_weight: float


PRESETS: dict[type[Network], Preset] = {
    # Ours, tuned on two photographs. The style weights are about the reciprocals of the squared norms of the Gram
    # matrices.
    RandomNet: Preset(
        image_size=256,
        style_size=256,
        content_layer=4,
        content_weight=1e-7,
        style_layers=(0, 1, 3, 4, 6, 7, 9, 10),
        style_weights=(6.0, 6.0, 6.0, 6.0, 2.0, 2.0, 0.5, 0.5),
        tv_weight=0.0,
        learning_rate=0.1,
        final_rate=0.02,
        scales=3,
        pixels=256 * 384,
        match_colors=True,
        inversion_layer=7,
        inversion_tv_weight=2e-7,
    ),
    # As published with the function (Johnson's lecture notes for the course CS231n).
    SqueezeNet: Preset(
        image_size=192,
        style_size=192,
        content_layer=3,
        content_weight=6e-2,
        style_layers=(1, 4, 6, 7),
        style_weights=(20000.0, 500.0, 12.0, 1.0),
        tv_weight=5e-2,
        learning_rate=3.0,
        final_rate=0.1,
        scales=1,
        pixels=None,
        match_colors=False,
        inversion_layer=3,
        inversion_tv_weight=2e-2,
    ),
    # Layers and ratio of the weights (1e-3) of Gatys et al. 2016, which took images of 0 to 255: with those of standard
    # deviation 1, some 57 times smaller, content losses are 57² times smaller and style losses 57⁴ times.
    VGG16: Preset(
        image_size=256,
        style_size=256,
        content_layer=20,
        content_weight=1.0,
        style_layers=(1, 6, 11, 18, 25),
        style_weights=(3e5,) * 5,
        tv_weight=0.0,
        learning_rate=0.1,
        final_rate=0.02,
        scales=1,
        pixels=256 * 384,
        match_colors=False,
        inversion_layer=15,
        inversion_tv_weight=0.0,
    ),
}


@dataclass(frozen=True)
class Progress:
    """Where the making of an image is, as a callback sees it.

    Attributes
    ----------
    iteration, total : int
        Evaluations of the loss and its gradient so far, and in all.
    content, style, total_variation : float
        The parts of the loss, with their weights; 0 for those that are not computed.
    """

    iteration: int
    total: int
    content: float
    style: float
    total_variation: float
    tensor: torch.Tensor

    @property
    def loss(self) -> float:
        """The whole loss."""
        return self.content + self.style + self.total_variation

    def image(self) -> np.ndarray:
        """The image that these losses are of, uint8 (H, W, 3); at coarse scales it is smaller than the result."""
        return deprocess(self.tensor)


Callback = Callable[[Progress], Any]


def style_transfer(
    content_image: Image,
    style_image: Image,
    image_size: int | None = None,
    style_size: int | None = None,
    content_layer: int | None = None,
    content_weight: float | None = None,
    style_layers: Sequence[int] | None = None,
    style_weights: Sequence[float] | None = None,
    tv_weight: float | None = None,
    init_random: bool = False,
    *,
    network: Network | None = None,
    optimizer: str = "adam",
    num_iterations: int = 200,
    learning_rate: float | None = None,
    scales: int | None = None,
    match_colors: bool | None = None,
    seed: int = 0,
    device: Any = "cpu",
    callback: Callback | None = None,
) -> np.ndarray:
    """Paint one image in the style of another.

    Minimises, over the pixels of the image x::

        content_weight · Σ (F_c(x) - F_c(content))²  +  Σ_l style_weights[l] · Σ (G_l(x) - G_l(style))²
            + tv_weight · Σ (differences of neighbouring pixels of x)²

    with F_c(x) the features of stage `content_layer`, and G_l(x) the Gram matrix of those of stage ``style_layers[l]``,
    divided by their number. Adam takes `learning_rate` and from nine tenths of the way a smaller one (3.0, then 0.1
    from step 180 of 200 in the settings for SqueezeNet); after each step the pixels are held to what an image can show.
    What has the weight 0 is not computed, nor is any stage beyond those that are needed.

    Parameters
    ----------
    content_image, style_image : path or uint8 (H, W, 3)
        What is to be seen, and what it is to look like.
    image_size, style_size : int, optional
        Lengths that the shorter sides of the two are resized to, in pixels.
    content_layer : int, optional
        Index into ``network.stages``.
    content_weight : float, optional
        0: no content is kept.
    style_layers : sequence of int, optional
        Indices into ``network.stages``.
    style_weights : sequence of float, optional
        One for each of `style_layers`; 0 leaves a layer out.
    tv_weight : float, optional
        More of it smooths more.
    init_random : bool
        Begin with noise instead of the content image.
    network : Network, optional
        Default: ``RandomNet()``, whose weights are random.
    optimizer : {'adam', 'lbfgs'}
        L-BFGS has a line search and no learning rate; what lies beyond black and white is cut off at the end of a
        scale.
    num_iterations : int
        Evaluations of the loss and its gradient at each scale. L-BFGS may need a few more to end a line search.
    learning_rate : float, optional
        Of Adam, until nine tenths of the way.
    scales : int, optional
        Begin with images halved ``scales - 1`` times, and go on with the result, enlarged, at twice the size, up to
        `image_size`. Large structures of a style need that where the network sees only small parts of an image. Scales
        at which an image would be too small for the network are left out.
    match_colors : bool, optional
        Give the content image the colours of the style by `match_colors` first. Features of random weights tell colours
        as much as shapes: they would keep the old colours, too.
    seed : int
        Of the noise.
    device : str or torch.device
        Where to compute. A network that is elsewhere is copied there.
    callback : callable, optional
        Called with a `Progress` at each evaluation.

    Returns
    -------
    uint8 (H, W, 3)
        As large as the resized content image.

    Raises
    ------
    ValueError, TypeError, IndexError
        An image cannot be read or is too small for the layers, or an argument does not fit.
    FloatingPointError
        The loss became NaN or infinite.

    Notes
    -----
    What is None comes from `PRESETS` for the type of the network. The content loss and the total variation are sums
    over all pixels. Where their weights are left to the preset of `RandomNet` or `VGG16`, they are adapted to the size
    of the image; and between scales all are, so that the balance stays.

    The same arguments give the same bytes on one machine.

    References
    ----------
    Gatys, Ecker, Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks", equations 1 to 7.
    Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer", section 6: from coarse to fine.
    He, Wang, Hopcroft 2016, "A Powerful Generative Model Using Random Weights for the Deep Image Representation".
    """
    function = "style_transfer"
    network, preset = _network(function, network)
    settings = _settings(
        function, network, preset, content_layer, content_weight, style_layers, style_weights, tv_weight
    )
    content = _image(function, "content_image", content_image, _size(function, "image_size", image_size, preset))
    style = _image(function, "style_image", style_image, _size(function, "style_size", style_size, preset))
    run = _Run(function, network, preset, optimizer, num_iterations, learning_rate, scales, seed, device, callback)
    if preset.match_colors if match_colors is None else match_colors:
        content = _match_colors(content, style)
    return run((content.shape[0], content.shape[1]), content, style, settings, bool(init_random))


def texture_synthesis(
    style_image: Image,
    image_size: int | tuple[int, int] | None = None,
    style_size: int | None = None,
    style_layers: Sequence[int] | None = None,
    style_weights: Sequence[float] | None = None,
    tv_weight: float | None = None,
    *,
    network: Network | None = None,
    optimizer: str = "adam",
    num_iterations: int = 200,
    learning_rate: float | None = None,
    scales: int | None = None,
    seed: int = 0,
    device: Any = "cpu",
    callback: Callback | None = None,
) -> np.ndarray:
    """Make another image of the same texture: style without content, out of noise.

    Parameters
    ----------
    style_image : path or uint8 (H, W, 3)
        The texture.
    image_size : int or (int, int), optional
        Height and width of the result in pixels, one number for both; it need not be the size of the texture.
    style_size : int, optional
        Length that the shorter side of the texture is resized to.
    style_layers, style_weights, tv_weight, network, optimizer, num_iterations, learning_rate, scales, seed, device
        As in `style_transfer`.
    callback : callable, optional
        As there.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    ValueError, TypeError, IndexError, FloatingPointError
        As `style_transfer` does; also if all weights are 0.

    References
    ----------
    Gatys, Ecker, Bethge 2015, "Texture Synthesis Using Convolutional Neural Networks".
    Ustyuzhaninov, Brendel, Gatys, Bethge 2017, "What does it take to generate natural textures?": random filters do.
    """
    function = "texture_synthesis"
    network, preset = _network(function, network)
    settings = _settings(function, network, preset, None, 0.0, style_layers, style_weights, tv_weight)
    if not settings.style_layers:
        raise ValueError(f"{function}: argument 'style_weights' must hold a weight above 0, got none")
    pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(pair) != 2:
        raise ValueError(f"{function}: argument 'image_size' must be one length or two, got {len(pair)}")
    height, width = (_size(function, "image_size", length, preset) for length in pair)
    style = _image(function, "style_image", style_image, _size(function, "style_size", style_size, preset))
    run = _Run(function, network, preset, optimizer, num_iterations, learning_rate, scales, seed, device, callback)
    return run((height, width), None, style, settings, True)


def feature_inversion(
    content_image: Image,
    image_size: int | None = None,
    content_layer: int | None = None,
    content_weight: float | None = None,
    tv_weight: float | None = None,
    init_random: bool = True,
    *,
    network: Network | None = None,
    optimizer: str = "adam",
    num_iterations: int = 200,
    learning_rate: float | None = None,
    scales: int | None = None,
    seed: int = 0,
    device: Any = "cpu",
    callback: Callback | None = None,
) -> np.ndarray:
    """Find an image with the same features at one stage of a network: content without style.

    What comes back shows what the stage still knows about the image.

    Parameters
    ----------
    content_image : path or uint8 (H, W, 3)
        The image whose features are kept.
    image_size : int, optional
        Length that its shorter side is resized to.
    content_layer : int, optional
        Index into ``network.stages``: the deeper, the less is left.
    content_weight, tv_weight : float, optional
        Only their ratio matters, and to Adam hardly that.
    init_random : bool
        Begin with noise, and not with the image itself.
    network, optimizer, num_iterations, learning_rate, scales, seed, device
        As in `style_transfer`.
    callback : callable, optional
        As there.

    Returns
    -------
    uint8 (H, W, 3)
        As large as the resized image.

    Raises
    ------
    ValueError, TypeError, IndexError, FloatingPointError
        As `style_transfer` does; also if `content_weight` is 0.

    References
    ----------
    Mahendran, Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them".
    """
    function = "feature_inversion"
    network, preset = _network(function, network)
    preset = replace(preset, content_layer=preset.inversion_layer, tv_weight=preset.inversion_tv_weight)
    settings = _settings(function, network, preset, content_layer, content_weight, (), (), tv_weight)
    if not settings.content_weight:
        raise ValueError(f"{function}: argument 'content_weight' must be above 0, got {content_weight!r}")
    content = _image(function, "content_image", content_image, _size(function, "image_size", image_size, preset))
    run = _Run(function, network, preset, optimizer, num_iterations, learning_rate, scales, seed, device, callback)
    return run((content.shape[0], content.shape[1]), content, None, settings, bool(init_random))


def match_colors(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Give an image the mean and the covariance of another's colours.

    Of all linear maps of colours that do, it is the one that changes them least: bright stays bright.

    Parameters
    ----------
    image, palette : uint8 (H, W, 3)
        The image, and the one whose colours it is to have.

    Returns
    -------
    uint8, as `image`
        What would lie beyond black or white is cut off.

    Raises
    ------
    ValueError, TypeError
        One of them is no such array.

    References
    ----------
    Pitié, Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for example-based colour transfer".
    """
    return _match_colors(*(_checked("match_colors", n, v) for n, v in (("image", image), ("palette", palette))))


def _match_colors(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    colors, wanted = (a.reshape(-1, 3).astype(np.float64) / 255 for a in (image, palette))
    # A little of every colour is added, so that images of one colour can be mapped, too.
    before, after = (np.cov(a, rowvar=False, bias=True) + 1e-5 * np.eye(3) for a in (colors, wanted))
    root = _power(before, 0.5)
    inverse = _power(before, -0.5)
    matrix = inverse @ _power(root @ after @ root, 0.5) @ inverse
    mapped = (colors - colors.mean(0)) @ matrix + wanted.mean(0)
    return np.rint(255 * mapped.clip(0, 1)).astype(np.uint8).reshape(image.shape)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values**exponent) @ vectors.T)


def learning_rate_at(step: int, num_iterations: int, learning_rate: float, final_rate: float) -> float:
    """Learning rate of a step, counted from 0: the final one from nine tenths of the way on, 180 of 200."""
    return final_rate if 10 * step >= 9 * num_iterations else learning_rate


# ---- the loss --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """Checked: finite weights, stages that exist, style layers of a weight above 0 only."""

    content_layer: int
    content_weight: float
    style_layers: tuple[int, ...]
    style_weights: tuple[float, ...]
    tv_weight: float
    pixels: dict[str, int]  # of the images that 'content_weight' and 'tv_weight' are meant for, where that is said

    @property
    def layers(self) -> list[int]:
        """Stages that are needed."""
        content = (self.content_layer,) if self.content_weight else ()
        return sorted({*content, *self.style_layers})

    def at(self, pixels: int, full: int) -> _Settings:
        """The settings for an image of `pixels`, where the result is to have `full`."""
        weights = {
            name: getattr(self, name) * self.pixels.get(name, full) / pixels for name in ("content_weight", "tv_weight")
        }
        return replace(self, **weights)


class _Objective:
    """The loss of an image: three parts, with their weights; None for what has the weight 0."""

    def __init__(
        self, network: Network, settings: _Settings, content: torch.Tensor | None, style: torch.Tensor | None
    ) -> None:
        self.network, self.settings = network, settings
        self.layers = settings.layers
        with torch.no_grad():
            if settings.content_weight:
                assert content is not None
                (self.content,) = network.extract_features(content, [settings.content_layer])
            if settings.style_layers:
                assert style is not None
                self.targets = [gram_matrix(f) for f in network.extract_features(style, settings.style_layers)]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        settings = self.settings
        features = self.network.extract_features(x, self.layers)
        content = style = variation = None
        if settings.content_weight:
            found = features[self.layers.index(settings.content_layer)]
            content = content_loss(settings.content_weight, found, self.content)
        if settings.style_layers:
            places = [self.layers.index(layer) for layer in settings.style_layers]
            style = style_loss(features, places, self.targets, settings.style_weights)
        if settings.tv_weight:
            variation = tv_loss(x, settings.tv_weight)
        return content, style, variation


# ---- the loop --------------------------------------------------------------------------------------------------------


class _Run:
    """How images are made: what is the same whatever the losses are."""

    def __init__(
        self,
        function: str,
        network: Network,
        preset: Preset,
        optimizer: str,
        num_iterations: int,
        learning_rate: float | None,
        scales: int | None,
        seed: int,
        device: Any,
        callback: Callback | None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"{function}: argument 'optimizer' must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}"
            )
        self.function, self.optimizer, self.callback = function, optimizer, callback
        self.steps = Arguments(function).whole("num_iterations", num_iterations, 1)
        self.scales = Arguments(function).whole("scales", preset.scales if scales is None else scales, 1)
        self.seed = Arguments(function).whole("seed", seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"{function}: argument 'seed' must be below 2**63, got {seed}")
        rate = preset.learning_rate if learning_rate is None else learning_rate
        self.rate = Arguments(function).finite("learning_rate", rate)
        if not self.rate:
            raise ValueError(f"{function}: argument 'learning_rate' must be above 0, got {learning_rate!r}")
        self.final_rate = self.rate * preset.final_rate / preset.learning_rate
        self.device = _device(function, device)
        if any(parameter.device != self.device for parameter in network.parameters()):
            network = deepcopy(network).to(self.device)
        self.network = network

    def __call__(
        self,
        shape: tuple[int, int],
        content: np.ndarray | None,
        style: np.ndarray | None,
        settings: _Settings,
        init_random: bool,
    ) -> np.ndarray:
        """Make an image of this height and width."""
        if not settings.layers and not settings.tv_weight:
            raise ValueError(f"{self.function}: a weight must be above 0, got none")
        content = content if settings.content_weight or not init_random else None
        style = style if settings.style_layers else None
        sizes = [shape, *(image.shape[:2] for image in (content, style) if image is not None)]
        for height, width in sizes:
            self._check_size(height, width, settings.layers)
        scales = [0, *(k for k in range(1, self.scales) if self._fits(sizes, settings.layers, 2**k))]
        self.done, self.total = 0, len(scales) * self.steps
        x: torch.Tensor | None = None
        for k in reversed(scales):
            wanted = (max(shape[0] >> k, 1), max(shape[1] >> k, 1))
            small = [None if image is None else self._at(image, k) for image in (content, style)]
            if content is not None and small[0] is not None:
                wanted = (small[0].shape[2], small[0].shape[3])
            if x is not None:
                x = functional.interpolate(x, wanted, mode="bicubic", align_corners=False)
            elif init_random or small[0] is None:
                generator = torch.Generator().manual_seed(self.seed)
                x = NOISE * torch.randn((1, 3, *wanted), generator=generator).to(self.device)
            else:
                x = small[0].clone()
            here = settings.at(wanted[0] * wanted[1], shape[0] * shape[1])
            x = self._optimize(clamp_(x), _Objective(self.network, here, *small))
        assert x is not None
        return deprocess(x)

    def _check_size(self, height: int, width: int, layers: list[int]) -> None:
        try:
            check_size(self.network, height, width, layers)
        except ValueError as error:
            raise ValueError(f"{self.function}: {str(error).partition(': ')[2]}") from None

    def _fits(self, sizes: Sequence[Sequence[int]], layers: list[int], factor: int) -> bool:
        """Whether the images are large enough for the layers when all are made smaller by this factor."""
        try:
            for height, width in sizes:
                check_size(self.network, height // factor, width // factor, layers)
        except ValueError:
            return False
        return True

    def _at(self, image: np.ndarray, k: int) -> torch.Tensor:
        small = image if not k else resize(image, max(min(image.shape[:2]) >> k, 1))
        return preprocess(small, self.device)

    def _optimize(self, x: torch.Tensor, objective: _Objective) -> torch.Tensor:
        """The image after all iterations at one scale."""
        # L-BFGS looks at the gradient as one row of numbers.
        x = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        if self.optimizer == "adam":
            adam = torch.optim.Adam([x], lr=self.rate)
            for step in range(self.steps):
                adam.param_groups[0]["lr"] = learning_rate_at(step, self.steps, self.rate, self.final_rate)
                self._evaluate(x, objective)
                adam.step()
                clamp_(x)
        else:
            end = self.done + self.steps
            scale = 0.0

            def closure() -> float:
                nonlocal scale
                loss = self._evaluate(x, objective, end)
                scale = scale or (LBFGS_SCALE / loss if loss > 0 else 1.0)
                assert x.grad is not None
                x.grad.mul_(scale)
                return loss * scale

            lbfgs = torch.optim.LBFGS(
                [x],
                max_iter=self.steps,
                max_eval=self.steps,
                history_size=20,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
            lbfgs.step(closure)
            self.done = end  # a line search may have taken more, or have found that there is nothing left to do
            clamp_(x)
        x = x.detach()
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"{self.function}: the image became NaN at iteration {self.done} of {self.total}")
        return x

    def _evaluate(self, x: torch.Tensor, objective: _Objective, end: float = math.inf) -> float:
        """The loss; its gradient becomes that of `x`."""
        with np.errstate(over="ignore"):  # what overflows is said below
            parts = objective(x)
        losses = [part for part in parts if part is not None]
        # Not backward(): that would compute the gradients of the network's weights, too.
        (x.grad,) = torch.autograd.grad(sum(losses[1:], losses[0]), x)
        x.grad = x.grad.contiguous()
        content, style, variation = (0.0 if part is None else part.item() for part in parts)
        loss = content + style + variation
        self.done += 1
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{self.function}: the loss became {loss} at iteration {self.done} of {self.total} (content "
                f"{content:g}, style {style:g}, total variation {variation:g}); lower the weights or the learning rate"
            )
        if self.callback is not None and self.done <= end:
            self.callback(Progress(self.done, self.total, content, style, variation, x.detach()))
        return loss


# ---- checks ----------------------------------------------------------------------------------------------------------


def _network(function: str, network: Network | None) -> tuple[Network, Preset]:
    if network is None:
        network = RandomNet()
    if not isinstance(network, Network):
        raise TypeError(
            f"{function}: argument 'network' must be a Network of fastrnn.vision.networks, got {type(network).__name__}"
        )
    if network.channels != 3:
        raise ValueError(
            f"{function}: argument 'network' must take images of 3 channels, got {type(network).__name__}, which takes "
            f"{network.channels}"
        )
    for kind, preset in PRESETS.items():
        if isinstance(network, kind):
            return network, preset
    names = ", ".join(kind.__name__ for kind in PRESETS)
    raise ValueError(f"{function}: argument 'network' must be one of {names}, got {type(network).__name__}")


def _settings(
    function: str,
    network: Network,
    preset: Preset,
    content_layer: int | None,
    content_weight: float | None,
    style_layers: Sequence[int] | None,
    style_weights: Sequence[float] | None,
    tv_weight: float | None,
) -> _Settings:
    meant = {"content_weight": content_weight, "tv_weight": tv_weight}
    pixels = {name: preset.pixels for name, value in meant.items() if value is None and preset.pixels is not None}
    layers = preset.style_layers if style_layers is None else tuple(style_layers)
    # Weights of other layers mean nothing for these, even if they are as many.
    weights = () if style_layers is not None else preset.style_weights
    weights = weights if style_weights is None else tuple(style_weights)
    if len(weights) != len(layers):
        raise ValueError(
            f"{function}: argument 'style_weights' must have one entry for each of the {len(layers)} style_layers, got "
            f"{len(weights)} entries"
        )
    checked = [
        (
            _layer(function, f"style_layers[{i}]", layer, network),
            Arguments(function).finite(f"style_weights[{i}]", weight),
        )
        for i, (layer, weight) in enumerate(zip(layers, weights, strict=True))
    ]
    used = [(layer, weight) for layer, weight in checked if weight]
    return _Settings(
        content_layer=_layer(
            function, "content_layer", preset.content_layer if content_layer is None else content_layer, network
        ),
        content_weight=Arguments(function).finite(
            "content_weight", preset.content_weight if content_weight is None else content_weight
        ),
        style_layers=tuple(layer for layer, _ in used),
        style_weights=tuple(weight for _, weight in used),
        tv_weight=Arguments(function).finite("tv_weight", preset.tv_weight if tv_weight is None else tv_weight),
        pixels=pixels,
    )


def _layer(function: str, name: str, value: Any, network: Network) -> int:
    index = Arguments(function).whole(name, value, None)
    if not 0 <= index < len(network.stages):
        raise IndexError(
            f"{function}: argument '{name}' must lie in [0, {len(network.stages)}), the stages of "
            f"{type(network).__name__}, got {index}"
        )
    return index


def _size(function: str, name: str, value: Any, preset: Preset) -> int:
    return Arguments(function).whole(name, getattr(preset, name) if value is None else value, 1)


def _image(function: str, name: str, value: Any, size: int) -> np.ndarray:
    """The image at its size, whether it comes as a file or as an array."""
    if isinstance(value, (str, os.PathLike)):
        return read_image(value, size)
    return resize(_checked(function, name, value, "a path or "), size)


def _checked(function: str, name: str, value: Any, other: str = "") -> np.ndarray:
    expected = f"{function}: argument '{name}' must be {other}a uint8 array (H, W, 3)"
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise ValueError(f"{expected}, got {value.dtype} of shape {value.shape}")
    return value


def _device(function: str, device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{function}: argument 'device' must name a device of PyTorch, got {device!r}") from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"{function}: argument 'device' is {device!r}, but PyTorch finds no CUDA device here")
        # A parameter is on cuda:0, never on plain cuda.
        found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    return found
