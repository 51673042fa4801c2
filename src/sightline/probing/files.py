"""Records of the probe as ``.npz`` files: tensors by name, and back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.errors import FileFormatError
from sightline.io.arrays import read_npz, write_npz
from sightline.io.reading import bad_file
from sightline.probing.clouds import Cloud
from sightline.probing.frames import Frame
from sightline.probing.scenes import ProbeScene
from sightline.probing.tokens import TokenGrid
from sightline.types import Cameras, PointCloud


def _write(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
    arrays = {name: value.cpu().numpy() for name, value in tensors.items() if value is not None}
    write_npz(path, {"meta": np.array(json.dumps(meta)), **arrays}, compress=False)


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Refuse a file whose content is not what we wrote."""
    try:
        yield
    except FileFormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:80]
        raise bad_file(
            path, "a result of the probe", f"damage ({why})", f"remove {path.parent} and run again"
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    arrays = read_npz(path)
    meta = json.loads(str(arrays.pop("meta")))
    return meta, {name: torch.from_numpy(value) for name, value in arrays.items()}


def write_scene(scene: ProbeScene, path: Path) -> None:
    """Write a scene; paths of its photos are not kept."""
    cameras, cloud = scene.cameras, scene.cloud
    meta = {
        "id": scene.id,
        "names": scene.names,
        "num_train": scene.num_train,
        "frame": asdict(scene.frame),
    }
    tensors = {
        "working": scene.working,
        "targets": scene.targets,
        "depth": scene.depth,
        "normals": scene.normals,
        "w2c": None if cameras is None else cameras.w2c,
        "K": None if cameras is None else cameras.K,
        "points": None if cloud is None else cloud.points,
        "colors": None if cloud is None else cloud.colors,
    }
    _write(path, meta, tensors)


def read_scene(path: Path) -> ProbeScene:
    """Read what `write_scene` wrote.

    Raises:
        FileFormatError: If the file is damaged.
    """
    with _checked(path):
        meta, tensors = _read(path)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["frame"].items()}
        frame = Frame(**values)
        cameras = cloud = None
        if "w2c" in tensors:
            height, width = frame.working
            cameras = Cameras(w2c=tensors["w2c"], K=tensors["K"], height=height, width=width)
        if "points" in tensors:
            cloud = PointCloud(points=tensors["points"], colors=tensors["colors"])
        return ProbeScene(
            id=meta["id"],
            names=tuple(meta["names"]),
            num_train=meta["num_train"],
            frame=frame,
            working=tensors["working"],
            targets=tensors["targets"],
            cameras=cameras,
            depth=tensors.get("depth"),
            normals=tensors.get("normals"),
            cloud=cloud,
        )


def write_cloud(cloud: Cloud, path: Path) -> None:
    """Write a cloud."""
    meta = {
        "unit": cloud.unit,
        "method": cloud.method,
        "size": [cloud.train.height, cloud.train.width],
    }
    tensors: dict[str, Tensor | None] = {
        "points": cloud.points,
        "clean": cloud.clean,
        "valid": cloud.valid,
        "masks": cloud.masks,
        "train_w2c": cloud.train.w2c,
        "train_K": cloud.train.K,
        "test_w2c": cloud.test.w2c,
        "test_K": cloud.test.K,
    }
    _write(path, meta, tensors)


def read_cloud(path: Path) -> Cloud:
    """Read what `write_cloud` wrote.

    Raises:
        FileFormatError: If the file is damaged.
    """
    with _checked(path):
        meta, tensors = _read(path)
        height, width = meta["size"]
        train, test = (
            Cameras(w2c=tensors[f"{part}_w2c"], K=tensors[f"{part}_K"], height=height, width=width)
            for part in ("train", "test")
        )
        return Cloud(
            points=tensors["points"],
            clean=tensors.get("clean"),
            valid=tensors["valid"],
            masks=tensors["masks"],
            train=train,
            test=test,
            unit=meta["unit"],
            method=meta["method"],
        )


def write_tokens(tokens: TokenGrid, path: Path) -> None:
    """Write features on their grid."""
    tensors: dict[str, Tensor | None] = {"grid": tokens.grid}
    if not tokens.is_pixels:
        tensors |= {"down": tokens.down, "across": tokens.across}
    _write(path, {"is_pixels": tokens.is_pixels}, tensors)


def read_tokens(path: Path) -> TokenGrid:
    """Read what `write_tokens` wrote.

    Raises:
        FileFormatError: If the file is damaged.
    """
    with _checked(path):
        meta, tensors = _read(path)
        rows, cols = tensors["grid"].shape[1:3]
        return TokenGrid(
            grid=tensors["grid"],
            down=tensors.get("down", torch.eye(rows)),
            across=tensors.get("across", torch.eye(cols)),
            is_pixels=meta["is_pixels"],
        )
