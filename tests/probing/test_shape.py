"""DTU's measures of shape against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.geometry.rotation import so3_exp
from sightline.probing.shape import (
    aligned_centers,
    error_colors,
    point_errors,
    shape_errors,
    write_metrics_3d,
)


def cube() -> torch.Tensor:
    side = torch.arange(4.0)
    return torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)


def test_a_similarity_is_no_error() -> None:
    truth = cube()
    turn = so3_exp(torch.tensor([0.3, -0.2, 0.5]))
    centers = 0.4 * truth @ turn.mT + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(aligned_centers(centers, truth).float(), truth, rtol=1e-4, atol=1e-4)
    assert all(v == pytest.approx(0, abs=1e-2) for v in shape_errors(centers, truth).values())


def test_distances_by_hand() -> None:
    # Symmetric moves of eight far corners by +-0.25 along x leave the similarity at identity, but
    # for its scale, which is read back from the result.
    truth = cube()
    centers = truth.clone()
    centers[0], centers[-1] = truth[-1], truth[0]  # two opposite corners change places
    errors = point_errors(centers, truth)
    moved = aligned_centers(centers, truth).numpy()
    gaps = np.linalg.norm(moved[:, None] - truth.numpy()[None], axis=-1)  # every pair
    np.testing.assert_allclose(errors["accuracy"], gaps.min(1), atol=1e-9)
    np.testing.assert_allclose(errors["completion"], gaps.min(0), atol=1e-9)
    np.testing.assert_allclose(errors["distance"], gaps.diagonal(), atol=1e-9)
    # Matched pairs see the exchange, nearest neighbours hardly do.
    assert errors["distance"].max() > 4
    assert errors["accuracy"].max() < 0.5
    found = shape_errors(centers, truth, unit=2.0)
    assert found["distance"] == pytest.approx(1000 * gaps.diagonal().mean() / 2)
    assert found["accuracy_median"] == pytest.approx(1000 * np.sort(gaps.min(1))[31] / 2)


def test_centres_without_extent_have_no_error() -> None:
    assert math.isnan(shape_errors(torch.zeros(64, 3), cube())["accuracy"])


def test_file_of_the_authors(tmp_path: Path) -> None:
    names = ("accuracy", "completion", "distance")
    errors = {n: 1.0 for name in names for n in (name, f"{name}_median")}
    write_metrics_3d(tmp_path / "3d_metrics.json", errors, 8000)
    values = json.loads((tmp_path / "3d_metrics.json").read_text())["ours_8000"]["threshold_0.0"]
    assert set(values) == {"Accuracy", "Acc_med", "Completion", "Comp_med", "Distance", "Dist_med"}
    assert values["Accuracy"] == 0.001


def test_colours_of_errors() -> None:
    found = error_colors(torch.tensor([0.0, 2.5, 5.0, 7.5, 10.0, 99.0]), 10.0)
    want = [[0, 0, 0.5], [0, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 0], [0.5, 0, 0], [0.5, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(want))
