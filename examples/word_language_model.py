"""Train a language model in PyTorch, and switch it to fastrnn by one line.

A word-level LSTM, in the manner of PyTorch's public example, on the reference texts that ship with Python
(``pydoc_data.topics``, what ``help("topics")`` shows).

    python examples/word_language_model.py                 # PyTorch's own modules
    python examples/word_language_model.py --convert       # the same model after fastrnn.torch.convert(model)
    python examples/word_language_model.py --compare       # both, in turns, from the same seed; and with a second line
"""

import argparse
import math
import re
import time
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch import nn

import fastrnn.torch

UNKNOWN = "<unk>"


def corpus(limit=None, characters=False):
    """Ids of the words (or characters) of the texts, and how many different ones there are. Words that occur once are
    one unknown word."""
    text = "\n".join(topics[key] for key in sorted(topics)).lower()
    found = list(text) if characters else re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text)
    found = found[:limit]
    count = Counter(found)
    vocabulary = {UNKNOWN: 0}
    for word in found:
        if count[word] > 1:
            vocabulary.setdefault(word, len(vocabulary))
    return torch.tensor([vocabulary.get(word, 0) for word in found]), len(vocabulary)


def columns(ids, batch):
    """The text cut into `batch` parts that are read side by side, shape (batch, steps)."""
    steps = len(ids) // batch
    return ids[: steps * batch].reshape(batch, steps)


class LanguageModel(nn.Module):
    """Embedding, LSTM, and the projection onto the vocabulary."""

    def __init__(self, words, size, hidden, layers, dropout):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, hidden, layers, batch_first=True)
        self.vocab = nn.Linear(hidden, words)
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.vocab.weight, -0.1, 0.1)
        nn.init.zeros_(self.vocab.bias)

    def forward(self, ids, state):
        """Hidden states (N, T, H) behind each word, and the last state."""
        h, state = self.lstm(self.dropout(self.embed(ids)), state)
        # Dropout draws in the order of memory, in which torch.nn.LSTM has the steps first and fastrnn the sequences.
        return self.dropout(h.contiguous()), state


def torch_loss(model, h, targets):
    """Loss of all scores at once."""
    return nn.functional.cross_entropy(model.vocab(h).flatten(0, 1), targets.flatten())


def fused_loss(model, h, targets):
    """The same, the second line: the scores are never all there."""
    return fastrnn.torch.vocab_cross_entropy(h, model.vocab.weight, model.vocab.bias, targets)


class Training:
    """A model, its data and its optimiser; one call is one epoch."""

    def __init__(self, options, convert=False, loss=torch_loss, rounding=0.0):
        ids, words = corpus(options.words, options.characters)
        self.text, self.bptt, self.seed, self.loss = columns(ids, options.batch), options.bptt, options.seed, loss
        torch.manual_seed(options.seed)
        self.model = LanguageModel(words, options.size, options.hidden, options.layers, options.dropout)
        with torch.no_grad():
            for parameter in self.model.parameters() if rounding else ():
                parameter.mul_(1 + rounding * torch.randn_like(parameter).sign())
        if convert:
            fastrnn.torch.convert(self.model)  # the one line
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.rate, fused=True)
        self.losses, self.seconds = [], []

    def epoch(self):
        """Mean loss of a word over an epoch, and its seconds."""
        torch.manual_seed(self.seed + len(self.losses))  # dropout draws the same whoever trains
        start, state, total, count = time.perf_counter(), None, 0.0, 0
        for t in range(0, self.text.shape[1] - 1, self.bptt):
            steps = min(self.bptt, self.text.shape[1] - 1 - t)
            ids, targets = self.text[:, t : t + steps], self.text[:, t + 1 : t + 1 + steps]
            if state is not None:
                state = tuple(s.detach() for s in state)
            h, state = self.model(ids, state)
            loss = self.loss(self.model, h, targets)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
            self.optimizer.step()
            total, count = total + loss.item() * steps, count + steps
        self.losses.append(total / count)
        self.seconds.append(time.perf_counter() - start)
        return self.losses[-1], self.seconds[-1]


def train(options):
    """Train one model, and print each epoch."""
    training = Training(options, convert=options.convert, loss=fused_loss if options.fused_loss else torch_loss)
    print(f"{training.text.numel()} words, {training.model.vocab.out_features} different ones")
    for epoch in range(1, options.epochs + 1):
        loss, seconds = training.epoch()
        print(f"epoch {epoch}: loss {loss:.4f}, perplexity {math.exp(loss):.1f}, {seconds:.2f} s", flush=True)
    return training


def compare(options):
    """Train three ways from the same seed, in turns; print how far the losses are apart, and the ratio of the times.

    What rounding alone does to the curve is shown by PyTorch itself, from weights that are off by their last bit.
    """
    ways = {
        "torch.nn": Training(options),
        "torch.nn, last bit off": Training(options, rounding=2.0**-23),
        "converted": Training(options, convert=True),
        "and vocab_cross_entropy": Training(options, convert=True, loss=fused_loss),
    }
    print(f"{ways['torch.nn'].text.numel()} words, {ways['torch.nn'].model.vocab.out_features} different ones")
    for epoch in range(1, options.epochs + 1):
        for name, training in ways.items():
            loss, seconds = training.epoch()
            print(f"epoch {epoch}: {name:24} loss {loss:.6f}, {seconds:.2f} s", flush=True)
    before = ways.pop("torch.nn")
    for name, training in ways.items():
        apart = max(abs(a - b) / a for a, b in zip(before.losses, training.losses, strict=True))
        ratio = sum(before.seconds) / sum(training.seconds)
        print(f"{name}: {ratio:.2f} times as fast; losses differ by {apart:.1e} of themselves at most")
    return before, ways


def main(arguments=None):
    """Read the options, and train or compare."""
    parser = argparse.ArgumentParser(description="A language model in PyTorch, and on fastrnn by one line.")
    parser.add_argument("--convert", action="store_true", help="train the converted model")
    parser.add_argument("--fused-loss", action="store_true", help="compute the loss by vocab_cross_entropy")
    parser.add_argument("--compare", action="store_true", help="train both ways from the same seed, and compare")
    parser.add_argument("--characters", action="store_true", help="characters instead of words")
    parser.add_argument("--words", type=int, help="how much of the text is read; default: all")
    for name, default in (("epochs", 2), ("batch", 20), ("bptt", 35), ("size", 256), ("hidden", 256), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    return compare(options) if options.compare else train(options)


if __name__ == "__main__":
    main()
