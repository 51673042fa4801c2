import re
from typing import Any

import pytest

from sightline.errors import InputError
from tests.training.splatt3r import small


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fusion": "multiply"}, "--fusion must be one of concat, add, weighted_sum, gated"),
        ({"backbone": None}, "--train fusion needs a backbone to fuse; name one with --backbone"),
        ({"points": 0.0}, "--train fusion changes the points, which no loss would hold in place"),
        ({"mse": 0.0, "perceptual": 0.0}, "--mse and --perceptual are both 0"),
        ({"resolution": 100}, "--resolution must be a multiple of 16, got 100; the nearest is 96"),
        ({"targets": 0}, "--targets must be 1 or more, got 0"),
        ({"overlap": 1.0}, "--overlap must be between 0 and 1, got 1.0"),
        ({"perceptual": float("nan")}, "--perceptual must be 0 or more, got nan"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        small.settings(**changes)


def test_the_names_of_others_are_taken() -> None:
    assert small.settings(fusion="addition").mode == "add"
    assert small.settings(fusion="weighted_sum").mode == "weighted_sum"
    small.settings(backbone=None, train="gaussian_head", points=0.0)
