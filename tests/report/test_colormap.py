import numpy as np

from sightline.report.colormap import MAGMA, TURBO, apply_colormap, css_gradient


def test_tables_agree_with_the_published_maps() -> None:
    # Entries 0, 51, 128, 204 and 255 of the authors' 256 colours.
    turbo = [(48, 18, 59), (62, 155, 254), (164, 252, 60), (240, 91, 18), (122, 4, 3)]
    magma = [(0, 0, 4), (59, 15, 112), (183, 55, 121), (254, 159, 109), (252, 253, 191)]
    rows = [0, 51, 128, 204, 255]
    for table, wanted in ((TURBO, turbo), (MAGMA, magma)):
        assert np.abs(table[rows].astype(int) - wanted).max() <= 2


def test_magma_grows_lighter() -> None:
    lightness = MAGMA @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1.0).all()


def test_values_outside_take_the_end_colours() -> None:
    values = np.array([[-1.0, 0.0, 1.0], [2.0, np.inf, np.nan]])
    colors = apply_colormap(values, TURBO)
    assert colors.shape == (2, 3, 3)
    np.testing.assert_array_equal(colors[0], TURBO[[0, 0, 255]])
    np.testing.assert_array_equal(colors[1, :2], TURBO[[255, 255]])
    np.testing.assert_array_equal(colors[1, 2], [128, 128, 128])


def test_gradient_runs_from_first_to_last() -> None:
    text = css_gradient(TURBO, stops=3)
    assert text == "linear-gradient(to right,#30123b,#a4fd3c,#7a0403)"
