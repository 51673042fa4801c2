"""Common Objects in 3D, version 2 (Reizenstein et al. 2021), as it is downloaded.

``ROOT/CATEGORY/`` holds ``frame_annotations.jgz``, ``sequence_annotations.jgz``, ``set_lists/`` and
a folder a sequence with ``images/``, ``depths/`` and ``masks/``. Cameras come in PyTorch3D's axes
(x left, y up) and in units of the shorter image side; depth is 16-bit numbers that are half floats.

Which sequences count and how pairs are drawn follows DUSt3R's training (Wang et al. 2024,
arXiv:2312.14132); CO3D is CC BY-NC 4.0.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from sightline.datasets.annotations import Entry, entries
from sightline.datasets.augment import draw_keep
from sightline.datasets.framing import PosedPicture, frame_picture, sample_of
from sightline.errors import InputError, UnknownNameError
from sightline.io.images import read_image, read_samples
from sightline.io.reading import MAX_ANNOTATION_BYTES, bad_file, inside, read_json
from sightline.types import MultiView

CATEGORIES = (
    "apple", "backpack", "ball", "banana", "baseballbat", "baseballglove", "bench", "bicycle",
    "book", "bottle", "bowl", "broccoli", "cake", "car", "carrot", "cellphone", "chair",
    "couch", "cup", "donut", "frisbee", "hairdryer", "handbag", "hotdog", "hydrant", "keyboard",
    "kite", "laptop", "microwave", "motorcycle", "mouse", "orange", "parkingmeter", "pizza",
    "plant", "remote", "sandwich", "skateboard", "stopsign", "suitcase", "teddybear", "toaster",
    "toilet", "toybus", "toyplane", "toytrain", "toytruck", "tv", "umbrella", "vase",
    "wineglass",
)  # fmt: skip
"""In the order that seeds the choice of sequences."""
_SPAN = 100
"""Frames of a sequence that make pairs."""
_JITTER = 4
_OBJECT = 0.1
"""A mask above this is the object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Co3dSequence:
    """The frames of one object, in the order of the set lists."""

    category: str
    name: str
    images: tuple[str, ...]
    """Paths below the root; ``depths`` and ``masks`` too."""
    depths: tuple[str, ...]
    masks: tuple[str, ...]
    scales: Float64[ndarray, " N"]
    """What the stored depths are multiplied by."""
    w2c: Float64[ndarray, "N 4 4"]
    """OpenCV axes."""
    K: Float64[ndarray, "N 3 3"]
    """Pixels."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.images)


def camera_from_pytorch3d(
    R: Float64[ndarray, "3 3"],
    T: Float64[ndarray, "3"],
    focal: Float64[ndarray, "2"],
    principal: Float64[ndarray, "2"],
    size: tuple[int, int],
) -> tuple[Float64[ndarray, "4 4"], Float64[ndarray, "3 3"]]:
    """Return ``w2c`` and ``K`` in pixels of a camera in isotropic NDC.

    PyTorch3D multiplies rows, ``x R + T``, and looks with x to the left and y up; the shorter side
    of a picture of ``size`` (height, width) goes from -1 to 1.
    """
    flip = np.array([-1.0, -1.0, 1.0])
    w2c = np.eye(4)
    w2c[:3, :3] = (R * flip).T
    w2c[:3, 3] = T * flip
    half = np.array([size[1], size[0]]) / 2
    unit = half.min()
    cx, cy = half - principal * unit
    fx, fy = focal * unit
    return w2c, np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def half_float_depth(path: Path) -> Float32[ndarray, "height width"]:
    """Read a 16-bit picture whose numbers are the bits of half floats; 0 where none is stored.

    Raises:
        FileFormatError: If it is no 16-bit picture of one band.
    """
    samples = read_samples(path).samples
    if samples.dtype != np.uint16 or samples.shape[-1] != 1:
        kind = f"{samples.dtype} with {samples.shape[-1]} bands"
        raise bad_file(path, "16-bit depth of one band", kind)
    depth = np.ascontiguousarray(samples[..., 0]).view(np.float16).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Co3d:
    """Samples of views around one object."""

    root: Path
    sequences: tuple[Co3dSequence, ...]
    mask_background: bool | Literal["random"] = "random"
    """Forget the depth of what is not the object; at random it is decided for each sample."""
    scale: tuple[float, float] = (1.0, 1.0)
    """See `draw_keep`."""
    num_context: int = 0
    """See `MultiView`."""

    def draw(self, rng: np.random.Generator, num_views: int, height: int, width: int) -> MultiView:
        """Draw views of one sequence.

        Two views are a pair as DUSt3R draws it: 5 to 30 frames apart in steps of 5, each moved by
        up to 4. More are the first frame of such a pair and others within 30 frames of it. A frame
        without any depth gives way to a neighbour.

        Raises:
            InputError: If a file is missing, or no frame of the sequence has depth.
            FileFormatError: If a file is damaged.
        """
        sequence = self.sequences[int(rng.integers(len(self.sequences)))]
        masked = self.mask_background is True or (
            self.mask_background == "random" and bool(rng.integers(2))
        )
        keep = draw_keep(rng, self.scale)
        taken: list[int] = []
        pictures = []
        for index in draw_frames(rng, len(sequence), num_views):
            found, picture = self._nearest(
                sequence, index, taken, rng, masked, (height, width), keep
            )
            taken.append(found)
            pictures.append(picture)
        return sample_of(
            pictures,
            f"{sequence.category}/{sequence.name}",
            metric=False,
            num_context=self.num_context,
        )

    def _nearest(
        self,
        sequence: Co3dSequence,
        index: int,
        taken: Sequence[int],
        rng: np.random.Generator,
        masked: bool,
        size: tuple[int, int],
        keep: float,
    ) -> tuple[int, PosedPicture]:
        """Return the first frame with depth from a place on, in a random direction."""
        direction = 1 if rng.integers(2) else -1
        for offset in range(len(sequence)):
            place = (index + direction * offset) % len(sequence)
            if place in taken:
                continue
            picture = frame_picture(self._read(sequence, place, masked), *size, keep)
            if (picture.depth > 0).any():
                return place, picture
        msg = (
            f"{sequence.category}/{sequence.name}: expected {len(taken) + 1} frames with depth, "
            f"got {len(taken)}; leave this sequence out"
        )
        raise InputError(msg)

    def _read(self, sequence: Co3dSequence, index: int, masked: bool) -> PosedPicture:
        image = read_image(self.root / sequence.images[index]).pixels
        path = self.root / sequence.depths[index]
        depth = half_float_depth(path) * np.float32(sequence.scales[index])
        mask_path = self.root / sequence.masks[index]
        # Masks are grey or coloured, of 8 bits.
        mask = read_samples(mask_path).samples[..., 0] > _OBJECT * 255
        for file, array in ((path, depth), (mask_path, mask)):
            if array.shape != image.shape[:2]:
                wanted = f"{image.shape[1]} x {image.shape[0]} pixels like its picture"
                raise bad_file(file, wanted, f"{array.shape[1]} x {array.shape[0]}")
        return PosedPicture(
            name=sequence.images[index],
            image=image,
            depth=np.where(mask, depth, np.float32(0)) if masked else depth,
            w2c=sequence.w2c[index],
            K=sequence.K[index],
            mask=mask,
        )


def draw_frames(rng: np.random.Generator, frames: int, num_views: int) -> list[int]:
    """Return places in a sequence; see `Co3d.draw`.

    Raises:
        InputError: If the sequence has too few frames.
    """
    if num_views > frames:
        msg = f"expected a sequence of at least {num_views} frames, got {frames}; ask for fewer"
        raise InputError(msg)
    gaps = [g for g in (5, 10, 15, 20, 25, 30) if g < min(frames, _SPAN)]
    if num_views == 2 and gaps:
        pairs = [
            (i, j) for i, j in itertools.combinations(range(min(frames, _SPAN)), 2) if j - i in gaps
        ]
        pair = pairs[int(rng.integers(len(pairs)))]
        moved = [i + int(rng.integers(-_JITTER, _JITTER + 1)) for i in pair]
        first, second = (min(max(i, 0), frames - 1) for i in moved)
        return [first, second if second != first else (first + 1) % frames]
    first = int(rng.integers(frames))
    reach = max(30, num_views)
    near = [i for i in range(max(first - reach, 0), min(first + reach + 1, frames)) if i != first]
    return [first, *map(int, rng.permutation(near)[: num_views - 1])]


def open_co3d(
    root: Path,
    *,
    categories: Sequence[str] | None = None,
    split: Literal["train", "val", "test"] = "train",
    set_lists: Literal["fewview_train", "manyview_dev"] = "fewview_train",
    min_quality: float = 0.5,
    most_sequences: int = 50,
    seed: int = 42,
) -> tuple[Co3dSequence, ...]:
    """Choose sequences and read their cameras; no picture is opened.

    Args:
        root: Folder of the categories.
        categories: Those to use; by default all that are there.
        split: Of the set lists.
        set_lists: ``manyview_dev`` is what the single-sequence subset has.
        min_quality: Least quality of a sequence's cameras, as the set's authors scored it.
        most_sequences: Of a category; chosen at random where there are more.
        seed: Of that choice, plus the category's index: DUSt3R's choice.

    Raises:
        InputError: If there is no such folder, or nothing is left.
        UnknownNameError: If there is no such category in CO3D.
        FileFormatError: If an annotation is damaged.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the folder that holds CO3D's categories")
    for name in categories or ():
        if name not in CATEGORIES:
            raise UnknownNameError("CO3D category", name, CATEGORIES)
    found = [c for c in CATEGORIES if (root / c / "frame_annotations.jgz").is_file()]
    chosen = found if categories is None else list(categories)
    sequences = [
        sequence
        for category in chosen
        for sequence in _open_category(
            root,
            category,
            split,
            set_lists,
            min_quality,
            most_sequences,
            seed + CATEGORIES.index(category),
        )
    ]
    if not sequences:
        what = f"sequences of {split} in {set_lists}" if chosen else "categories of CO3D"
        raise InputError(f"{root} holds no {what}; check the path and the options")
    return tuple(sequences)


