from pathlib import Path

import pytest
import torch

from sightline.app.scene_page import write_viewer_page
from sightline.errors import InputError
from sightline.io.ply import write_gaussian_ply
from sightline.io.scene_arrays import write_cameras, write_geometry
from sightline.run import RunFolder
from sightline.types import Reconstruction, Views
from tests.report.fake import paint, ring_cameras, ring_gaussians, ring_points
from tests.report.test_scene_html import read_header


def pixel_points() -> torch.Tensor:
    """Return points on a grid, one a pixel."""
    row, column = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return torch.stack([column, row, torch.zeros_like(row)], -1).float().expand(4, 60, 80, 3) / 80


def write_run(path: Path, *, splats: bool = True) -> Path:
    """Write a finished run of the made-up ring, with depth, a point map and a sky."""
    cameras = ring_cameras(4, 60, 80).map(lambda t: t.double())
    points, colors, _ = ring_points(8000)
    pictures, depth = paint(points, colors.clamp(0, 1), ring_cameras(4, 60, 80))
    folder = RunFolder.create(path, {"geometry": "vggt"})
    views = Views(
        images=(pictures * 255).to(torch.uint8),
        names=tuple(f"view_{i}.png" for i in range(4)),
        from_original=torch.eye(3).double().expand(4, 3, 3),
        cameras=cameras,
        sizes=torch.tensor([[60, 80]] * 4),
    )
    sky = torch.zeros(4, 60, 80, dtype=torch.bool)
    sky[:, :20] = True
    reconstruction = Reconstruction(
        cameras=cameras,
        registered=torch.ones(4, dtype=torch.bool),
        depth=depth,
        points=pixel_points(),
        confidence=depth + 1,
        valid=depth > 0,
    )
    write_cameras(
        path / "cameras.npz",
        views,
        reconstruction,
        original_size=torch.tensor([[60, 80]] * 4),
        test=torch.arange(4) == 1,
    )
    write_geometry(path / "geometry.npz", views, reconstruction, sky=sky)
    if splats:
        write_gaussian_ply(path / "splats.ply", ring_gaussians(300))
    folder.state["status"] = "done"
    folder.save()
    return path


def test_page_of_a_run_has_all_that_filters_need(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = write_viewer_page(run, tmp_path / "viewer.html")
    header = read_header(page.read_text("utf-8"))
    assert header["splats"]["count"] == 300
    assert header["has_seen"]
    assert header["has_sky"]
    assert header["other_points"]["count"] > 1000
    assert [row["held"] for row in header["cameras"]] == [False, True, False, False]
    stamp = page.stat().st_mtime_ns
    assert write_viewer_page(run, page).stat().st_mtime_ns == stamp  # kept
    write_gaussian_ply(run / "splats.ply", ring_gaussians(200))
    write_viewer_page(run, page)
    assert read_header(page.read_text("utf-8"))["splats"]["count"] == 200


def test_page_of_a_single_file(tmp_path: Path) -> None:
    write_gaussian_ply(tmp_path / "s.ply", ring_gaussians(50))
    page = write_viewer_page(tmp_path / "s.ply", tmp_path / "viewer.html")
    assert read_header(page.read_text("utf-8"))["splats"]["count"] == 50


def test_run_without_cameras_has_no_page(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {})
    with pytest.raises(InputError, match="no cameras yet"):
        write_viewer_page(tmp_path / "run", tmp_path / "viewer.html")
    assert not (tmp_path / "viewer.html").exists()
