"""Read a pickle without running it: containers become containers, everything else stays inert.

A pickle is a program for a small stack machine, and two of its instructions call whatever the file
names. Here no name is ever looked up: it becomes a `Name`, and a call of it becomes a `Made` that
only remembers what was asked for. The caller decides which names mean something to it.
"""

import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sightline.errors import FileFormatError

MAX_BYTES = 64 << 20
"""The description in a checkpoint of billions of parameters has a few megabytes."""

MAX_STEPS = 5_000_000
"""Instructions; a training checkpoint of VGGT with its optimiser has about 300,000."""

Value = Any
"""Whatever a file describes: nothing is known of it before it is looked at."""

SCALARS = (str, bytes, int, float, type(None))


class Name:
    """A class or function that a file mentions; it is never imported."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        """Keep the dotted path."""
        self.path = path


class Made:
    """What a file wanted to be made by calling ``maker``; nothing was called.

    Attributes:
        maker: What would have been called, a `Name` in honest files.
        args: The arguments.
        state: What would have been set on the object, None if nothing.
    """

    __slots__ = ("args", "maker", "state")

    def __init__(self, maker: Value, args: Value = (), state: Value = None) -> None:
        """Remember the call."""
        self.maker = maker
        self.args = args
        self.state = state

    @property
    def path(self) -> str:
        """The dotted path of the maker, empty for anything that is not a name."""
        return self.maker.path if isinstance(self.maker, Name) else ""


Makers = Mapping[str, Callable[..., Any]]
"""Dotted path -> our own function that stands for it. It sees only values of this reader."""


def read_pickle(
    file: Value, makers: Makers, persistent: Callable[[Any], Any] | None = None
) -> Value:
    """Return what one pickle describes, from the position of ``file`` to its end mark.

    Args:
        file: Has ``read``, ``readline`` and ``tell`` for bytes; afterwards it stands behind the pickle.
        makers: What stands for names that may be called.
        persistent: Stands for the objects that the pickle keeps elsewhere.

    Raises:
        FileFormatError: The pickle is damaged or larger than any honest one.
    """
    try:
        with warnings.catch_warnings():
            # Python warns of wrong escapes in texts, which is no news about a stranger's file.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _Machine(makers, persistent).run(file)
    except FileFormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        msg = f"its pickle is damaged ({type(error).__name__}: {str(error)[:80]})"
        raise FileFormatError(msg) from error


class _Machine:
    def __init__(self, makers: Makers, persistent: Callable[[Any], Any] | None) -> None:
        self.makers = makers
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Value) -> Value:
        start = file.tell()
        for steps, (code, arg, position) in enumerate(pickletools.genops(file)):
            if steps > MAX_STEPS or (position or 0) - start > MAX_BYTES:
                msg = "its pickle is larger than that of any checkpoint"
                raise FileFormatError(msg)
            name = code.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _PLAIN:
                self.stack.append(arg)
            else:
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    msg = f"its pickle has the instruction {name}, which no checkpoint needs"
                    raise FileFormatError(msg)
                step(arg)
        msg = "its pickle has no end"
        raise FileFormatError(msg)

    def _ignore(self, _: Value) -> None:
        """Skip what only tells the reader how to read."""

    _proto = _frame = _ignore

    # The stack and the memo.

    def _pop(self, _: Value) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark(None)

    def _dup(self, _: Value) -> None:
        self.stack.append(self.stack[-1])

    def _mark(self, _: Value) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self, _: Value) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Value) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    # Containers.

    def _empty_list(self, _: Value) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Value) -> None:
        self.stack.append({})

    def _empty_set(self, _: Value) -> None:
        self.stack.append([])

    def _list(self, _: Value) -> None:
        items = self._pop_mark(None)
        self.stack.append(items)

    _frozenset = _list

    def _dict(self, _: Value) -> None:
        items = self._pop_mark(None)
        self.stack.append(_pairs(items))

    def _tuple(self, _: Value) -> None:
        items = self._pop_mark(None)
        self.stack.append(tuple(items))

    def _tuple1(self, _: Value) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Value) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Value) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _append(self, _: Value) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Value) -> None:
        self._extend(self._pop_mark(None))

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        # Values that a foreign class would take in (a deque, a set) are dropped with the class.
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _setitem(self, _: Value) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update({_key(key): value})

    def _setitems(self, _: Value) -> None:
        self._update(_pairs(self._pop_mark(None)))

    def _update(self, items: dict[Any, Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(items)

    # Names and calls.

    def _global(self, arg: str) -> None:
        self.stack.append(Name(arg.replace(" ", ".", 1)))

    def _stack_global(self, _: Value) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(f"{_text(module)}.{_text(name)}"))

    def _reduce(self, _: Value) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self.stack.append(self._make(maker, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Value) -> None:
        options, args, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Made(maker, args, options))

    def _inst(self, arg: str) -> None:
        args = tuple(self._pop_mark(None))
        self.stack.append(self._make(Name(arg.replace(" ", ".", 1)), args))

    def _obj(self, _: Value) -> None:
        maker, *args = self._pop_mark(None)
        self.stack.append(self._make(maker, tuple(args)))

    def _build(self, _: Value) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def _persid(self, arg: Value) -> None:
        self.stack.append(Made(None, (arg,)))

    def _binpersid(self, _: Value) -> None:
        found = self.stack.pop()
        self.stack.append(Made(None, found) if self.persistent is None else self.persistent(found))

    def _make(self, maker: Value, args: Value) -> Value:
        ours = self.makers.get(maker.path) if isinstance(maker, Name) else None
        if ours is None or not isinstance(args, tuple):
            return Made(maker, args)
        return ours(*args)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}


def _key(value: Value) -> Value:
    # Nested tuples as keys would be hashed by recursion, without a limit.
    return value if isinstance(value, (*SCALARS, Name, Made)) else Made(None, (value,))


def _text(value: Value) -> str:
    if not isinstance(value, str):
        msg = "its pickle names a class by something that is no text"
        raise FileFormatError(msg)
    return value


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PLAIN = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    ]
)
