"""The form of what a grid's file holds, and a check that names the place that does not have it."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from sightline.errors import InputError

Stem = str | int | float
"""A name that YAML may take for a number."""


class SceneEntry(TypedDict, total=False):
    """See `scenes.SceneSource`."""

    id: Stem
    path: str
    synthetic: Mapping[str, Any] | None
    kind: str | None
    train: Sequence[Stem] | None
    test: Sequence[Stem] | None
    noise: float
    geometry: str | None


class DatasetEntry(TypedDict, total=False):
    """See `datasets.expand_dataset`."""

    name: str
    root: str
    scenes: Sequence[Stem] | None


class FeatureEntry(TypedDict, total=False):
    """See `features.parse_features`."""

    name: str
    backbone: str | None
    checkpoint: str | None
    layers: int | Sequence[int] | None
    norm: bool | None
    sweep: Sequence[int] | None
    parts: "Sequence[str | FeatureEntry] | None"


class GeometryEntry(TypedDict, total=False):
    """Options of a geometry estimator; what else there is goes to it as it is."""

    checkpoint: str | None


def check_value(value: Any, hint: Any, place: str) -> None:  # noqa: ANN401
    """Compare a plain value with a type, to its depth; keys that a mapping's type lacks may be there.

    Raises:
        InputError: A sentence with the place, such as ``scenes[0].train``.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = [kind for kind in kinds if _is_kind(value, kind)]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(_word(kind) for kind in kinds if kind is not NoneType))
        raise InputError(f"{place}: expected {wanted}, got {value!r:.60}; correct the grid")
    kind = fitting[0]
    if is_typeddict(kind):
        for key, inner in get_type_hints(kind).items():
            if key in value:
                check_value(value[key], inner, f"{place}.{key}")
    elif get_origin(kind) is Sequence:
        for number, one in enumerate(value):
            check_value(one, get_args(kind)[0], f"{place}[{number}]")
    elif get_origin(kind) is Mapping:
        for key, one in value.items():
            check_value(one, get_args(kind)[1], f"{place}.{key}")


def _is_kind(value: Any, kind: Any) -> bool:  # noqa: ANN401
    """Tell whether a value is of a kind, not looking inside."""
    if kind is Any:
        return True
    if is_typeddict(kind) or get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if get_origin(kind) is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if kind in (int, float):  # whole numbers are numbers, truth values are neither
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def _word(kind: Any) -> str:  # noqa: ANN401
    if is_typeddict(kind) or get_origin(kind) is Mapping:
        return "a mapping"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, "a list")
