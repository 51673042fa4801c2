import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError, InputError, MissingExtraError
from sightline.preparation.execute import run_tasks
from sightline.preparation.fit import Mode, choose_fit, tile_starts
from sightline.preparation.load import choose_bands
from sightline.preparation.metadata import match_metadata, read_metadata
from sightline.preparation.options import PrepareOptions
from sightline.preparation.ranges import tally
from sightline.preparation.select import Brief, duplicates, split


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 300), st.sampled_from(["crop", "pad"])
)
def test_fit_has_the_size_and_maps_corners(h: int, w: int, size: int, mode: Mode) -> None:
    fit = choose_fit(h, w, size, mode)
    fitted, mask = fit.apply(np.full((h, w, 3), 9, np.uint8))
    assert fitted.shape == (size, size, 3)
    assert (fitted[np.ones((size, size), bool) if mask is None else mask] == 9).all()
    top, left = fit.offset
    corner = fit.source_from_fitted @ [-left, -top, 1]
    far = fit.source_from_fitted @ [fit.inner[1] - left, fit.inner[0] - top, 1]
    np.testing.assert_allclose(corner[:2], 0, atol=1e-9)
    np.testing.assert_allclose(far[:2], (w, h), atol=1e-9)


@given(st.integers(1, 500), st.integers(16, 200), st.integers(0, 15))
def test_tiles_cover_a_side_and_are_whole(length: int, tile: int, overlap: int) -> None:
    starts = tile_starts(length, tile, overlap)
    assert len(set(starts)) == len(starts)
    covered = np.zeros(length, bool)
    for start in starts:
        covered[start : start + tile] = True
        assert start >= 0
        assert start + tile <= max(length, tile)
    assert covered.all()
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))


@given(st.integers(0, 5), st.integers(1, 60))
def test_counted_percentiles_are_numpys(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 65536, (count, 2, 3)).astype(np.uint16) for _ in range(2)]
    total = tally(parts[0]) + tally(parts[1])
    values = np.concatenate(parts).reshape(-1, 3)
    for low, high in ((1.0, 99.0), (2.0, 98.0), (0.0, 100.0)):
        pooled = total.percentiles(low, high)
        np.testing.assert_allclose(
            (pooled.minimum[0], pooled.maximum[0]), np.percentile(values, (low, high))
        )
        each = total.percentiles(low, high, per_channel=True)
        np.testing.assert_allclose(
            (each.minimum, each.maximum), np.percentile(values, (low, high), axis=0)
        )


def test_missing_and_endless_values_do_not_count() -> None:
    values = np.array([[[1.0]], [[np.nan]], [[3.0]], [[np.inf]], [[50.0]]], np.float32)
    valid = np.array([[True], [True], [True], [True], [False]])
    span = tally(values, valid).percentiles(0.0, 100.0)
    assert (span.minimum, span.maximum) == ((1.0,), (3.0,))


def test_bands_by_name_and_index() -> None:
    names = ("coastal", "Blue", "green", "red", None)
    path = Path("a.tif")
    assert choose_bands(None, names, path) == ([3, 2, 1], 3)
    assert choose_bands("all", names, path) == ([3, 2, 1, 0, 4], 3)
    assert choose_bands("4,red,0,1", names, path) == ([4, 3, 0, 1], 3)
    assert choose_bands([4], names, path) == ([4], 1)
    assert choose_bands(None, (None, None), path) == ([0], 1)
    for wanted, text in (("5", "expected 0 to 4"), ("nir", 'no band "nir"'), ("0,0", "twice")):
        with pytest.raises(InputError, match=text):
            choose_bands(wanted, names, path)


def test_duplicates_point_to_the_first() -> None:
    assert duplicates([0, 0b11, 0xFF00, 0b1, 0xFF01], 2) == [-1, 0, -1, 0, 2]
    assert duplicates([0, 1], 0) == [-1, -1]


def items(sources: list[str]) -> list[Brief]:
    return [Brief(id=str(i), digest=name, look=0) for i, name in enumerate(sources)]


def test_split_keeps_files_whole_and_ignores_order() -> None:
    names = [f"file{i // 5}" for i in range(100)]
    options = PrepareOptions(val_split=0.2, seed=3)
    first, _ = split(items(names), options)
    chosen = {i.digest for i in first if i.split == "val"}
    assert sum(i.split == "val" for i in first) == 20
    assert not chosen & {i.digest for i in first if i.split == "train"}
    second, _ = split(items(names)[::-1], options)
    assert chosen == {i.digest for i in second if i.split == "val"}
    other, _ = split(items(names), PrepareOptions(val_split=0.2, seed=4))
    assert chosen != {i.digest for i in other if i.split == "val"}


def test_split_of_one_video_takes_its_end() -> None:
    divided, notes = split(items(["clip"] * 10), PrepareOptions(val_split=0.3))
    assert [i.split for i in divided] == ["train"] * 7 + ["val"] * 3
    assert notes


def test_metadata_in_three_forms(tmp_path: Path) -> None:
    (tmp_path / "object.json").write_text('{"sub/a.png": {"x": 1}}')
    (tmp_path / "list.json").write_text('[{"image": "a.png", "x": 1}]')
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / "a.json").write_text('{"x": 1}')
    for name in ("object.json", "list.json", "side"):
        matched, unused, without = match_metadata(read_metadata(tmp_path / name), ["sub/a.png"])
        assert (matched[0].labels, unused, without) == ({"x": 1}, [], [])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"modality": "xray"}, "expected modality to be one of visible, ir"),
        ({"split": "dev"}, "expected split to be one of train, val, test"),
        ({"pose": [[1]]}, "expected pose to be 4 x 4 finite numbers"),
        ({"camera": {"model": "PINHOLE", "params": [1]}}, "expected camera to be"),
        ({"bands": "red"}, "expected bands to be a list"),
        ({"depth": 3}, "expected depth to be"),
        ({"depth": "gone.png"}, "there is no depth map"),
        (7, "expected entry to be an object"),
    ],
)
def test_wrong_metadata_is_named(tmp_path: Path, row: object, text: str) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"a.png": row}))
    with pytest.raises(InputError, match=text):
        read_metadata(tmp_path / "m.json")


def halve(value: int) -> int:
    if value % 2:
        raise FileFormatError(f"{value} is odd")
    return value // 2


def test_tasks_give_results_and_their_own_errors() -> None:
    found = dict(run_tasks(halve, list(range(20)), workers=3))
    assert {at: v for at, v in found.items() if at % 2 == 0} == {i: i // 2 for i in range(0, 20, 2)}
    assert str(found[7]) == "7 is odd"


def test_cluster_without_ray_names_the_extra() -> None:
    try:
        import ray  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(MissingExtraError, match=r'pip install "sightline\[cluster\]"'):
            list(run_tasks(halve, [2], cluster="auto"))
    else:
        pytest.skip("ray is installed")
