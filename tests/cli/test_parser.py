"""What options of a file and of the command line become."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sightline.cli.parser import VerbParser, record_from
from sightline.options import option


@dataclass(frozen=True, kw_only=True)
class Sizes:
    steps: int = option(7, "how many")
    share: float | None = option(0.5, "of all, or none")
    names: str = option("a", "some")
    fast: bool = option(False, "or slow")
    exact: bool | None = option(None, "unset: the default decides")


def read(tmp_path: Path, values: object, *words: str) -> Sizes:
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    parser = VerbParser("verb", "Does it.")
    parser.add_inputs("files")
    parser.add_record(Sizes)
    arguments = parser.parse_args(["--config", str(file), *words])
    assert list(getattr(arguments, "inputs", [])) == [w for w in words if not w.startswith("-")]
    return record_from(Sizes, arguments)


def test_an_option_without_a_value_keeps_its_default(tmp_path: Path) -> None:
    empty = dict.fromkeys(("steps", "names", "fast", "exact", "inputs"))
    assert read(tmp_path, empty) == Sizes()
    assert read(tmp_path, {"share": None}).share is None
    assert read(tmp_path, {"steps": None}, "--steps=3", "photo.png").steps == 3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": "x"}, '--steps: expected int, got "x"'),
        ({"step": 3}, 'unknown option "step"; did you mean --steps'),
        ({"inputs": {"a": 1}}, "--config has a mapping where a list belongs"),
        ([1], "verb: "),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: object, sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(tmp_path, values)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
