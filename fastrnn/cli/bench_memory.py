"""How much memory one call of a provider takes: the program that ``fastrnn bench`` starts to find out.

``python -m fastrnn.cli.bench_memory ROW KERNEL PROVIDER MODE SHAPE DTYPE THREADS`` prints megabytes, or nothing where
the system does not tell.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.cli import bench
from fastrnn.cli.bench_timing import Job, Settings, provider_of

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _megabytes(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def main(row: str, kernel: str, provider: str, mode: str, shape: str, dtype: str, threads: str) -> None:
    """Make the provider's call, once at a small size, so that libraries have what they keep, and once as asked for."""
    (benchmark,) = (one for one in bench.load(row) if one.kernel == kernel)
    sizes = tuple(map(int, shape.split(",")))
    settings = Settings("", (), int(threads), 1, 0.0, fastrnn.get_float32_matmul_precision())
    with bench.same_conditions(int(threads), None, (provider.partition(":")[0],), ""):
        for one in (tuple(min(size, 8) for size in sizes), sizes):
            job = Job(row, benchmark, one, mode, dtype)
            found = provider_of(provider, job, benchmark.inputs(one, np.dtype(dtype)), settings)
            assert found is not None
            with found.context():
                if one == sizes:
                    try:
                        _CLEAR.write_text("5")  # the peak begins anew
                    except OSError:
                        return
                    before = _megabytes("VmRSS")
                result = found.call()
    print(_megabytes("VmHWM") - before)
    del result


if __name__ == "__main__":
    main(*sys.argv[1:])
