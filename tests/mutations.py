"""Plant faults on purpose, one at a time, and see whether the tests catch them (``make mutations``).

A test that cannot fail guards nothing. Each fault of the table below is one that somebody could make: a barrier left
out, a gate swapped, a mask not looked at. It is put into a copy of the sources, what it touches is compiled, and the
test files that should notice run until one test fails: the catcher. At the end the same tests run without a fault, and
must pass. ``docs/mutations.md`` is the list, with what the last whole run found.

    python tests/mutations.py                       # all; what earlier runs found of the same sources is kept
    python tests/mutations.py --only gan-loss-sign  # one fault, and its tests without it
    python tests/mutations.py --list                # the table
    python tests/mutations.py --table               # write docs/mutations.md from the record of the last whole run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mutations.md"
RECORD = ROOT / "docs" / "evidence" / "mutations.json"
RESULTS = ROOT / "build" / "mutations.json"
LIMIT = 180.0  # seconds for the tests of one fault

# Kernels in C++ are tried with the backends that they do not serve left out.
CPU = "not numba and not reference and not cuda"
NUMBA = "numba"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    name : str
        For ``--only``.
    file : str
        Where it is planted.
    old, new : str
        The text that stands there once, and what takes its place.
    kind : str
        Of mistake.
    why : str
        What a user would see.
    tests : tuple of str
        Test files that should notice.
    select : str
        Of those, the tests that pytest's ``-k`` takes.
    """

    name: str
    file: str
    old: str
    new: str
    kind: str
    why: str
    tests: tuple[str, ...]
    select: str = ""

    @property
    def target(self) -> str:
        """The compiled module that it is in; empty for Python."""
        if not self.file.startswith("csrc/"):
            return ""
        return "_cuda_on_host" if "cuda" in self.file else "_cpu"


def _cpu(name: str, file: str, old: str, new: str, kind: str, why: str, *tests: str, select: str = CPU) -> Fault:
    return Fault(name, f"csrc/{file}", old, new, kind, why, tuple(f"tests/test_{test}.py" for test in tests), select)


def _python(name: str, file: str, old: str, new: str, kind: str, why: str, *tests: str, select: str = "") -> Fault:
    return Fault(name, f"fastrnn/{file}", old, new, kind, why, tuple(f"tests/test_{test}.py" for test in tests), select)


