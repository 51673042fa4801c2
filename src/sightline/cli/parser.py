"""jsonargparse with our habits: options from records, ``--config``, errors of one sentence."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from sightline.errors import SightlineError

Record = TypeVar("Record")


class VerbParser(ArgumentParser):
    """The parser of one verb; wrong usage ends with one sentence and exit code 2."""

    def __init__(self, verb: str, description: str, epilog: str = "") -> None:
        """Start a parser that already knows ``--config`` and ``--debug``."""
        self._never_none: dict[str, Any] = {}
        super().__init__(
            prog=f"sightline {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            default_env=False,
        )
        self.add_argument("--config", action="config", help="read options from this YAML file")

    def add_argument(self, *names: Any, **options: Any) -> Any:  # noqa: ANN401
        """Add an option as usual, and note whether it may be none."""
        action = super().add_argument(*names, **options)
        if action is not None and NoneType not in get_args(options.get("type")):
            self._never_none[action.dest] = action.default
        return action

    def parse_args(self, *arguments: Any, **options: Any) -> Namespace:  # noqa: ANN401
        """Parse as usual.

        An option that a file names without a value keeps its default, unless none is a value of it.
        A ``--config`` that is no YAML at all is wrong usage too.
        """
        try:
            parsed = super().parse_args(*arguments, **options)
        except SightlineError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            self.error(f"--config is no YAML of options ({error}); correct the file")
        except RuntimeError:  # jsonargparse changes a mapping that it walks through
            self.error("--config has a mapping where a list belongs; correct the file")
        for name, default in self._never_none.items():
            if parsed.get(name, default) is None and default == argparse.SUPPRESS:
                parsed.pop(name)
            elif parsed.get(name, default) is None:
                parsed[name] = default
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, with the closest option where a name is misspelt."""
        sys.stderr.write(f"{self.prog}: {self._sentence(message)}\n")
        sys.exit(2)

    def _sentence(self, message: str) -> str:
        text = " ".join(message.split())
        wrong = re.search(r'Parser key "([^"]+)".*(?:Given|Got) value: (.*?)$', text)
        if wrong:
            key = wrong[1].replace("_", "-")
            choices = re.search(r"Literal\[([^\]]+)\]", text)
            kinds = re.findall(r"Expected an? <class '(\w+)'>", text)
            names = " or ".join(k for k in kinds if k != "NoneType") or "another kind of value"
            want = f"expected one of {choices[1]}" if choices else f"expected {names}"
            return f'--{key}: {want}, got "{wrong[2]}"; see {self.prog} --help'
        unknown = re.search(r"unrecognized arguments: (\S+)|Option '([^']+)' is not accepted", text)
        if unknown:
            name = unknown[1] or unknown[2]
            options = [o for action in self._actions for o in action.option_strings]
            wanted = name if name.startswith("-") else f"--{name.replace('_', '-')}"
            near = difflib.get_close_matches(wanted.split("=")[0], options, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {self.prog} --help"
            return f'unknown option "{name}"; {hint}'
        return text

    def add_record(self, record: type, skip: Sequence[str] = ()) -> None:
        """Add one option for each field of a dataclass of options."""
        hints = get_type_hints(record)
        for item in dataclasses.fields(record):
            if item.name in skip:
                continue
            flag = f"--{item.name.replace('_', '-')}"
            text = item.metadata["help"].replace("%", "%%")  # argparse fills in %(default)s
            if hints[item.name] == bool | None:  # unset means that the default decides
                action = argparse.BooleanOptionalAction
                self.add_argument(flag, action=action, default=None, help=text)
            elif hints[item.name] is bool:
                self.add_argument(
                    flag,
                    action=argparse.BooleanOptionalAction if item.default else "store_true",
                    default=item.default,
                    help=text,
                )
            else:
                self.add_argument(
                    flag,
                    type=hints[item.name],
                    default=item.default,
                    help=text,
                    metavar=_metavar(item.name, hints[item.name]),
                )

    def add_inputs(self, text: str) -> None:
        """Add the positional inputs; suppressed when absent, so that YAML may give them."""
        self.add_argument(
            "inputs", nargs="*", type=str, default=argparse.SUPPRESS, help=text, metavar="INPUT"
        )


def _metavar(name: str, hint: Any) -> str | None:  # noqa: ANN401
    choices = [c for part in (hint, *get_args(hint)) for c in get_args(part) if isinstance(c, str)]
    if choices:
        return "{" + ",".join(dict.fromkeys(choices)) + "}"
    return {"resolution": "PX", "test_every": "K", "num_frames": "N", "fps": "F"}.get(
        name, name.split("_")[-1].upper()
    )


def record_from(record: type[Record], arguments: Namespace) -> Record:
    """Build a record of options from parsed arguments."""
    names = [item.name for item in dataclasses.fields(record)]  # type: ignore[arg-type]
    return record(**{name: getattr(arguments, name) for name in names if hasattr(arguments, name)})


def require(value: Any, sentence: str, complain: Callable[[str], NoReturn]) -> Any:  # noqa: ANN401
    """Return ``value``, or complain when it is absent."""
    if value is None or value == []:
        complain(sentence)
    return value


def output_path(parser: VerbParser, arguments: Namespace) -> Path:
    """Return ``-o`` as a path, or complain when it is absent."""
    return Path(require(arguments.output, "give the output with -o", parser.error))
