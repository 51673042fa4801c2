"""What a grid's file may hold."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sightline.cli import run_verb
from sightline.errors import InputError
from sightline.probing.config import ProbeConfig, config_from
from sightline.probing.datasets import list_sources
from sightline.probing.features import parse_features
from tests.probing import tiny

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab./:+,", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "path", "synthetic", "train", "name", "root", "scenes", "backbone"]
                + ["checkpoint", "layers", "parts", "sweep", "norm", "noise", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(list(ProbeConfig.__dataclass_fields__)), ANYTHING)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"datasets": ["x"]}, r"datasets\[0\]: expected a mapping, got 'x'; correct the grid"),
        ({"datasets": [{"name": 3}]}, r"datasets\[0\]\.name: expected text, got 3"),
        ({"scenes": [7]}, r"scenes\[0\]: expected text or a mapping, got 7"),
        ({"scenes": [{"path": "x", "train": 5}]}, r"scenes\[0\]\.train: expected a list, got 5"),
        ({"scenes": [{"path": "x", "train": [[1]]}]}, r"scenes\[0\]\.train\[0\]: expected text"),
        ({"scenes": [{"synthetic": "x"}]}, r"scenes\[0\]\.synthetic: expected a mapping, got 'x'"),
        (
            {"features": [{"name": "x", "layers": "y"}]},
            r"layers: expected a whole number or a list",
        ),
        ({"features": [{"parts": [{"norm": 1}]}]}, r"parts\[0\]\.norm: expected true or false"),
        ({"geometry_options": {"dust3r": "x"}}, r"geometry_options\.dust3r: expected a mapping"),
        ({"geometry_options": {"a": {"checkpoint": 5}}}, r"a\.checkpoint: expected text, got 5"),
        ({"seeds": [True]}, r"seeds\[0\]: expected a whole number, got True"),
        ({"retries": "x"}, r"retries: expected a whole number, got 'x'"),
        ({"modes": "G"}, r"modes: expected a list, got 'G'"),
        ({"maps": 1}, r"maps: expected true or false, got 1"),
    ],
)
def test_the_place_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        config_from(tiny.grid(**fields))
    with pytest.raises(InputError, match=sentence):
        config_from(tiny.grid(**fields), Path("folder"))


@given(fields=FIELDS)
def test_whatever_is_written_gives_a_plan_or_a_sentence(fields: dict[str, Any]) -> None:
    try:
        config = config_from({**tiny.grid(), **fields}, Path("folder"))
        parse_features(config.features)
        list_sources(config)
    except InputError as error:
        sentence = str(error)
        assert len(sentence) > 15 and "\n" not in sentence  # noqa: PT018


def test_a_key_without_a_value_keeps_its_default(
    tmp_path: Path,
) -> None:
    fields = {**tiny.grid(), "modes": None, "seeds": None, "videos": None}
    assert config_from(fields) == config_from(tiny.grid(modes=("G",), seeds=(0,), videos=()))
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**fields, "features": None}))
    code, error = run_verb("probe", ["run", "--config", str(file), "-o", str(tmp_path / "out")])
    assert (code, error) == (2, "a grid needs features: name some, such as iuvrgb")


def test_numbers_may_be_names() -> None:
    scene = {"path": "a", "train": ["0001", 2], "test": [3], "id": 7}
    (source,) = list_sources(config_from({"scenes": [scene], "features": ["iuvrgb"]}))
    assert (source.id, source.train, source.test) == ("7", ("0001", "2"), ("3",))


def test_fields_of_the_command_line_start_from_where_one_stands() -> None:
    fields = tiny.grid(scenes=["a"], lpips=["b"])
    config = config_from(fields, Path("folder"), here={"lpips"})
    assert (config.scenes, config.lpips) == ([str(Path("folder/a"))], ["b"])
