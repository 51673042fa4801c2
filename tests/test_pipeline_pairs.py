"""Pair networks through `sightline.reconstruct`: photos on disk to cameras, depth and splats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sightline
from sightline.protocols import GeometryEstimator
from sightline.reconstruction.pairwise.estimators import (
    Dust3rEstimator,
    Mast3rEstimator,
    Splatt3rEstimator,
)
from tests.reconstruction.pairwise.stand_in import StandIn, Truth, make_truth, pose_errors

FAST: dict[str, Any] = {"size": 64, "iterations": 60, "most_points": 200}
SPARSE: dict[str, Any] = {"size": 64, "coarse": (100, 0.07, 1.5), "fine": (100, 0.01, 0.5)}


def estimator(kind: str, truth: Truth) -> GeometryEstimator:
    if kind == "dust3r":
        return Dust3rEstimator(model=StandIn(truth), **FAST)
    if kind == "mast3r":
        return Mast3rEstimator(model=StandIn(truth, metric=True, descriptors=True), **SPARSE)
    network = StandIn(truth, square=True, metric=True, splats=True)
    return Splatt3rEstimator(model=network, **FAST)


@pytest.mark.parametrize("kind", ["dust3r", "mast3r", "splatt3r"])
def test_photos_become_a_scene(kind: str, tmp_path: Path) -> None:
    truth = make_truth(4 if kind == "mast3r" else 3)
    (tmp_path / "photos").mkdir()
    for name, image, (height, width) in zip(
        truth.views.names, truth.views.images, truth.views.sizes.tolist(), strict=True
    ):
        pixels = image[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    run = sightline.reconstruct(
        tmp_path / "photos",
        tmp_path / "scene",
        geometry=estimator(kind, truth),
        splats="feedforward" if kind == "splatt3r" else "none",
        export="ply,glb,transforms" + (",gs-ply" if kind == "splatt3r" else ""),
    )
    cameras, geometry = run.camera_file(), run.geometry()
    assert geometry is not None
    angle, shift = pose_errors(cameras.cameras.w2c, truth.cameras.w2c)
    assert angle < 0.6
    assert shift < 0.12
    focal = cameras.cameras.K[:, 0, 0] / truth.cameras.K[:, 0, 0]
    assert float((focal - 1).abs().max()) < 0.05
    assert cameras.metric == (kind != "dust3r")
    assert geometry.depth is not None
    assert geometry.valid is not None
    ratio = geometry.depth[geometry.valid] / truth.depth[geometry.valid]
    assert float((ratio / ratio.median() - 1).abs().quantile(0.9)) < 0.1
    points = run.points()
    assert points is not None
    assert bool(torch.isfinite(points.points).all())
    splats = run.splats()
    assert (splats is not None) == (kind == "splatt3r")
