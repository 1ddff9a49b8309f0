"""Benchmark of the lstm row: whole sequences against torch.nn.LSTM."""

from .recurrent import benchmark

BENCHMARKS = (benchmark("lstm"),)
