"""Scenes without cameras: classical structure from motion over all chosen views, undistorted."""

import dataclasses
import tempfile
from pathlib import Path

from sightline.errors import InputError
from sightline.io.views import load_views
from sightline.probing.frames import make_frame, stack_pictures, target_picture, working_picture
from sightline.probing.protocols import Protocol
from sightline.probing.scenes import ProbeScene, SceneSource, load_scene
from sightline.protocols import Progress
from sightline.reconstruction import create_estimator
from sightline.types import Cameras, PointCloud, Views


def load_with_sfm(
    source: SceneSource, protocol: Protocol, progress: Progress | None = None
) -> ProbeScene:
    """Read a scene and find its cameras with COLMAP, test views included (their poses only).

    The pictures are undistorted at full size. Points that no training view sees are dropped.

    Raises:
        InputError: If the scene is not made of photos, or a chosen view finds no place.
        ReconstructionError: If structure from motion fails.
    """
    scene = load_scene(source, protocol)
    if scene.files is None:
        raise InputError(f"{source.id}: geometry colmap needs photos on disk")
    full = load_views(scene.files, scene.names)
    with tempfile.TemporaryDirectory(prefix="sightline-sfm-") as folder:
        estimator = create_estimator("colmap", workspace=Path(folder), progress=progress)
        views: Views = full
        found = estimator.estimate(views)
    lost = [n for n, known in zip(scene.names, found.registered.tolist(), strict=True) if not known]
    if lost:
        raise InputError(
            f"{source.id}: structure from motion found no place for {', '.join(lost[:3])}; choose "
            "views that overlap more, or name another geometry"
        )
    straight = load_views(
        scene.files, scene.names, lenses=found.lenses, w2c=found.cameras.w2c.double()
    )
    assert straight.cameras is not None
    images = straight.images.permute(0, 2, 3, 1).contiguous().numpy()
    frame = make_frame((images.shape[1], images.shape[2]), protocol)
    move = frame.working_from_original()
    cloud = None
    if found.sparse is not None:
        tracks = found.sparse.tracks
        rows = tracks[tracks[:, 1] < scene.num_train, 0].unique().long()
        cloud = PointCloud(
            points=found.sparse.points[rows].float(),
            colors=found.sparse.colors[rows].float() / 255,
        )
    return dataclasses.replace(
        scene,
        frame=frame,
        working=stack_pictures([working_picture(image, frame) for image in images]),
        targets=stack_pictures([target_picture(image, frame) for image in images]),
        cameras=Cameras(
            w2c=straight.cameras.w2c.double(),
            K=move @ straight.cameras.K.double(),
            height=frame.working[0],
            width=frame.working[1],
        ),
        cloud=cloud,
    )
