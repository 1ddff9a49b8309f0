"""Seeing what networks see: visualisation, style transfer and GANs, on PyTorch and the kernels of ``fastrnn.torch``.

PyTorch is the engine of convolutions and of automatic differentiation (``pip install 'fastrnn[vision]'``).
"""

from fastrnn.vision.data import digits, idx_images, read_idx
from fastrnn.vision.gan import (
    dc_discriminator,
    dc_generator,
    discriminator,
    discriminator_loss,
    generator,
    generator_loss,
    ls_discriminator_loss,
    ls_generator_loss,
    sample_noise,
)
from fastrnn.vision.gan_training import GANConfig, GANSummary, GANTrainer, Judgement, judge, load_images
from fastrnn.vision.images import clamp_, deprocess, photographs, preprocess, read_image, resize, save_image
from fastrnn.vision.networks import (
    VGG16,
    DigitsNet,
    RandomNet,
    SqueezeNet,
    build,
    check_size,
    digits_classifier,
    load_weights,
)
from fastrnn.vision.style import (
    PRESETS,
    Progress,
    feature_inversion,
    match_colors,
    style_transfer,
    texture_synthesis,
)
from fastrnn.vision.visualisation import (
    blur,
    compute_saliency_maps,
    create_class_visualization,
    image_bounds,
    make_fooling_image,
)

__all__ = [
    "PRESETS",
    "VGG16",
    "DigitsNet",
    "GANConfig",
    "GANSummary",
    "GANTrainer",
    "Judgement",
    "Progress",
    "RandomNet",
    "SqueezeNet",
    "blur",
    "build",
    "check_size",
    "clamp_",
    "compute_saliency_maps",
    "create_class_visualization",
    "dc_discriminator",
    "dc_generator",
    "deprocess",
    "digits",
    "digits_classifier",
    "discriminator",
    "discriminator_loss",
    "feature_inversion",
    "generator",
    "generator_loss",
    "idx_images",
    "image_bounds",
    "judge",
    "load_images",
    "load_weights",
    "ls_discriminator_loss",
    "ls_generator_loss",
    "make_fooling_image",
    "match_colors",
    "photographs",
    "preprocess",
    "read_idx",
    "read_image",
    "resize",
    "sample_noise",
    "save_image",
    "style_transfer",
    "texture_synthesis",
]
