"""Benchmark of the rnn row: whole sequences against torch.nn.RNN."""

from .recurrent import benchmark

BENCHMARKS = (benchmark("rnn"),)
