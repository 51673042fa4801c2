import pytest

from sightline.errors import InputError
from sightline.options import ReconstructOptions, export_names


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fps": 2.0, "every": 3}, "chosen by one rule, got --fps and --every"),
        ({"test_every": 1}, "would hold out every view"),
        ({"steps": 0}, "--steps must be 1 or more, got 0"),
        ({"sh_degree": 4}, "--sh-degree must be 0 to 3"),
        ({"fps": 0.0}, "--fps must be above 0"),
        ({"export": "ply,obj"}, 'no export format "obj"'),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        ReconstructOptions(**options)


def test_export_names_keeps_order_and_drops_repeats() -> None:
    assert export_names(" spz, ply,spz,") == ("spz", "ply")


def test_as_dict_rebuilds_the_record() -> None:
    options = ReconstructOptions(resolution=320, export="ply")
    assert ReconstructOptions(**options.as_dict()).as_dict() == options.as_dict()
