"""Generative adversarial networks on 28×28 pictures: pairs of networks, pairs of losses, and noise.

Images are in [-1, 1], as the generators' tanh gives them. The losses take logits, never probabilities: written with
``log(1 - sigmoid(x))``, as is often seen, they are infinite from x = 17 on in float32.

Training is in `fastrnn.vision.gan_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from fastrnn.checks import Arguments

__all__ = [
    "dc_discriminator",
    "dc_generator",
    "discriminator",
    "discriminator_loss",
    "generator",
    "generator_loss",
    "ls_discriminator_loss",
    "ls_generator_loss",
    "sample_noise",
]

NOISE_DIM = 96
SIDE = 28

# ---- networks --------------------------------------------------------------------------------------------------------


def discriminator() -> nn.Sequential:
    """A fully connected discriminator, 784 → 256 → 256 → 1.

    Returns
    -------
    Sequential
        Takes images (N, 1, 28, 28) or (N, 784) in [-1, 1], gives logits (N, 1): above 0 for what it holds for real.
        Leaky ReLUs of slope 0.01.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, 256),
        nn.LeakyReLU(0.01),
        nn.Linear(256, 256),
        nn.LeakyReLU(0.01),
        nn.Linear(256, 1),
    )


def generator(noise_dim: int = NOISE_DIM) -> nn.Sequential:
    """A fully connected generator, noise_dim → 1024 → 1024 → 784.

    Parameters
    ----------
    noise_dim : int
        Length of a noise vector.

    Returns
    -------
    Sequential
        Takes noise (N, noise_dim) of `sample_noise`, gives images (N, 784) in [-1, 1]. ReLUs, and a tanh at the end.

    Raises
    ------
    ValueError, TypeError
        `noise_dim` is no whole number of at least 1.
    """
    noise_dim = Arguments("generator").whole("noise_dim", noise_dim)
    return nn.Sequential(
        nn.Linear(noise_dim, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, SIDE * SIDE),
        nn.Tanh(),
    )


def dc_discriminator(channels: int = 32, hidden_dim: int = 256) -> nn.Sequential:
    """A deep-convolutional discriminator: 28×28 → 14×14 → 7×7 → hidden_dim → 1.

    Parameters
    ----------
    channels : int
        Feature maps at 14×14; at 7×7 there are twice as many.
    hidden_dim : int
        Units of the fully connected layer that sees the whole image.

    Returns
    -------
    Sequential
        Takes images (N, 1, 28, 28) in [-1, 1], gives logits (N, 1): above 0 for what it holds for real. Convolutions of
        4×4 with stride 2 instead of pooling, leaky ReLUs of slope 0.2 (Radford, Metz, Chintala 2016, section 3).

    Raises
    ------
    ValueError, TypeError
        An argument is no whole number of at least 1.
    """
    args = Arguments("dc_discriminator")
    channels = args.whole("channels", channels)
    hidden_dim = args.whole("hidden_dim", hidden_dim)
    return nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, hidden_dim),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden_dim, 1),
    )


