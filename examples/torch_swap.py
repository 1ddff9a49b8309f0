"""The one-line swap: a PyTorch model on fastrnn's kernels, and back."""

import torch

import fastrnn.torch

model = torch.nn.Sequential()
model.add_module("lstm", torch.nn.LSTM(input_size=64, hidden_size=128, num_layers=2, batch_first=True))
x = torch.randn(32, 20, 64)
before, _ = model.lstm(x)
print(fastrnn.torch.convert(model))  # the one line
after, _ = model.lstm(x)
print(f"the outputs differ by {(after - before).abs().max():.1e} at most")
