"""Kernels for NVIDIA GPUs: device code in `fastrnn._cuda`, large products by CuPy. One file a row, as in every column.

Functions take the positional arguments of the other columns' kernels, as arrays on the device, and work on the
caller's current stream without waiting for it. With ``FASTRNN_CUDA_ON_HOST=1`` the same code runs on NumPy arrays and
on a simulator of the device, which is how it is tested where there is no GPU. `arrays` has what all rows share.
"""
