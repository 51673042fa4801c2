"""Read the constructor calls that DUSt3R and MASt3R keep as text, without evaluating them."""

import ast
import math
from typing import Any, NamedTuple

from sightline.checkpoints.pickled import Value
from sightline.errors import FileFormatError

MAX_LENGTH = 4096
"""Characters; published strings have about 300."""


class Constructor(NamedTuple):
    """A call as written in a checkpoint: the class and its keyword arguments."""

    name: str
    options: dict[str, Any]


def parse_constructor(text: str) -> Constructor:
    """Return the class and the plain keyword values of a text like ``Net(size=(512, 512))``.

    Values are numbers, texts, truth values, None, ``inf``, ``nan``, and tuples, lists and
    dictionaries of them. Nothing is looked up or called.

    Raises:
        FileFormatError: The text is anything else.

    >>> parse_constructor("Net(size=(512, 512), depth=24)")
    Constructor(name='Net', options={'size': (512, 512), 'depth': 24})
    """
    if len(text) <= MAX_LENGTH:
        try:
            return _read(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            pass
    msg = f"expected a constructor with plain values such as Net(size=512), got {text[:60]!r}"
    raise FileFormatError(msg)


def _read(node: ast.expr) -> Constructor:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError
    options = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        options[keyword.arg] = _value(keyword.value)
    return Constructor(node.func.id, options)


def _value(node: ast.expr) -> Value:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    if isinstance(node, ast.List):
        return list(map(_value, node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.Name):
        return {"inf": math.inf, "nan": math.nan}[node.id] if node.id in {"inf", "nan"} else _no()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        return -number if isinstance(number, (int, float)) else _no()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        return float(texts[0]) if len(texts) == 1 and isinstance(texts[0], (str, int)) else _no()
    return _no()


def _no() -> Value:
    raise ValueError
