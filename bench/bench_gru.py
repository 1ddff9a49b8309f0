"""Benchmarks of the gru row, whole sequences and ragged ones, against torch.nn.GRU and ONNX Runtime."""

from .recurrent import benchmarks

BENCHMARKS = benchmarks("gru")
