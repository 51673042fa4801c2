import queue
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sightline.errors import Cancelled, InputError, OutputError, ReconstructionError
from sightline.geometry.align import align_umeyama, transform_cameras
from sightline.geometry.camera import project_points
from sightline.geometry.rotation import rotation_angle
from sightline.protocols import GeometryEstimator
from sightline.reconstruction import engine
from sightline.reconstruction.colmap import ColmapEstimator
from sightline.types import Cameras, Lenses, Reconstruction, Views
from tests.reconstruction import scenes

COUNT = 8


def quick(**options: Any) -> ColmapEstimator:
    return ColmapEstimator(num_threads=2, max_features=1500, **options)


class Log:
    """Remembers the stages; may cancel at one."""

    def __init__(self, cancel_at: str = "") -> None:
        self.calls: list[tuple[str, float, float]] = []
        self.cancel_at = cancel_at

    def __call__(self, stage: str, done: float, total: float) -> None:
        self.calls.append((stage, done, total))
        if stage == self.cancel_at:
            raise Cancelled("stopped by the user")

    @property
    def stages(self) -> set[str]:
        return {stage for stage, _, _ in self.calls}


@pytest.fixture(scope="session")
def scene() -> tuple[Views, Cameras]:
    w2c = scenes.orbit(COUNT)
    return scenes.views(w2c), scenes.cameras(w2c)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sfm")


@pytest.fixture(scope="session")
def found(scene: tuple[Views, Cameras], workspace: Path) -> Reconstruction:
    return quick(workspace=workspace).estimate(scene[0])


def errors(found: Cameras, truth: Cameras) -> tuple[float, float]:
    """Return mean rotation error in degrees and mean centre error over the largest distance."""
    centers = truth.centers
    aligned = transform_cameras(found, align_umeyama(found.centers, centers))
    angle = rotation_angle(aligned.w2c[:, :3, :3], truth.w2c[:, :3, :3]).rad2deg().mean()
    distance = (aligned.centers - centers).norm(dim=-1).mean() / torch.cdist(centers, centers).max()
    return float(angle), float(distance)


def test_finds_cameras_and_points(scene: tuple[Views, Cameras], found: Reconstruction):
    _, truth = scene
    assert isinstance(ColmapEstimator(), GeometryEstimator)
    assert found.registered.all()
    assert found.rejected == ()
    angle, distance = errors(found.cameras, truth)
    assert angle < 1.0
    assert distance < 0.005
    assert found.cameras.K[0, 0, 0].item() == pytest.approx(scenes.FOCAL, rel=0.02)
    assert (found.cameras.height, found.cameras.width) == scenes.SIZE
    assert found.lenses is not None
    assert found.lenses.sizes.tolist() == [list(scenes.SIZE)] * COUNT
    sparse = found.sparse
    assert sparse is not None
    assert sparse.errors is not None
    assert len(sparse.points) > 500
    assert sparse.errors.mean() < 0.7


def test_fixes_the_gauge_at_the_first_view(found: Reconstruction):
    assert torch.allclose(found.cameras.w2c[0], torch.eye(4, dtype=torch.float64), atol=1e-9)
    assert found.sparse is not None
    _, depth = project_points(found.sparse.points.double(), found.cameras)
    rows = found.sparse.tracks.long()
    assert depth[rows[:, 1], rows[:, 0]].median().item() == pytest.approx(1, abs=1e-3)


def test_points_lie_where_their_views_show_their_colour(
    scene: tuple[Views, Cameras], found: Reconstruction
):
    views, sparse = scene[0], found.sparse
    assert sparse is not None
    pixels, depth = project_points(sparse.points.double(), found.cameras)
    point, view = sparse.tracks.long().unbind(-1)
    assert (sparse.tracks[:, 0].diff() >= 0).all()
    assert torch.bincount(point).min() >= 2
    assert (depth[view, point] > 0).all()
    x, y = pixels[view, point].floor().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < scenes.SIZE[1]) & (y < scenes.SIZE[0])
    assert inside.float().mean() > 0.97
    shown = views.images[view[inside], :, y[inside], x[inside]].float()
    assert (shown - sparse.colors[point[inside]].float()).abs().mean() < 15


