from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sightline.errors import Cancelled, CheckpointError, InputError, ShapeError
from sightline.splatting.config import OptimizeConfig, Rates
from sightline.splatting.density import DefaultStrategy, MCMCStrategy
from sightline.splatting.exposure import ExposureConfig
from sightline.splatting.initialize import InitConfig
from sightline.splatting.optimize import optimize_splats
from sightline.splatting.poses import PoseConfig
from sightline.splatting.render import render_gaussians
from sightline.types import SparsePoints
from tests.splatting.toy import make_cameras, make_cloud, make_gaussians, make_views, psnr

TRAIN = [0, 1, 3, 4, 5, 7]
HELD_OUT = [2, 6]

PLAIN = OptimizeConfig(
    steps=40,
    max_splats=600,
    sh_degree=1,
    dense=None,
    min_points=0,
    strategy=None,
    init=InitConfig(opacity=0.3, scale=0.5),
    rates=Rates(means=2e-3, scales=2e-2, sh0=2e-2, final=0.1),
    exposure=ExposureConfig(kind="none"),
)
EVERYTHING = replace(
    PLAIN,
    strategy=MCMCStrategy(refine_start_iter=2, refine_stop_iter=30, refine_every=5),
    exposure=ExposureConfig(kind="affine"),
    poses=PoseConfig(rate=1e-3),
    background="random",
    opacity_weight=0.01,
    scale_weight=0.01,
    resolutions=((0.4, 0.5),),
)


@pytest.fixture(scope="module")
def gaussians():
    return make_gaussians()


@pytest.fixture(scope="module")
def views(gaussians):
    return make_views(gaussians=gaussians)


@pytest.fixture(scope="module")
def cloud(gaussians):
    return make_cloud(gaussians)


def _same(a, b):
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(a.gaussians, name), getattr(b.gaussians, name)), name
    assert a.history == b.history
    assert torch.equal(a.cameras.w2c, b.cameras.w2c)
    if a.exposure is not None:
        assert torch.equal(a.exposure.values, b.exposure.values)


def _held_out(result, views):
    rgb = render_gaussians(result.gaussians, result.cameras.select(HELD_OUT)).rgb
    return psnr(rgb, views.images[HELD_OUT].float() / 255)


def test_a_small_scene_is_learnt(views, cloud):
    result = optimize_splats(views, cloud, TRAIN, config=replace(PLAIN, steps=250))
    assert _held_out(result, views) > 26
    assert result.history["psnr"][-1] > result.history["psnr"][0] + 5
    assert result.history["step"][-1] == 250
    assert len({len(curve) for curve in result.history.values()}) == 1
    assert len(result.gaussians) == 150
    assert result.exposure is None


def test_points_can_come_from_nowhere(views):
    config = replace(PLAIN, steps=150, min_points=10, random_points=500)
    result = optimize_splats(views, None, TRAIN, config=config)
    assert _held_out(result, views) > 17


def test_matched_pixels_join_the_given_points(views, cloud):
    from sightline.splatting.dense import DenseOptions

    config = replace(PLAIN, steps=1, dense=DenseOptions(stride=1), max_splats=400)
    result = optimize_splats(views, cloud, TRAIN, config=config)
    assert 150 < len(result.gaussians) <= 400


def test_float_pictures_are_fitted_like_bytes(views, cloud):
    from sightline.splatting.dense import DenseOptions

    config = replace(PLAIN, steps=20, dense=DenseOptions(stride=2), resolutions=((0.5, 0.5),))
    as_floats = replace(views, images=views.images.float() / 255)
    a = optimize_splats(views, cloud, TRAIN, config=config)
    b = optimize_splats(as_floats, cloud, TRAIN, config=config)
    assert len(a.gaussians) == len(b.gaussians)
    assert b.history["loss"][-1] == pytest.approx(a.history["loss"][-1], rel=0.02)


@pytest.mark.parametrize("size", [(3, 5), (9, 9), (17, 12)])
def test_tiny_pictures_are_fitted_too(cloud, size):
    from sightline.splatting.defaults import default_config

    tiny = make_views(make_cameras(4, *size))
    result = optimize_splats(
        tiny, cloud, [1, 2, 3], config=default_config("cpu", 3, *size, steps=3)
    )
    assert torch.isfinite(result.gaussians.means).all()


