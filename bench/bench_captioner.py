"""Benchmark of a whole system, the captioning model: one training iteration, from drawing a minibatch to Adam."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

import fastrnn
from fastrnn.arrays import on_device, place_of
from fastrnn.captioning import CaptioningRNN, CaptioningSolver
from fastrnn.captioning.data import sample_coco_minibatch

from .common import Arrays, Benchmark, Call, Shape, peers_device, rng, tensor

# Batch, words in a caption, size of a word vector, hidden size, words in the vocabulary, size of an image's features.
AXES = "N T W H V D"
SHAPES = ((100, 17, 256, 200, 1004, 512), (25, 17, 256, 512, 1004, 512))
IMAGES = 1000
LEARNING_RATE = 1e-3
NULL, START, END = range(3)
PARAMETERS = ("W_proj", "b_proj", "W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab")


def inputs(shape: Shape, dtype: Any) -> Arrays:
    """Initial parameters, and captions of random words that, like people's, end before the last column or in it."""
    N, T, W, H, V, D = shape
    draw = rng()
    captions = draw.integers(min(END + 1, V - 1), V, (IMAGES, T))
    end = draw.integers((T + 1) // 2, T, IMAGES)[:, None] if T > 1 else np.zeros((IMAGES, 1), int)
    column = np.arange(T)
    captions = np.where(column < end, captions, np.where(column == end, END, NULL))
    captions[:, 0] = START
    data = {
        "train_captions": captions.astype(np.int32),
        "train_image_idxs": np.arange(IMAGES),
        "train_features": draw.standard_normal((IMAGES, D)).astype(dtype),
        "train_urls": np.full(IMAGES, ""),
    }
    return data | CaptioningRNN(words(V), D, W, H, "lstm", dtype, rng=draw).params | settings(N, dtype)


def settings(batch: int, dtype: Any, learning_rate: float = LEARNING_RATE) -> Arrays:
    """What stands among the inputs without being an array of theirs."""
    return {"batch": np.array(batch), "learning_rate": np.array(learning_rate, dtype)}


def words(V: int) -> dict[str, int]:
    """A vocabulary of V words."""
    return {"<NULL>": NULL} | {f"word {index}": index for index in range(1, V)}


def flops(shape: Shape, mode: str) -> float:
    # The products: the features onto h0, which need no gradient; the LSTM's two and the scores, three times each.
    N, T, W, H, V, D = shape
    return 2.0 * N * (2 * D * H + 3 * (T - 1) * ((W + H) * 4 * H + H * V))


def moved(shape: Shape, mode: str) -> float:
    # Parameters and their two means read and written by Adam, their gradients written and read; the features.
    N, _, W, H, V, D = shape
    return 8.0 * ((D + 1) * H + V * W + (W + H + 1) * 4 * H + (H + 1) * V) + N * D


def _minibatch(a: Arrays, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Captions and features that the solver draws, call for call, from a generator in the same state."""
    return sample_coco_minibatch(a, int(a["batch"]), rng=draw)[:2]


def run(m: Any, a: Arrays, mode: str) -> Call:
    V, W = a["W_embed"].shape
    D, H = a["W_proj"].shape
    model = CaptioningRNN(words(V), D, W, H, "lstm", a["Wx"].dtype, rng=rng())
    place, dtype = place_of(model.params["Wx"]), a["Wx"].dtype
    model.params = {name: place.moved(a[name].copy()) for name in PARAMETERS}
    config = {"learning_rate": float(a["learning_rate"])}
    solver = CaptioningSolver(model, a, "adam", config, batch_size=int(a["batch"]), verbose=False, rng=rng())

    def call() -> tuple[Any, ...]:
        # The oracle of this system is the system on the reference.
        where: AbstractContextManager[Any] = nullcontext() if m is fastrnn else fastrnn.backend("reference")
        with where:
            loss = solver.step()
        return (loss if on_device(loss) else dtype.type(loss),)

    return call


def torch_model(a: Arrays, mode: str) -> tuple[Call, Any]:
    """The same model of PyTorch's modules, run eagerly, and its fused Adam."""
    import torch
    from torch import nn

    V, W = a["W_embed"].shape
    D, H = a["W_proj"].shape
    made: Any = {"dtype": torch.from_numpy(a["Wx"]).dtype, "device": peers_device()}
    project, embed = nn.Linear(D, H, **made), nn.Embedding(V, W, **made)
    lstm, vocab = nn.LSTM(W, H, batch_first=True, **made), nn.Linear(H, V, **made)
    order = np.concatenate([np.arange(gate * H, (gate + 1) * H) for gate in (0, 1, 3, 2)])  # i, f, g, o
    initial: list[tuple[Any, np.ndarray]] = [
        (embed.weight, a["W_embed"]),
        (project.weight, a["W_proj"].T),
        (project.bias, a["b_proj"]),
        (lstm.weight_ih_l0, a["Wx"][:, order].T),
        (lstm.weight_hh_l0, a["Wh"][:, order].T),
        (lstm.bias_ih_l0, a["b"][order]),
        (lstm.bias_hh_l0, np.zeros_like(a["b"])),
        (vocab.weight, a["W_vocab"].T),
        (vocab.bias, a["b_vocab"]),
    ]
    with torch.no_grad():
        for parameter, value in initial:
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    lstm.bias_hh_l0.requires_grad_(False)  # we have one bias: two that learn would learn twice as fast
    learned = [parameter for parameter, _ in initial if parameter.requires_grad]
    rate = float(a["learning_rate"])
    optimizer = torch.optim.Adam(learned, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
    draw = rng()

    def call() -> Any:
        captions, features = map(tensor, _minibatch(a, draw))
        captions = captions.long()
        h0 = project(features)[None]
        h, _ = lstm(embed(captions[:, :-1]), (h0, torch.zeros_like(h0)))
        scores, spoken = vocab(h).flatten(0, 1), captions[:, 1:].flatten()
        loss = nn.functional.cross_entropy(scores, spoken, ignore_index=NULL, reduction="sum") / len(captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return call, lambda loss: (a["Wx"].dtype.type(loss.item()),)


BENCHMARKS = (
    Benchmark(
        "captioner",
        AXES,
        SHAPES,
        inputs,
        flops,
        moved,
        run,
        {"torch": torch_model},
        quick=1,
        modes=("both",),
        calls=5,
        stays=("*",),
    ),
)