def _open_category(
    root: Path, category: str, split: str, set_lists: str, quality: float, most: int, seed: int
) -> list[Co3dSequence]:
    folder = root / category
    rows = [
        row
        for file in sorted((folder / "set_lists").glob(f"*{set_lists}*.json"))
        for row in _set_list(file, split)
    ]
    scored = folder / "sequence_annotations.jgz"
    good = {
        entry.text("sequence_name")
        for entry in entries(scored, read_json(scored, MAX_ANNOTATION_BYTES), "sequence")
        if entry.has("viewpoint_quality_score")
        and entry.number("viewpoint_quality_score") > quality
    }
    names = sorted({name for name, _ in rows if name in good})
    if len(names) > most:
        names = random.Random(seed).sample(names, most)
    wanted = {name: [number for n, number in rows if n == name] for name in names}
    file = folder / "frame_annotations.jgz"
    numbers = {(name, number) for name in names for number in wanted[name]}
    frames: dict[tuple[str, int], Entry] = {}
    for entry in entries(file, read_json(file, MAX_ANNOTATION_BYTES), "frame"):
        key = (entry.text("sequence_name"), int(entry.number("frame_number")))
        if key in numbers:
            frames[key] = entry
    for key in sorted(numbers - frames.keys()):
        raise bad_file(file, f"frame {key[1]} of {key[0]}, which a set list names", "none")
    return [
        _sequence(file, category, name, [frames[name, n] for n in dict.fromkeys(wanted[name])])
        for name in names
    ]


