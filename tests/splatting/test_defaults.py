from dataclasses import replace

import pytest

from sightline.errors import InputError, UnknownNameError
from sightline.splatting.config import OptimizeConfig, Rates
from sightline.splatting.defaults import default_config
from sightline.splatting.density import DefaultStrategy, MCMCStrategy


def test_a_cpu_gets_less_to_do_than_a_gpu():
    cpu = default_config("cpu", 43, 480, 270)
    gpu = default_config("cuda", 43, 480, 270)
    assert cpu.steps < gpu.steps
    assert cpu.max_splats < gpu.max_splats
    assert isinstance(gpu.strategy, MCMCStrategy)


def test_more_views_and_pixels_get_more():
    small, large = default_config("cpu", 20, 240, 135), default_config("cpu", 300, 960, 540)
    assert small.steps < large.steps
    assert small.max_splats < large.max_splats


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_choices_are_kept(device):
    config = default_config(
        device,
        10,
        48,
        40,
        steps=300,
        max_splats=77,
        strategy="default",
        sh_degree=1,
        exposure="none",
        refine_poses=True,
        antialiased=True,
    )
    assert (config.steps, config.max_splats, config.sh_degree) == (300, 77, 1)
    assert isinstance(config.strategy, DefaultStrategy)
    assert config.strategy.refine_stop_iter < 300
    assert config.exposure.kind == "none"
    assert config.poses is not None
    assert config.antialiased


def test_published_schedules_scale_with_the_run_on_a_gpu():
    config = default_config("cuda", 10, 48, 40, steps=300, strategy="default")
    assert config.strategy == DefaultStrategy().scaled(0.01)


@pytest.mark.parametrize("steps", [1, 10, 500])
@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_short_runs_have_a_schedule_too(steps, strategy):
    config = default_config("cpu", 10, 48, 40, steps=steps, strategy=strategy)
    assert config.strategy.refine_every >= 1
    assert config.strategy.refine_stop_iter <= max(1, steps)


def test_unknown_choices_are_explained():
    with pytest.raises(UnknownNameError, match='no density strategy "mcm"; closest: mcmc'):
        default_config("cpu", 10, 48, 40, strategy="mcm")
    with pytest.raises(InputError, match="at least one view of one pixel, got 0 views of 48 x 40"):
        default_config("cpu", 0, 48, 40)
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        default_config("cpu", 10, 48, 40, steps=0)
    with pytest.raises(InputError, match="sh_degree must be 0 to 3, got 4; lower it"):
        default_config("cpu", 10, 48, 40, sh_degree=4)


def test_numbers_out_of_range_are_explained():
    config = OptimizeConfig()
    with pytest.raises(InputError, match=r"ssim_weight must be within \[0, 1\], got 2.0"):
        replace(config, ssim_weight=2.0)
    with pytest.raises(InputError, match="pairs .fraction of the run, scale of the pictures"):
        replace(config, resolutions=((0.5, 0.0),))
    with pytest.raises(InputError, match="init.opacity must be within"):
        replace(config, init=replace(config.init, opacity=1.0))


def test_bands_join_one_by_one():
    config = OptimizeConfig(sh_degree=2, sh_start=0.2, sh_every=0.3)
    assert [config.degree_at(f) for f in (0.0, 0.19, 0.2, 0.49, 0.51, 0.99)] == [0, 0, 1, 1, 2, 2]


def test_resolutions_follow_the_schedule():
    config = OptimizeConfig(resolutions=((0.1, 0.25), (0.3, 0.5)))
    assert [config.resolution_at(f) for f in (0.0, 0.2, 0.3, 1.0)] == [0.25, 0.5, 1.0, 1.0]


def test_rates_come_down_at_the_end():
    rates = Rates(final=0.1, hold=0.5, means_final=0.01)
    assert rates.decay(0.0) == rates.decay(0.5) == 1
    assert rates.decay(1.0) == pytest.approx(0.1)
    assert rates.means_decay(0.5) == pytest.approx(0.1)
