"""How the CPU kernels are compiled and spread over threads.

Kernels are plain numba functions over ``[first, last)`` of something; they release the GIL, so a
Python thread pool runs them. Numba's own parallel loops are not used: they compile slowly, and two
Python threads that enter them at once abort the process on some threading layers.

When a function that kernels of *another* file call is edited, delete ``__pycache__``: numba's cache
looks only at the file of the kernel itself.
"""

import inspect
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_FASTMATH = {"contract", "nsz", "arcp"}
"""No ``nnan``/``ninf`` (checks for non-finite input must survive) and no ``reassoc`` (the order of
every sum is fixed, and the exponential below relies on it)."""


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile with the options that all kernels share.

    Unwrapping first lets the test suite's hook, which wraps every function of the package in a
    runtime type checker, pass by: numba cannot compile the wrapper.
    """
    return numba.njit(
        inspect.unwrap(function), nogil=True, error_model="numpy", fastmath=_FASTMATH, **options
    )


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, and keep the machine code in numba's cache on disk.

    The cache lies beside the source or, where that cannot be written, in the user's cache folder;
    where neither can, each process compiles anew.
    """
    try:
        return _compile(function, {"cache": True})
    except RuntimeError:  # numba found no folder to write to
        return _compile(function, {})


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part of kernels into each of them, so that loops around it become vector code."""
    return _compile(function, {"forceinline": True})


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    return intrinsic(inspect.unwrap(function))


@_intrinsic
def lowest_bit(typingctx, mask):
    """Index of the lowest set bit of a non-zero 64-bit mask."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), inspect.unwrap(generate)


@_intrinsic
def scale_by_power(typingctx, mantissa, shifted):
    """``mantissa * 2**n`` where ``shifted`` is ``n + 1.5 * 2**23``, both float32.

    The low bits of ``shifted`` hold n; moving them into the exponent is one shift and one addition.
    """

    def generate(context, builder, signature, args):
        word = ir.IntType(32)
        exponent = builder.shl(builder.bitcast(args[1], word), ir.Constant(word, 23))
        bits = builder.add(builder.bitcast(args[0], word), exponent)
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32, types.float32), inspect.unwrap(generate)


@_intrinsic
def split_exponent(typingctx, value):
    """Mantissa in [0.75, 1.5) and exponent, both float32, of a positive normal float32."""

    def generate(context, builder, signature, args):
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        offset = builder.sub(bits, ir.Constant(word, 0x3F400000))
        exponent = builder.ashr(offset, ir.Constant(word, 23))
        mantissa = builder.sub(bits, builder.shl(exponent, ir.Constant(word, 23)))
        pair = (
            builder.bitcast(mantissa, ir.FloatType()),
            builder.sitofp(exponent, ir.FloatType()),
        )
        return context.make_tuple(builder, signature.return_type, pair)

    result = types.UniTuple(types.float32, 2)
    return result(types.float32), inspect.unwrap(generate)


@_intrinsic
def prefetch(typingctx, array, row):
    """Ask for the cache line where ``row`` of a contiguous matrix begins; never faults."""

    def generate(context, builder, signature, args):
        matrix = context.make_array(signature.args[0])(context, builder, args[0])
        width = builder.extract_value(matrix.shape, 1)
        row_index = context.cast(builder, args[1], signature.args[1], types.int64)
        place = builder.gep(matrix.data, [builder.mul(row_index, width)])
        word = ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        flags = [ir.Constant(word, n) for n in (0, 3, 1)]  # to read, to stay, data
        builder.call(function, [builder.bitcast(place, pointer), *flags])
        return context.get_dummy_value()

    return types.void(array, row), inspect.unwrap(generate)


