"""Features of a scene: colours as features find their way back onto the splats."""

from pathlib import Path

import pytest
import torch

from sightline import create_backbone
from sightline.errors import InputError
from sightline.io.arrays import write_npz
from sightline.splatting.render import render_gaussians
from sightline.splatting.scene_features import (
    carry_features,
    read_scene_features,
    write_scene_features,
)
from sightline.types import Features, Gaussians, PointCloud, Views
from tests.splatting.toy import make_cameras, make_gaussians


class Color:
    """A backbone whose features are the mean colours of its patches, twice."""

    patch_size = 4
    embed_dim = 6
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def extract(self, images: torch.Tensor, *, layers) -> list[Features]:
        patches = torch.nn.functional.avg_pool2d(images, 4)
        return [Features(patches=torch.cat([patches, -patches], 1), layer=7, normed=False)]


def scene() -> tuple[Gaussians, Views]:
    cameras, gaussians = make_cameras(5), make_gaussians()
    images = render_gaussians(gaussians, cameras, with_depth=False).rgb
    return gaussians, Views(
        images=images,
        names=tuple(f"{i}.png" for i in range(5)),
        from_original=torch.eye(3).expand(5, 3, 3),
        sizes=torch.tensor([[40, 48]]).expand(5, 2),
        cameras=cameras,
    )


def test_splats_get_the_features_of_what_they_paint() -> None:
    gaussians, views = scene()
    points = gaussians.means
    found = carry_features(Color(), "color", views, gaussians=gaussians, points=points)
    assert (found.backbone, found.layer) == ("color", 7)
    assert found.axes.shape == (6, 6)
    assert found.splat_features.shape == (len(gaussians), 6)
    # Back in the backbone's channels, the features are the colours of the pictures there.
    colors = (found.splat_features @ found.axes + found.mean)[:, :3]
    wanted = carry_mean_color(gaussians, views)
    seen = found.splats.weights > 1
    assert seen.sum() > 5
    assert (colors - wanted)[seen].abs().mean() < 0.05
    vectors = torch.cat([wanted, -wanted], 1)
    torch.testing.assert_close(
        found.project(vectors) @ found.axes + found.mean, vectors, atol=1e-5, rtol=1e-5
    )
    painted = found.paint_splats(gaussians)
    assert painted.sh_degree == 0
    torch.testing.assert_close(painted.means, gaussians.means)
    cloud = PointCloud(points=points, colors=torch.zeros(len(points), 3))
    assert (found.paint_points(cloud).colors > 0.1).any()
    assert found.paint_splats(gaussians.map(lambda t: t[:3])) is None


def carry_mean_color(gaussians: Gaussians, views: Views) -> torch.Tensor:
    from sightline.splatting.lift import lift_to_gaussians

    return lift_to_gaussians(gaussians, views.cameras, views.images).values


def test_unposed_views_have_no_part() -> None:
    gaussians, views = scene()
    whole = carry_features(Color(), "color", views, gaussians=gaussians)
    views.cameras.w2c[2] = torch.nan
    part = carry_features(Color(), "color", views, gaussians=gaussians)
    assert torch.isfinite(part.splats.values).all()
    assert part.splats.weights.sum() < whole.splats.weights.sum()


def test_written_and_read_again(tmp_path: Path) -> None:
    gaussians, views = scene()
    found = carry_features(
        create_backbone("iuvrgb"), "iuvrgb", views, gaussians=gaussians, points=gaussians.means,
        depth=torch.full((5, 40, 48), 100.0), components=2,
    )  # fmt: skip
    write_scene_features(tmp_path / "features.npz", found)
    again = read_scene_features(tmp_path / "features.npz")
    assert again.backbone == "iuvrgb"
    torch.testing.assert_close(again.axes, found.axes)
    torch.testing.assert_close(again.splat_features, found.splat_features, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(again.points.values, found.points.values, atol=2e-3, rtol=2e-3)
    write_npz(tmp_path / "other.npz", {"mean": [1.0]})
    with pytest.raises(InputError, match="make them again with --features"):
        read_scene_features(tmp_path / "other.npz")


def test_nothing_to_carry_them_is_an_error() -> None:
    _, views = scene()
    with pytest.raises(InputError, match="splats or points"):
        carry_features(Color(), "color", views)