def dc_generator(noise_dim: int = NOISE_DIM, channels: int = 128, hidden_dim: int = 1024) -> nn.Sequential:
    """A deep-convolutional generator: noise_dim → hidden_dim → 7×7 → 14×14 → 28×28.

    Parameters
    ----------
    noise_dim : int
        Length of a noise vector.
    channels : int
        Feature maps at 7×7, an even number; at 14×14 there are half as many.
    hidden_dim : int
        Units of the first, fully connected layer: it is what gives a digit its form as a whole, the convolutions its
        strokes.

    Returns
    -------
    Sequential
        Takes noise (N, noise_dim) of `sample_noise`, gives images (N, 1, 28, 28) in [-1, 1]. Transposed convolutions of
        4×4 with stride 2, batch normalisation and ReLUs, and a tanh at the end (Radford, Metz, Chintala 2016, section
        3).

    Raises
    ------
    ValueError, TypeError
        An argument is no whole number of at least 1, or `channels` is odd.

    Notes
    -----
    A version of this network that was published reshapes to 28×28 where it should to 7×7, and makes images of 112×112.
    """
    args = Arguments("dc_generator")
    noise_dim = args.whole("noise_dim", noise_dim)
    channels = args.whole("channels", channels, least=2)
    hidden_dim = args.whole("hidden_dim", hidden_dim)
    if channels % 2:
        raise args.fail(ValueError, "channels", "be even", str(channels))
    # What comes before a batch normalisation needs no bias: it would be taken off again with the mean.
    return nn.Sequential(
        nn.Linear(noise_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, channels * 7 * 7, bias=False),
        nn.BatchNorm1d(channels * 7 * 7),
        nn.ReLU(),
        nn.Unflatten(1, (channels, 7, 7)),
        nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels // 2),
        nn.ReLU(),
        nn.ConvTranspose2d(channels // 2, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


# ---- losses ----------------------------------------------------------------------------------------------------------


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """Loss of the discriminator: ``-mean log σ(logits_real) - mean log(1 - σ(logits_fake))``.

    Parameters
    ----------
    logits_real, logits_fake : floating Tensor, any shape
        What the discriminator says of real images and of generated ones.

    Returns
    -------
    Tensor of no axes
        Finite wherever the sums of the logits are: the logarithms are taken of the logits, not of probabilities.

    Raises
    ------
    ValueError, TypeError
        An argument is no floating-point tensor, or is empty.

    References
    ----------
    Goodfellow et al., "Generative Adversarial Nets", 2014, algorithm 1.
    """
    real, fake = _logits("discriminator_loss", logits_real=logits_real, logits_fake=logits_fake)
    return -logsigmoid(real).mean() - logsigmoid(-fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """Loss of the generator, in the form that does not saturate: ``-mean log σ(logits_fake)``.

    Parameters
    ----------
    logits_fake : floating Tensor, any shape
        What the discriminator says of generated images.

    Returns
    -------
    Tensor of no axes

    Raises
    ------
    ValueError, TypeError
        `logits_fake` is no floating-point tensor, or is empty.

    References
    ----------
    Goodfellow et al., "Generative Adversarial Nets", 2014, section 3.
    """
    (fake,) = _logits("generator_loss", logits_fake=logits_fake)
    return -logsigmoid(fake).mean()


def ls_discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of the discriminator: ``½ mean (logits_real - 1)² + ½ mean logits_fake²``.

    Parameters
    ----------
    logits_real, logits_fake : floating Tensor, any shape
        What the discriminator says of real images and of generated ones.

    Returns
    -------
    Tensor of no axes

    Raises
    ------
    ValueError, TypeError
        An argument is no floating-point tensor, or is empty.

    References
    ----------
    Mao et al., "Least Squares Generative Adversarial Networks", 2017, equation 9.
    """
    real, fake = _logits("ls_discriminator_loss", logits_real=logits_real, logits_fake=logits_fake)
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def ls_generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of the generator: ``½ mean (logits_fake - 1)²``.

    Parameters
    ----------
    logits_fake : floating Tensor, any shape
        What the discriminator says of generated images.

    Returns
    -------
    Tensor of no axes

    Raises
    ------
    ValueError, TypeError
        `logits_fake` is no floating-point tensor, or is empty.

    References
    ----------
    Mao et al., "Least Squares Generative Adversarial Networks", 2017, equation 9.
    """
    (fake,) = _logits("ls_generator_loss", logits_fake=logits_fake)
    return 0.5 * (fake - 1).square().mean()


def _logits(function: str, **named: Any) -> list[torch.Tensor]:
    for name, value in named.items():
        args = Arguments(function)
        if not isinstance(value, torch.Tensor):
            raise args.fail(TypeError, name, "be a Tensor of logits", type(value).__name__)
        if not value.is_floating_point():
            raise args.fail(TypeError, name, "be a floating-point Tensor", str(value.dtype).removeprefix("torch."))
        if not value.numel():
            raise args.fail(ValueError, name, "hold at least one logit", f"shape {tuple(value.shape)}")
    return list(named.values())


# ---- noise -----------------------------------------------------------------------------------------------------------


def sample_noise(
    batch_size: int, dim: int = NOISE_DIM, seed: int | Sequence[int] | None = None, device: Any = "cpu"
) -> torch.Tensor:
    """Noise for a generator: uniform between -1 and 1.

    Parameters
    ----------
    batch_size, dim : int
        Number of vectors, and their length.
    seed : int or sequence of int, optional
        Of what is drawn. With it the result is always the same, on every device, and no global generator is touched.
        Default: another result each time.
    device : str or torch.device
        Where the tensor is to be.

    Returns
    -------
    float32 Tensor (batch_size, dim)

    Raises
    ------
    ValueError, TypeError
        A size is no whole number of at least 1, or the seed is none that `numpy.random.default_rng` takes.
    """
    args = Arguments("sample_noise")
    shape = args.whole("batch_size", batch_size), args.whole("dim", dim)
    try:
        rng = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        expected = "be a whole number of at least 0, a sequence of such, or None"
        raise args.fail(type(error), "seed", expected, repr(seed)) from None
    return torch.from_numpy(2 * rng.random(shape, dtype=np.float32) - 1).to(device)
