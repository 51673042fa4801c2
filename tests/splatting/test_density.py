import math

import pytest
import torch

from sightline.splatting.density import (
    MAX_COPIES,
    DefaultStrategy,
    MCMCStrategy,
    Seen,
    add_noise,
    add_rows,
    duplicate_rows,
    make_density_control,
    relocate_rows,
    relocated_opacity_and_scale,
    remove_rows,
    split_rows,
)
from sightline.splatting.optimizer import RowAdam
from sightline.splatting.params import GaussianParams


def _splats(count=30, opacity=0.5, scale=0.05):
    generator = torch.Generator().manual_seed(5)
    params = GaussianParams(
        means=torch.randn(count, 3, generator=generator),
        scales=torch.full((count, 3), math.log(scale)),
        quats=torch.randn(count, 4, generator=generator),
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh=torch.randn(count, 4, 3, generator=generator),
    )
    optimizer = RowAdam(params.tensors())
    for state in (optimizer.m, optimizer.v):
        for name, value in state.items():
            # Every row carries its own number, so that it can be recognised anywhere.
            rows = torch.arange(1.0, count + 1).view(-1, *[1] * (value.dim() - 1))
            state[name] = rows.expand_as(value).clone()
    return params, optimizer


def _moments(optimizer):
    """The number of each row; all tensors must agree on it."""
    rows = [value.flatten(1) for s in (optimizer.m, optimizer.v) for value in _wide(s)]
    for value in rows:
        assert (value == rows[0][:, :1]).all()
    return rows[0][:, 0]


def _wide(state):
    return [value if value.dim() > 1 else value[:, None] for value in state.values()]


def _generator():
    return torch.Generator().manual_seed(0)


def test_copies_start_without_moments_and_the_rest_keep_theirs():
    params, optimizer = _splats()
    before = params.means.detach().clone()
    duplicate_rows(params, optimizer, torch.arange(30) < 4)
    assert len(params) == 34
    assert torch.equal(params.means[:30], before)
    assert torch.equal(params.means[30:], before[:4])
    assert _moments(optimizer).tolist() == [*range(1, 31), 0, 0, 0, 0]
    assert all(optimizer.params[k] is p for k, p in params.tensors().items())


def test_a_split_puts_two_smaller_splats_inside_the_old_one():
    params, optimizer = _splats(count=400)
    before = {k: v.detach().clone() for k, v in params.tensors().items()}
    chosen = torch.arange(400) < 200
    split_rows(params, optimizer, chosen, _generator(), revised_opacity=True)
    assert len(params) == 600
    assert torch.equal(params.means[:200], before["means"][200:])
    new = params.means[200:].view(2, 200, 3)
    assert torch.equal(params.sh[200:400], before["sh"][:200])
    torch.testing.assert_close(params.scales[200:].exp(), torch.full((400, 3), 0.05 / 1.6))
    kept = params.opacities[200:].sigmoid()
    torch.testing.assert_close(kept, torch.full((400,), 1 - math.sqrt(0.5)))
    offset = (new - before["means"][:200]).reshape(-1, 3)
    assert offset.std().item() == pytest.approx(0.05, rel=0.1)
    assert _moments(optimizer).tolist() == [*range(201, 401), *[0] * 400]


def test_removed_splats_take_their_moments_along():
    params, optimizer = _splats()
    remove_rows(params, optimizer, torch.arange(30) % 2 == 0)
    assert _moments(optimizer).tolist() == list(range(2, 31, 2))
    assert len(params) == 15


def test_the_relocation_formula_equals_its_double_sum():
    for opacity in (0.006, 0.3, 0.9, 0.999):
        for copies in (1, 2, 3, 7, 20, MAX_COPIES):
            new, factor = relocated_opacity_and_scale(
                torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies])
            )
            expected = 1 - (1 - opacity) ** (1 / copies)
            below = sum(
                math.comb(i - 1, k) * (-1) ** k * expected ** (k + 1) / math.sqrt(k + 1)
                for i in range(1, copies + 1)
                for k in range(i)
            )
            assert new.item() == pytest.approx(expected, rel=1e-12)
            assert factor.item() == pytest.approx(opacity / below, rel=1e-6)


def test_one_copy_changes_nothing_and_many_count_as_the_most():
    opacity = torch.tensor([0.4, 0.4])
    new, factor = relocated_opacity_and_scale(opacity, torch.tensor([1, 900]))
    assert new[0].item() == pytest.approx(0.4)
    assert factor[0].item() == pytest.approx(1)
    assert new[1].item() == pytest.approx(1 - 0.6 ** (1 / MAX_COPIES))


def test_copies_together_are_as_opaque_as_the_original():
    opacity = torch.tensor([0.7])
    new, _ = relocated_opacity_and_scale(opacity, torch.tensor([3]))
    assert 1 - (1 - new.item()) ** 3 == pytest.approx(0.7, abs=1e-6)


def test_dead_splats_move_onto_living_ones():
    params, optimizer = _splats()
    with torch.no_grad():
        params.opacities[:10] = -9.0
    alive = params.means[10:].detach().clone()
    moved = relocate_rows(params, optimizer, _generator(), min_opacity=0.005)
    assert moved == 10
    assert len(params) == 30
    assert (params.opacities.sigmoid() > 0.005).all()
    source = [int((alive == mean).all(-1).nonzero()[0]) + 10 for mean in params.means[:10]]
    moments = _moments(optimizer)
    assert (moments[:10] == 0).all()
    assert (moments[source] == 0).all()
    untouched = sorted(set(range(10, 30)) - set(source))
    assert moments[untouched].tolist() == [i + 1 for i in untouched]
    assert torch.equal(params.sh[:10], params.sh[source])
    assert torch.equal(params.opacities[:10], params.opacities[source])
    assert torch.equal(params.means[10:], alive)


