# ruff: noqa: F403, F405
"""Trains an image captioner on made-up features and captions."""

import numpy as np

from . import optim
from .rnn_layers import *


class CaptioningRNN:
    def __init__(self, vocab_size, input_dim, wordvec_dim, hidden_dim, dtype):
        rng = np.random.RandomState(231)
        sizes = {
            "W_embed": (vocab_size, wordvec_dim),
            "W_proj": (input_dim, hidden_dim),
            "Wx": (wordvec_dim, 4 * hidden_dim),
            "Wh": (hidden_dim, 4 * hidden_dim),
            "W_vocab": (hidden_dim, vocab_size),
        }
        self.params = {name: rng.randn(*size) / np.sqrt(size[0]) for name, size in sizes.items()}
        self.params["b_proj"] = np.zeros(hidden_dim)
        self.params["b"] = np.zeros(4 * hidden_dim)
        self.params["b_vocab"] = np.zeros(vocab_size)
        self.params = {name: value.astype(dtype) for name, value in self.params.items()}

    def loss(self, features, captions):
        p, grads = self.params, {}
        words, targets = captions[:, :-1], captions[:, 1:]
        mask = targets != 0
        h0, proj_cache = affine_forward(features, p["W_proj"], p["b_proj"])
        x, embed_cache = word_embedding_forward(words, p["W_embed"])
        h, lstm_cache = lstm_forward(x, h0, p["Wx"], p["Wh"], p["b"])
        scores, vocab_cache = temporal_affine_forward(h, p["W_vocab"], p["b_vocab"])
        loss, dscores = temporal_softmax_loss(scores, targets, mask)
        dh, grads["W_vocab"], grads["b_vocab"] = temporal_affine_backward(dscores, vocab_cache)
        dx, dh0, grads["Wx"], grads["Wh"], grads["b"] = lstm_backward(dh, lstm_cache)
        grads["W_embed"] = word_embedding_backward(dx, embed_cache)
        _, grads["W_proj"], grads["b_proj"] = affine_backward(dh0, proj_cache)
        return loss, grads


class Solver:
    def __init__(self, model, features, captions, batch_size, update_rule="adam", learning_rate=5e-3):
        self.model, self.features, self.captions, self.batch_size = model, features, captions, batch_size
        self.update_rule = getattr(optim, update_rule)
        self.optim_configs = {name: {"learning_rate": learning_rate} for name in model.params}
        self.rng = np.random.RandomState(0)
        self.loss_history = []

    def train(self, iterations):
        for _ in range(iterations):
            batch = self.rng.choice(len(self.captions), self.batch_size)
            loss, grads = self.model.loss(self.features[batch], self.captions[batch])
            self.loss_history.append(loss)
            for name, w in self.model.params.items():
                next_w, config = self.update_rule(w, grads[name], self.optim_configs[name])
                self.model.params[name] = next_w
                self.optim_configs[name] = config
        return self.loss_history


def train(
    iterations=20,
    batch_size=100,
    time_steps=17,
    vocab_size=1004,
    input_dim=512,
    wordvec_dim=256,
    hidden_dim=512,
    dtype=np.float32,
):
    rng = np.random.RandomState(0)
    features = rng.randn(50, input_dim).astype(dtype)
    captions = rng.randint(0, vocab_size, (50, time_steps))
    model = CaptioningRNN(vocab_size, input_dim, wordvec_dim, hidden_dim, dtype)
    return Solver(model, features, captions, batch_size).train(iterations)


if __name__ == "__main__":
    for iteration, loss in enumerate(train()):
        print(f"iteration {iteration}: loss {loss:.4f}")
