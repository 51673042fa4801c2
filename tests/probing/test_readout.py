import pytest
import torch

from sightline.probing.protocols import HEADS
from sightline.probing.readout import WIDTHS, Reading, Readout, gaussians_from
from sightline.probing.tokens import TokenGrid, even_placement, make_grid


def tokens(views: int = 2, channels: int = 12) -> TokenGrid:
    maps = torch.randn(views, channels, 3, 4)
    return make_grid(maps, even_placement((24, 32), (3, 4)))


def readout(width: int, hidden: int = 16, names: tuple[str, ...] = HEADS) -> Readout:
    return Readout(names, width, hidden, torch.Generator().manual_seed(3))


def some_pixels(grid: TokenGrid) -> torch.Tensor:
    """Not all, not in whole rows, and none of the second view's first row."""
    shape = len(grid.grid), len(grid.down), len(grid.across)
    chosen = torch.rand(shape) < 0.7
    chosen[1, 0] = False
    return chosen.flatten().nonzero()[:, 0]


def readings(grid: TokenGrid) -> list[Reading]:
    """The compiled readout, and plain torch."""
    compiled = Reading.of(grid, some_pixels(grid))
    assert compiled.layout is not None
    return [compiled, Reading(grid, compiled.pixels, None)]


def pixel_grid() -> TokenGrid:
    maps = torch.randn(2, 6, 24, 40)
    return make_grid(maps, even_placement((24, 40), (24, 40)), is_pixels=True)


def test_token_grid_equals_per_pixel() -> None:
    grid = tokens()
    net = readout(12)
    slow = net.per_pixel(grid.at_pixels().flatten(0, 2))
    for reading in readings(grid):
        fast = net(reading)
        assert set(fast) == set(HEADS)
        for name in HEADS:
            assert fast[name].shape == (len(reading.pixels), WIDTHS[name])
            assert (fast[name] - slow[name][reading.pixels]).abs().max() < 1e-5, name


@pytest.mark.parametrize("is_pixels", [False, True])
@pytest.mark.parametrize("hidden", [6, 64, 70])
def test_gradients_equal_those_of_the_reference(is_pixels: bool, hidden: int) -> None:
    grid = pixel_grid() if is_pixels else tokens()
    net = readout(grid.width, hidden)

    def gradients(values: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> list:
        net.zero_grad()
        torch.stack([(values[name] * weights[name]).sum() for name in HEADS]).sum().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    for reading in readings(grid):
        count = len(reading.pixels)
        # Most Gaussians get no gradient, as where a view does not show them.
        shown = (torch.arange(count) > 0.6 * count).float()[:, None]
        weights = {name: torch.randn(count, WIDTHS[name]) * shown for name in HEADS}
        features = grid.at_pixels().flatten(0, 2)[reading.pixels]
        found = gradients(net(reading), weights)
        wanted = gradients(net.per_pixel(features), weights)
        assert len(found) == len(wanted) == 24
        for fast, slow in zip(found, wanted, strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_threads_do_not_change_a_bit() -> None:
    grid, net = tokens(views=3), readout(12)
    reading = readings(grid)[0]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            net.zero_grad()
            values = net(reading)
            torch.stack([(v.square()).sum() for v in values.values()]).sum().backward()
            found.append([*values.values(), *(p.grad for p in net.parameters())])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_what_is_not_a_number_is_not_hidden() -> None:
    net = readout(12)
    with torch.no_grad():
        net.head("xyz").first().weight[0, 0] = torch.nan
    for reading in readings(tokens()):
        assert net(reading)["xyz"].isnan().any()


def test_published_names_and_sizes() -> None:
    def count(names: tuple[str, ...], width: int, hidden: int) -> int:
        return sum(p.numel() for p in readout(width, hidden, names).parameters())

    # Feat2GS: 265,995 (G), 143,920 (T), 409,915 (A), and 245 for IUVRGB with 6 hidden units.
    assert count(HEADS[:4], 256, 256) == 265_995
    assert count(HEADS[4:], 256, 256) == 143_920
    assert count(HEADS, 256, 256) == 409_915
    assert count(HEADS[:4], 6, 6) == 245
    state = readout(12).state_dict()
    assert "head_xyz.mlp_warp.0.weight" in state
    assert state["head_f_rest.mlp_warp.1.bias"].shape == (45,)


def test_initial_weights_follow_the_seed_and_torch_defaults() -> None:
    one, two = readout(12), readout(12)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    bound = 12**-0.5
    first = one.head("xyz").first().weight
    assert first.abs().max() <= bound
    assert first.abs().max() > 0.9 * bound


def test_f_rest_sends_no_gradient_to_features() -> None:
    features = torch.randn(5, 12, requires_grad=True)
    out = readout(12, names=("f_rest",)).per_pixel(features)["f_rest"]
    out.sum().backward()
    assert features.grad is None


def test_raw_values_are_activated_once() -> None:
    raw = {name: torch.zeros(2, WIDTHS[name]) for name in HEADS}
    raw["f_rest"] = torch.arange(90.0).view(2, 45)
    out = gaussians_from(raw)
    assert torch.equal(out["scales"], torch.ones(2, 3))
    assert torch.equal(out["opacities"], torch.full((2,), 0.5))
    # Colour is the fastest axis of f_rest.
    assert out["colors"].shape == (2, 16, 3)
    assert out["colors"][0, 1].tolist() == [0.0, 1.0, 2.0]
