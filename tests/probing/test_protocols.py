import dataclasses

import pytest

from sightline.errors import InputError, UnknownNameError
from sightline.probing.protocols import MODES, PROTOCOLS, QUIRKS, find_protocol


def test_every_quirk_has_its_number_and_the_column_of_its_protocol() -> None:
    assert list(QUIRKS) == [f"Q{i}" for i in range(1, 29)]
    published = PROTOCOLS["feat2gs-v1"].quirks
    off = {number for number, name in QUIRKS.items() if not getattr(published, name)}
    # Fixed in both columns (Q16-Q18), or not applicable (Q23-Q25).
    assert off == {"Q16", "Q17", "Q18", "Q23", "Q24", "Q25"}
    ours = PROTOCOLS["sightline-1"].quirks
    on = {number for number, name in QUIRKS.items() if getattr(ours, name)}
    # Documented (Q8) and one cloud a scene (Q11).
    assert on == {"Q8", "Q11"}


def test_published_numbers() -> None:
    protocol = PROTOCOLS["feat2gs-v1"]
    assert (protocol.warm_steps, protocol.steps, protocol.baseline_steps) == (1000, 7000, 7000)
    assert (protocol.rates.xyz, protocol.rates.opacity, protocol.rates.f_rest) == (
        1.6e-5,
        5e-3,
        1.25e-5,
    )
    assert (protocol.pose_steps, protocol.pose_translation, protocol.pose_rotation) == (
        500,
        3e-4,
        1e-4,
    )


def test_fast_variant() -> None:
    fast = find_protocol("fast")
    assert (fast.long_side, fast.warm_steps, fast.steps, fast.pose_steps) == (128, 100, 400, 50)
    assert (fast.train_views, fast.test_views) == (4, 3)


def test_modes_read_what_the_paper_says() -> None:
    assert MODES["G"] == ("xyz", "scaling", "rotation", "opacity")
    assert MODES["T"] == ("f_dc", "f_rest")
    assert set(MODES["A"]) == set(MODES["G"]) | set(MODES["T"])
    assert MODES["Gft"] == MODES["G"]
    assert not MODES["free"]


def test_protocols_are_frozen_and_change_by_copy() -> None:
    protocol = find_protocol("sightline-1", {"steps": 10, "quirks": {"Q14": True}})
    assert protocol.steps == 10
    assert protocol.quirks.masked_are_perfect
    assert protocol.name == "sightline-1+changes"
    assert not PROTOCOLS["sightline-1"].quirks.masked_are_perfect
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.steps = 5  # type: ignore[misc]
    assert find_protocol("sightline-1", {"steps": 7000}) is PROTOCOLS["sightline-1"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stepz": 1}, "steps"),
        ({"steps": "many"}, "must be like 7000"),
        ({"steps": 0}, "at least 1"),
        ({"quirks": {"Q14": 1}}, "must be like False"),
        ({"quirks": {"Q99": True}}, "no field of the quirks"),
        ({"components": None, "quirks": {"needs_pca": True}}, "without PCA"),
    ],
)
def test_wrong_changes_are_one_sentence(changes: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_protocol("sightline-1", changes)


def test_unknown_protocol_lists_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="feat2gs-v1"):
        find_protocol("feat2gs")
