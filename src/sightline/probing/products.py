"""Small matrix products inside compiled kernels, of shapes that BLAS is slow at.

A readout multiplies blocks of a few dozen rows with an inner size of three to forty; a library's
call takes as long as such a product. Here a block of the result stays in registers over the whole
inner size, as in Goto and van de Geijn (2008) but without their packing: all operands lie in the
first-level cache already.

Every function is ``f(c, c_at, c_step, a, a_at, a_row, a_col, b, b_at, b_step, m, n, depth)`` on flat
float32 vectors: ``P[i, j] = sum_k a[a_at + i a_row + k a_col] b[b_at + k b_step + j]`` for m rows
and n columns, n a multiple of `WIDE`, goes to ``c[c_at + i c_step + j]``.
"""

# ruff: noqa: ANN001, ANN202 - numba infers the types of compiled kernels

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from sightline.splatting.rasterize.jit import kernel

_LANES = 16
"""float32 values of a vector; where the machine's are shorter, LLVM takes several."""
_VECTORS = 2
WIDE = _LANES * _VECTORS
"""Columns come in multiples of this."""
_ADD, _RELU, _GATE = 0, 1, 2


def _make_block(typingctx, c, c_at, c_step, a, a_at, a_row, a_col, b, b_at, b_step, depth, m, end):
    if not (isinstance(m, types.IntegerLiteral) and isinstance(end, types.IntegerLiteral)):
        return None
    rows, ending = m.literal_value, end.literal_value

    def generate(context, builder, signature, args):
        word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), _LANES)
        zero = ir.Constant(vector, [0.0] * _LANES)
        undefined = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        c_data, a_data, b_data = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 7)
        )
        _, c_from, c_stride, _, a_from, a_down, a_along, _, b_from, b_stride, count = args[:11]

        def step(start, stride, times):
            return builder.add(start, builder.mul(stride, ir.Constant(word, times)))

        def lanes(base, place, number):
            place = builder.add(place, ir.Constant(word, _LANES * number))
            return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())

        def load(pointer):
            value = builder.load(pointer)
            value.align = 4
            return value

        sums = [
            [cgutils.alloca_once(builder, vector) for _ in range(_VECTORS)] for _ in range(rows)
        ]
        for slot in (slot for row in sums for slot in row):
            builder.store(zero, slot)  # LLVM makes registers of the slots
        with cgutils.for_range(builder, count) as loop:
            line = builder.add(b_from, builder.mul(b_stride, loop.index))
            values = [load(lanes(b_data, line, number)) for number in range(_VECTORS)]
            column = builder.add(a_from, builder.mul(a_along, loop.index))
            for row in range(rows):
                one = load(builder.gep(a_data, [step(column, a_down, row)]))
                one = builder.insert_element(undefined, one, first)
                factor = builder.shuffle_vector(one, undefined, everywhere)
                for number, slot in enumerate(sums[row]):
                    product = builder.fmul(factor, values[number], flags=("contract",))
                    total = builder.fadd(builder.load(slot), product, flags=("contract",))
                    builder.store(total, slot)
        for row in range(rows):
            line = step(c_from, c_stride, row)
            for number, slot in enumerate(sums[row]):
                place, total = lanes(c_data, line, number), builder.load(slot)
                if ending == _ADD:
                    total = builder.fadd(load(place), total)
                else:
                    sign = total if ending == _RELU else load(place)
                    total = builder.select(builder.fcmp_unordered(">", sign, zero), total, zero)
                builder.store(total, place, align=4)
        return context.get_dummy_value()

    wide = types.int64
    places = (c, wide, wide, a, wide, wide, wide, b, wide, wide, wide)
    return types.void(*places, m, end), inspect.unwrap(generate)


_block = intrinsic(inspect.unwrap(_make_block))


def _product(end: int) -> Callable[..., Any]:
    """Make the loop over blocks of four rows."""

    def product(c, c_at, c_step, a, a_at, a_row, a_col, b, b_at, b_step, m, n, depth):
        for row in range(0, m - 3, 4):
            to, at = c_at + row * c_step, a_at + row * a_row
            for j in range(0, n, WIDE):
                _block(c, to + j, c_step, a, at, a_row, a_col, b, b_at + j, b_step, depth, 4, end)
        left = m % 4
        to, at = c_at + (m - left) * c_step, a_at + (m - left) * a_row
        for j in range(0, n, WIDE):
            if left == 3:
                _block(c, to + j, c_step, a, at, a_row, a_col, b, b_at + j, b_step, depth, 3, end)
            elif left == 2:
                _block(c, to + j, c_step, a, at, a_row, a_col, b, b_at + j, b_step, depth, 2, end)
            elif left == 1:
                _block(c, to + j, c_step, a, at, a_row, a_col, b, b_at + j, b_step, depth, 1, end)

    return kernel(product)


add_product = _product(_ADD)
"""``c += P``."""
relu_product = _product(_RELU)
"""``c = max(P, 0)``; what is not a number stays so."""
gate_product = _product(_GATE)
"""``c = P`` where ``c`` was positive, and zero elsewhere."""