def test_too_many_points_are_thinned_to_the_budget(views, cloud):
    result = optimize_splats(views, cloud, TRAIN, config=replace(PLAIN, steps=1, max_splats=60))
    assert len(result.gaussians) == 60


@pytest.mark.parametrize(
    "strategy",
    [
        MCMCStrategy(refine_start_iter=2, refine_stop_iter=30, refine_every=5, growth=0.3),
        DefaultStrategy(
            refine_start_iter=2, refine_stop_iter=30, refine_every=5, reset_every=17, absgrad=True
        ),
    ],
)
def test_strategies_add_splats_within_the_budget(views, cloud, strategy):
    config = replace(PLAIN, strategy=strategy, max_splats=300)
    result = optimize_splats(views, cloud, TRAIN, config=config)
    assert 150 < len(result.gaussians) <= 300


def test_a_killed_run_ends_like_an_uninterrupted_one(views, cloud, tmp_path):
    whole = optimize_splats(views, cloud, TRAIN, config=EVERYTHING)
    path = tmp_path / "state.safetensors"
    for stop in (1, 13, 27):  # in the middle of an epoch, of a resolution, after growth
        with pytest.raises(Cancelled):
            optimize_splats(
                views,
                cloud,
                TRAIN,
                config=EVERYTHING,
                checkpoint=path,
                progress=_stop_at(stop),
            )
        assert path.is_file()
    again = optimize_splats(views, cloud, TRAIN, config=EVERYTHING, checkpoint=path)
    _same(whole, again)


@pytest.mark.parametrize("kind", ["default", "bilateral"])
def test_other_kinds_of_state_resume_as_well(views, cloud, tmp_path, kind):
    config = EVERYTHING
    if kind == "default":
        strategy = DefaultStrategy(
            refine_start_iter=2, refine_stop_iter=35, refine_every=7, reset_every=20
        )
        config = replace(config, strategy=strategy)
    else:
        config = replace(config, exposure=ExposureConfig(kind="bilateral", grid=(4, 4, 2)))
    whole = optimize_splats(views, cloud, TRAIN, config=config)
    path = tmp_path / "state.safetensors"
    with pytest.raises(Cancelled):
        optimize_splats(views, cloud, TRAIN, config=config, checkpoint=path, progress=_stop_at(17))
    _same(whole, optimize_splats(views, cloud, TRAIN, config=config, checkpoint=path))


def _stop_at(step):
    def progress(stage, done, total):
        assert stage == "splats"
        assert total == 40
        if done == step:
            raise Cancelled("stop")

    return progress


def test_saving_now_and_then_changes_nothing(views, cloud, tmp_path, monkeypatch):
    plain = optimize_splats(views, cloud, TRAIN, config=EVERYTHING)
    monkeypatch.setattr("sightline.splatting.optimize._SAVE_SECONDS", 0.0)
    path = tmp_path / "state.safetensors"
    _same(plain, optimize_splats(views, cloud, TRAIN, config=EVERYTHING, checkpoint=path))
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_threads_do_not_change_the_result(views, cloud):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(optimize_splats(views, cloud, TRAIN, config=EVERYTHING))
    finally:
        torch.set_num_threads(threads)
    _same(*results)


def test_the_seed_decides(views, cloud):
    a, b = (
        optimize_splats(views, cloud, TRAIN, config=replace(EVERYTHING, steps=5), seed=s)
        for s in (0, 1)
    )
    assert not torch.equal(a.gaussians.means, b.gaussians.means)


def test_held_out_pictures_are_never_looked_at(views, cloud):
    spoiled = replace(views, images=views.images.clone())
    spoiled.images[HELD_OUT] = 255 - spoiled.images[HELD_OUT]
    _same(
        optimize_splats(views, cloud, TRAIN, config=EVERYTHING),
        optimize_splats(spoiled, cloud, TRAIN, config=EVERYTHING),
    )


def test_masked_pixels_teach_nothing(views, cloud):
    masks = torch.ones(8, 40, 48, dtype=torch.bool)
    masks[:, 10:20, 10:30] = False
    hidden = replace(views, masks=masks, images=views.images.clone())
    hidden.images[:, :, 10:20, 10:30] = 0
    _same(
        optimize_splats(replace(views, masks=masks), cloud, TRAIN, config=PLAIN),
        optimize_splats(hidden, cloud, TRAIN, config=PLAIN),
    )


