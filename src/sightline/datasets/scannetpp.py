"""ScanNet++ (Yeshwanth et al. 2023) as Splatt3R trains and is judged on it (Smart et al. 2024).

``ROOT/raw/`` is the download (``splits/``, ``data/SCENE/dslr/``), ``ROOT/processed/SCENE/dslr/``
holds what the set's tools make of it: ``undistorted_images/``, ``undistorted_depths/`` (16-bit
millimetres, rendered from the laser scan) and ``nerfstudio/transforms_undistorted.json``.
``ROOT/coverage/SCENE.json`` says which share of each frame each other frame shows; it comes with
Splatt3R's weights, or `measure_coverage` makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from sightline.datasets.annotations import Entry
from sightline.datasets.augment import draw_keep
from sightline.datasets.framing import PosedPicture, frame_picture, sample_of
from sightline.datasets.overlap import coverage
from sightline.errors import InputError
from sightline.io.images import read_image, read_samples
from sightline.io.reading import MAX_ANNOTATION_BYTES, bad_file, inside, read_json, read_whole
from sightline.types import MultiView

BANDS: dict[str, tuple[float, float]] = {
    "close": (0.9, 0.9),
    "medium": (0.7, 0.7),
    "wide": (0.5, 0.5),
    "very wide": (0.3, 0.3),
}
"""Least coverage of the second context view and of the targets, as the published tables use it."""
EXCLUDED = {"train": ("303745abc7",), "val": ("cc5237fd77",)}
"""Scenes with frames without any depth."""
_MILLIMETRE = np.float32(0.001)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanNetScene:
    """The good frames of a scene, in the order of its train list."""

    name: str
    folder: Path
    """``undistorted_images`` and ``undistorted_depths`` are here."""
    frames: tuple[str, ...]
    w2c: Float64[ndarray, "N 4 4"]
    K: Float64[ndarray, "3 3"]
    size: tuple[int, int]
    """Height and width of the pictures."""
    coverage: Float64[ndarray, "N N"] | None = None
    """Share of the row's frame that the column's shows."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def read(self, index: int) -> PosedPicture:
        """Read one frame.

        Raises:
            InputError: If a file is missing.
            FileFormatError: If a file is damaged or of another size than the camera says.
        """
        name = self.frames[index]
        image = read_image(self.folder / "undistorted_images" / name).pixels
        file = (self.folder / "undistorted_depths" / name).with_suffix(".png")
        samples = read_samples(file).samples
        if samples.dtype != np.uint16 or samples.shape[-1] != 1:
            raise bad_file(file, "16-bit depth of one band", f"{samples.dtype}")
        for path, array in ((self.folder / "undistorted_images" / name, image), (file, samples)):
            if array.shape[:2] != self.size:
                wanted = f"{self.size[1]} x {self.size[0]} pixels, as its camera has"
                raise bad_file(path, wanted, f"{array.shape[1]} x {array.shape[0]}")
        return PosedPicture(
            name=name,
            image=image,
            depth=samples[..., 0].astype(np.float32) * _MILLIMETRE,
            w2c=self.w2c[index],
            K=self.K,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanNetPP:
    """Pairs of context views, and targets that they show."""

    scenes: tuple[ScanNetScene, ...]
    band: tuple[float, float] = (0.3, 0.3)
    """See `BANDS`."""
    scale: tuple[float, float] = (1.0, 1.0)
    """See `draw_keep`."""
    num_context: int = 2
    """Two context views come first; 0 for tasks where all views are alike."""

    def draw(self, rng: np.random.Generator, num_views: int, height: int, width: int) -> MultiView:
        """Draw two context views and targets by their overlap.

        Raises:
            InputError: If the scene has too few frames or no coverage, or a file is missing.
            FileFormatError: If a file is damaged.
        """
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        chosen = draw_by_overlap(rng, scene, num_views, self.band)
        return self.sample(scene, chosen, height, width, draw_keep(rng, self.scale))

    def sample(
        self, scene: ScanNetScene, frames: Sequence[int], height: int, width: int, keep: float = 1.0
    ) -> MultiView:
        """Read given frames."""
        pictures = [frame_picture(scene.read(i), height, width, keep) for i in frames]
        return sample_of(pictures, scene.name, metric=True, num_context=self.num_context)


def draw_by_overlap(
    rng: np.random.Generator, scene: ScanNetScene, num_views: int, band: tuple[float, float]
) -> list[int]:
    """Draw frames: the first anywhere, the second where the first's coverage is above a bound.

    Targets are covered by either of both above the second bound. Where too few are, the best ones
    are taken.

    Raises:
        InputError: If the scene has too few frames, or no coverage.
    """
    if scene.coverage is None or len(scene) < num_views or num_views < 2:
        what = "no coverage" if scene.coverage is None else f"{len(scene)} frames"
        msg = (
            f"scene {scene.name}: expected at least {max(num_views, 2)} frames and their coverage, "
            f"got {what}; make coverage with measure_coverage, or ask for fewer views"
        )
        raise InputError(msg)
    first = int(rng.integers(len(scene)))
    others = np.array([i for i in range(len(scene)) if i != first])
    shares = scene.coverage[first, others]
    near = others[shares > band[0]]
    second = int(rng.choice(near)) if len(near) else int(others[shares.argmax()])
    rest = others[others != second]
    shares = scene.coverage[[first, second]][:, rest].max(0)
    near = rest[shares > band[1]]
    wanted = num_views - 2
    if len(near) >= wanted:
        targets = rng.permutation(near)[:wanted]
    else:
        targets = rest[np.argsort(-shares, kind="stable")[:wanted]]
    return [first, second, *map(int, targets)]


def measure_coverage(scene: ScanNetScene, long_side: int = 64) -> Float64[ndarray, "N N"]:
    """Return which share of each frame (row) each other frame (column) shows, from their depth.

    Frames are compared at a small size. N frames are N squared comparisons: store the result.
    """
    scale = long_side / max(scene.size)
    height, width = (max(round(side * scale), 1) for side in scene.size)
    pictures = [frame_picture(scene.read(i), height, width) for i in range(len(scene))]
    return coverage(sample_of(pictures, scene.name, metric=True), tolerance=0.05).double().numpy()


def read_test_set(path: Path, every: int = 10) -> tuple[tuple[str, int, int, int], ...]:
    """Read a list of evaluation samples, ``test_set_A_B.json``: scene, two contexts, one target.

    Args:
        path: The file; it comes with Splatt3R's weights.
        every: Take every n-th sample, as the published tables do.

    Raises:
        InputError: If there is no such file.
        FileFormatError: If it is damaged.
    """
    rows = read_json(path, MAX_ANNOTATION_BYTES)
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 4 for r in rows):
        raise bad_file(path, "rows of scene, two context frames and a target", "something else")
    try:
        return tuple((str(a), int(b), int(c), int(d)) for a, b, c, d in rows[::every])
    except (TypeError, ValueError, OverflowError) as error:
        raise bad_file(path, "frame numbers", str(error)) from error


