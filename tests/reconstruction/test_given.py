import dataclasses

import pytest
import torch

from sightline.errors import InputError, ReconstructionError, UnknownNameError
from sightline.geometry.camera import project_points
from sightline.protocols import GeometryEstimator
from sightline.reconstruction import ESTIMATORS, create_estimator
from sightline.reconstruction.given import GivenEstimator
from sightline.types import Cameras, Reconstruction, SparsePoints, Views
from tests.reconstruction import scenes

COUNT = 4


@pytest.fixture(scope="session")
def scene() -> tuple[Views, Reconstruction]:
    w2c = scenes.orbit(COUNT)
    cameras = scenes.cameras(w2c)
    given = Reconstruction(cameras=cameras, registered=torch.ones(COUNT, dtype=torch.bool))
    return scenes.views(w2c), given


def estimate(given: Reconstruction, views: Views) -> Reconstruction:
    estimator = GivenEstimator(reconstruction=given, num_threads=2, max_features=1500)
    assert isinstance(estimator, GeometryEstimator)
    return estimator.estimate(views)


def with_pose(given: Reconstruction, view: int, pose: torch.Tensor) -> Reconstruction:
    w2c = given.cameras.w2c.clone()
    w2c[view] = pose
    return dataclasses.replace(given, cameras=dataclasses.replace(given.cameras, w2c=w2c))


def test_triangulates_in_the_given_world(scene: tuple[Views, Reconstruction]):
    views, given = scene
    found = estimate(given, views)
    assert torch.equal(found.cameras.w2c, given.cameras.w2c)
    assert torch.equal(found.cameras.K, given.cameras.K)
    sparse = found.sparse
    assert sparse is not None
    assert len(sparse.points) > 300
    # The floor is y = 1, the wall z = 5: most points lie on one of the drawn surfaces.
    x, y, z = sparse.points.double().unbind(-1)
    off = torch.stack([(y - 1).abs(), (z - 5).abs(), (x + 2).abs()]).amin(0)
    assert (off < 0.05).float().mean() > 0.7
    pixels, _ = project_points(sparse.points.double(), found.cameras)
    assert pixels.isfinite().all()


def test_leaves_unposed_views_out(scene: tuple[Views, Reconstruction]):
    views, given = scene
    given = with_pose(given, 1, torch.full((4, 4), torch.nan))
    given = dataclasses.replace(
        given,
        registered=torch.tensor([True, False, True, True]),
        rejected=(("view01.png", "the input has no camera for it"),),
    )
    found = estimate(given, views)
    assert found.sparse is not None
    assert found.rejected == given.rejected
    assert set(found.sparse.tracks[:, 1].tolist()) == {0, 2, 3}


def test_keeps_given_points(scene: tuple[Views, Reconstruction]):
    views, given = scene
    sparse = SparsePoints(
        points=torch.rand(200, 3),
        colors=torch.zeros(200, 3, dtype=torch.uint8),
        tracks=torch.zeros(0, 2, dtype=torch.int32),
    )
    given = dataclasses.replace(given, sparse=sparse)
    assert estimate(given, views) is given


def plane_depth(cameras: Cameras) -> torch.Tensor:
    """Return the depth of the wall z = 5 alone, in each view."""
    from sightline.geometry.camera import camera_rays

    origins, rays = camera_rays(cameras)
    origins = origins[:, None, None]
    distance = (5 - origins[..., 2]) / rays[..., 2]
    points = origins + distance[..., None] * rays
    w2c = cameras.w2c[:, None, None]
    return (w2c[..., 2, :3] * points).sum(-1) + w2c[..., 2, 3]


