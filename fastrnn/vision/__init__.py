"""Seeing what networks see: visualisation, style transfer and GANs, on PyTorch and the kernels of ``fastrnn.torch``."""