def test_says_nothing_on_the_terminal(
    scene: tuple[Views, Cameras], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    views = some(scene[0], [0, 2])
    found = quick(workspace=tmp_path).estimate(views)
    assert found.registered.all()
    assert capfd.readouterr() == ("", "")
    assert "Processed file [2/2]" in (tmp_path / "colmap.log").read_text()


def some(views: Views, chosen: list[int]) -> Views:
    return Views(
        images=views.images[chosen],
        names=tuple(views.names[i] for i in chosen),
        from_original=views.from_original[chosen],
        sizes=views.sizes[chosen],
    )


def test_reuses_a_finished_result_and_repeats_an_interrupted_one(
    scene: tuple[Views, Cameras], found: Reconstruction, workspace: Path
):
    log = Log()
    again = quick(workspace=workspace, progress=log).estimate(scene[0])
    assert log.stages == set()
    assert torch.equal(again.cameras.w2c, found.cameras.w2c)
    (workspace / "result.npz").unlink()
    repeated = quick(workspace=workspace, progress=log).estimate(scene[0])
    assert "mapping" in log.stages
    assert not log.stages & {"features", "matching"}
    angle, distance = errors(repeated.cameras, found.cameras)
    assert angle < 0.1
    assert distance < 1e-3


def test_other_pictures_start_afresh(scene: tuple[Views, Cameras], tmp_path: Path):
    quick(workspace=tmp_path).estimate(some(scene[0], [0, 2]))
    log = Log()
    found = quick(workspace=tmp_path, progress=log).estimate(some(scene[0], [1, 3]))
    assert "features" in log.stages
    assert found.registered.all()


def test_cancelling_stops_soon_and_leaves_a_workspace_to_resume(
    scene: tuple[Views, Cameras], found: Reconstruction, tmp_path: Path
):
    for stage in ("features", "mapping"):
        log = Log(cancel_at=stage)
        with pytest.raises(Cancelled, match="stopped by the user"):
            quick(workspace=tmp_path, progress=log).estimate(scene[0])
        assert not (tmp_path / "result.npz").exists()
    log = Log()
    resumed = quick(workspace=tmp_path, progress=log).estimate(scene[0])
    assert "features" not in log.stages
    angle, _ = errors(resumed.cameras, found.cameras)
    assert angle < 0.1


def test_progress_moves_forward_in_each_stage(scene: tuple[Views, Cameras]):
    log = Log()
    quick(progress=log).estimate(some(scene[0], [0, 1, 2]))
    for stage in ("features", "matching", "mapping", "refine"):
        done = [d / t for s, d, t in log.calls if s == stage]
        assert done, stage
        assert all(0 <= value <= 1 for value in done)
    assert [d for s, d, _ in log.calls if s == "features"][-1] == 3


def test_calls_progress_while_the_worker_says_nothing():
    messages: queue.SimpleQueue[dict[str, object] | None] = queue.SimpleQueue()
    messages.put({"stage": "mapping", "done": 1, "total": 3})
    calls = []

    def progress(*call: object) -> None:
        calls.append(call)
        if len(calls) == 4:
            messages.put(None)

    assert engine._follow(messages, progress) == {}
    assert calls == [("mapping", 1.0, 3.0)] * 4


def test_one_photo_and_none():
    views = scenes.views(scenes.orbit(1))
    with pytest.raises(InputError, match="one photo does not show depth.*learned model"):
        ColmapEstimator().estimate(views)
    with pytest.raises(InputError, match="expected two or more pictures, got none"):
        ColmapEstimator().estimate(some(views, []))


def test_names_views_that_do_not_belong(scene: tuple[Views, Cameras]):
    views = some(scene[0], [0, 1, 2, 3, 4, 5])
    other = scenes.views(scenes.orbit(1), seed=7)
    plain = torch.full_like(other.images, 128)
    mixed = Views(
        images=torch.cat([views.images, other.images, plain]),
        names=(*views.names, "other.png", "plain.png"),
        from_original=torch.eye(3).expand(8, 3, 3),
        sizes=torch.cat([views.sizes, other.sizes, other.sizes]),
    )
    found = quick().estimate(mixed)
    assert found.registered.tolist() == [True] * 6 + [False] * 2
    assert found.cameras.w2c[6:].isnan().all()
    reasons = dict(found.rejected)
    assert reasons["other.png"].startswith("no other picture shows enough of the same")
    assert re.match("only 0 features: the picture is blurred", reasons["plain.png"])


def test_too_few_registered_views_is_an_error_with_reasons():
    views = [scenes.views(scenes.orbit(1), seed=seed) for seed in range(4)]
    mixed = Views(
        images=torch.cat([v.images for v in views]),
        names=("a.png", "b.png", "c.png", "d.png"),
        from_original=torch.eye(3).expand(4, 3, 3),
        sizes=torch.cat([v.sizes for v in views]),
    )
    with pytest.raises(
        ReconstructionError,
        match=r"only 0 of 4 pictures found a place.*at least 3 \(a.png and 3 others: no other "
        r"picture shows enough of the same.*Take more pictures.*--geometry vggt",
    ):
        quick().estimate(mixed)


def test_turning_on_the_spot_is_named():
    w2c = scenes.orbit(1).expand(6, 4, 4).clone()
    for i, angle in enumerate(np.linspace(-0.12, 0.12, 6)):
        turn = torch.eye(4, dtype=torch.float64)
        turn[0, 0] = turn[2, 2] = np.cos(angle)
        turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)
        w2c[i] = turn @ w2c[i]
    with pytest.raises(ReconstructionError, match="only by a turn on the spot"):
        quick().estimate(scenes.views(w2c))


