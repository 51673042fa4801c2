"""From a request's plain values to the words of a command line, with nothing left to chance.

Words are handed to the verb's parser as a list: no shell is involved. Values are joined to their
option by ``=``, so that none can be taken for an option, and text cannot spell a path.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sightline.app.jobs.kinds import Kind, Option
from sightline.errors import InputError

_MOST_TEXT = 400
_TEXT = re.compile(r"[\w.,:+%@ -]*", re.ASCII)
_NAME = r"[A-Za-z0-9_][\w.-]*"
_ONE = rf"(?:[A-Za-z0-9]+:)*{_NAME}(?:/{_NAME})?(?:@[\w.-]+)?"
_MODEL = re.compile(rf"{_ONE}(?:\+{_ONE})*", re.ASCII)
_MODELS = ("backbone", "features", "feature", "repo_id", "filename")
"""Options that may hold ``OWNER/NAME``."""
_FILENAME = re.compile(rf"{_NAME}(?:/{_NAME})*", re.ASCII)
_LARGEST = 2**53


def check_options(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose value is not the default, checked for name, type and characters.

    Raises:
        InputError: A sentence that names the option.
    """
    known = kind.options()
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(_unknown(kind, name, known))
        value = _check_type(known[name], value)
        for text in [value] if not isinstance(value, list) else value:
            _check_value(name, text)
        if value != known[name].default:
            checked[name] = value
    return checked


def _unknown(kind: Kind, name: str, known: Mapping[str, Option]) -> str:
    shown = name[:60] if name.isprintable() else repr(name[:60])
    if name in kind.roles:
        return f"{shown} names a file: give it under files, as an upload"
    return f"{kind.name} has no option {shown}; it has {', '.join(known) or 'none'}"


@cache
def _adapter(hint: Any) -> TypeAdapter:  # noqa: ANN401
    return TypeAdapter(hint, config=ConfigDict(strict=True))


def json_schema(option: Option) -> dict[str, Any]:
    """Return the JSON schema of an option's values."""
    return _adapter(option.hint).json_schema()


def _check_type(option: Option, value: Any) -> Any:  # noqa: ANN401
    try:
        if isinstance(value, list | tuple):  # as JSON, in which a list may stand for a tuple
            return list(_adapter(option.hint).validate_json(json.dumps(value)))
        return _adapter(option.hint).validate_python(value)
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise InputError(
                f"option {option.name}: expected plain values, got {value!r:.60}"
            ) from error
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise InputError(f"option {option.name}: {first['msg']}") from error


def _check_value(name: str, value: Any) -> None:  # noqa: ANN401
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        # Not `math.isfinite`: the largest whole numbers have no float.
        if value != value or abs(value) > _LARGEST:  # noqa: PLR0124
            raise InputError(f"option {name}: expected a finite number up to 2^53; lower it")
        return
    text = str(value)
    form = _FILENAME if name == "filename" else _MODEL if name in _MODELS else _TEXT
    if len(text) > _MOST_TEXT or ".." in text or not form.fullmatch(text):
        raise InputError(
            f"option {name}: expected up to {_MOST_TEXT} letters, digits and . , : + % @ - _, got "
            f"{text[:60]!r}"
        )


def option_words(kind: Kind, options: Mapping[str, Any]) -> list[str]:
    """Return the words of plain options."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if kind.name == "models-download" and name in ("name", "target"):
            continue
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words.append(f"{flag}={json.dumps(value)}")
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def build_words(
    kind: Kind,
    options: Mapping[str, Any],
    *,
    inputs: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    scene: str | None = None,
    output: str | None = None,
    models: str = "models",
    again: bool = False,
) -> list[str]:
    """Return the whole command line, without ``sightline``.

    Args:
        kind: The kind of job.
        options: Checked options.
        inputs: Paths of positional inputs.
        files: Role -> path.
        scene: Path of the folder that is worked on.
        output: Path for ``-o``.
        models: Folder of the app's weights.
        again: Whether this is a later attempt.
    """
    words = list(kind.words)
    if kind.name == "models-download":
        if options.get("name") is not None:
            words.append(str(options["name"]))
        if options.get("target", "cache") != "cache":
            words.append(f"--target-dir={Path(models) / str(options['target'])}")
    if scene is not None:
        words += ["-o", scene] if kind.works_on == "grid" else [scene]
    words += inputs
    words += option_words(kind, options)
    words += [f"--{role.replace('_', '-')}={path}" for role, path in (files or {}).items()]
    if output is not None:
        words += ["-o", output]
    return [*words, *kind.flags, *(kind.again if again else ())]


def shown_command(words: Sequence[str], kind: Kind) -> str:
    """Return the command line for people to copy, without what only machines want."""
    dropped = {*kind.flags, *kind.again}
    return shlex.join(["sightline", *(word for word in words if word not in dropped)])
