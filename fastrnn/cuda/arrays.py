"""Where arrays live: CuPy's on the device, or NumPy's under the simulator; and the compiled module that goes with it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

ON_HOST = os.environ.get("FASTRNN_CUDA_ON_HOST") == "1"

# The namespace of arrays, and the compiled kernels over them.
xp: Any = import_module("numpy" if ON_HOST else "cupy")
kernels: Any = import_module("fastrnn._cuda_on_host" if ON_HOST else "fastrnn._cuda")


def stream() -> int:
    """The caller's current stream, as a number."""
    return 0 if ON_HOST else int(xp.cuda.get_current_stream().ptr)