def test_keeps_known_lenses(scene: tuple[Views, Cameras], tmp_path: Path):
    bent = scenes.lens(310.0, 163.0, 118.0, bend=(-0.1, 0.02))
    w2c = scenes.orbit(4, span=1.0)
    drawn = scenes.views(w2c, bent)
    count = len(drawn)
    lenses = Lenses(
        K=torch.from_numpy(bent.K).expand(count, 3, 3),
        distortion=torch.tensor([[*bent.bend, 0, 0, 0, 0, 0, 0]]).expand(count, 8).double(),
        fisheye=torch.zeros(count, dtype=torch.bool),
        sizes=drawn.sizes,
    )
    files = []
    for i in range(count):
        files.append(tmp_path / f"{i} ö.png")
        picture = drawn.images[i].permute(1, 2, 0).numpy()[..., ::-1]
        files[-1].write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    views = Views(
        images=drawn.images[:, :, ::4, ::4].contiguous(),
        names=drawn.names,
        from_original=torch.diag(torch.tensor([0.25, 0.25, 1.0])).expand(count, 3, 3),
        sizes=drawn.sizes // 4,
        files=tuple(files),
        lenses=lenses,
    )
    found = quick().estimate(views)
    assert found.lenses is not None
    assert torch.allclose(found.lenses.K, lenses.K, atol=1e-9)
    assert torch.allclose(found.lenses.distortion, lenses.distortion, atol=1e-12)
    angle, distance = errors(found.cameras, scenes.cameras(w2c))
    assert angle < 0.5
    assert distance < 0.01
    assert not torch.allclose(found.cameras.K, lenses.K)  # pinhole without blank borders


def test_a_picture_of_another_size_than_its_lens_is_refused(scene: tuple[Views, Cameras]):
    views = some(scene[0], [0, 1])
    wrong = Lenses(
        K=torch.eye(3).expand(2, 3, 3),
        distortion=torch.zeros(2, 8),
        fisheye=torch.zeros(2, dtype=torch.bool),
        sizes=views.sizes * 2,
    )
    views = Views(
        images=views.images,
        names=views.names,
        from_original=views.from_original,
        sizes=views.sizes,
        lenses=wrong,
    )
    with pytest.raises(InputError, match="view00.png is 320 x 240, but its lens was measured at"):
        ColmapEstimator().estimate(views)


