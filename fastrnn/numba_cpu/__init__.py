"""The kernels in Numba: the fast path where nothing was compiled at install time.

A module per operation, with the kernels' names and positional arguments of the compiled column. The public functions
are plain Python: they make inputs contiguous (a copy where they are strided or read-only) and carve the buffers; the
private ones below them are compiled at first use, once for float32 and once for float64, and cached on disk.

The recurrent and the affine layers have products of their own (`products.py`) and threads of their own
(`threads.py`); of the other operations, matrix products go to a BLAS with its threads (NumPy's from plain Python,
SciPy's from compiled functions), and the rest runs on the caller's thread.
"""
