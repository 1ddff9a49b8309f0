"""Drop-in for the `optim` module of NumPy course projects: ``w, config = optim.adam(w, dw, config)``."""

from fastrnn.ops.optim import adam, rmsprop, sgd, sgd_momentum

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]