def open_scannetpp(
    root: Path, *, split: Literal["train", "val"] = "train", scenes: Sequence[str] | None = None
) -> tuple[ScanNetScene, ...]:
    """Read cameras and coverage of all scenes of a split; no picture is opened.

    Args:
        root: Holds ``raw``, ``processed`` and ``coverage``.
        split: ``nvs_sem_train`` or ``nvs_sem_val``, without the scenes in `EXCLUDED`.
        scenes: Only these.

    Raises:
        InputError: If a file is missing, or no scene is left.
        FileFormatError: If one is damaged.
    """
    file = root / "raw" / "splits" / f"nvs_sem_{split}.txt"
    listed = read_whole(file).decode("utf-8", errors="replace").split()
    names = [inside(file, n) for n in listed if n not in EXCLUDED[split]]
    if scenes is not None:
        names = [name for name in names if name in set(scenes)]
    found = [scene for name in names if (scene := _open_scene(root, name)) is not None]
    if not found:
        raise InputError(f"{file} names no scene with good frames; check the path and the options")
    return tuple(found)


def _open_scene(root: Path, name: str) -> ScanNetScene | None:
    raw = root / "raw" / "data" / name / "dslr"
    folder = root / "processed" / name / "dslr"
    lists = raw / "train_test_lists.json"
    listed = Entry(lists, read_json(lists, MAX_ANNOTATION_BYTES), "the file").rows("train")
    original = _frames(raw / "nerfstudio" / "transforms.json")
    cameras_file = folder / "nerfstudio" / "transforms_undistorted.json"
    cameras = _frames(cameras_file)
    frames, poses = [], []
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    for frame in listed:
        for file, known in (
            (raw / "nerfstudio" / "transforms.json", original),
            (cameras_file, cameras),
        ):
            if frame not in known:
                raise bad_file(file, f"frame {frame}, which {lists.name} of {name} names", "none")
        if original[frame].flag("is_bad"):
            continue
        frames.append(inside(lists, frame))
        # OpenGL camera axes to OpenCV's, and the world turned alike, as published.
        poses.append(flip @ cameras[frame].array("transform_matrix", 4, 4) @ flip)
    if not frames:
        return None
    top = Entry(cameras_file, read_json(cameras_file, MAX_ANNOTATION_BYTES), "the file")
    K = np.array(
        [
            [top.number("fl_x"), 0.0, top.number("cx")],
            [0.0, top.number("fl_y"), top.number("cy")],
            [0.0, 0.0, 1.0],
        ]
    )
    return ScanNetScene(
        name=name,
        folder=folder,
        frames=tuple(frames),
        w2c=np.linalg.inv(np.stack(poses)),
        K=K,
        size=(int(top.number("h")), int(top.number("w"))),
        coverage=_coverage(root / "coverage" / f"{name}.json", name, len(frames)),
    )


def _frames(path: Path) -> dict[str, Entry]:
    rows = Entry(path, read_json(path, MAX_ANNOTATION_BYTES), "the file").rows("frames")
    found = [Entry(path, row, f"frame {index}") for index, row in enumerate(rows)]
    return {frame.text("file_path"): frame for frame in found}


def _coverage(path: Path, scene: str, frames: int) -> Float64[ndarray, "N N"] | None:
    if not path.is_file():
        return None
    return Entry(path, read_json(path, MAX_ANNOTATION_BYTES), "the file").array(
        scene, frames, frames
    )