def _set_list(file: Path, split: str) -> list[tuple[str, int]]:
    rows = Entry(file, read_json(file, MAX_ANNOTATION_BYTES), "the file").rows(split)
    for row in rows:
        if not (isinstance(row, list) and len(row) >= 2 and isinstance(row[1], int)):
            raise bad_file(file, "rows of sequence, frame and path", repr(row)[:40])
    return [(str(row[0]), row[1]) for row in rows]


def _sequence(file: Path, category: str, name: str, frames: Sequence[Entry]) -> Co3dSequence:
    cameras = []
    for frame in frames:
        view, size = frame.inner("viewpoint"), frame.inner("image").array("size", 2)
        style = view.text("intrinsics_format") if view.has("intrinsics_format") else "ndc_isotropic"
        if style != "ndc_isotropic":
            raise bad_file(file, 'cameras of the format "ndc_isotropic"', f'"{style}"')
        cameras.append(
            camera_from_pytorch3d(
                view.array("R", 3, 3),
                view.array("T", 3),
                view.array("focal_length", 2),
                view.array("principal_point", 2),
                (int(size[0]), int(size[1])),
            )
        )
    return Co3dSequence(
        category=category,
        name=name,
        images=tuple(inside(file, f.inner("image").text("path")) for f in frames),
        depths=tuple(inside(file, f.inner("depth").text("path")) for f in frames),
        masks=tuple(inside(file, f.inner("mask").text("path")) for f in frames),
        scales=np.array([f.inner("depth").number("scale_adjustment") for f in frames]),
        w2c=np.stack([w2c for w2c, _ in cameras]),
        K=np.stack([K for _, K in cameras]),
    )
