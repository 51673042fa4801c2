"""SIFT features in a COLMAP database: the worker's first stage. Needs no torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from jaxtyping import Bool, Float, UInt8

from sightline.errors import InputError
from sightline.io.images import read_image
from sightline.io.masks import read_mask
from sightline.reconstruction.job import CameraSpec, Job, chunks
from sightline.reconstruction.log import Report

USUAL_FOCAL = 0.85
"""Focal length over long side when nothing is known: between a phone's wide and normal lens. On
few photos a start at 1.2 (COLMAP's) ends in wrong focal lengths far more often."""
FEW_VIEWS = 8
"""Up to here the usual focal length is trusted in two-view geometry, because the fundamental
matrix of a few pairs says too little; bundle adjustment still corrects it."""
_SMALL_PICTURE = 1100
"""Pictures up to this long side are doubled before SIFT looks at them; larger ones have enough
features without, and take a quarter of the time."""


def picture_name(view: int) -> str:
    """Return the name of a view in the database, free of anything that users put into names."""
    return f"{view:06d}.ppm"


def view_of(name: str) -> int:
    """Invert `picture_name`."""
    return int(name.removesuffix(".ppm"))


def image_id(view: int) -> int:
    """Return the database id of a view; COLMAP counts from one."""
    return view + 1


def sift_camera(job: Job, index: int) -> pycolmap.Camera:
    """Return a camera at the size at which features are found.

    Unknown lenses start as SIMPLE_RADIAL with the prior focal length, else with the usual one.
    """
    spec = job.cameras[index]
    width, height = job.sift_size(job.camera_of_view.index(index))
    across, down = width / spec.width, height / spec.height
    if spec.model is not None:
        scale = (across, down, across, down, *[1.0] * (len(spec.params) - 4))
        return pycolmap.Camera(
            camera_id=index + 1,
            model=spec.model,
            width=width,
            height=height,
            params=np.array(spec.params) * scale,
            has_prior_focal_length=True,
        )
    known = spec.focal is not None
    focal = spec.focal * across if spec.focal is not None else USUAL_FOCAL * max(width, height)
    return pycolmap.Camera(
        camera_id=index + 1,
        model="SIMPLE_RADIAL",
        width=width,
        height=height,
        params=np.array([focal, width / 2, height / 2, 0.0]),
        has_prior_focal_length=known or len(job.names) <= FEW_VIEWS,
    )


def create_database(job: Job, path: Path) -> None:
    """Write a new database with cameras and pictures in view order, and no features yet."""
    with pycolmap.Database.open(path) as database:
        for index in range(len(job.cameras)):
            database.write_camera(sift_camera(job, index), use_camera_id=True)
            rig = pycolmap.Rig(rig_id=index + 1)
            rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, index + 1))
            database.write_rig(rig, use_rig_id=True)
        for view, camera in enumerate(job.camera_of_view):
            image = pycolmap.Image(
                name=picture_name(view), camera_id=camera + 1, image_id=image_id(view)
            )
            image.frame_id = image_id(view)
            frame = pycolmap.Frame(frame_id=image_id(view), rig_id=camera + 1)
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            database.write_image(image, use_image_id=True)


