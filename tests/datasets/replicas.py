"""Tiny data sets in the exact layout of the published ones, drawn by our own ray caster."""

import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.datasets.multiview import sample_rng
from sightline.datasets.rooms import Rooms
from sightline.types import MultiView

HEIGHT, WIDTH = 72, 96


def room(num_views: int, place: int = 0) -> MultiView:
    """Return views whose cameras are near each other."""
    family = Rooms(baseline=(0.1, 0.4), jitter=2.0)
    return family.draw(sample_rng(7, "test", place), num_views, HEIGHT, WIDTH)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _pixels(sample: MultiView, view: int) -> np.ndarray:
    return (sample.images[view].movedim(0, -1).numpy() * 255).round().astype(np.uint8)


def write_co3d(root: Path, sample: MultiView, *, category: str = "apple", name: str = "1_2_3"):
    """Write one sequence; its object is the right half of every picture."""
    frames = []
    flip = np.diag([-1.0, -1.0, 1.0])
    unit = min(HEIGHT, WIDTH) / 2
    for v in range(len(sample)):
        number = v + 1
        image = f"{category}/{name}/images/frame{number:06d}.jpg"
        depth = f"{category}/{name}/depths/frame{number:06d}.jpg.geometric.png"
        mask = f"{category}/{name}/masks/frame{number:06d}.png"
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels(sample, v)).save(root / image, quality=100, subsampling=0)
        _write(root / depth, sample.depth[v].numpy().astype(np.float16).view(np.uint16))
        half = np.zeros((HEIGHT, WIDTH), np.uint8)
        half[:, WIDTH // 2 :] = 255
        _write(root / mask, half)
        w2c, K = sample.w2c[v].double().numpy(), sample.K[v].double().numpy()
        frames.append(
            {
                "sequence_name": name,
                "frame_number": number,
                "frame_timestamp": 0.1 * v,
                "image": {"path": image, "size": [HEIGHT, WIDTH]},
                "depth": {"path": depth, "scale_adjustment": 1.0, "mask_path": None},
                "mask": {"path": mask, "mass": 1.0},
                "viewpoint": {
                    "R": (flip @ w2c[:3, :3]).T.tolist(),
                    "T": (flip @ w2c[:3, 3]).tolist(),
                    "focal_length": [K[0, 0] / unit, K[1, 1] / unit],
                    "principal_point": [
                        (WIDTH / 2 - K[0, 2]) / unit,
                        (HEIGHT / 2 - K[1, 2]) / unit,
                    ],
                    "intrinsics_format": "ndc_isotropic",
                },
            }
        )
    folder = root / category
    (folder / "set_lists").mkdir(parents=True, exist_ok=True)
    for file, content in (
        ("frame_annotations.jgz", frames),
        (
            "sequence_annotations.jgz",
            [{"sequence_name": name, "category": category, "viewpoint_quality_score": 1.2}],
        ),
    ):
        with gzip.open(folder / file, "wt", encoding="utf-8") as out:
            json.dump(content, out)
    rows = [[name, f["frame_number"], f["image"]["path"]] for f in frames]
    lists = {"train": rows, "val": [], "test": rows[:2]}
    (folder / "set_lists" / "set_lists_fewview_train.json").write_text(json.dumps(lists))
    return root


def write_scannetpp(root: Path, sample: MultiView, *, name: str = "0123456789", bad: int = 2):
    """Write one scene of which frame ``bad`` is flagged."""
    raw, done = root / "raw" / "data" / name / "dslr", root / "processed" / name / "dslr"
    names = [f"DSC{v:05d}.JPG" for v in range(len(sample))]
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    frames = []
    for v, file in enumerate(names):
        image = done / "undistorted_images" / file
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels(sample, v)).save(image, quality=100, subsampling=0)
        depth = (sample.depth[v].numpy() * 1000).round().astype(np.uint16)
        _write((done / "undistorted_depths" / file).with_suffix(".png"), depth)
        c2w = np.linalg.inv(sample.w2c[v].double().numpy())
        frames.append({"file_path": file, "transform_matrix": (flip @ c2w @ flip).tolist()})
    K = sample.K[0].double()
    top = {
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "w": WIDTH,
        "h": HEIGHT,
    }
    flags = [{"file_path": file, "is_bad": v == bad} for v, file in enumerate(names)]
    for path, content in (
        (raw / "train_test_lists.json", {"train": names, "test": []}),
        (raw / "nerfstudio" / "transforms.json", {"frames": flags}),
        # In another order, as in the real set.
        (done / "nerfstudio" / "transforms_undistorted.json", {**top, "frames": frames[::-1]}),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for split, scene in (("train", name), ("val", "cc5237fd77")):
        path = root / "raw" / "splits" / f"nvs_sem_{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{scene}\n303745abc7\n" if split == "train" else f"{scene}\n")
    return root
