"""What is attacked: every reader of files and requests, with valid files of its format."""

import asyncio
import functools
import gzip
import json
import pickle
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_damage import Wrap, members, mend_png, named, pack_gzip, pack_zip
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.datasets import replicas
from tests.io.rasters import radiometric, write_raster
from tests.segmentation.test_staged import PUBLISHED

Read = Callable[[Path], object]
HEIGHT, WIDTH = 12, 16
COSTS: dict[float, tuple[str, ...]] = {
    0.4: (
        "constructor",
        "splat_state",
        "training_log",
    ),
    0.5: (
        "intrinsics",
        "job_json",
        "mvs_camera",
    ),
    0.6: (
        "bank",
        "depth_npy",
        "glb",
        "run_json",
        "splat",
    ),
    0.7: (
        "depth_scale",
        "flir",
        "masks_rle",
        "splits",
        "spz",
    ),
    0.8: (
        "coco_results",
        "manifest",
        "metadata",
        "npz",
        "scannetpp_tests",
        "spz_unpacked",
    ),
    0.9: (
        "geotiff",
        "grid_json",
        "training_state",
        "voc",
    ),
    1.2: (
        "exif",
        "intrinsics_json",
        "safetensors",
    ),
    1.5: (
        "chosen_pickle",
        "colmap_cameras_bin",
        "depth_npz",
        "masks",
        "ply_splats",
        "scannetpp_train_test_lists_raw",
        "tokens_npz",
    ),
    2: (
        "colmap_cameras_txt",
        "colmap_images_bin",
        "depth_png",
        "features_npz",
        "jpeg",
        "npz_members",
        "png",
        "pth",
        "reconstruction_npz",
        "samples",
        "scannetpp_nvs_sem_train_raw",
        "scannetpp_transforms_raw",
        "tiff",
        "video",
    ),
    2.5: (
        "cameras_npz",
        "colmap_images_txt",
        "colmap_points3D_bin",
        "fewshot",
        "pictures",
        "pth_legacy",
        "scannetpp_transforms_undistorted_processed",
    ),
    3: (
        "colmap_points3D_txt",
        "pth_pickle",
    ),
    5: (
        "co3d_sequence_annotations",
        "co3d_set_lists_fewview_train",
    ),
    6: (
        "co3d_frame_annotations",
        "geometry_npz",
    ),
    8: ("yaml_grid",),
    15: (
        "yaml_prepare",
        "yaml_reconstruct",
    ),
    20: (
        "http",
        "page_events",
        "yaml_train",
    ),
}
"""Milliseconds that one execution takes, about, where it is not one; see `shares`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader.

    Attributes:
        files: Valid files, whole or, with ``wrap``, what is inside them.
        read: Reads one.
        name: The name that a damaged file gets; may have folders.
        wrap: Closes up what was damaged inside.
        beside: Files that lie in the folder too.
        own: A folder in which it may write.
    """

    files: list[bytes]
    read: Read
    name: str = "x"
    wrap: Wrap | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    own: Path | None = None