def test_exposure_takes_brightness_out_of_the_scene(gaussians, views, cloud):
    gains = torch.linspace(0.8, 1.0, 8)[torch.tensor([3, 0, 5, 7, 1, 6, 2, 4])]
    images = (views.images * gains[:, None, None, None]).round().byte()
    config = replace(PLAIN, steps=250, exposure=ExposureConfig(kind="affine", affine_rate=1e-2))
    result = optimize_splats(replace(views, images=images), cloud, TRAIN, config=config)
    learnt = 1 + result.exposure.values[TRAIN][:, [0, 1, 2], [0, 1, 2]].mean(1)
    assert torch.corrcoef(torch.stack([learnt, gains[TRAIN]]))[0, 1] > 0.8
    assert result.exposure.fitted.tolist() == [i in TRAIN for i in range(8)]


def test_poses_are_refined_on_training_views_only(gaussians, views, cloud):
    config = replace(PLAIN, steps=30, poses=PoseConfig(rate=1e-3, start=0.0))
    result = optimize_splats(views, cloud, TRAIN, config=config)
    moved = (result.cameras.w2c - views.cameras.w2c).abs().amax((1, 2))
    assert (moved[TRAIN] > 1e-4).all()
    assert (moved[HELD_OUT] < 1e-6).all()


def test_sparse_points_with_byte_colours_and_lost_points_are_fine(views, cloud):
    points = cloud.points.clone()
    points[3] = torch.nan
    sparse = SparsePoints(
        points=points,
        colors=(cloud.colors * 255).byte(),
        tracks=torch.zeros(0, 2, dtype=torch.int32),
    )
    result = optimize_splats(views, sparse, TRAIN, config=replace(PLAIN, steps=2))
    assert len(result.gaussians) == 149


def test_live_numbers_arrive(views, cloud):
    numbers = []
    optimize_splats(views, cloud, TRAIN, config=replace(PLAIN, steps=5), on_step=numbers.append)
    assert [n["step"] for n in numbers] == [1, 2, 3, 4, 5]
    assert set(numbers[0]) == {"step", "loss", "psnr", "splats"}


def test_wrong_input_is_explained(views, cloud, tmp_path):
    def fit(views=views, train=TRAIN, config=PLAIN, **kwargs):
        optimize_splats(views, cloud, train, config=replace(config, steps=1), **kwargs)

    with pytest.raises(InputError, match="need cameras, got views without any"):
        fit(replace(views, cameras=None))
    with pytest.raises(ShapeError, match=r"pictures of 40 x 48 pixels, got 20 x 20; resize"):
        fit(replace(views, cameras=make_cameras(8, 20, 20)))
    for train in ([], [0, 0], [-1], [8]):
        with pytest.raises(InputError, match="at least one of the 8 views, each once, got"):
            fit(train=train)
    lost = make_cameras()
    lost.w2c[3] = torch.nan
    with pytest.raises(InputError, match="must have poses, but 003.png has none"):
        fit(replace(views, cameras=lost))
    with pytest.raises(InputError, match="at least one starting point"):
        optimize_splats(views, None, TRAIN, config=replace(PLAIN, steps=1))


def test_a_checkpoint_of_something_else_is_refused(views, cloud, tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Cancelled):
        optimize_splats(views, cloud, TRAIN, config=PLAIN, checkpoint=path, progress=_stop_at(3))
    for changed in (
        {"seed": 1},
        {"train": [0, 1]},
        {"config": replace(PLAIN, ssim_weight=0.1)},
        {"views": replace(views, images=255 - views.images)},
    ):
        arguments = {"views": views, "train": TRAIN, "config": PLAIN, "seed": 0, **changed}
        with pytest.raises(CheckpointError, match="belongs to other pictures, cameras, options"):
            optimize_splats(points=cloud, checkpoint=path, **arguments)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys() if name != "m.means"}  # noqa: SIM118
    save_file(kept, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="a whole splat training state, got a part"):
        optimize_splats(views, cloud, TRAIN, config=PLAIN, checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="unreadable file .*; remove it to start over"):
        optimize_splats(views, cloud, TRAIN, config=PLAIN, checkpoint=path)
