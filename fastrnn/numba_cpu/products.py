"""Matrix products in panels: what the recurrent and the affine layers stand on.

Why not the BLAS that SciPy ships: it packs its right operand anew in each call, and the time loop multiplies by the
same weights at every step; its threads spin after a call on the cores that the time loop needs; and it cannot be called
from several threads at once with one thread each. Measured in float32 on one core of an EPYC (Zen 4, 118 GFLOP/s at
most), here against OpenBLAS on one thread, in GFLOP/s: (12, 512) (512, 2048) 109 to 39, (64, 512) (512, 2048) 109 to
77, (1600, 256) (256, 768) 109 to 106.

The right operand B (K, columns) is packed into panels of up to `VECTORS` vectors of columns, each (K, width) in C
order, with zeros where columns end. A tile of results, `ROWS` rows of one panel, stays in registers while k runs; the
left operand is read in place. How columns are cut into panels depends on their number alone, and a panel belongs to
one thread: the bits of a result do not depend on the number of threads.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from .jit import compile_c, jit

# What Numba compiles for: that of the host, if the environment does not say otherwise.
_ASKED_FOR = getattr(config, "CPU_FEATURES", None)
_FEATURES = get_host_cpu_features() if _ASKED_FOR is None else _ASKED_FOR
VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
# A tile needs, per k, VECTORS loads of B and ROWS broadcasts of A beside its ROWS * VECTORS accumulators: 24 of 32
# registers, or 12 of 16.
VECTORS = 4 if "+avx512f" in _FEATURES or platform.machine() in ("arm64", "aarch64") else 2
ROWS = 6

# Elements of one tile, in any dtype: room for it is called a spill.
SPILL = ROWS * VECTORS * VECTOR_BYTES // 4

# A sum over k is taken in slices of this many, which are then added up: its rounding error grows with the slice and
# with the number of slices, not with their product.
K_SLICE = 64
# Of a large product, this many rows of the left operand by this many k at a time: 256 KiB of float32, which stays in
# the second-level cache beside a panel of B.
ROW_BLOCK = 256
K_BLOCK = 256
# A product of up to this many rows goes to BLAS: packing its right operand would cost more than it does.
FEW_ROWS = 24


@intrinsic
def _tile(typingctx: Any, rows, vectors, K, a, a_row, a_col, b, c, c_row):
    """c[i c_row + j] += sum over k of a[i a_row + k a_col] * b[k width + j] for i < rows, j < width = vectors * lanes.

    a, b and c are pointers; rows is 1 to ROWS, vectors 1 to VECTORS. In LLVM's own language, because from loops LLVM
    does not make a tile that stays in registers.
    """
    integer = types.int64

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rows, vectors, K, a, a_row, a_col, b, c, c_row = values
        real = context.get_value_type(a_type.dtype)
        lanes = VECTOR_BYTES * 8 // a_type.dtype.bitwidth
        function = builder.function
        end = function.append_basic_block("tile.end")
        # One loop for each size of tile, and a jump to the right one.
        which = builder.add(builder.mul(rows, _integer(VECTORS + 1)), vectors)
        switch = builder.switch(which, end)
        for m in range(1, ROWS + 1):
            for n in range(1, VECTORS + 1):
                block = function.append_basic_block(f"tile.{m}.{n}")
                switch.add_case(_integer(m * (VECTORS + 1) + n), block)
                builder.position_at_end(block)
                _tile_loop(builder, real, lanes, m, n, K, a, b, c, a_row, a_col, c_row, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    a_type = a
    return types.void(integer, integer, integer, a, integer, integer, b, c, integer), codegen


def _integer(value: int, bits: int = 64) -> Any:
    return ir.Constant(ir.IntType(bits), value)


def _tile_loop(
    builder: Any, real: Any, lanes: int, m: int, n: int, K: Any, a: Any, b: Any, c: Any, a_row: Any, a_col: Any,
    c_row: Any, end: Any,
) -> None:  # fmt: skip
    """Append the loops of a tile of m rows and n vectors: slices of k, and k within a slice."""
    vector = ir.VectorType(real, lanes)
    bits = {"float": 32, "double": 64}[str(real)]
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{bits}"
    )
    undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, None)
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)

    def vectors_at(pointer: Any) -> list[Any]:
        places = [builder.gep(pointer, [_integer(j * lanes)]) for j in range(n)]
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    entry = builder.block
    outer, inner, done = (builder.function.append_basic_block(f"{entry.name}.{name}") for name in ("k", "fma", "add"))
    row_starts = [builder.gep(a, [builder.mul(_integer(i), a_row)]) for i in range(m)]
    results = [vectors_at(builder.gep(c, [builder.mul(_integer(i), c_row)])) for i in range(m)]
    builder.cbranch(builder.icmp_signed(">", K, _integer(0)), outer, end)

    builder.position_at_end(outer)
    start = builder.phi(ir.IntType(64))
    start.add_incoming(_integer(0), entry)
    stop = builder.add(start, _integer(K_SLICE))
    stop = builder.select(builder.icmp_signed("<", stop, K), stop, K)
    builder.branch(inner)

    builder.position_at_end(inner)
    k = builder.phi(ir.IntType(64))
    k.add_incoming(start, outer)
    sums = [[builder.phi(vector) for _ in range(n)] for _ in range(m)]
    panel_row = builder.gep(b, [builder.mul(k, _integer(n * lanes))])
    right = [builder.load(place, align=bits // 8) for place in vectors_at(panel_row)]
    a_place = builder.mul(k, a_col)
    after = []
    for i in range(m):
        scalar = builder.load(builder.gep(row_starts[i], [a_place]))
        left = builder.insert_element(undefined, scalar, _integer(0, 32))
        left = builder.shuffle_vector(left, undefined, first_lane)
        after.append([builder.call(multiply_add, [left, right[j], sums[i][j]]) for j in range(n)])
        for j in range(n):
            sums[i][j].add_incoming(zero, outer)
            sums[i][j].add_incoming(after[i][j], inner)
    next_k = builder.add(k, _integer(1))
    k.add_incoming(next_k, inner)
    builder.cbranch(builder.icmp_signed("<", next_k, stop), inner, done)

    builder.position_at_end(done)
    for i in range(m):
        for j in range(n):
            before = builder.load(results[i][j], align=bits // 8)
            builder.store(builder.fadd(before, after[i][j]), results[i][j], align=bits // 8)
    start.add_incoming(stop, done)
    builder.cbranch(builder.icmp_signed("<", stop, K), outer, end)


def _tile_signature(real: Any) -> Any:
    """Of `_tile` for a Numba type of numbers."""
    integer, pointer = types.int64, types.CPointer(real)
    return types.void(integer, integer, integer, pointer, integer, integer, pointer, pointer, integer)


@lru_cache
def _compiled_tile(dtype: np.dtype) -> Any:
    """`_tile`, compiled on its own: Numba puts a copy of what a function calls into each caller, and would compile all
    the tiles anew there."""

    def tile(rows, vectors, K, a, a_row, a_col, b, c, c_row):
        _tile(rows, vectors, K, a, a_row, a_col, b, c, c_row)

    return compile_c(_tile_signature(from_dtype(dtype)), tile)


def tile_for(dtype: np.dtype) -> int:
    """Address of the tile for numbers of a dtype, which the products take as their first argument."""
    return int(_compiled_tile(dtype).address)


@intrinsic
def _call_tile(typingctx: Any, tile, rows, vectors, K, a, a_start, a_row, a_col, b, b_start, c, c_start, c_row):
    """The tile at address `tile` for flat arrays and where to start in them."""
    integer = types.int64
    arguments = (tile, integer, integer, integer, a, integer, integer, integer, b, integer, c, integer, integer)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile, rows, vectors, K, a, a_start, a_row, a_col, b, b_start, c, c_start, c_row = values

        def pointer(position: int, array: Any, start: Any) -> Any:
            return builder.gep(context.make_array(signature.args[position])(context, builder, array).data, [start])

        places = pointer(4, a, a_start), pointer(8, b, b_start), pointer(10, c, c_start)
        number, real = ir.IntType(64), places[0].type
        kind = ir.FunctionType(ir.VoidType(), [number] * 3 + [real, number, number, real, real, number])
        function = builder.inttoptr(tile, kind.as_pointer())
        builder.call(function, [rows, vectors, K, places[0], a_row, a_col, places[1], places[2], c_row])
        return context.get_dummy_value()

    return types.void(*arguments), codegen


@intrinsic
def _transpose(typingctx: Any, a, a_start, a_row, c, c_start, c_row):
    """c[c_start + i c_row + j] = a[a_start + j a_row + i] for i and j < lanes; the arrays are flat.

    In registers: of the loops LLVM would make scatters, which take eight times as long.
    """
    integer = types.int64

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        a, a_start, a_row, c, c_start, c_row = values
        lanes = VECTOR_BYTES * 8 // signature.args[0].dtype.bitwidth
        vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes)

        def place(position: int, array: Any, start: Any, row: Any, i: int) -> Any:
            data = context.make_array(signature.args[position])(context, builder, array).data
            start = builder.add(start, builder.mul(row, _integer(i)))
            return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())

        size = VECTOR_BYTES // lanes
        rows = [builder.load(place(0, a, a_start, a_row, i), align=size) for i in range(lanes)]
        # Interleaving the first half of the rows with the second, log2(lanes) times, swaps rows and columns.
        halves = [
            ir.Constant(ir.VectorType(ir.IntType(32), lanes), [i // 2 + i % 2 * lanes + half for i in range(lanes)])
            for half in (0, lanes // 2)
        ]
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [builder.shuffle_vector(one, other, half) for one, other in pairs for half in halves]
        for i, row in enumerate(rows):
            builder.store(row, place(3, c, c_start, c_row, i), align=size)
        return context.get_dummy_value()

    return types.void(a, integer, integer, c, integer, integer), codegen


# ---- panels --------------------------------------------------------------------------------------------------------


def packed_size(K: int, columns: int, itemsize: int) -> int:
    """Number of elements of a packed (K, columns) matrix."""
    lanes = VECTOR_BYTES // itemsize
    return K * -(-columns // lanes) * lanes


@jit
def panel_count(columns, itemsize):
    """Number of panels of a matrix: even where there are several, so that two threads get the same."""
    vectors = -(-columns // (VECTOR_BYTES // itemsize))
    count = -(-vectors // VECTORS)
    return count + 1 if count > 1 and count % 2 == 1 else count


@jit
def panel_columns(columns, itemsize, p, count):
    """The first column of panel p, and how many vectors it has; as first column of panel `count`, where all end."""
    lanes = VECTOR_BYTES // itemsize
    vectors = -(-columns // lanes)
    first = p * vectors // count
    return first * lanes, (p + 1) * vectors // count - first


@jit
def share(part, parts, count):
    """The first of `count` things that `part` of `parts` has, and the first that it has no more."""
    return part * count // parts, (part + 1) * count // parts


@jit
def pack(matrix, p_first, p_last, room, packed):
    """Panels p_first to p_last of `matrix` (K, columns), each with room for `room` rows, K of which are written."""
    K, columns = matrix.shape
    count = panel_count(columns, matrix.itemsize)
    for p in range(p_first, p_last):
        first, vectors = panel_columns(columns, matrix.itemsize, p, count)
        width = vectors * (VECTOR_BYTES // matrix.itemsize)
        there = min(width, columns - first)
        panel = packed[first * room : first * room + width * K].reshape(K, width)
        for k in range(K):
            row, out = matrix[k, first : first + there], panel[k]
            for j in range(there):
                out[j] = row[j]
            for j in range(there, width):
                out[j] = 0


@jit
def pack_transposed(matrix, p_first, p_last, packed):
    """Panels p_first to p_last of the transpose of `matrix` (columns, K)."""
    columns, K = matrix.shape
    flat, zero = matrix.reshape(columns * K), matrix.dtype.type(0)
    count = panel_count(columns, matrix.itemsize)
    lanes = VECTOR_BYTES // matrix.itemsize
    for p in range(p_first, p_last):
        first, vectors = panel_columns(columns, matrix.itemsize, p, count)
        width = vectors * lanes
        there = min(width, columns - first)
        panel = packed[first * K : (first + width) * K].reshape(K, width)
        for k in range(0, K, lanes):
            for j in range(0, width, lanes):
                if k + lanes <= K and j + lanes <= there:
                    _transpose(flat, (first + j) * K + k, K, packed, first * K + k * width + j, width)
                else:
                    for q in range(k, min(k + lanes, K)):
                        for i in range(j, j + lanes):
                            panel[q, i] = matrix[first + i, q] if i < there else zero


# ---- products ------------------------------------------------------------------------------------------------------


@jit
def _add_rows(tile, M, K, a, a_start, a_row, a_col, packed, b_start, vectors, start, c, c_start, c_row, there, spill):
    """Add the product of M rows of a with K rows of a panel to M rows of c, of which `there` columns are in the panel.

    The rows of c are first set to `start` (there,), unless that is empty.
    """
    width = vectors * (VECTOR_BYTES // c.itemsize)
    tiles = -(-M // ROWS)
    i = 0
    for t in range(tiles):
        rows = (M - i + tiles - t - 1) // (tiles - t)  # tiles of nearly one size
        a_tile, c_tile = a_start + i * a_row, c_start + i * c_row
        if start.shape[0] > 0:
            for r in range(rows):
                out = c[c_tile + r * c_row : c_tile + r * c_row + there]
                for j in range(there):
                    out[j] = start[j]
        if there == width:
            _call_tile(tile, rows, vectors, K, a, a_tile, a_row, a_col, packed, b_start, c, c_tile, c_row)
        else:  # a tile is as wide as its vectors, and the result is not
            spill[:] = 0
            _call_tile(tile, rows, vectors, K, a, a_tile, a_row, a_col, packed, b_start, spill, 0, width)
            for r in range(rows):
                for j in range(there):
                    c[c_tile + r * c_row + j] += spill[r * width + j]
        i += rows


@jit
def add_product(tile, a, packed, p_first, p_last, start, c, spill):
    """c (M, columns) += a (M, K) B for panels p_first to p_last of the packed B (K, columns).

    With `start` (columns,) each row of c is that before; with an empty one, what it holds.
    """
    (M, K), columns = a.shape, c.shape[1]
    count = panel_count(columns, c.itemsize)
    lanes = VECTOR_BYTES // c.itemsize
    flat_a, flat_c = a.reshape(M * K), c.reshape(M * columns)
    for i in range(0, M, ROW_BLOCK):
        rows = min(ROW_BLOCK, M - i)
        for k in range(0, max(K, 1), K_BLOCK):
            for p in range(p_first, p_last):
                first, vectors = panel_columns(columns, c.itemsize, p, count)
                there = min(vectors * lanes, columns - first)
                begin = start[first : first + there] if k == 0 and start.shape[0] > 0 else start[:0]
                _add_rows(
                    tile, rows, min(K_BLOCK, K - k), flat_a, i * K + k, K, np.int64(1), packed,
                    first * K + k * vectors * lanes, vectors, begin, flat_c, i * columns + first, columns, there, spill,
                )  # fmt: skip


@jit
def transposed_product(tile, a, b, p_first, p_last, zeros, block, c, spill):
    """c (M, columns) = a^T b for panels p_first to p_last of b (K, columns), where a is (K, M).

    `block` takes K_BLOCK rows of all of b's panels; `zeros` is (columns,).
    """
    (K, M), columns = a.shape, b.shape[1]
    count = panel_count(columns, c.itemsize)
    lanes = VECTOR_BYTES // c.itemsize
    flat_a, flat_c = a.reshape(K * M), c.reshape(M * columns)
    for k in range(0, max(K, 1), K_BLOCK):
        length = min(K_BLOCK, K - k)
        pack(b[k : k + length], p_first, p_last, np.int64(K_BLOCK), block)
        for i in range(0, M, ROW_BLOCK):
            for p in range(p_first, p_last):
                first, vectors = panel_columns(columns, c.itemsize, p, count)
                there = min(vectors * lanes, columns - first)
                _add_rows(
                    tile, min(ROW_BLOCK, M - i), length, flat_a, k * M + i, np.int64(1), M, block, first * K_BLOCK,
                    vectors, zeros[first : first + there] if k == 0 else zeros[:0], flat_c, i * columns + first,
                    columns, there, spill,
                )  # fmt: skip


@jit
def dot(a, b, out):
    """out = a b, by BLAS."""
    if a.shape[1] > 0:
        np.dot(a, b, out)
    else:  # BLAS leaves the result alone where there is nothing to sum
        out[:] = 0


@jit
def _sum_rows(d, offsets, begin, end, total):
    """total[begin:end] = the sum of the rows of d (R, columns).

    In float64 and step by step, so that rounding grows with the number of steps plus rows of a step, not with their
    product.
    """
    sums, step = np.zeros(end - begin), np.empty(end - begin)
    for s in range(offsets.shape[0] - 1):
        step[:] = 0
        for r in range(offsets[s], offsets[s + 1]):
            row = d[r, begin:end]
            for k in range(row.shape[0]):
                step[k] += row[k]
        for k in range(sums.shape[0]):
            sums[k] += step[k]
    for k in range(sums.shape[0]):
        total[begin + k] = sums[k]


# ---- a thread's part of the products around a layer ----------------------------------------------------------------
#
# In plain Python, since each function that Numba compiles gets a copy of all it calls.


def columns_of(part: int, parts: int, columns: int, itemsize: int) -> tuple[int, int]:
    """The first column that `part` of `parts` has, and the first that it has no more."""
    count = panel_count(columns, itemsize)
    first, last = share(part, parts, count)
    if first == last:
        return 0, 0
    begin, end = (panel_columns(columns, itemsize, p, count)[0] for p in (first, last))
    return begin, min(end, columns)


def affine(
    part: int,
    parts: int,
    tile: int,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    packed: np.ndarray,
    out: np.ndarray,
) -> None:
    """Columns of out (R, M) = x (R, D) w (D, M) + b; `packed` takes all of w."""
    first, last = share(part, parts, panel_count(w.shape[1], w.itemsize))
    pack(w, first, last, w.shape[0], packed)
    add_product(tile, x, packed, first, last, b, out, np.empty(SPILL, out.dtype))


def weight_gradient(
    part: int, parts: int, tile: int, x: np.ndarray, dout: np.ndarray, block: np.ndarray, dw: np.ndarray
) -> None:
    """Columns of dw (D, M) = x^T dout; `block` takes K_BLOCK rows of dout, packed."""
    first, last = share(part, parts, panel_count(dw.shape[1], dw.itemsize))
    zeros, spill = np.zeros(dw.shape[1], dw.dtype), np.empty(SPILL, dw.dtype)
    transposed_product(tile, x, dout, first, last, zeros, block, dw, spill)


def input_gradient(
    part: int, parts: int, tile: int, dout: np.ndarray, w: np.ndarray, packed: np.ndarray, dx: np.ndarray
) -> tuple[int, int]:
    """Columns of dx (R, D) = dout w^T, and which they are; `packed` takes all of w^T."""
    first, last = share(part, parts, panel_count(dx.shape[1], dx.itemsize))
    pack_transposed(w, first, last, packed)
    zeros, spill = np.zeros(dx.shape[1], dx.dtype), np.empty(SPILL, dx.dtype)
    add_product(tile, dout, packed, first, last, zeros, dx, spill)
    return columns_of(part, parts, dx.shape[1], dx.itemsize)


def sum_columns(part: int, parts: int, dout: np.ndarray, offsets: np.ndarray, total: np.ndarray) -> None:
    """Columns of total (M,), the sum of the rows of dout (R, M), of which `offsets` are the first rows of the steps."""
    _sum_rows(dout, offsets, *columns_of(part, parts, dout.shape[1], dout.itemsize), total)