FAULTS = (
    # ---- C++ kernels -------------------------------------------------------------------------------------------------
    _cpu(
        "rnn-no-barrier-between-steps",
        "cpu/rnn.cpp",
        "            w.barrier();\n        }\n        final_states(",
        "        }\n        final_states(",
        "missing barrier",
        "with two threads, a step reads hidden units that the other has not written",
        "threads",
        "rnn",
    ),
    _cpu(
        "rnn-dh0-of-a-neighbour",
        "cpu/rnn.cpp",
        "dh0 + rows.sequence(r + i) * s.H + unit",
        "dh0 + (r + i) * s.H + unit",
        "wrong index",
        "with lengths, the gradient of an initial state goes to another sequence",
        "rnn",
    ),
    _cpu(
        "lstm-c0-of-a-neighbour",
        "cpu/lstm.cpp",
        "c0.data + rows.sequence(r) * c0.row",
        "c0.data + r * c0.row",
        "wrong index",
        "with lengths, a sequence starts from the cell state of another",
        "lstm",
    ),
    _cpu(
        "lstm-final-gradients-swapped",
        "cpu/lstm.cpp",
        "final_gradients(rows, r, 1, Index(0), s.units, s.H, dc_n,",
        "final_gradients(rows, r, 1, Index(0), s.units, s.H, dh_n,",
        "swapped argument",
        "the gradient of the final hidden state flows through the cell state",
        "lstm",
    ),
    _cpu(
        "lstm-gates-swapped-backward",
        "gates.h",
        "d.f = dc * c_prev * s.f * (one - s.f);",
        "d.f = dc * s.g * s.f * (one - s.f);",
        "swapped gate",
        "the forget gate learns from the candidate: training goes on, and is wrong",
        "lstm",
    ),
    _cpu(
        "gates-of-units-that-do-not-exist",
        "cpu/inner_loops.h",
        "first_lanes(x, valid<S>(s, j)).store(p);",
        "(valid<S>(s, j) > 0 ? x : S::zero()).store(p);",
        "mask ignored",
        "an infinity in a layer's input makes NaN of gradients that are finite",
        "recurrent",
    ),
    _cpu(
        "gru-input-gradient-in-the-recurrence",
        "cpu/gru.cpp",
        "t.tile(count, n, K, scratch.dah + (rows.at(step + 1) + r) * ld, ld, 1, panel_at(g), nullptr, 0,",
        "t.tile(count, n, K, scratch.dax + (rows.at(step + 1) + r) * ld, ld, 1, panel_at(g), nullptr, 0,",
        "wrong buffer",
        "gradients pass from step to step without the reset gate",
        "gru",
    ),
    _cpu(
        "gru-bias-of-the-input-twice",
        "cpu/gru.cpp",
        "interleave_bias(s, g, gates, bh, bias_h + g * width);",
        "interleave_bias(s, g, gates, b, bias_h + g * width);",
        "swapped argument",
        "the recurrent biases are not used",
        "gru",
    ),
    _cpu(
        "lengths-ignored-in-reverse",
        "cpu/recurrent.h",
        "return reverse_ ? length_[r] - 1 - step : step;",
        "return reverse_ ? T_ - 1 - step : step;",
        "mask ignored",
        "a short sequence is read backwards from its padding",
        "rnn",
    ),
    _cpu(
        "padding-without-a-gradient",
        "cpu/recurrent.h",
        "for (Index time = rows.length(q); time < s.steps; ++time) {",
        "for (Index time = rows.length(q) + 1; time < s.steps; ++time) {",
        "off by one",
        "the gradient of the first padded step is whatever the memory held",
        "rnn",
    ),
    _cpu(
        "bias-sum-of-the-last-block",
        "cpu/recurrent.h",
        "if (k) std::copy_n(db + c.first[j], c.valid[j], sum + j * s.lanes);",
        "",
        "dropped term",
        "the bias gradient forgets all but the last thousand steps of a long batch",
        "rnn",
        "lstm",
        "threads",
    ),
    _cpu(
        "embedding-part-too-short",
        "cpu/embedding.cpp",
        "end = f.begin + n * (part + 1) / f.parts;",
        "end = f.begin + n * (part + 1) / f.parts - 1;",
        "off by one",
        "the gradient of a frequent word misses some of its positions",
        "embedding",
    ),
    _cpu(
        "embedding-no-barrier-before-the-sums",
        "cpu/embedding.cpp",
        "        w.barrier();\n        for (Index of = w.index;",
        "        for (Index of = w.index;",
        "missing barrier",
        "with two threads, parts of a frequent word are added up before they are summed",
        "embedding",
    ),
    _cpu(
        "softmax-mask-ignored",
        "cpu/softmax_loss.cpp",
        "            if (mask(r)) {",
        "            if (mask(r) || true) {",
        "mask ignored",
        "padding counts in the loss",
        "softmax_loss",
    ),
    _cpu(
        "vocabulary-bias-of-the-last-chunk",
        "cpu/softmax_loss.cpp",
        "first_chunk_ ? sums[j * cut_.lanes] : p_.db[v + j] + sums[j * cut_.lanes];",
        "sums[j * cut_.lanes];",
        "dropped term",
        "with weights in PyTorch's layout, the bias gradient is that of the last rows alone",
        "softmax_loss",
    ),
    _cpu(
        "gram-last-stretch-dropped",
        "cpu/gram.cpp",
        "for (Index s = 1; s < cut.stretches; ++s)",
        "for (Index s = 1; s + 1 < cut.stretches; ++s)",
        "off by one",
        "the end of a large image is left out of its style",
        "gram",
    ),
    _cpu(
        "gram-no-barrier-before-the-rows",
        "cpu/gram.cpp",
        "        if (cut.stretches == 1) return;\n        w.barrier();",
        "        if (cut.stretches == 1) return;",
        "missing barrier",
        "with two threads, rows are written from products that are not there yet",
        "gram",
    ),
    _cpu(
        "gram-gradient-without-the-transpose",
        "cpu/gram.cpp",
        "out[q] = scale * (a[q] + b[q]);",
        "out[q] = scale * (a[q] + a[q]);",
        "dropped term",
        "right for symmetric gradients only",
        "gram",
    ),
    _cpu(
        "distance-stride-ignored",
        "cpu/image_losses.cpp",
        "copy[i] = from[i * v.stride];",
        "copy[i] = from[i];",
        "wrong stride",
        "features of an image laid out by channel last are compared with their neighbours",
        "image_losses",
    ),
    _cpu(
        "variation-across-twice",
        "cpu/inner_loops.h",
        "if (above) d += row[at] - above[at];",
        "if (above) d -= row[at] - above[at];",
        "wrong sign",
        "total variation pulls a pixel away from the one above it",
        "image_losses",
    ),
    _cpu(
        "adam-one-decay-for-both",
        "cpu/optim.cpp",
        "correction2 = 1 / (1 - std::pow(beta2, t))",
        "correction2 = 1 / (1 - std::pow(beta1, t))",
        "swapped argument",
        "the first steps of Adam are thirty times too long",
        "optim",
    ),
    _cpu(
        "sgd-last-weight-of-a-share",
        "cpu/optim.cpp",
        "table<T>().sgd(mine.end - b, w + b,",
        "table<T>().sgd(mine.end - b - 1, w + b,",
        "off by one",
        "the last weight of every thread's share is garbage",
        "optim",
    ),
    _cpu(
        "affine-bias-of-the-first-panel",
        "cpu/products.h",
        ": bias ? bias + first",
        ": bias ? bias",
        "wrong offset",
        "columns after the first panel get the biases of the first",
        "affine",
    ),
    _cpu(
        "fork-keeps-the-team",
        "cpu/team.cpp",
        "[] { team.store(nullptr); }",
        "[] {}",
        "stale state",
        "a child of a fork waits for threads that it does not have, for ever",
        "neighbours",
        select="fork",
    ),
    _cpu(
        "tanh-loses-small-numbers",
        "cpu/simd.h",
        "const S less = r.expm1 * scale + (scale - one);",
        "const S less = e - one;",
        "lost precision",
        "tanh of 1e-6 has no right digit in float32",
        "simd_math",
        select="",
    ),
    # ---- bindings ----------------------------------------------------------------------------------------------------
    _cpu(
        "binding-reads-any-dtype",
        "bindings_cpu.cpp",
        "if (!py::isinstance<py::array_t<T>>(a))",
        "if (false)",
        "unchecked dtype",
        "a caller who goes past the checks has float64 read as float32",
        "weight_layouts",
        "backend",
    ),
    _cpu(
        "binding-last-stride-is-one",
        "bindings_cpu.cpp",
        "return {pointer<T>(a), stride<T>(a, 0), stride<T>(a, 1), stride<T>(a, 2)};",
        "return {pointer<T>(a), stride<T>(a, 0), stride<T>(a, 1), 1};",
        "wrong stride",
        "inputs whose last axis is not contiguous are read as if it were",
        "rnn",
    ),
    # ---- CUDA kernels, on the simulator ------------------------------------------------------------------------------
    _cpu(
        "cuda-no-barrier-in-a-block-sum",
        "cuda/softmax_loss.cu",
        "    __syncthreads();\n    const unsigned lane = threadIdx.x % warp_size;\n    return warp_sum(",
        "    const unsigned lane = threadIdx.x % warp_size;\n    return warp_sum(",
        "missing barrier",
        "a block adds up sums of warps that have not written theirs",
        "cuda_softmax_loss",
        select="",
    ),
    _cpu(
        "cuda-arrays-of-one-launch",
        "cuda/optim.cu",
        "if (table.first_block[middle] <= blockIdx.x)",
        "if (table.first_block[middle] < blockIdx.x)",
        "off by one",
        "the first block of each weight updates the weight before it",
        "cuda_optim",
        select="",
    ),
    # ---- the NumPy API -----------------------------------------------------------------------------------------------
    _python(
        "an-id-one-too-large",
        "checks.py",
        "bad = (array < 0) | (array >= upper)",
        "bad = (array < 0) | (array > upper)",
        "unchecked id",
        "the word after the last one reads, and adds to, memory of somebody else",
        "embedding",
        "softmax_loss",
    ),
    _python(
        "negative-lengths",
        "checks.py",
        "bad = (array < 0) | (array > steps)",
        "bad = array > steps",
        "unchecked argument",
        "a negative length reaches the kernels",
        "recurrent",
    ),
    _python(
        "fields-of-packed-records",
        "checks.py",
        " and (self.place.on_device or array.flags.aligned):\n            # A stride that is no multiple of the item"
        " (a field of a packed record) cannot be counted in elements.\n"
        "            if array.flags.c_contiguous or all(stride % array.itemsize == 0 for stride in array.strides):",
        ":\n            if True:",
        "wrong stride",
        "a field of a packed record is read at the wrong addresses",
        "checks",
        select="not numba and not cuda",
    ),
    _python(
        "lstm-no-gradient-of-the-final-cell",
        "ops/lstm.py",
        "_run_backward(chosen, cache, dh, dh_n, dc_n, kept)",
        "_run_backward(chosen, cache, dh, dh_n, None, kept)",
        "dropped argument",
        "dc_n is taken, checked and forgotten",
        "lstm",
        "recurrent",
    ),
    _python(
        "loss-averaged-over-steps",
        "ops/softmax_loss.py",
        "loss = chosen.number(row_loss.sum() / N, x.dtype)",
        "loss = chosen.number(row_loss.sum() / (N * T), x.dtype)",
        "wrong average",
        "losses are smaller than the published ones",
        "softmax_loss",
    ),
    _python(
        "loss-in-float64",
        "ops/softmax_loss.py",
        "loss = chosen.number(total[0] / N, h.dtype)",
        "loss = chosen.number(total[0] / N, np.dtype(np.float64))",
        "wrong dtype",
        "a float32 model computes in float64 from its loss on",
        "softmax_loss",
    ),
    _python(
        "adam-counts-once",
        "ops/optim.py",
        'self.config["t"] = int(self.settings["t"])',
        'self.config.setdefault("t", int(self.settings["t"]))',
        "stale state",
        "every step is the first one: its moments are corrected too much",
        "optim",
    ),
    _python(
        "a-block-in-use-is-given-out",
        "cache.py",
        "<= most and self._references(i) == self._free",
        "<= most and self._references(i) <= self._free + 1",
        "stale cache",
        "what forward kept for backward is overwritten by the next call",
        "cache",
    ),
    _python(
        "another-backend-than-the-one-named",
        "backend.py",
        'if name != "auto" and _reason(name):\n        raise RuntimeError(',
        'if name != "auto" and _reason(name):\n        return "auto"\n        raise RuntimeError(',
        "swallowed error",
        "who asks for a backend that cannot run gets another, and is not told",
        "backend",
    ),
    _python(
        "backward-on-another-backend",
        "backend.py",
        'if name not in ("auto", cache.backend):',
        'if name == "":',
        "unchecked argument",
        "a cache goes through a backend that was switched off",
        "backend",
    ),
    # ---- Numba -------------------------------------------------------------------------------------------------------
    _python(
        "numba-gru-reset-gate",
        "numba_cpu/gru.py",
        "d_r[j] = d_n[j] * recurrent[j] * reset[j] * (one - reset[j])",
        "d_r[j] = d_n[j] * recurrent[j] * reset[j]",
        "dropped term",
        "the reset gate learns too fast where nothing was compiled",
        "gru",
        select=NUMBA,
    ),
    _python(
        "numba-sequences-without-steps",
        "numba_cpu/recurrent.py",
        "    cut[-1] = N  # sequences of length 0 come last\n",
        "",
        "dropped case",
        "with two threads, a sequence of length 0 gets no final state",
        "threads",
        "rnn",
        select=NUMBA,
    ),
    # ---- captioning --------------------------------------------------------------------------------------------------
    _python(
        "captions-with-unknown-words",
        "captioning/data.py",
        "outside = (values < 0) | (values >= size)",
        "outside = (values < 0) | (values > size)",
        "unchecked id",
        "a damaged data set is found out in the middle of training",
        "captioning",
        select="bad_files or too_few_urls",
    ),
    _python(
        "features-of-another-image",
        "captioning/data.py",
        'return parts["captions"][drawn], parts["features"][image_idxs],',
        'return parts["captions"][drawn], parts["features"][drawn % len(parts["features"])],',
        "wrong index",
        "captions are learned with the wrong pictures",
        "captioning",
        select="minibatches",
    ),
    _python(
        "beam-likes-short-sentences",
        "captioning/decoding.py",
        "score = np.where(ends, log_p / penalty[lengths], -np.inf)",
        "score = np.where(ends, log_p * penalty[lengths], -np.inf)",
        "wrong sign",
        "the length penalty punishes length",
        "decoding",
        select="beam",
    ),
    _python(
        "perplexity-below-one",
        "captioning/metrics.py",
        "return math.exp(-likelihood / words)",
        "return math.exp(likelihood / words)",
        "wrong sign",
        "the worst model has the best perplexity",
        "decoding",
        select="perplexity",
    ),
    _python(
        "checkpoint-forgets-the-best",
        "captioning/checkpoint.py",
        "        best=best,\n",
        "        best={},\n",
        "dropped field",
        "a run that goes on overwrites its best model by a worse one",
        "training",
        select="checkpoint or cut_ends_the_same",
    ),
    _python(
        "checkpoint-damage-read-as-zeros",
        "captioning/checkpoint.py",
        'raise _Wrong(f"dataset {name!r} is damaged (HDF5 says: {error})") from None',
        "return np.zeros(shape, dtype)",
        "swallowed error",
        "a damaged checkpoint is a model whose weights are 0",
        "training",
        select="bad_checkpoints or damage",
    ),
    _python(
        "noise-is-not-drawn-again",
        "captioning/training.py",
        "return np.random.default_rng([self.config.seed, self.epoch, self.batch, purpose])",
        "return np.random.default_rng()",
        "generator not restored",
        "a run that went on ends with other bits than one that was not cut",
        "training",
        select="ends_the_same or several_processes or of_a_shard",
    ),
    _python(
        "gradients-of-parts-unweighted",
        "captioning/parallel.py",
        "xp.multiply(gradient, view.dtype.type(weight), out=view)",
        "xp.multiply(gradient, view.dtype.type(1), out=view)",
        "dropped term",
        "the gradient of N processes is N times too large",
        "parallel",
        select="gradients_of_a_shared_batch or three_processes",
    ),
    # ---- pictures ----------------------------------------------------------------------------------------------------
    _python(
        "saliency-with-its-sign",
        "vision/visualisation.py",
        "return gradient.abs().amax(dim=1)",
        "return gradient.amax(dim=1)",
        "wrong sign",
        "pixels that speak against a class look as if they did not matter",
        "visualisation",
        select="saliency_is",
    ),
    _python(
        "style-weights-ignored",
        "vision/style.py",
        "style = style_loss(features, places, self.targets, settings.style_weights)",
        "style = style_loss(features, places, self.targets, [1.0] * len(places))",
        "dropped argument",
        "all layers count alike, whatever --style-weights says",
        "style",
        select="objective or every_option",
    ),
    _python(
        "gan-loss-sign",
        "vision/gan.py",
        "return -logsigmoid(real).mean() - logsigmoid(-fake).mean()",
        "return -logsigmoid(real).mean() - logsigmoid(fake).mean()",
        "wrong sign",
        "the discriminator learns to take what is generated for real",
        "gan",
        select="loss",
    ),
    # ---- PyTorch -----------------------------------------------------------------------------------------------------
    _python(
        "torch-gates-in-our-order",
        "torch/recurrent.py",
        "return xp.concatenate((W[:third], W[last:], W[third:last]))",
        "return xp.concatenate((W[:third], W[third:last], W[last:]))",
        "swapped gate",
        "without C++ kernels, weights trained by PyTorch give other captions",
        "torch_recurrent",
        select="every_backend",
    ),
    _python(
        "torch-lengths-unsorted",
        "torch/packing.py",
        "lengths if unsorted is None else lengths[unsorted]",
        "lengths",
        "wrong order",
        "lengths that come back are those of other sequences",
        "torch_recurrent",
        select="packing",
    ),
    _python(
        "torch-precision-stays-low",
        "torch/recurrent.py",
        "                if medium:\n                    fastrnn.set_float32_matmul_precision(self._before)\n",
        "",
        "setting not restored",
        "after one bfloat16 layer, all float32 layers are bfloat16 ones",
        "torch_recurrent",
        select="autocast or bf16",
    ),
    # ---- files and the command line ----------------------------------------------------------------------------------
    _python(
        "half-written-files-stay",
        "runs.py",
        "    except BaseException:\n        with suppress(OSError):\n            aside.unlink()\n        raise",
        "    except BaseException:\n        raise",
        "resource left behind",
        "a full disk stays full: the part of the checkpoint that was written lies there",
        "training",
        select="failed_save or full_disk",
    ),
    _python(
        "the-last-record-is-dropped",
        "runs.py",
        'record["step"] <= step',
        'record["step"] < step',
        "off by one",
        "the metrics of a run that went on miss a line",
        "training",
        select="cut_ends_the_same or lengthened or metrics",
    ),
    _python(
        "check-never-fails",
        "cli/check.py",
        "raise typer.Exit(1 if any(outcome.failure for outcome in outcomes) else 0)",
        "raise typer.Exit(0)",
        "wrong exit code",
        "a pipeline that gates on `fastrnn check` lets everything through",
        "cli",
        select="check",
    ),
    _python(
        "bad-usage-is-success",
        "cli/common.py",
        "raise typer.Exit(2)",
        "raise typer.Exit(0)",
        "swallowed error",
        "a script does not notice that its command did nothing",
        "cli",
        select="usage or unknown",
    ),
)


