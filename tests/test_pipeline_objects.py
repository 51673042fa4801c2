"""``segment lift`` on a small finished run: numbered masks, folders of masks, a bank, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.cli import main
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import InputError
from sightline.io.arrays import read_npz
from sightline.io.ply import read_gaussian_ply
from sightline.pipeline.objects import lift_run
from sightline.segmentation import FewShotSegmenter
from sightline.segmentation.encoder import create_encoder
from sightline.segmentation.references import Reference

SIZE = {"num_views": 8, "height": 60, "width": 80, "kind": "simple", "num_points": 800}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sightline.Run:
    folder = tmp_path_factory.mktemp("objects")
    write_scene(make_scene(**SIZE), folder / "photos")
    options = {"geometry": "given", "steps": 120, "max_splats": 4000}
    return sightline.reconstruct(folder / "photos", folder / "scene", **options)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    truth = make_scene(**SIZE).ground_truth
    assert truth is not None
    return truth.raw.labels


@pytest.fixture(scope="module")
def masks(
    run: sightline.Run, labels: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    for name, plane in zip(run.camera_file().names, labels, strict=True):
        picture = Image.fromarray(plane.numpy().astype(np.uint8))
        picture.save(folder / Path(name).with_suffix(".png").name)
    return folder


def test_numbered_masks_become_objects(
    run: sightline.Run, masks: Path, labels: torch.Tensor, tmp_path: Path
) -> None:
    output = tmp_path / "lifted"
    lift_run(run.path, output, masks=masks)
    rows = json.loads((output / "objects.json").read_text())["objects"]
    assert [row["number"] for row in rows] == [1, 2]
    assert len(rows[0]["views"]) == 8
    splats = run.splats()
    assert splats is not None
    counts = [len(read_gaussian_ply(output / row["file"])) for row in rows]
    assert counts == [row["splats"] for row in rows]
    assert sum(counts) + len(read_gaussian_ply(output / "rest.ply")) == len(splats)
    stored = read_npz(output / "objects.npz")
    assert stored["owner"].shape == (len(splats),)
    name = Path(run.camera_file().names[2]).stem
    with Image.open(output / "masks" / f"{name}.png") as picture:
        drawn = torch.from_numpy(np.asarray(picture).astype(np.int64))
    for number in (1, 2):
        both = ((drawn == number) & (labels[2] == number)).sum()
        either = ((drawn == number) | (labels[2] == number)).sum()
        assert both / either > 0.6
    assert (output / "overlays" / f"{name}.png").is_file()


def test_a_folder_an_object_gives_names(
    run: sightline.Run, masks: Path, labels: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "masks" / "ball").mkdir(parents=True)
    for name, plane in zip(run.camera_file().names[:4], labels, strict=False):
        ball = Image.fromarray((plane.numpy() == 1).astype(np.uint8) * 255)
        ball.save(tmp_path / "masks" / "ball" / f"{Path(name).stem}.png")
    lift_run(run.path, tmp_path / "lifted", masks=tmp_path / "masks")
    (row,) = json.loads((tmp_path / "lifted" / "objects.json").read_text())["objects"]
    assert row["name"] == "ball"
    assert row["file"] == "objects/001_ball.ply"
    assert len(row["views"]) == 4


def test_a_bank_finds_the_masks(run: sightline.Run, masks: Path, tmp_path: Path) -> None:
    """Colours alone do not find much; what counts is that the whole way works."""
    name = run.camera_file().names[0]
    with Image.open(masks / f"{Path(name).stem}.png") as picture:
        ball = torch.from_numpy(np.asarray(picture) == 1)
    reference = Reference(image=run.path / "images" / name, label="ball", mask=ball)
    encoder = create_encoder("colour", size=64, device="cpu")
    segmenter = FewShotSegmenter(encoder).fit([reference])
    lift_run(run.path, tmp_path / "lifted", segmenter=segmenter)
    rows = json.loads((tmp_path / "lifted" / "objects.json").read_text())["objects"]
    assert all(row["name"] == "ball" for row in rows)


def test_bad_input_is_explained_and_leaves_nothing(
    run: sightline.Run, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture in .* is named like a view"):
        lift_run(run.path, output, masks=tmp_path / "empty")
    name = Path(run.camera_file().names[0]).stem
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    Image.fromarray(np.ones((7, 9), np.uint8)).save(wrong / f"{name}.png")
    with pytest.raises(InputError, match="80 x 60 pixels, the size of the photo, got 9 x 7"):
        lift_run(run.path, output, masks=wrong)
    whole = (masks / f"{name}.png").read_bytes()
    (wrong / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        lift_run(run.path, output, masks=wrong)
    with pytest.raises(SystemExit) as stop:
        main(["segment", "lift", str(run.path), "-o", str(output)])
    assert stop.value.code == 2
    assert "--masks, or a memory bank" in capsys.readouterr().err
    assert not output.exists()
    lift_run(run.path, output, masks=masks)
    with pytest.raises(InputError, match="exists already"):
        lift_run(run.path, output, masks=masks)


def test_an_object_and_the_scene_without_it_are_plain_splat_files(
    run: sightline.Run, masks: Path, tmp_path: Path
) -> None:
    output = tmp_path / "lifted"
    lift_run(run.path, output, masks=masks)
    rows = json.loads((output / "objects.json").read_text())["objects"]
    splats = run.splats()
    assert splats is not None
    everything = {tuple(row) for row in splats.means.tolist()}
    for row in rows:
        parts = [plain_centres(output / row[key]) for key in ("file", "without")]
        assert len(parts[0]) == row["splats"]
        assert len(parts[0]) + len(parts[1]) == len(splats)
        assert {tuple(p) for p in np.concatenate(parts).tolist()} == everything
        assert set(row["trust"]) == set(row["views"])


def plain_centres(path: Path) -> np.ndarray:
    """Read the centres of a splat file by its header alone, as other programs do."""
    data = path.read_bytes()
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    assert {"f_dc_0", "opacity", "scale_2", "rot_3"} <= set(names)
    table = np.frombuffer(body, np.dtype([(name, "<f4") for name in names]), count)
    assert table.nbytes == len(body)
    return np.stack([table["x"], table["y"], table["z"]], -1)
