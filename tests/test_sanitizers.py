"""That sanitizers see what the C++ kernels do wrong, each with a fault on purpose in a process of its own.

Without these, a run under sanitizers that watch nothing would look like one without faults. They call the bindings
themselves, past the checks of `fastrnn.ops`, which let no such arguments through.
"""

import os
import subprocess
import sys

import pytest

# `make sanitize` preloads the sanitizers' runtime, which has to come before all else.
PRELOADED = os.environ.get("LD_PRELOAD", "")
with_address = pytest.mark.skipif("libasan" not in PRELOADED, reason="not under AddressSanitizer (make sanitize)")
with_threads = pytest.mark.skipif("libtsan" not in PRELOADED, reason="not under ThreadSanitizer (make sanitize)")


def report_of(statements):
    """What the sanitizer says when it ends a process that runs these statements."""
    program = f"import numpy as np\nfrom fastrnn import _cpu\n{statements}\nprint('survived')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stdout == "", done.stderr
    return done.stderr


@with_address
@pytest.mark.parametrize("short, access", [("out", "WRITE"), ("w", "READ")])
def test_an_access_out_of_bounds_is_reported(short, access):
    sizes = {"w": 5000, "dw": 5000, "out": 5000} | {short: 4999}
    arrays = "; ".join(f"{name} = np.ones({size}, np.float32)" for name, size in sizes.items())
    # The number of elements is w's: a w that is too short says more than it has.
    longer = "w = np.lib.stride_tricks.as_strided(w, (5000,))"
    report = report_of(f"{arrays}; {longer}; _cpu.sgd(w, dw, 0.1, out)")
    assert "AddressSanitizer: heap-buffer-overflow" in report and f"{access} of size" in report
    assert "inner_loops.h" in report  # where


@with_address
def test_a_signed_overflow_is_reported():
    report = report_of("_cpu.lstm_buffers(2**62, 4, 4, 4, 4)")
    assert "runtime error: signed integer overflow" in report and "recurrent.h" in report


@with_threads
def test_a_race_of_two_workers_is_reported():
    # w is out, moved by one element: the last that a worker reads is the first that the next worker writes.
    report = report_of(
        "both = np.ones(8_000_001, np.float32); dw = np.ones(8_000_000, np.float32)\n"
        "_cpu.set_num_threads(2)\n"
        "for _ in range(20): _cpu.sgd(both[1:], dw, 0.1, both[:-1])"
    )
    assert "ThreadSanitizer: data race" in report and "inner_loops.h" in report
