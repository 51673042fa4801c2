"""Turn a run, or a single splat or point file, into what the viewer shows."""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sightline.app.viewer import ViewerScene
from sightline.results import open_run, scene_from_file

_THUMBNAIL = 160
"""Long side in pixels of the pictures in the frusta."""


def viewer_scene(path: Path) -> ViewerScene:
    """Read a run folder, or a ``.ply``, ``.splat`` or ``.spz`` file, for the viewer.

    Raises:
        InputError: If it is none of them, or the run has no cameras yet.
        FileFormatError: If a file is damaged.
    """
    if not path.is_dir():
        bare = scene_from_file(path)
        return ViewerScene(title=path.name, gaussians=bare.gaussians, points=bare.points)
    run = open_run(path)
    scene, features = run.scene(), run.features()
    assert scene.images is not None
    return ViewerScene(
        title=scene.title,
        cameras=scene.cameras,
        names=scene.names,
        registered=scene.registered,
        test=scene.test,
        thumbnails=_thumbnails(scene.images),
        gaussians=scene.gaussians,
        points=scene.points,
        feature_gaussians=None if features is None else features.paint_splats(scene.gaussians),
        feature_points=None if features is None else features.paint_points(scene.points),
        # Points of depth maps have no tracks; those of triangulated points do not name them.
        tracks=None if scene.sparse is None or scene.depth is not None else scene.sparse.tracks,
    )


def _thumbnails(images: UInt8[Tensor, "V 3 H W"]) -> UInt8[Tensor, "V 3 h w"]:
    height, width = images.shape[2:]
    scale = min(1.0, _THUMBNAIL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [
        cv2.resize(image.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_AREA)
        for image in images.contiguous()
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()
