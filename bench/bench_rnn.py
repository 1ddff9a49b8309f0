"""Benchmarks of the rnn row, whole sequences and ragged ones, against torch.nn.RNN and ONNX Runtime."""

from .recurrent import benchmarks

BENCHMARKS = benchmarks("rnn")