def extract_features(job: Job, database: Path, folder: Path, report: Report) -> None:
    """Find SIFT features of every view and the colours at them.

    Args:
        job: Pictures and settings.
        database: From `create_database`; pictures that have features already keep them.
        folder: For the colours, ``NNNNNN.npy`` of shape [F, 3] a view; what is there is kept.
        report: Told after each few pictures.

    Raises:
        InputError: If a picture has another size than its camera.
        FileFormatError: If a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, masks = folder / "pictures", folder / "masks"
    pictures.mkdir(exist_ok=True)
    masks.mkdir(exist_ok=True)
    total = len(job.names)
    batches = [
        [view for view in batch if not (folder / f"{view:06d}.npy").exists()]
        for batch in chunks(total, 4 * job.settings.num_threads)
    ]
    done = total - sum(map(len, batches))
    report.progress("features", done, total)
    batches = [batch for batch in batches if batch]
    with ThreadPoolExecutor(1) as ahead:  # pictures are read while SIFT works on the last few
        waiting = ahead.submit(_prepare, job, batches[0], pictures, masks) if batches else None
        for i, batch in enumerate(batches):
            assert waiting is not None
            colors = waiting.result()
            if i + 1 < len(batches):
                waiting = ahead.submit(_prepare, job, batches[i + 1], pictures, masks)
            with report.counted("features", done, total):
                _extract(job, database, batch, pictures, masks)
            with pycolmap.Database.open(database) as opened:
                for view, picture in zip(batch, colors, strict=True):
                    points = opened.read_keypoints(image_id(view)).reshape(-1, 6)[:, :2]
                    _save(folder / f"{view:06d}.npy", _colors_at(picture, points))
                    (pictures / picture_name(view)).unlink()
            done += len(batch)
            report.progress("features", done, total)


def _prepare(
    job: Job, views: Sequence[int], pictures: Path, masks: Path
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Write the pictures of some views as SIFT shall see them, and return them in colour."""

    def one(view: int) -> UInt8[np.ndarray, "h w 3"]:
        size = job.sift_size(view)
        pixels = _load(job.files[view], job.camera(view))
        small = pixels if pixels.shape[1::-1] == size else _shrink(pixels, size)
        # COLMAP reads grey PNM as it is; the name says ppm so that one rule serves every view.
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        header = f"P5 {size[0]} {size[1]} 255\n".encode()
        (pictures / picture_name(view)).write_bytes(header + grey.tobytes())
        mask = job.masks[view]
        if mask is not None:
            kept, _ = read_mask(Path(mask), size=(job.camera(view).height, job.camera(view).width))
            _write_mask(masks / f"{picture_name(view)}.png", kept, size)
        return small

    with ThreadPoolExecutor(min(2, job.settings.num_threads)) as pool:
        return list(pool.map(one, views))


def _load(file: str, camera: CameraSpec) -> UInt8[np.ndarray, "h w 3"]:
    pixels = read_image(Path(file)).pixels
    height, width = pixels.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise InputError(
            f"{Path(file).name} is {width} x {height}, but its camera is "
            f"{camera.width} x {camera.height}; give the pictures that the camera belongs to"
        )
    return pixels


def _shrink(pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _write_mask(path: Path, kept: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> None:
    image = kept.astype(np.uint8) * 255
    if image.shape[::-1] != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _extract(job: Job, database: Path, views: Sequence[int], pictures: Path, masks: Path) -> None:
    settings = job.settings
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = settings.num_threads
    options.use_gpu = False
    options.sift.max_num_features = settings.max_features
    # Small and large pictures differ in their first octave, and pictures without a mask must not
    # look for one: COLMAP would refuse them.
    groups: dict[tuple[bool, bool], list[str]] = {}
    for view in views:
        small = max(job.sift_size(view)) <= _SMALL_PICTURE
        groups.setdefault((small, job.masks[view] is not None), []).append(picture_name(view))
    for (small, masked), names in groups.items():
        options.sift.first_octave = -1 if small else 0
        reader = pycolmap.ImageReaderOptions()
        if masked:
            reader.mask_path = str(masks)
        pycolmap.extract_features(
            database,
            pictures,
            image_names=names,
            camera_mode=pycolmap.CameraMode.PER_IMAGE,
            reader_options=reader,
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )


def _colors_at(
    picture: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "n 3"]:
    """Return the colour of the pixel under each point, corner convention."""
    height, width = picture.shape[:2]
    x = np.clip(np.floor(points[:, 0]).astype(int), 0, width - 1)
    y = np.clip(np.floor(points[:, 1]).astype(int), 0, height - 1)
    return picture[y, x]


def _save(path: Path, array: np.ndarray) -> None:
    """Write in one step, so that a killed worker leaves no half file that looks finished."""
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    part.replace(path)
