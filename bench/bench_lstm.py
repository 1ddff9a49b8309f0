"""Benchmarks of the lstm row, whole sequences and ragged ones, against torch.nn.LSTM and ONNX Runtime."""

from .recurrent import benchmarks

BENCHMARKS = benchmarks("lstm")