# ---- one run -------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Something other than a fault is wrong, in words for the user."""


def _run(command: list[str], folder: Path, limit: float, **variables: str) -> tuple[int | None, str]:
    """Exit code, None where the time was up, and output; whatever happens, no process is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "2", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:  # the tests' own processes, too
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        output.seek(0)
        return code, output.read()


class Tree:
    """A copy of the sources in which faults are planted, and what was compiled of it without any."""

    def __init__(self, folder: Path) -> None:
        self.source, self.build, self.clean = folder / "source", folder / "build", folder / "clean"
        self.numba = folder / "numba"
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            here, there = ROOT / name, self.source / name
            # What is the same stays as it is, so that nothing has to be compiled again.
            if here.is_file() and not (there.is_file() and there.read_bytes() == here.read_bytes()):
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(here, there)
                if name.startswith("csrc/"):
                    shutil.rmtree(self.clean, ignore_errors=True)
        self._restore()

    def compile(self, *targets: str) -> str:
        """Build modules into the copy; what the compiler said if it failed."""
        if not (self.build / "build.ninja").is_file():
            code, said = _run(
                [
                    *_tool("cmake"), "-S", str(self.source), "-B", str(self.build), "-G", "Ninja",
                    f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')[0]}", f"-DPython_EXECUTABLE={sys.executable}",
                    f"-Dpybind11_DIR={_pybind11()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.source / 'fastrnn'}",
                    "-DFASTRNN_CUDA=OFF", "-DFASTRNN_CUDA_ON_HOST=ON",
                    # Lower precisions have tests of their own, and take as long to compile as all else.
                    "-Dx86_bf16=OFF", "-Dx86_amx=OFF",
                ],
                self.source,
                300,
            )  # fmt: skip
            if code != 0:
                raise Broken(f"CMake failed:\n{said}")
        code, said = _run([*_tool("cmake"), "--build", str(self.build), "--target", *targets], self.source, 1800)
        return said if code != 0 else ""

    def prepare(self, *targets: str) -> None:
        """Build modules without a fault, and keep them."""
        if all(any((self.clean / "fastrnn").glob(f"{target}.*")) for target in targets):
            return
        said = self.compile(*targets)
        if said:
            raise Broken(f"the sources do not compile:\n{said}")
        shutil.rmtree(self.clean, ignore_errors=True)
        shutil.copytree(self.build, self.clean / "build", symlinks=True)
        for module in (self.source / "fastrnn").glob("*.so"):
            (self.clean / "fastrnn").mkdir(exist_ok=True)
            shutil.copy2(module, self.clean / "fastrnn")

    def _restore(self) -> None:
        if self.clean.is_dir():
            shutil.rmtree(self.build, ignore_errors=True)
            shutil.copytree(self.clean / "build", self.build, symlinks=True)
            for module in (self.clean / "fastrnn").iterdir():
                shutil.copy2(module, self.source / "fastrnn")

    @contextmanager
    def planted(self, fault: Fault) -> Any:
        """The tree with a fault in it."""
        path = self.source / fault.file
        text, times = path.read_text(), path.stat()
        if text.count(fault.old) != 1:
            raise Broken(f"{fault.name}: its text stands {text.count(fault.old)} times in {fault.file}, not once")
        path.write_text(text.replace(fault.old, fault.new))
        try:
            yield
        finally:
            path.write_text(text)
            # As old as before, and what was compiled too: nothing is compiled again.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if fault.target:
                self._restore()

    def test(self, tests: tuple[str, ...], select: str, numba: Path, limit: float) -> tuple[str, str, str]:
        """passed, failed, hung or broken; the first test that failed, and what it said."""
        command = [sys.executable, "-m", "pytest", "-x", "-v", "--tb=line", "-rfE", "-p", "no:cacheprovider", *tests]
        command += ["-o", "addopts=--strict-markers --strict-config", *(["-k", select] if select else [])]
        simulator = "1" if any("test_cuda" in test for test in tests) else ""
        code, said = _run(
            command, self.source, limit, NUMBA_CACHE_DIR=str(numba), FASTRNN_CUDA_ON_HOST=simulator, COLUMNS="400"
        )
        begun = re.findall(
            r"^(tests/\S+::\S.*?) ?(?:PASSED|FAILED|SKIPPED|XFAIL|ERROR|Fatal Python error|$)", said, re.M
        )
        if code is None:
            return "hung", begun[-1] if begun else "", f"no end after {limit:.0f} s"
        if code == 0:
            return "passed", "", re.findall(r"\d+ passed", said)[-1]
        found = re.search(r"^(?:FAILED|ERROR) (tests/\S+::.*?)(?: - (.*))?$", said, re.M)
        if code == 1 and found:
            return "failed", found[1], (found[2] or "").strip()
        if code < 0 and begun:
            return "failed", begun[-1], f"the process ended by signal {signal.Signals(-code).name}"
        return "broken", "", said[-2000:]


def _tool(name: str) -> list[str]:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise Broken(f"{name} is needed to compile faulty kernels; python -m pip install cmake ninja pybind11")
    return [found]


def _pybind11() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise Broken("pybind11 is needed to compile faulty kernels; pip install cmake ninja pybind11") from error
    return str(pybind11.get_cmake_dir())


# ---- results -------------------------------------------------------------------------------------------------------


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def sources(tests: tuple[str, ...]) -> str:
    """Of all that what is found depends on, but for the fault: the library, these tests, and what tests share."""
    paths = [*(ROOT / "csrc").rglob("*"), *(ROOT / "fastrnn").rglob("*.py"), ROOT / "CMakeLists.txt"]
    shared = ("harness", "processes", "recurrent", "fake_device", "full_disk")
    paths += [*(ROOT / test for test in tests), *(ROOT / "tests" / f"{name}.py" for name in shared)]
    texts = [f"{path.relative_to(ROOT)}\n{path.read_text()}" for path in sorted(paths) if path.is_file()]
    return _digest(*texts)


class Results:
    """What runs found, in a file, so that a run can be made in pieces; what is of other sources does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, name: str, key: str) -> dict[str, Any] | None:
        row = self.rows.get(name)
        return row if row and row["key"] == key else None

    def keep(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text(json.dumps(self.rows, indent=1))
        aside.replace(self.path)


def key_of(fault: Fault) -> str:
    return _digest(repr(asdict(fault)), sources(fault.tests))


def try_fault(tree: Tree, fault: Fault, limit: float) -> dict[str, Any]:
    """Plant it, compile it, and run the tests that should notice."""
    begin = time.perf_counter()
    tree.prepare("_cpu", *filter(None, {fault.target} - {"_cpu"}))
    compiled = tested = time.perf_counter()
    # Numba remembers functions by their own files alone: one that is called from another file would stay as it was.
    numba = tree.numba / fault.name if "numba" in fault.file else tree.numba
    with tree.planted(fault):
        said = tree.compile(fault.target) if fault.target else ""
        tested = time.perf_counter()
        if said:
            verdict, catcher, message = "broken", "", said[-2000:]
        else:
            verdict, catcher, message = tree.test(fault.tests, fault.select, numba, limit)
    if numba != tree.numba:
        shutil.rmtree(numba, ignore_errors=True)
    end = time.perf_counter()
    return {
        "key": key_of(fault),
        "verdict": {"failed": "caught", "passed": "survived"}.get(verdict, verdict),
        "catcher": catcher,
        "message": message[:300] if verdict != "broken" else message,
        "build": round(tested - compiled, 1),
        "test": round(end - tested, 1),
        "seconds": round(end - begin, 1),
    }


def without(faults: list[Fault]) -> dict[str, tuple[tuple[str, ...], str]]:
    """The same tests, each of which is to pass without a fault: what is selected of each file."""
    wanted: dict[str, set[str]] = {}
    for fault in faults:
        for test in fault.tests:
            wanted.setdefault(test, set()).add(fault.select)
    return {
        f"without a fault: {test} {select}".strip(): ((test,), select)
        for test, selects in wanted.items()
        for select in ["" if "" in selects else " or ".join(f"({one})" for one in sorted(selects))]
    }


def run(faults: list[Fault], folder: Path, results: Results, limit: float, until: float) -> bool:
    """Try what is not known yet; whether all is known at the end."""
    tree: Tree | None = None
    for fault in faults:
        row = results.of(fault.name, key_of(fault))
        if row is None or row["verdict"] == "broken":
            if time.monotonic() > until:
                return False
            tree = tree or Tree(folder)
            row = try_fault(tree, fault, limit)
            results.keep(fault.name, row)
        mark = "✓" if row["verdict"] == "caught" else "✗"
        print(f"{mark} {fault.name}: {row['verdict']} {row['catcher']} ({row['seconds']:.0f} s)", flush=True)
        if row["verdict"] != "caught":
            print(f"    {row['message']}", flush=True)
    for name, (tests, select) in without(faults).items():
        key = _digest(select, sources(tests))
        row = results.of(name, key)
        if row is None or row["verdict"] != "passed":
            if time.monotonic() > until:
                return False
            tree = tree or Tree(folder)
            tree.prepare("_cpu", *({"_cuda_on_host"} if "test_cuda" in tests[0] else ()))
            begin = time.perf_counter()
            verdict, catcher, message = tree.test(tests, select, tree.numba, 2 * limit)
            seconds = round(time.perf_counter() - begin, 1)
            row = {"key": key, "verdict": verdict, "catcher": catcher, "message": message, "seconds": seconds}
            results.keep(name, row)
        mark = "✓" if row["verdict"] == "passed" else "✗"
        print(f"{mark} {name}: {row['verdict']} {row['catcher']} {row['message']} ({row['seconds']:.0f} s)", flush=True)
    return True


# ---- the page ------------------------------------------------------------------------------------------------------


def details(results: Results) -> list[dict[str, Any]]:
    """What the page is made of: each fault, and what came of it."""
    rows = []
    for fault in FAULTS:
        row = results.rows[fault.name]
        told = {name: row[name] for name in ("verdict", "catcher", "message", "build", "test")}
        rows.append({**asdict(fault), "tests": list(fault.tests), **told})
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The text of docs/mutations.md."""
    caught = sum(row["verdict"] == "caught" for row in rows)
    kinds = len({row["kind"] for row in rows})
    lines = [
        "# Planted faults",
        "",
        "Tests that cannot fail guard nothing. So faults were planted on purpose, one at a time, in a copy of the",
        f"sources: {len(rows)} of {kinds} kinds, of which the tests caught {caught}. What each is, what a user would",
        "have seen, and the first test that failed:",
        "",
        "| fault | kind | what it does | first test that fails |",
        "|---|---|---|---|",
    ]
    for row in rows:
        test = row["catcher"].removeprefix("tests/").replace("|", "\\|")
        found = f"`{test}`" if row["verdict"] == "caught" else f"**{row['verdict']}**"
        lines.append(f"| {row['name']}, `{row['file']}` | {row['kind']} | {row['why']} | {found} |")
    lines += [
        "",
        "When they were first planted, no test noticed `binding-reads-any-dtype` and `fields-of-packed-records`: both",
        "have tests since. `fork-keeps-the-team` was noticed by a test that then never ended, which it does now.",
        "",
        "The same tests pass without a fault, in the same copy. The texts that were taken out and put in are in",
        "`tests/mutations.py`; `python tests/mutations.py --only NAME` repeats one. `make mutations` repeats all of",
        "them and writes this page; [the table of evidence](evidence.md) has date and commit. Kernels were compiled",
        "as for use, for the instruction sets portable, AVX2 and AVX-512; those for CUDA ran on the simulator.",
    ]
    return "\n".join(lines) + "\n"


def recorded() -> list[dict[str, Any]]:
    """What the last whole run found."""
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text())["details"]
    return rows


def write_record(results: Results) -> None:
    """Keep what a whole run found, for the page and for docs/evidence.md."""
    sys.path.insert(0, str(ROOT / "bench"))
    sys.path.insert(0, str(ROOT))
    import evidence

    rows = details(results)
    caught = sum(row["verdict"] == "caught" for row in rows)
    kinds = len({row["kind"] for row in rows})
    seconds = sum(results.rows[name]["seconds"] for name in [fault.name for fault in FAULTS] + [*without(list(FAULTS))])
    where = f"{sum(bool(fault.target) for fault in FAULTS)} of them in C++ and CUDA kernels"
    evidence.record(
        "mutations",
        f"{len(rows)} faults of {kinds} kinds, {where}",
        f"{caught} caught" + ("; the same tests pass without" if caught == len(rows) else ""),
        seconds,
        rows,
    )


def main() -> int:
    """Plant faults, and say which were caught: 0 if all, 1 if not, 2 if that could not be found out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault; can be repeated")
    parser.add_argument("--list", action="store_true", help="show the faults, and run nothing")
    parser.add_argument(
        "--table", action="store_true", help="write docs/mutations.md from the last record; run nothing"
    )
    parser.add_argument("--again", action="store_true", help="forget what was found before")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for the tests of one fault (%(default)g)")
    parser.add_argument(
        "--pieces", type=float, metavar="SECONDS", help="begin nothing after so long; run it again then"
    )
    parser.add_argument("--folder", type=Path, help="copy and compile here, and leave it for the next run")
    given = parser.parse_args()
    names = [fault.name for fault in FAULTS]
    if given.list:
        for fault in FAULTS:
            print(f"{fault.name:40} {fault.kind:24} {fault.file}")
        return 0
    if given.table:
        PAGE.write_text(page(recorded()))
        print(f"page  {PAGE.relative_to(ROOT)}")
        return 0
    unknown = [name for name in given.only or () if name not in names]
    if unknown:
        print(f"unknown fault {unknown[0]!r}; --list shows all", file=sys.stderr)
        return 2
    faults = [fault for fault in FAULTS if not given.only or fault.name in given.only]
    results = Results(RESULTS)
    if given.again:
        for name in [fault.name for fault in faults] + [*without(faults)]:
            results.rows.pop(name, None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left
    until = time.monotonic() + given.pieces if given.pieces else float("inf")
    try:
        if given.folder:
            complete = run(faults, given.folder, results, given.limit, until)
        else:
            with tempfile.TemporaryDirectory(prefix="fastrnn-mutations-") as folder:
                complete = run(faults, Path(folder), results, given.limit, until)
    except Broken as error:
        print(f"✗ {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was found so far is kept", file=sys.stderr)
        return 130
    if not complete:
        print("not all was tried; run it again")
        return 3
    bad = [fault.name for fault in faults if results.rows[fault.name]["verdict"] != "caught"]
    bad += [name for name in without(faults) if results.rows[name]["verdict"] != "passed"]
    print(f"{len(faults)} faults: " + (f"✗ {', '.join(bad)}" if bad else "all caught; the same tests pass without"))
    if not given.only and not bad:
        write_record(results)
        PAGE.write_text(page(recorded()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