def test_nothing_moves_without_the_dead_or_the_living():
    params, optimizer = _splats()
    assert relocate_rows(params, optimizer, _generator(), min_opacity=0.005) == 0
    assert relocate_rows(params, optimizer, _generator(), min_opacity=0.9) == 0
    assert _moments(optimizer).tolist() == list(range(1, 31))


def test_added_splats_share_their_sources_opacity():
    params, optimizer = _splats(count=5)
    add_rows(params, optimizer, 3, _generator(), min_opacity=0.005)
    assert len(params) == 8
    assert (_moments(optimizer)[5:] == 0).all()
    assert (params.opacities[5:].sigmoid() < 0.5).all()


def test_noise_moves_only_faint_splats():
    params, _ = _splats()
    with torch.no_grad():
        params.opacities[:10] = -6.0
    before = params.means.detach().clone()
    add_noise(params, _generator(), 1.0, 0.005, 100.0)
    assert (params.means[:10] != before[:10]).any(-1).all()
    assert torch.equal(params.means[10:], before[10:])


def _seen(count, gradient):
    every = torch.ones(count, dtype=torch.bool)
    return Seen(
        visible=every,
        radii=torch.full((count,), 0.01),
        gradients=torch.full((count,), 0.0).index_fill_(0, torch.tensor([2, 3]), gradient),
    )


def _observed(strategy, gradient=1e-3, count=30, max_splats=1000, **kwargs):
    params, optimizer = _splats(count, **kwargs)
    control = make_density_control(strategy, count, extent=1.0, max_splats=max_splats)
    for _ in range(3):
        control.observe(_seen(count, gradient))
    return params, optimizer, control


def test_small_splats_with_large_gradients_are_cloned_and_large_ones_split():
    small = _observed(DefaultStrategy(), scale=0.005)
    assert small[2].update(600, small[0], small[1], _generator(), 1e-4)
    assert len(small[0]) == 32
    assert (_moments(small[1]) > 0).sum() == 30
    large = _observed(DefaultStrategy(), scale=0.05)
    assert large[2].update(600, large[0], large[1], _generator(), 1e-4)
    assert len(large[0]) == 32
    assert (_moments(large[1]) > 0).sum() == 28
    assert all(len(t) == 32 and (t == 0).all() for t in large[2].state.values())


def test_small_gradients_change_nothing():
    params, optimizer, control = _observed(DefaultStrategy(), gradient=1e-4)
    assert control.update(600, params, optimizer, _generator(), 1e-4)
    assert len(params) == 30


def test_growth_stays_within_the_budget():
    params, optimizer, control = _observed(DefaultStrategy(), max_splats=31)
    control.update(600, params, optimizer, _generator(), 1e-4)
    assert len(params) == 31


@pytest.mark.parametrize("step", [0, 400, 500, 650, 15_000, 20_000])
def test_refinement_keeps_to_its_steps(step):
    params, optimizer, control = _observed(DefaultStrategy())
    assert not control.update(step, params, optimizer, _generator(), 1e-4)
    assert len(params) == 30


def test_faint_splats_are_removed_but_never_all():
    params, optimizer, control = _observed(DefaultStrategy(), gradient=0.0, opacity=0.001)
    control.update(600, params, optimizer, _generator(), 1e-4)
    assert len(params) == 1


def test_opacities_are_cut_back_and_forget_their_moments():
    params, optimizer, control = _observed(DefaultStrategy(), gradient=0.0)
    control.update(3000, params, optimizer, _generator(), 1e-4)
    assert params.opacities.sigmoid().max().item() == pytest.approx(0.01, rel=1e-3)
    assert (optimizer.m["opacities"] == 0).all()
    assert (optimizer.m["means"] != 0).any()


def test_huge_splats_are_removed_after_the_first_reset():
    params, optimizer, control = _observed(DefaultStrategy(), gradient=0.0)
    with torch.no_grad():
        params.scales[7] = math.log(0.5)
    control.update(2900, params, optimizer, _generator(), 1e-4)
    assert len(params) == 30
    control.observe(_seen(30, 0.0))
    control.update(3100, params, optimizer, _generator(), 1e-4)
    assert len(params) == 29


def test_mcmc_grows_up_to_its_cap():
    params, optimizer = _splats(100)
    control = make_density_control(MCMCStrategy(noise_lr=0.0), 100, extent=1.0, max_splats=108)
    assert control.update(600, params, optimizer, _generator(), 1e-4)
    assert len(params) == 105
    control.update(700, params, optimizer, _generator(), 1e-4)
    assert len(params) == 108
    control.update(800, params, optimizer, _generator(), 1e-4)
    assert len(params) == 108


def test_the_same_generator_gives_the_same_splats():
    results = []
    for _ in range(2):
        params, optimizer = _splats(100)
        control = make_density_control(MCMCStrategy(), 100, extent=1.0, max_splats=1000)
        control.update(600, params, optimizer, _generator(), 1e-4)
        results.append(params.means.detach())
    assert torch.equal(*results)


def test_no_strategy_keeps_the_splats():
    params, optimizer = _splats()
    control = make_density_control(None, 30, extent=1.0, max_splats=10)
    assert not control.update(600, params, optimizer, _generator(), 1e-4)
    assert len(params) == 30


def test_a_schedule_scales_with_the_run():
    assert DefaultStrategy().scaled(0.1) == DefaultStrategy(
        refine_start_iter=50,
        refine_stop_iter=1500,
        refine_every=10,
        reset_every=300,
    )
    assert MCMCStrategy().scaled(0.01).refine_every == 1
