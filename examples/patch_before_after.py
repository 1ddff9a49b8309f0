"""Train the NumPy project in ``cs231n_style/`` as it is, and again under ``fastrnn.patch``, and compare.

Run it with ``python examples/patch_before_after.py [iterations]``.
"""

import sys
import time

import numpy as np
from cs231n_style import train as project

import fastrnn


def timed(iterations, **sizes):
    """Losses of a training run, and its seconds."""
    start = time.perf_counter()
    losses = project.train(iterations, **sizes)
    return np.array(losses), time.perf_counter() - start


def main(iterations=20, **sizes):
    """Train both ways; print the times; return the losses before and after, and what was patched."""
    timed(1, **sizes)  # the first run of anything is slower
    before, seconds_before = timed(iterations, **sizes)

    with fastrnn.patch("cs231n_style.rnn_layers") as layers, fastrnn.patch("cs231n_style.optim") as optim:
        print(layers)
        print(optim)
        timed(1, **sizes)
        after, seconds_after = timed(iterations, **sizes)
        ran = fastrnn.last_backend()

    print(f"before: {iterations} iterations in {seconds_before:.2f} s, loss {before[0]:.4f} to {before[-1]:.4f}")
    print(f"after:  {iterations} iterations in {seconds_after:.2f} s, loss {after[0]:.4f} to {after[-1]:.4f}, on {ran}")
    difference = np.abs(after - before).max()
    print(f"{seconds_before / seconds_after:.1f} times as fast; losses differ by {difference:.1e} at most")
    return before, after, (layers, optim)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
