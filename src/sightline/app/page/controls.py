"""One control for each option, named and explained as on the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from sightline.app.jobs.kinds import Kind, Option
from sightline.errors import InputError

if TYPE_CHECKING:
    from gradio.components import Component

DEFAULT = "default"
"""What a choice shows where the option is left to the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The controls of some options of a kind, in order."""

    kind: Kind
    parts: Mapping[str, "Component"]

    @property
    def components(self) -> list["Component"]:
        """All controls."""
        return list(self.parts.values())

    def values(self, raw: Sequence[Any]) -> dict[str, Any]:
        """Return the options that differ from their defaults, from what the controls hold.

        Raises:
            InputError: If a number is none.
        """
        options = self.kind.options()
        found = {}
        for name, value in zip(self.parts, raw, strict=True):
            taken = read_value(options[name], value)
            if taken != options[name].default:
                found[name] = taken
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """What controls begin with, where that is not the command line's default."""

    values: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names to pick from, for options that are text."""


def make_controls(
    kind: Kind, names: Sequence[str], start_with: Beginnings | None = None
) -> Controls:
    """Make the controls of the named options inside the surrounding Gradio block."""
    options, begin = kind.options(), start_with or Beginnings()
    return Controls(
        kind=kind,
        parts={
            name: make_control(
                kind.name,
                options[name],
                begin.values.get(name, options[name].default),
                begin.choices.get(name),
            )
            for name in names
        },
    )


def flag(name: str) -> str:
    """Return an option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def make_control(
    kind: str,
    option: Option,
    value: Any,  # noqa: ANN401
    names: Sequence[str] | None = None,
) -> "Component":
    """Make the control of one option, which begins with ``value`` and may offer names."""
    import gradio as gr

    common = {
        "label": flag(option.name),
        "info": option.text or None,
        "elem_id": f"{kind}-{option.name.replace('_', '-')}",
        "elem_classes": ["sl-option"],
        "interactive": True,
    }
    kinds, choices = _kinds(option.hint), _choices(option.hint)
    if option.hint is bool:
        return gr.Checkbox(value=bool(value), **common)
    if bool in kinds:
        words = {None: DEFAULT, True: "yes", False: "no"}
        return gr.Dropdown(choices=list(words.values()), value=words[value], **common)
    if choices:
        every = [*([DEFAULT] if NoneType in kinds else []), *choices]
        return gr.Dropdown(choices=every, value=DEFAULT if value is None else value, **common)
    if names is not None:
        every = [*([DEFAULT] if value is None else []), *names]
        shown = DEFAULT if value is None else value
        return gr.Dropdown(choices=every, value=shown, allow_custom_value=True, **common)
    if (float in kinds or int in kinds) and NoneType not in kinds:
        precision = None if float in kinds else 0
        return gr.Number(value=value, precision=precision, **common)
    # A number that may be absent is text: a number field would turn nothing into 0.
    text = ",".join(map(str, value)) if isinstance(value, list) else value
    return gr.Textbox(
        value="" if text is None else str(text), placeholder=DEFAULT, max_lines=1, **common
    )


def read_value(option: Option, raw: Any) -> Any:  # noqa: ANN401
    """Return an option's value from what its control holds; empty ones mean the default.

    Raises:
        InputError: If it cannot be read as a value of the option.
    """
    kinds = _kinds(option.hint)
    if option.hint is bool:
        return bool(raw)
    if raw in (None, "", DEFAULT):
        return None if NoneType in kinds else option.default
    if bool in kinds:
        return raw == "yes"
    inner = next((part for part in kinds if get_origin(part) in (list, tuple)), None)
    try:
        if inner is not None:
            of = get_args(inner)[0]
            return [of(part.strip()) for part in str(raw).split(",") if part.strip()]
        if float in kinds:
            return float(raw)
        if int in kinds:
            if float(raw) != int(raw):
                raise ValueError
            return int(raw)
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag(option.name)}: expected a number, got {raw!r}") from error
    return str(raw).strip()


def _kinds(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the members of a union, or the hint alone."""
    if get_origin(hint) in (Literal, list, tuple):
        return (hint,)
    return get_args(hint) or (hint,)


def has_control(option: Option) -> bool:
    """Tell whether an option can be typed or picked; tables of options cannot."""
    plain = (bool, int, float, str, NoneType)
    return all(
        part in plain
        or get_origin(part) is Literal
        or (get_origin(part) in (list, tuple) and get_args(part)[0] in plain)
        for part in _kinds(option.hint)
    )


def _choices(hint: Any) -> list[str]:  # noqa: ANN401
    return [
        choice
        for part in _kinds(hint)
        if get_origin(part) is Literal
        for choice in get_args(part)
        if isinstance(choice, str)
    ]
