"""Benchmark of the gru row: whole sequences against torch.nn.GRU."""

from .recurrent import benchmark

BENCHMARKS = (benchmark("gru"),)
