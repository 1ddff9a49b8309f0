"""fastrnn's LSTM in JAX, on the CPU: under ``jax.jit``, with gradients, by a callback.

``jax.pure_callback`` calls back from a compiled program; arrays come over by DLPack without a copy. A callback is pure,
it keeps nothing: the backward pass runs the forward pass again for its cache.

    python examples/jax_lstm.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import fastrnn


def _forward(*arrays):
    return fastrnn.lstm_forward(*map(np.from_dlpack, arrays))[0]


def _gradients(dh, *arrays):
    _, cache = fastrnn.lstm_forward(*map(np.from_dlpack, arrays))
    return fastrnn.lstm_backward(np.from_dlpack(dh), cache)


@jax.custom_vjp
def lstm(x, h0, Wx, Wh, b):
    """Hidden states (N, T, H) of an LSTM: `fastrnn.lstm_forward` of x (N, T, D), h0 (N, H), Wx (D, 4H), Wh (H, 4H) and
    b (4H,), with the gates in the order i, f, o, g."""
    shape = jax.ShapeDtypeStruct((*x.shape[:2], h0.shape[1]), x.dtype)
    return jax.pure_callback(_forward, shape, x, h0, Wx, Wh, b, vmap_method="sequential")


def _lstm_forward(*arguments):
    return lstm(*arguments), arguments


def _lstm_backward(arguments, dh):
    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments)
    return jax.pure_callback(_gradients, shapes, dh, *arguments, vmap_method="sequential")


lstm.defvjp(_lstm_forward, _lstm_backward)


def main():
    """Learn to add up a sequence; return the losses."""
    N, T, D, H = 64, 12, 1, 32
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.uniform(keys[0], (N, T, D))
    y = x.sum((1, 2))
    Wx, Wh = (jax.random.normal(key, (size, 4 * H)) / np.sqrt(H) for key, size in zip(keys[1:], (D, H), strict=False))
    params = {"Wx": Wx, "Wh": Wh, "b": jnp.zeros(4 * H), "w": jax.random.normal(keys[3], (H,)) / np.sqrt(H)}

    def loss(params):
        h = lstm(x, jnp.zeros((N, H)), params["Wx"], params["Wh"], params["b"])
        return jnp.mean((h[:, -1] @ params["w"] - y) ** 2)

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(100):
        value, gradients = step(params)
        params = jax.tree.map(lambda p, g: p - 0.03 * g, params, gradients)
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}, on {fastrnn.available_backends()[0]}")
    return losses


if __name__ == "__main__":
    main()