def shares(names: Iterable[str], total: int) -> dict[str, int]:
    """Return how many executions each reader gets.

    Fewer by the square of what one costs, but a thousandth of all at least.
    """
    costs = {name: cost for cost, group in COSTS.items() for name in group}
    weights = {name: costs.get(name, 1.0) ** -2 for name in names}
    each = total / sum(weights.values())
    return {name: max(1, total // 1000, round(each * weight)) for name, weight in weights.items()}


def make_targets(folder: Path) -> dict[str, Target]:
    """Return all readers by name; valid files are made below ``folder``."""
    targets: dict[str, Target] = {}
    for part in (_scenes, _pictures, _weights, _annotations, _folders, _configurations, _requests):
        (folder / part.__name__).mkdir(parents=True)
        targets |= part(folder / part.__name__)
    return targets


def _scenes(folder: Path) -> dict[str, Target]:
    """Splats, points, meshes, cameras."""
    from sightline.datasets.synthetic import make_scene, write_scene
    from sightline.io import arrays, colmap, export, glb, intrinsics, ply, splat, spz, transforms
    from sightline.io.scene_result import ExportOptions, SceneResult
    from sightline.types import Gaussians, PointCloud

    scene = make_scene(3, HEIGHT, WIDTH, kind="simple", num_points=12, supersampling=1)
    write_scene(scene, folder / "data")
    truth = scene.ground_truth
    assert truth is not None
    assert truth.sparse is not None
    count = 9
    splats = Gaussians(
        means=torch.randn(count, 3),
        quats=torch.nn.functional.normalize(torch.randn(count, 4), dim=-1),
        scales=torch.rand(count, 3) * 0.1 + 0.01,
        opacities=torch.rand(count) * 0.9 + 0.05,
        sh=torch.randn(count, 4, 3) * 0.1,
    )
    cloud = PointCloud(points=truth.sparse.points.float(), colors=torch.rand(12, 3))
    result = SceneResult(
        names=scene.views.names,
        cameras=truth.cameras,
        from_original=torch.eye(3).repeat(3, 1, 1),
        original_sizes=torch.tensor([[HEIGHT, WIDTH]] * 3),
        registered=torch.ones(3, dtype=torch.bool),
        points=cloud,
        sparse=truth.sparse,
        gaussians=splats,
    )
    for write in (
        *(export.export_ply, export.export_gaussian_ply, export.export_splat, export.export_spz),
        *(export.export_glb, export.export_colmap),
    ):
        write(result, folder, ExportOptions())
    ply.write_point_ply(folder / "text.ply", cloud, ascii_text=True)
    colmap.write_colmap(folder / "text", colmap.read_colmap(folder / "sparse" / "0"), text=True)
    packed = _read(folder, "scene.spz")
    truths = members((folder / "data" / "truth.npz").read_bytes())
    targets = {
        "ply_points": Target(
            files=_read(folder, "scene.ply", "text.ply"),
            read=ply.read_point_ply,
            name="x.ply",
        ),
        "ply_splats": Target(
            files=_read(folder, "gaussians.ply"),
            read=ply.read_gaussian_ply,
            name="x.ply",
        ),
        "splat": Target(files=_read(folder, "scene.splat"), read=splat.read_splat),
        "spz": Target(files=packed, read=spz.read_spz),
        "spz_unpacked": Target(
            files=[gzip.decompress(one) for one in packed],
            read=spz.read_spz,
            wrap=pack_gzip,
        ),
        "glb": Target(files=_read(folder, "scene.glb"), read=glb.read_glb),
        "transforms": Target(
            files=_read(folder / "data", "transforms.json"),
            read=transforms.read_transforms,
            name="transforms.json",
        ),
        "npz": Target(files=_read(folder / "data", "truth.npz"), read=arrays.read_npz),
        "npz_members": Target(files=named(truths), read=arrays.read_npz, wrap=pack_zip(truths)),
        "intrinsics": Target(
            files=[b"500,500,320,240", b"500", b"PINHOLE 640 480 500 500 320 240"],
            read=lambda path: intrinsics.parse_intrinsics(path.read_text("utf-8", "replace")),
        ),
        "intrinsics_json": Target(
            files=_json(
                {"fl_x": 5, "fl_y": 5, "cx": 3, "cy": 2, "k1": 0.1, "w": 6, "h": 4},
                {"model": "OPENCV", "params": [5, 5, 3, 2, 0, 0, 0, 0], "width": 6, "height": 4},
            ),
            read=lambda path: intrinsics.parse_intrinsics(str(path)),
            name="x.json",
        ),
    }
    for source, suffix in ((folder / "sparse" / "0", "bin"), (folder / "text", "txt")):
        parts = {p.name: p.read_bytes() for p in source.glob(f"*.{suffix}")}
        for name, content in parts.items():
            targets[f"colmap_{name.replace('.', '_')}"] = Target(
                files=[content],
                read=lambda path: colmap.read_colmap(path.parent),
                name=name,
                beside={other: kept for other, kept in parts.items() if other != name},
            )
    return targets


def _pictures(folder: Path) -> dict[str, Target]:
    """Pictures, their notes, depth maps, videos."""
    from sightline.io import decoding, depth, exif, flir, geotiff, images, masks
    from sightline.io.video import VideoReader
    from sightline.io.video_writer import write_video
    from sightline.probing import dtu

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    notes = Image.Exif()
    notes[0x0112], notes[0x920A], notes[0xA405] = 6, 4.25, 26

    def picture(name: str, mode: str = "RGB", **options: Any) -> bytes:  # noqa: ANN401
        Image.fromarray(pixels).convert(mode).save(folder / name, **options)
        return (folder / name).read_bytes()

    Image.fromarray(rng.integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)).save(folder / "deep.png")
    deep = _read(folder, "deep.png")
    pngs = [picture("a.png"), picture("grey.png", "L"), picture("p.png", "P"), *deep]
    others = [picture(name) for name in ("a.webp", "a.bmp", "a.ppm")]
    jpegs = [picture("a.jpg", exif=notes), picture("b.jpg", progressive=True)]
    write_raster(folder / "geo.tif", rng.integers(0, 255, (6, 8, 5), np.uint8), nodata="0")
    names = ("red", "green", "blue", "nir")
    write_raster(folder / "deep.tif", rng.integers(0, 9999, (6, 8, 4), np.uint16), names=names)
    tiffs = [*_read(folder, "geo.tif", "deep.tif"), picture("l.tif", compression="tiff_lzw")]
    counts = rng.integers(0, 2**16, (6, 8), np.uint16)
    write_video(folder / "clip.mp4", [pixels] * 3)
    maps = {"depth": np.ones((HEIGHT, WIDTH), np.float32), "K": np.eye(3), "w2c": np.eye(4)}
    np.savez(folder / "depth.npz", **maps)
    np.save(folder / "depth.npy", np.ones((6, 8), np.float32))

    def notes_of(path: Path) -> object:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about the picture
            try:
                image = decoding.open_plugin("jpeg", file)
            except decoding.DAMAGE as error:
                raise decoding.damaged(path, "jpeg", error) from error
            return exif.read_exif(image)

    def frames(path: Path) -> object:
        with VideoReader(path, max_pixels=1 << 16) as reader:
            return [reader.retrieve() for _ in range(2) if reader.grab() is not None]

    arrays = members((folder / "depth.npz").read_bytes())
    camera = (
        b"extrinsic\n1 0 0 1\n0 1 0 2\n0 0 1 3\n0 0 0 1\n\nintrinsic\n9 0 4\n0 9 3\n0 0 1\n\n1 2"
    )
    return {
        "jpeg": Target(files=jpegs, read=images.read_image, name="x.jpg"),
        "png": Target(files=pngs, read=images.read_image, name="x.png", wrap=mend_png),
        "pictures": Target(files=others, read=images.read_image, name="x.png"),
        "tiff": Target(files=tiffs, read=images.read_image, name="x.tif"),
        "samples": Target(files=[*deep, *tiffs], read=images.read_samples, name="x.tif"),
        "geotiff": Target(files=tiffs, read=geotiff.read_geo, name="x.tif"),
        "flir": Target(
            files=[radiometric(counts), radiometric(counts, as_png=True)],
            read=lambda path: flir.read_radiometric(path, max_pixels=1 << 16),
            name="x.jpg",
        ),
        "exif": Target(files=jpegs, read=notes_of, name="x.jpg"),
        "masks": Target(
            files=pngs,
            read=lambda path: masks.read_mask(path, size=(HEIGHT, WIDTH)),
            name="x.png",
            wrap=mend_png,
        ),
        "depth_png": Target(files=deep, read=depth.read_depth_png, wrap=mend_png),
        "depth_npz": Target(files=named(arrays), read=depth.read_depth_npz, wrap=pack_zip(arrays)),
        "depth_npy": Target(files=_read(folder, "depth.npy"), read=dtu._read_depth),
        "depth_scale": Target(
            files=[b'{"scale": 0.001, "unit": "m", "invalid": 0}'],
            read=lambda path: depth.read_depth_scale(path.parent),
            name="scale.json",
        ),
        "mvs_camera": Target(files=[camera], read=dtu.read_mvs_camera),
        "video": Target(files=_read(folder, "clip.mp4"), read=frames, name="x.mp4"),
    }


def _weights(folder: Path) -> dict[str, Target]:
    """Checkpoints of all kinds, and the states of trainings."""
    from sightline.checkpoints import read_checkpoint
    from sightline.checkpoints.constructor import parse_constructor
    from sightline.segmentation.memory import BankClass, MemoryBank
    from sightline.segmentation.old_files import read_chosen
    from sightline.segmentation.shots import Shots, no_shots
    from sightline.splatting.training_state import read_state, write_state
    from sightline.training.log import read_table
    from sightline.training.state import load_state, save_state

    tensors = {"a.weight": torch.rand(3, 4), "b": torch.arange(5), "h": torch.rand(2).half()}
    save_file(tensors, folder / "w.safetensors")
    whole = {"model": tensors, "epoch": 3, "args": {"lr": 0.1}, "step": np.float64(3)}
    torch.save(whole, folder / "w.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_state(folder / "state.pt", {"task": tensors, "step": 3, "config": {"lr": 0.1}})
    write_state(folder / "splats.safetensors", {"means": torch.rand(4, 3)}, {"fingerprint": "f"})
    rows, values = 3, torch.rand(3, 5)
    shots = Shots(
        labels=torch.tensor([0, 1, 1]),
        means=values,
        unit_means=values,
        hard_means=values,
        weights=torch.rand(rows),
        hard_counts=torch.ones(rows),
        context=values,
        tokens=torch.rand(4, 5).half(),
        token_shots=torch.tensor([0, 1, 2, 2]),
        names=("a", "b", "c"),
    )
    classes = tuple(BankClass(name=name, category_id=i) for i, name in enumerate(("cat", "dog")))
    bank = MemoryBank(classes=classes, shots=shots, negatives=no_shots(5), encoder={"name": "x"})
    bank.save(folder / "bank.safetensors")
    chosen = {1: [{"img_id": 3, "ann_ids": [1, 2]}], 2: [{"img_id": 4, "ann_ids": [7]}]}
    archive = members((folder / "w.pth").read_bytes())
    prefix = next(iter(archive)).partition("/")[0]
    inner = {f"{prefix}/data.pkl": archive[f"{prefix}/data.pkl"]}
    return {
        "safetensors": Target(
            files=_read(folder, "w.safetensors"),
            read=read_checkpoint,
            name="x.safetensors",
        ),
        "pth": Target(files=_read(folder, "w.pth"), read=read_checkpoint, name="x.pth"),
        "pth_pickle": Target(
            files=named(inner),
            read=read_checkpoint,
            name="x.pth",
            wrap=pack_zip(archive),
        ),
        "pth_legacy": Target(files=_read(folder, "old.pth"), read=read_checkpoint, name="x.pth"),
        "constructor": Target(
            files=[b"AsymmetricMASt3R(img_size=(512, 512), head_type='catmlp+dpt', a=[1, inf])"],
            read=lambda path: parse_constructor(path.read_text("utf-8", "replace")),
        ),
        "chosen_pickle": Target(
            files=[pickle.dumps(chosen, protocol) for protocol in (0, 2, 4, 5)],
            read=read_chosen,
        ),
        "bank": Target(files=_read(folder, "bank.safetensors"), read=MemoryBank.load),
        "training_state": Target(files=_read(folder, "state.pt"), read=load_state),
        "splat_state": Target(
            files=_read(folder, "splats.safetensors"),
            read=lambda path: read_state(path, "f"),
        ),
        "training_log": Target(
            files=[b"step,loss,rate\n1,0.5,1e-3\n2,0.25,1e-3\n"], read=read_table
        ),
    }


def _annotations(folder: Path) -> dict[str, Target]:
    """What describes data sets."""
    from sightline.datasets import co3d, scannetpp
    from sightline.io import reading
    from sightline.preparation.metadata import read_metadata
    from sightline.probing import splits
    from sightline.segmentation import coco, references, rle, voc
    from sightline.segmentation.synthetic import write_dataset

    shapes = write_dataset(folder / "shapes", pictures=3)
    shape_files = _tree(shapes)
    drawn = {k: v for k, v in shape_files.items() if k.endswith(".png")}
    sample = replicas.room(2)
    co3d_files = _tree(replicas.write_co3d(folder / "co3d", sample), ".json", ".jgz")
    scan_files = _tree(replicas.write_scannetpp(folder / "scans", sample, bad=1), ".json", ".txt")
    marks = {
        "references": [
            {"image": "images/a.png", "label": "cat", "box": [1, 2, 3, 4]},
            {"image": "images/a.png", "label": "dog", "points": [[1, 2]], "inside": [True]},
            {"image": "images/a.png", "label": "dog", "polygons": [[0, 0, 5, 0, 5, 5]]},
        ]
    }
    note = (
        "<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>"
        "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
    )
    metadata = {
        "a.png": {
            "modality": "visible",
            "camera": {"model": "PINHOLE", "params": [5, 5, 3, 2]},
            "pose": np.eye(4).tolist(),
            "bands": [1, 2, "red"],
            "depth": {"file": "d.png", "scale": 0.001, "unit": "m"},
            "mine": 3,
        }
    }
    split = {"LLFF": {"fern": {"train": ["a", "b"], "test": ["c"], "hash": "x"}}}
    mask = {"size": [6, 7], "counts": rle.encode_mask(np.eye(6, 7, dtype=bool))["counts"]}
    polygons = [[0, 0, 5, 0, 5, 5], [1, 1, 2, 2, 3, 1]]

    def outline(path: Path) -> object:
        return rle.decode_segmentation(reading.read_json(path), 6, 7)

    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    targets = {
        "coco": Target(files=[shape_files["instances.json"]], read=coco.read_coco, name="x.json"),
        "coco_results": Target(files=_json(results), read=coco.read_results, name="x.json"),
        "masks_rle": Target(files=_json(mask, polygons), read=outline, name="x.json"),
        "references": Target(
            files=[shape_files["instances.json"], *_json(marks)],
            read=lambda path: references.read_references(path, shots=1),
            name="x.json",
            beside={"images/a.png": _one_picture(folder), **drawn},
        ),
        "fewshot": Target(
            files=[shape_files["fewshot.json"]],
            read=lambda path: references.read_references(path.parent, shots=1),
            name="fewshot.json",
            beside={"instances.json": shape_files["instances.json"], **drawn},
        ),
        "voc": Target(
            files=[note.encode(), note.encode("utf-16")],
            read=lambda path: voc.read_voc(path.parents[1]),
            name="Annotations/a.xml",
        ),
        "metadata": Target(
            files=_json(metadata),
            read=read_metadata,
            name="x.json",
            beside={"d.png": _one_picture(folder)},
        ),
        "splits": Target(files=_json(split), read=splits.read_splits, name="x.json"),
        "scannetpp_tests": Target(
            files=_json([["scene", 1, 2, 3]] * 4),
            read=lambda path: scannetpp.read_test_set(path, 1),
            name="x.json",
        ),
    }
    for name, content in co3d_files.items():
        if name.endswith("jgz"):
            content, wrap = gzip.decompress(content), pack_gzip
        else:
            wrap = None
        depth = len(Path(name).parts) - 1
        targets[f"co3d_{Path(name).stem}"] = Target(
            files=[content],
            read=lambda path, depth=depth: co3d.open_co3d(path.parents[depth]),
            name=name,
            wrap=wrap,
            beside={k: v for k, v in co3d_files.items() if k != name},
        )
    for name in scan_files:
        if "val" not in name:
            depth = len(Path(name).parts) - 1
            targets[f"scannetpp_{Path(name).stem}_{Path(name).parts[0]}"] = Target(
                files=[scan_files[name]],
                read=lambda path, depth=depth: scannetpp.open_scannetpp(path.parents[depth]),
                name=name,
                beside={k: v for k, v in scan_files.items() if k != name},
            )
    return targets


def _folders(folder: Path) -> dict[str, Target]:
    """What our own folders hold: runs, prepared data, grids, jobs."""
    from sightline.app.jobs.record import Job, new_id, read_job, write_job
    from sightline.io import manifest
    from sightline.io.scene_arrays import (
        CameraFile,
        GeometryFile,
        read_reconstruction,
        write_cameras,
        write_geometry,
        write_reconstruction,
    )
    from sightline.preparation.job import Item, Made
    from sightline.preparation.journal import JOURNAL, Journal
    from sightline.probing import files, grid
    from sightline.probing.tokens import TokenGrid
    from sightline.results import open_run
    from sightline.run import RunFolder
    from sightline.splatting.scene_features import read_scene_features
    from sightline.types import Cameras, Reconstruction, SparsePoints, Views

    record = manifest.Record(
        id="a",
        file="images/a.png",
        width=WIDTH,
        height=HEIGHT,
        transform=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        camera={"model": "PINHOLE", "params": [5, 5, 3, 2], "source": "exif"},
        pose=np.eye(4).tolist(),
        labels={"x": 1},
    )
    manifest.write_manifest(
        folder / "manifest.json", [record, replace(record, id="b", file="b.png")], notes=["one"]
    )
    run = RunFolder.create(folder / "run", {"inputs": ["a"], "steps": 3})
    with run.working(), run.stage("ingest"):
        run.warn("something")
    V = 2
    cameras = Cameras(
        w2c=torch.eye(4).repeat(V, 1, 1), K=torch.eye(3).repeat(V, 1, 1), height=4, width=5
    )
    sparse = SparsePoints(
        points=torch.rand(3, 3),
        colors=torch.zeros(3, 3, dtype=torch.uint8),
        tracks=torch.tensor([[0, 0], [1, 1]], dtype=torch.int32),
    )
    known = Reconstruction(
        cameras=cameras, registered=torch.ones(V, dtype=torch.bool), sparse=sparse
    )
    views = Views(
        images=torch.zeros(V, 3, 4, 5, dtype=torch.uint8),
        names=("a.png", "b.png"),
        from_original=torch.eye(3).repeat(V, 1, 1),
        sizes=torch.tensor([[4, 5]] * V),
        cameras=cameras,
    )
    whole = folder / "whole"
    write_cameras(
        whole / "cameras.npz",
        views,
        known,
        original_size=torch.tensor([[4, 5]] * V),
        test=torch.tensor([True, False]),
    )
    write_geometry(whole / "geometry.npz", views, known)
    write_reconstruction(whole / "reconstruction.npz", known)
    tokens = TokenGrid(grid=torch.rand(1, 2, 3, 4), down=torch.eye(2), across=torch.eye(3))
    files.write_tokens(tokens, whole / "tokens.npz")
    rows: dict[str, Any] = {
        "backbone": np.array(["x"]),
        "layer": np.array([3]),
        "mean": np.zeros(4),
        "axes": np.zeros((2, 4)),
        "splats": np.zeros((3, 2), np.float16),
        "splats_colors": np.zeros((3, 3), np.float16),
        "splats_weights": np.zeros(3, np.float32),
    }
    np.savez(whole / "features.npz", **rows)
    with Journal(folder / "prepared", {"inputs": ["a"], "options": {}}) as journal:
        item = Item(record=record, files=("images/a.png",), look=5, sharpness=1.0)
        for key in ("k", "l"):
            journal.add(key, Made(items=(item,), notes=("one",)))
    job = Job(id=new_id(), owner="o", kind="demo", title="t", options={"steps": 3})
    (folder / "job").mkdir()
    write_job(folder / "job", job)

    def journalled(path: Path) -> object:
        with Journal(path.parent, {"inputs": ["a"], "options": {}}) as journal:
            return [journal.read(key) for key in (*journal.keys(),)]

    def run_state(path: Path) -> object:
        run = open_run(path.parent)
        return run.status, run.metrics, run.warnings, run.summary(), run.sentence()

    def npz(name: str, read: Read, **options: Any) -> Target:  # noqa: ANN401
        parts = members((whole / name).read_bytes())
        return Target(files=named(parts), read=read, wrap=pack_zip(parts), name=name, **options)

    beside = {"cameras.npz": (whole / "cameras.npz").read_bytes()}
    return {
        "manifest": Target(
            files=_read(folder, "manifest.json"),
            read=manifest.read_manifest,
            name="manifest.json",
        ),
        "run_json": Target(
            files=_read(folder / "run", "run.json"), read=run_state, name="run.json"
        ),
        "cameras_npz": npz("cameras.npz", lambda path: CameraFile(path).cameras),
        "geometry_npz": npz(
            "geometry.npz",
            lambda path: GeometryFile(path, CameraFile(path.parent / "cameras.npz")),
            beside=beside,
        ),
        "reconstruction_npz": npz("reconstruction.npz", read_reconstruction),
        "tokens_npz": npz("tokens.npz", files.read_tokens),
        "features_npz": npz("features.npz", read_scene_features),
        "journal": Target(files=_read(folder / "prepared", JOURNAL), read=journalled, name=JOURNAL),
        "grid_json": Target(
            files=_json({"version": 1, "config": {"scenes": ["a"]}, "cells": []}),
            read=lambda path: grid.read_grid(path.parent),
            name=grid.GRID_FILE,
        ),
        "job_json": Target(
            files=_read(folder / "job", "job.json"),
            read=lambda path: read_job(path.parent),
            name=f"{job.id}/job.json",
        ),
    }


def _configurations(folder: Path) -> dict[str, Target]:
    """YAML of all verbs."""
    from sightline.cli.parser import VerbParser, record_from
    from sightline.options import ReconstructOptions
    from sightline.preparation.options import PrepareOptions
    from sightline.probing.config import config_from
    from sightline.probing.datasets import list_sources
    from sightline.probing.features import parse_features
    from sightline.segmentation import staged
    from sightline.training.dino.settings import DinoSettings

    root = Path(__file__).parents[1] / "configs"

    def options(record: type) -> Read:
        parser = VerbParser("verb", "")
        parser.add_record(record)
        return lambda path: record_from(record, parser.parse_args(["--config", str(path)]))

    def grid(path: Path) -> object:
        config = config_from(staged.read_yaml(path), path.parent)
        return parse_features(config.features), list_sources(config)

    def shipped(*names: str) -> list[bytes]:
        return [p.read_bytes() for name in names for p in sorted((root / name).glob("*.yaml"))]

    return {
        "yaml_stage": Target(
            files=[PUBLISHED.encode()],
            read=lambda path: staged.parse_stage(
                ["--config", str(path), "--model.test_mode", "fill_memory"]
            ),
            name="x.yaml",
        ),
        "yaml_grid": Target(files=shipped("probe"), read=grid, name="x.yaml"),
        "yaml_reconstruct": Target(
            files=[b"steps: 30\ntest_every: 8\nfps: 2.5\ngeometry: colmap\n"],
            read=options(ReconstructOptions),
            name="x.yaml",
        ),
        "yaml_prepare": Target(
            files=[b"size: 224\nmode: crop\nval_split: 0.1\nworkers: 2\n"],
            read=options(PrepareOptions),
            name="x.yaml",
        ),
        "yaml_train": Target(
            files=[b"data: photos\nepochs: 9\nbatch_size: 2\nmodel_options: {depth: 2}\n"],
            read=options(DinoSettings),
            name="x.yaml",
        ),
    }


def _requests(folder: Path) -> dict[str, Target]:
    """Bytes that arrive at the app's server."""
    host = b"Host: 127.0.0.1\r\nX-Sightline-Key: @KEY@\r\n"

    def post(path: str, body: bytes, kind: bytes = b"application/json") -> bytes:
        head = f"POST /api/v1/{path} HTTP/1.1\r\n".encode()
        size = b"Content-Length: %d\r\nContent-Type: %s\r\n\r\n" % (len(body), kind)
        return head + host + size + body

    jobs: list[dict[str, Any]] = [
        {"kind": "demo", "options": {"steps": 3, "seed": 0}, "title": "x"},
        {"kind": "reconstruct", "inputs": ["a"], "files": {"masks": ["b"]}, "scene": None},
        {"kind": "render", "scene": "20260101T000000-0123456789abcdef", "options": {"fps": 3}},
        {"kind": "train-dino", "inputs": [], "options": {"epochs": 1}, "force": True},
    ]
    bodies = [json.dumps(job).encode() for job in jobs]
    form = b"--b\r\nContent-Disposition: form-data; name=f; filename=a.png\r\n\r\nx\r\n--b--\r\n"
    sent = [
        *(post("jobs", body) for body in bodies),
        *(post("estimate", body) for body in bodies[1:3]),
        post("uploads?name=a.png", _one_picture(folder), b"application/octet-stream"),
        post("uploads?name=a.png", form, b"multipart/form-data; boundary=b"),
        post("jobs/20260101T000000-0123456789abcdef/resume", b'{"options": {"steps": 3}}'),
        b"GET /api/v1/jobs?limit=3&offset=1 HTTP/1.1\r\n" + host + b"\r\n",
        b"GET /api/v1/jobs/a/results/b%2fc?inline=1 HTTP/1.1\r\n" + host + b"\r\n",
        b"DELETE /api/v1/uploads/a HTTP/1.1\r\n" + host + b"\r\n",
    ]
    return {
        "http": Target(files=sent, read=functools.partial(_serve, folder), own=folder),
        "page_events": Target(
            files=_events(folder / "page"),
            read=functools.partial(_take_event, folder / "page"),
            own=folder,
        ),
    }


def _events(folder: Path) -> list[bytes]:
    """Return what the page sends when it is loaded and a control of each form changes."""
    app, key, _ = _page(folder)
    headers = [(b"host", b"127.0.0.1"), (b"x-sightline-key", key)]
    _, answer = _answer(app, b"GET", b"/config", headers, b"")
    config = json.loads(answer)
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    return _json(
        *(
            {
                "fn_index": event["id"],
                "data": [values[part] for part in event["inputs"]],
                "session_hash": "a",
            }
            for event in config["dependencies"]
            if event["backend_fn"]
        )
    )


def _take_event(folder: Path, path: Path) -> object:
    """Hand an event's data to the page, as a browser does."""
    from sightline.errors import InputError

    app, key, root = _page(folder)
    headers = [
        (b"host", b"127.0.0.1"),
        (b"x-sightline-key", key),
        (b"content-type", b"application/json"),
    ]
    _WRONG.clear()
    target = b"/gradio_api/run/predict"
    status, answer = _answer(app, b"POST", target, headers, path.read_bytes())
    assert not _WRONG, _WRONG
    assert root.encode() not in answer, answer
    if status >= 400:  # 500 is what Gradio says of a value that its control does not have
        raise InputError(f"the page refuses the event: {status} {answer[:200]!r}")
    return status


_WRONG: list[str] = []
"""What went wrong inside the page's own functions."""


@functools.cache
def _page(folder: Path) -> tuple[Any, bytes, str]:
    """Return the application with its page, as `_app` does; errors of its functions are noted."""
    from starlette.routing import Mount

    from sightline.app.page.mount import mount_page

    folder.mkdir(exist_ok=True)
    app, key, root = _app(folder, mount_page)

    def watched(function: Any) -> Any:  # noqa: ANN401
        @functools.wraps(function)
        def call(*values: object) -> object:
            try:
                return function(*values)
            except Exception as error:
                _WRONG.append(f"{function.__qualname__}: {error!r}")
                raise

        return call

    page = next(route.app for route in app.routes if isinstance(route, Mount) and route.path == "")
    for event in page.get_blocks().fns.values():
        if event.fn is not None:
            event.fn = watched(event.fn)
    return app, key, root


def _serve(folder: Path, path: Path) -> object:
    """Hand the bytes of a request to the app, as its server does."""
    import h11

    from sightline.errors import InputError

    app, key, root = _app(folder)
    connection = h11.Connection(h11.SERVER)
    body = bytearray()
    try:
        connection.receive_data(path.read_bytes().replace(b"@KEY@", key))
        connection.receive_data(b"")
        request = connection.next_event()
        while type(event := connection.next_event()) is h11.Data:
            body += event.data
    except h11.RemoteProtocolError as error:
        raise InputError(f"no request of HTTP: {error}") from error
    if type(request) is not h11.Request:
        raise InputError("no request of HTTP, but its end")
    status, answer = _answer(app, request.method, request.target, [*request.headers], bytes(body))
    assert status < 500, (status, answer)
    assert root.encode() not in answer, answer
    assert b"Traceback" not in answer, answer
    if status >= 400:
        raise InputError(f"the server answers {status}: {json.loads(answer)['error']}")
    return status


def _answer(
    app: Any,  # noqa: ANN401
    method: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> tuple[int, bytes]:
    """Return the status and the body with which an application answers."""
    path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode(),
        "scheme": "http",
        "path": urllib.parse.unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 7860),
        "state": {},
    }
    sent: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return incoming.pop() if incoming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    _LOOP.run_until_complete(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


_LOOP = asyncio.new_event_loop()


@functools.cache
def _app(folder: Path, mount: Any = None) -> tuple[Any, bytes, str]:  # noqa: ANN401
    """Return the application, a user's key and its folder; jobs are queued and never begun."""
    from sightline.app.gate import Access
    from sightline.app.jobs.manager import Jobs
    from sightline.app.jobs.request import JobLimits
    from sightline.app.jobs.uploads import UploadLimits
    from sightline.app.server import Context, create_app
    from sightline.app.sessions import Sessions

    root = folder / "root"
    jobs = Jobs(
        root,
        models=folder / "models",
        upload_limits=UploadLimits(spare_bytes=0),
        limits=JobLimits(owner_queued=0),
    )
    sessions = Sessions(jobs.own)
    context = Context(jobs=jobs, sessions=sessions, access=Access(upload_bytes=100_000))
    return create_app(context, mount), sessions.new_key().encode(), str(root)


def _read(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _tree(folder: Path, *suffixes: str) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (not suffixes or file.suffix in suffixes)
    }


def _one_picture(folder: Path) -> bytes:
    Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50)).save(folder / "one.png")
    return (folder / "one.png").read_bytes()
