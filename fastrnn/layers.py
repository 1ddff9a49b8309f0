"""Drop-in for the `layers` module of NumPy course projects: ``from fastrnn.layers import *``."""

from fastrnn.ops.affine import affine_backward, affine_forward

__all__ = ["affine_backward", "affine_forward"]