def test_lifts_given_depth(scene: tuple[Views, Reconstruction]):
    views, given = scene
    half = dataclasses.replace(
        given.cameras, K=torch.diag(torch.tensor([0.5, 0.5, 1.0]).double()) @ given.cameras.K
    )
    half = dataclasses.replace(half, height=120, width=160)
    depth = plane_depth(half)
    depth[0, :60] = 0
    found = estimate(dataclasses.replace(given, depth=depth, metric=True), views)
    sparse = found.sparse
    assert sparse is not None
    assert found.metric
    assert len(sparse.points) == 160 * 120 * COUNT - 60 * 160
    assert (sparse.points[:, 2] - 5).abs().max() < 1e-4
    seen = torch.bincount(sparse.tracks[:, 0].long())
    assert seen.min() == 1
    assert seen.max() == COUNT
    own = sparse.tracks[sparse.tracks[:, 1] == 2, 0].long()
    pixels, _ = project_points(sparse.points[own].double(), given.cameras.select([2]))
    x, y = pixels[0].floor().long().unbind(-1)
    inside = (x >= 0) & (x < 320) & (y >= 0) & (y < 240)
    assert inside.all()


def test_depth_without_values_is_refused(scene: tuple[Views, Reconstruction]):
    views, given = scene
    with pytest.raises(ReconstructionError, match="depth maps hold only 0 usable values"):
        estimate(dataclasses.replace(given, depth=torch.zeros(COUNT, 24, 32)), views)


def test_poses_with_foreign_axes_are_found_out(scene: tuple[Views, Reconstruction]):
    views, given = scene
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]).double())  # OpenGL's camera axes
    cameras = dataclasses.replace(given.cameras, w2c=flip @ given.cameras.w2c)
    with pytest.raises(
        ReconstructionError, match="the pictures match well .* points fit the given cameras.*axes"
    ):
        estimate(dataclasses.replace(given, cameras=cameras), views)


def test_unlike_pictures_are_found_out(scene: tuple[Views, Reconstruction]):
    given = scene[1]
    parts = [scenes.views(given.cameras.w2c[i : i + 1], seed=i + 1) for i in range(COUNT)]
    views = dataclasses.replace(scene[0], images=torch.cat([part.images for part in parts]))
    with pytest.raises(ReconstructionError, match="only 0 points and 0 matches were found"):
        estimate(given, views)


def test_bad_cameras_are_refused(scene: tuple[Views, Reconstruction]):
    views, given = scene
    with pytest.raises(InputError, match="view02.png has numbers that are not finite"):
        estimate(with_pose(given, 2, torch.full((4, 4), torch.nan)), views)
    with pytest.raises(InputError, match="pose of view01.png is not a rotation and a shift"):
        estimate(with_pose(given, 1, 2 * torch.eye(4)), views)
    mirrored = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="pose of view03.png is not a rotation"):
        estimate(with_pose(given, 3, mirrored), views)
    cameras = dataclasses.replace(given.cameras, K=-given.cameras.K)
    with pytest.raises(InputError, match="focal length of view00.png is -300, -300"):
        estimate(dataclasses.replace(given, cameras=cameras), views)
    with pytest.raises(InputError, match="3 cameras are given for 4 pictures"):
        estimate(
            dataclasses.replace(
                given, cameras=given.cameras.select([0, 1, 2]), registered=given.registered[:3]
            ),
            views,
        )
    one = torch.tensor([True, False, False, False])
    with pytest.raises(InputError, match="1 of 4 pictures have a given camera"):
        estimate(dataclasses.replace(given, registered=one), views)


def test_estimators_by_name(scene: tuple[Views, Reconstruction]):
    assert type(create_estimator("colmap", seed=3)).__name__ == "ColmapEstimator"
    made = create_estimator("given", reconstruction=scene[1])
    assert isinstance(made, GivenEstimator)
    assert {"colmap", "given", "vggt", "vggt-omega"} <= set(ESTIMATORS)
    with pytest.raises(UnknownNameError, match='no geometry estimator "colmpa"; closest: colmap'):
        create_estimator("colmpa")


def test_the_table_and_the_worker_load_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, sightline.reconstruction; assert 'pycolmap' not in sys.modules;"
        "import sightline.reconstruction.worker; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