def test_a_missing_or_damaged_picture_is_named(tmp_path: Path, scene: tuple[Views, Cameras]):
    views = some(scene[0], [0, 1])
    files = (tmp_path / "a.png", tmp_path / "b.png")
    for file in files:
        file.write_bytes(b"not a picture")

    def with_files() -> Views:
        return Views(
            images=views.images,
            names=views.names,
            from_original=views.from_original,
            sizes=views.sizes,
            files=files,
        )

    with pytest.raises(InputError, match="a.png"):
        ColmapEstimator().estimate(with_files())
    files[0].unlink()
    with pytest.raises(InputError, match="1 are missing .first: .*a.png"):
        ColmapEstimator().estimate(with_files())


def test_a_workspace_that_cannot_be_made(tmp_path: Path, scene: tuple[Views, Cameras]):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        quick(workspace=tmp_path / "file" / "sfm").estimate(some(scene[0], [0, 1]))


def test_a_broken_engine_names_its_log(tmp_path: Path, scene: tuple[Views, Cameras]):
    (tmp_path / "database.db").mkdir()  # COLMAP cannot open it, and forgetting cannot remove it
    with pytest.raises(ReconstructionError, match=r"broke down \(exit code 1\).*colmap.log"):
        quick(workspace=tmp_path).estimate(some(scene[0], [0, 1]))


def test_two_sizes_are_two_cameras_and_masks_are_obeyed():
    w2c = scenes.orbit(6)
    large = scenes.views(w2c[:3])
    small = scenes.views(w2c[3:], scenes.lens(225.0, 120.0, 90.0), size=(180, 240))
    images = torch.zeros(6, 3, *scenes.SIZE, dtype=torch.uint8)
    images[:3], images[3:, :, :180, :240] = large.images, small.images
    masks = torch.ones(6, *scenes.SIZE, dtype=torch.bool)
    masks[3:, 180:] = False
    masks[3:, :, 240:] = False
    masks[0, :, :160] = False
    views = Views(
        images=images,
        names=(*large.names, "s3", "s4", "s5"),
        from_original=torch.eye(3).expand(6, 3, 3),
        sizes=torch.cat([large.sizes, small.sizes]),
        masks=masks,
    )
    found = quick().estimate(views)
    assert found.registered.all()
    assert found.lenses is not None
    assert found.lenses.sizes.tolist() == [[240, 320]] * 3 + [[180, 240]] * 3
    K = found.lenses.K
    assert torch.equal(K[0], K[2])
    assert K[3, 0, 0] / K[0, 0, 0] == pytest.approx(0.75, rel=0.05)
    sparse = found.sparse
    assert sparse is not None
    pixels, _ = project_points(sparse.points.double(), found.cameras.select([0]))
    seen = sparse.tracks[sparse.tracks[:, 1] == 0, 0].long()
    assert len(seen) > 20
    assert (pixels[0, seen, 0] > 155).all()


@pytest.mark.slow
def test_the_global_mapper_and_a_bent_shifted_lens():
    bent = scenes.lens(300.0, 166.0, 117.0, bend=(0.08, -0.05))
    w2c = scenes.orbit(12, span=2.0)
    for mapper in ("incremental", "global"):
        found = quick(mapper=mapper).estimate(scenes.views(w2c, bent))
        assert found.registered.all()
        assert found.lenses is not None
        assert found.lenses.K[0, 0, 0].item() == pytest.approx(300, rel=0.02)
        angle, _ = errors(found.cameras, scenes.cameras(w2c))
        assert angle < 0.6


@pytest.mark.slow
def test_fox(shared_data: Path):
    import json

    from sightline.geometry.pose import invert_se3, opencv_from_opengl
    from sightline.io.views import load_views

    folder = shared_data / "fox"
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    poses = {Path(f["file_path"]).name: f["transform_matrix"] for f in frames}
    files = sorted((folder / "images").iterdir())
    views = load_views(files, [f.name for f in files], long_side=64)
    found = ColmapEstimator(num_threads=2).estimate(views)
    c2w = opencv_from_opengl(
        torch.tensor([poses[name] for name in views.names], dtype=torch.float64)
    )
    truth = Cameras(w2c=invert_se3(c2w), K=found.cameras.K, height=found.cameras.height, width=540)
    assert found.registered.all()
    angle, distance = errors(found.cameras, truth)
    assert angle < 0.6
    assert distance < 0.0015
