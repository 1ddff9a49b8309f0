"""The same kernels for PyTorch: modules that stand in for ``torch.nn``'s, and operations with autograd."""
