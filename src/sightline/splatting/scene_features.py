"""A backbone's features, carried by the splats and points of a scene.

Views are encoded once, reduced to principal components common to all of them, and lifted onto
whatever the scene has. A vector of the backbone (a class's prototype, say) is compared with splats
after `SceneFeatures.project`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.backbones.extract import encode_views
from sightline.backbones.grid import placement_of
from sightline.backbones.pca import fit_pca, pca_maps
from sightline.errors import InputError
from sightline.geometry.camera import pixel_grid, resize_cameras
from sightline.geometry.sh import rgb_to_sh0
from sightline.io.arrays import read_npz, write_npz
from sightline.protocols import Backbone, Progress
from sightline.splatting.lift import Lifted, lift_to_gaussians, lift_to_points
from sightline.splatting.render import render_gaussians
from sightline.types import Gaussians, PointCloud, TensorStruct, Views

COMPONENTS = 64
_FINER = 4
"""Pixels of the lifting pictures along a patch: more would only repeat interpolated values."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneFeatures(TensorStruct):
    """Features on the principal axes of all views; q axes, D channels of the backbone."""

    backbone: str
    layer: int
    mean: Float[Tensor, " D"]
    axes: Float[Tensor, "q D"]
    """Orthonormal rows."""
    splats: Lifted | None
    """[N q], in the order of the scene's splats; the last three values are colours."""
    points: Lifted | None
    """The same of the scene's points."""

    def project(self, vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n q"]:
        """Return the coordinates of a backbone's vectors, to compare with those of the scene."""
        return (vectors - self.mean) @ self.axes.T

    @property
    def splat_features(self) -> Float[Tensor, "N q"] | None:
        """Coordinates of the splats; zero where none was seen."""
        return None if self.splats is None else self.splats.values[:, :-3]

    @property
    def point_features(self) -> Float[Tensor, "P q"] | None:
        """Coordinates of the points; zero where none was seen."""
        return None if self.points is None else self.points.values[:, :-3]

    def paint_splats(self, gaussians: Gaussians | None) -> Gaussians | None:
        """Return splats in the colours of their features."""
        if gaussians is None or self.splats is None or len(gaussians) != len(self.splats.weights):
            return None
        colors = self.splats.values[:, -3:].clamp(0, 1).to(gaussians.means.device)
        return replace(gaussians, sh=rgb_to_sh0(colors)[:, None])

    def paint_points(self, cloud: PointCloud | None) -> PointCloud | None:
        """Return points in the colours of their features."""
        if cloud is None or self.points is None or len(cloud.points) != len(self.points.weights):
            return None
        return replace(cloud, colors=self.points.values[:, -3:].clamp(0, 1))


def carry_features(
    backbone: Backbone,
    name: str,
    views: Views,
    *,
    gaussians: Gaussians | None = None,
    points: Float[Tensor, "P 3"] | None = None,
    depth: Float[Tensor, "V H W"] | None = None,
    layer: int = -1,
    components: int = COMPONENTS,
    progress: Progress | None = None,
) -> SceneFeatures:
    """Encode the views and lift what is found onto splats and points.

    Args:
        backbone: The encoder.
        name: Of it, for the record.
        views: Pictures with cameras; views without a pose have no part.
        gaussians: The scene's splats, on any device.
        points: The scene's points.
        depth: Of the views, for hiding points; without it the splats' depth is drawn.
        layer: Which layer; negative ones count from the end.
        components: Axes kept, at most: fewer where the backbone has fewer channels.
        progress: Called as ``progress("encode" | "lift", done, total)``.

    Raises:
        InputError: There are no cameras, no posed view, or nothing to carry features.
    """
    if views.cameras is None or (gaussians is None and points is None):
        raise InputError("features need cameras, and splats or points to carry them; got none")
    posed = torch.isfinite(views.cameras.w2c).flatten(1).all(1).nonzero()[:, 0].tolist()
    if not posed:
        raise InputError("features need a view with a pose, got none; reconstruct the scene first")
    views = _select(views, posed)
    assert views.cameras is not None
    found = encode_views(backbone, views, [layer], progress)[0]
    size = (views.images.shape[-2], views.images.shape[-1])
    rows, columns = found.patches.shape[-2:]
    placement = placement_of(backbone, size, (rows, columns))
    tokens = found.patches.permute(0, 2, 3, 1).flatten(0, 2)
    pca = fit_pca(tokens, min(components, *tokens.shape))
    maps = torch.cat([pca.project(found.patches), pca_maps(found.patches)], 1)

    height, width = (
        min(full, _FINER * cells) for full, cells in zip(size, (rows, columns), strict=True)
    )
    grid = pixel_grid(height, width, dtype=torch.float64)
    pixels = grid * torch.tensor([size[1] / width, size[0] / height], dtype=torch.float64)
    cameras = resize_cameras(views.cameras, height, width)
    at = pixels.long()
    masks = None if views.masks is None else views.masks[:, at[..., 1], at[..., 0]]

    def sampled(device: torch.device) -> Iterator[Float[Tensor, "q H W"]]:
        for index in range(len(maps)):
            if progress is not None:
                progress("lift", float(index), float(len(maps)))
            yield placement.sample(maps[index : index + 1], pixels)[0].to(device)

    splat_part = point_part = None
    if gaussians is not None:
        device = gaussians.means.device
        splat_part = lift_to_gaussians(gaussians, cameras, sampled(device), masks).to("cpu")
    if points is not None:
        if depth is not None:
            depth = depth[posed][:, at[..., 1], at[..., 0]]
        elif gaussians is not None:
            depth = render_gaussians(gaussians, cameras.to(gaussians.means.device)).depth
            depth = None if depth is None else depth.cpu()
        point_part = lift_to_points(points.float(), cameras, sampled(points.device), depth, masks)
    return SceneFeatures(
        backbone=name,
        layer=found.layer,
        mean=pca.mean,
        axes=pca.axes,
        splats=splat_part,
        points=point_part,
    )


def write_scene_features(path: Path, features: SceneFeatures) -> None:
    """Write ``features.npz``; values are kept in half precision.

    Keys: ``backbone``, ``layer``, ``mean [D]``, ``axes [q D]``, and for ``splats`` and ``points``
    where they are there ``NAME [N q]``, ``NAME_colors [N 3]`` and ``NAME_weights [N]``.

    Raises:
        OutputError: The file cannot be written.
    """
    arrays: dict[str, object] = {
        "backbone": [features.backbone],
        "layer": [features.layer],
        "mean": features.mean.numpy(),
        "axes": features.axes.numpy(),
    }
    for name, part in (("splats", features.splats), ("points", features.points)):
        if part is not None:
            arrays[name] = part.values[:, :-3].half().numpy()
            arrays[f"{name}_colors"] = part.values[:, -3:].half().numpy()
            arrays[f"{name}_weights"] = part.weights.float().numpy()
    write_npz(path, arrays)  # type: ignore[arg-type]


def read_scene_features(path: Path) -> SceneFeatures:
    """Read what `write_scene_features` wrote.

    Raises:
        InputError: The file is missing or damaged.
    """
    arrays = read_npz(path)
    parts: dict[str, Lifted | None] = {"splats": None, "points": None}
    try:
        for name in parts:
            if name in arrays:
                values = [torch.from_numpy(arrays[key]) for key in (name, f"{name}_colors")]
                parts[name] = Lifted(
                    values=torch.cat(values, 1).float(),
                    weights=torch.from_numpy(arrays[f"{name}_weights"]),
                )
        return SceneFeatures(
            backbone=str(arrays["backbone"][0]),
            layer=int(arrays["layer"][0]),
            mean=torch.from_numpy(arrays["mean"]),
            axes=torch.from_numpy(arrays["axes"]),
            **parts,
        )
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"expected the features of a scene in {path}, but it lacks them ({error}); make them "
            "again with --features"
        ) from error


def _select(views: Views, index: list[int]) -> Views:
    """Return what encoding and lifting need of some views."""
    assert views.cameras is not None
    return Views(
        images=views.images[index],
        names=tuple(views.names[i] for i in index),
        from_original=views.from_original[index],
        sizes=views.sizes[index],
        cameras=views.cameras.select(index).map(lambda t: t.float()),
        masks=None if views.masks is None else views.masks[index],
    )