@_intrinsic
def sum_lanes(typingctx, array, begin, lanes):
    """Sum of ``lanes`` (a literal) values of a contiguous float32 vector from ``begin``: a tree."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, args):
        load = _load_lanes(context, builder, signature.args[0], args[0], args[1], width)
        name = f"llvm.vector.reduce.fadd.v{width}f32"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), load.type]), name
        )
        zero = ir.Constant(ir.FloatType(), -0.0)
        return builder.call(function, [zero, load], fastmath=("reassoc",))

    return types.float32(array, types.int64, lanes), inspect.unwrap(generate)


def _lanes_at(context, builder, kind, vector, place, width):
    """Pointer to ``width`` values of a contiguous float32 ``vector`` from ``place`` on."""
    data = context.make_array(kind)(context, builder, vector).data
    lanes = ir.VectorType(ir.FloatType(), width)
    return builder.bitcast(builder.gep(data, [place]), lanes.as_pointer())


def _load_lanes(context, builder, kind, vector, place, width):
    load = builder.load(_lanes_at(context, builder, kind, vector, place, width))
    load.align = 4
    return load


def _multiply_add(builder, a, b, c):
    product = builder.fmul(a, b, flags=("contract",))
    return builder.fadd(product, c, flags=("contract",))


@_intrinsic
def add_scaled(typingctx, target, at, source, begin, factor, lanes):
    """``target[at + i] += source[begin + i] * factor`` for ``lanes`` (a literal) values.

    As an instruction of its own, where a loop would be unrolled before it is made one.
    """
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, args):
        kinds = signature.args
        old = _load_lanes(context, builder, kinds[0], args[0], args[1], width)
        values = _load_lanes(context, builder, kinds[2], args[2], args[3], width)
        zero = ir.Constant(ir.VectorType(ir.FloatType(), width), ir.Undefined)
        factor = builder.insert_element(zero, args[4], ir.Constant(ir.IntType(32), 0))
        pattern = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        factors = builder.shuffle_vector(factor, zero, pattern)
        total = _multiply_add(builder, values, factors, old)
        place = _lanes_at(context, builder, kinds[0], args[0], args[1], width)
        builder.store(total, place, align=4)
        return context.get_dummy_value()

    result = types.void(target, types.int64, source, types.int64, types.float32, lanes)
    return result, inspect.unwrap(generate)


@_intrinsic
def add_products(typingctx, target, at, a, first, b, second, lanes):
    """``target[at + i] += a[first + i] * b[second + i]`` for ``lanes`` (a literal) values."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, args):
        kinds = signature.args
        old = _load_lanes(context, builder, kinds[0], args[0], args[1], width)
        left = _load_lanes(context, builder, kinds[2], args[2], args[3], width)
        right = _load_lanes(context, builder, kinds[4], args[4], args[5], width)
        total = _multiply_add(builder, left, right, old)
        place = _lanes_at(context, builder, kinds[0], args[0], args[1], width)
        builder.store(total, place, align=4)
        return context.get_dummy_value()

    result = types.void(target, types.int64, a, types.int64, b, types.int64, lanes)
    return result, inspect.unwrap(generate)


@_intrinsic
def any_positive(typingctx, array, begin, lanes):
    """Whether any of ``lanes`` (a literal) values of a contiguous float32 vector is above zero."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, args):
        load = _load_lanes(context, builder, signature.args[0], args[0], args[1], width)
        above = builder.fcmp_ordered(">", load, ir.Constant(load.type, [0.0] * width))
        mask = builder.bitcast(above, ir.IntType(width))
        return builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))

    return types.boolean(array, types.int64, lanes), inspect.unwrap(generate)


@kernel
def aligned_empty(count):
    """Scratch of ``count`` float32 values that begins at a cache line.

    A vector that straddles two lines costs twice as much to load or store.
    """
    raw = np.empty(count + 16, np.float32)
    first = ((-raw.ctypes.data) & 63) >> 2
    return raw[first : first + count]


Task = Callable[[], None]

_crew_lock = threading.Lock()
_crew: tuple[int, list[threading.Thread], queue.SimpleQueue[Task]] | None = None
"""Process, helping threads, what they are asked to do."""


def _serve(tasks: queue.SimpleQueue[Task]) -> None:
    while True:
        tasks.get()()


def _ask_helpers(count: int, task: Task) -> None:
    """Have up to ``count`` threads of this process run ``task``."""
    global _crew
    with _crew_lock:
        if _crew is None or _crew[0] != os.getpid():  # threads do not survive a fork
            _crew = (os.getpid(), [], queue.SimpleQueue())
        _, threads, tasks = _crew
        while len(threads) < count:
            name = f"sightline-kernels-{len(threads)}"
            threads.append(threading.Thread(target=_serve, args=(tasks,), name=name, daemon=True))
            threads[-1].start()
    for _ in range(count):
        tasks.put(task)


def run_chunks(function: Callable[..., None], count: int, grain: int, *args: Any) -> None:  # noqa: ANN401
    """Call ``function(first, last, *args)`` over ``[0, count)`` in pieces of ``grain``.

    As many threads as torch may use take the next piece whenever they are free; results cannot
    depend on who takes which, because pieces write to places of their own. A helper that wakes up
    when all is done is not waited for. The first error ends the work and is raised.
    """
    pieces = -(-count // grain)
    threads = min(torch.get_num_threads(), pieces)
    if threads <= 1:
        if count:
            function(0, count, *args)
        return
    turn = iter(range(pieces))  # next() is atomic
    entered: list[queue.SimpleQueue[BaseException | None]] = []

    def work() -> BaseException | None:
        try:
            for piece in turn:
                function(piece * grain, min(count, (piece + 1) * grain), *args)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            for _ in turn:  # nobody begins another piece
                pass
            return error
        return None

    def help_out() -> None:
        # Before a piece is taken: from here on this helper is waited for. Each has a queue of its
        # own, else one that enters too late would answer for another that is still at work.
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        entered.append(done)
        done.put(work())

    _ask_helpers(threads - 1, help_out)
    own = work()  # no piece is left after it: whoever enters from now on has nothing to do
    for error in (own, *[done.get() for done in entered.copy()]):
        if error is not None:
            raise error
