import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from sightline.errors import FileFormatError, InputError, MissingExtraError, OutputError
from sightline.io.arrays import read_npz
from sightline.io.manifest import Record, read_manifest
from sightline.preparation.journal import Journal
from sightline.preparation.options import PrepareOptions
from sightline.preparation.prepare import Prepared, plan, prepare
from tests.faults import fill_disk
from tests.io.clips import moving, write_clip
from tests.io.pictures import texture
from tests.io.rasters import radiometric, write_raster


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def read(output: Path, file: str | None) -> np.ndarray:
    assert file is not None
    pixels = cv2.imread(str(output / file), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels[..., ::-1] if pixels.ndim == 3 else pixels


def run(tmp_path: Path, *inputs: Path, output: str = "out", **options: Any) -> Prepared:
    return prepare(list(inputs), tmp_path / output, PrepareOptions(**options))


def only(result: Prepared) -> Record:
    (record,) = result.records
    return record


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the journal, whose lines stand as they were finished; without the date."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".prepare.jsonl":
            data = path.read_bytes()
            if path.name == "manifest.json":
                data = json.dumps(json.loads(data) | {"created": ""}).encode()
            found[path.relative_to(folder).as_posix()] = data
    return found


def raw_counts(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return (texture(height, width, seed)[..., 0].astype(np.uint16) * 37 + 9000).astype(np.uint16)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    root = tmp_path / "mixed"
    for i in range(4):
        save(root / "cats" / f"{i}.jpg", texture(60, 80, i))
        save(root / "thermal" / f"t{i}.png", raw_counts(seed=i))
    save(root / "nir" / "a.png", texture(30, 30)[..., 0])
    write_raster(root / "land.tif", np.stack([raw_counts()] * 3, -1), nodata="9000")
    write_clip(root / "clip.mp4", moving(12))
    return root


def test_all_modalities_at_once(tmp_path: Path, mixed: Path) -> None:
    result = run(tmp_path, mixed, size=32, every=1, max_video_frames=5)
    counts: dict[tuple[str, str], int] = {}
    for record in result.records:
        counts[record.modality, record.kind] = counts.get((record.modality, record.kind), 0) + 1
        pixels = read(result.manifest.parent, record.file)
        assert pixels.shape == (record.height, record.width, record.channels)
        assert str(pixels.dtype) == record.dtype
        assert max(record.width, record.height) == 32
    assert counts == {
        ("visible", "image"): 4,
        ("thermal", "image"): 4,
        ("ir", "image"): 1,
        ("satellite", "image"): 1,
        ("visible", "frame"): 5,
    }
    records, notes = read_manifest(result.manifest)
    assert (records, notes) == (result.records, result.notes)


def test_workers_and_repeats_change_nothing(tmp_path: Path, mixed: Path) -> None:
    first = run(tmp_path, mixed, output="a", size=32, workers=1, val_split=0.4)
    second = run(tmp_path, mixed, output="b", size=32, workers=4, val_split=0.4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (first.made, first.reused, second.made) == (11, 0, 11)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.*") if p.is_file()}
    again = run(tmp_path, mixed, output="a", size=32, workers=2, val_split=0.4)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.*") if p.is_file()}
    assert (again.made, again.reused) == (0, 11)
    assert {p.name: t for p, t in before.items() if p.suffix != ".jsonl"} == {
        p.name: t for p, t in after.items() if p.suffix != ".jsonl"
    }


@pytest.mark.parametrize("writes", [0, 5, 14])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    run(tmp_path, mixed, output="whole", size=32, workers=1)
    with monkeypatch.context() as patch:
        fill_disk(patch, after=writes)
        with pytest.raises(OutputError, match="no space left on device; free some space"):
            run(tmp_path, mixed, output="a", size=32, workers=1)
    assert not (tmp_path / "a" / "manifest.json").exists()
    run(tmp_path, mixed, output="a", size=32, workers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_damaged_files_are_made_again(tmp_path: Path, mixed: Path) -> None:
    run(tmp_path, mixed, output="a", size=32)
    before = contents(tmp_path / "a")
    for file in sorted((tmp_path / "a" / "images").iterdir())[:3]:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    again = run(tmp_path, mixed, output="a", size=32)
    assert 1 <= again.made <= 3
    assert contents(tmp_path / "a") == before


def test_killed_run_goes_on(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "in" / f"{i:02d}.png", texture(200, 300, i))
    command = [sys.executable, "-m", "sightline", "prepare", "in", "-o", "out", "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "out" / ".prepare.jsonl"
    while process.poll() is None and not (
        journal.is_file() and journal.read_bytes().count(b"\n") > 4
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = len(journal.read_bytes().decode().splitlines()) - 1
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')  # as a kill in the middle of a line leaves it
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        resumed = prepare(["in"], Path("out"), PrepareOptions(workers=2))
        prepare(["in"], Path("whole"), PrepareOptions())
    finally:
        os.chdir(here)
    assert resumed.reused >= done - 1
    assert resumed.made + resumed.reused == 40
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_thermal_values_come_back(tmp_path: Path) -> None:
    frames = [raw_counts(seed=i) + np.uint16(2000 * i) for i in range(3)]
    for i, counts in enumerate(frames):
        save(tmp_path / "flir" / f"{i}.png", counts)
    result = run(tmp_path, tmp_path / "flir", size=0)
    low, high = np.percentile(np.stack(frames), (1, 99))
    for record, counts in zip(result.records, frames, strict=True):
        span = record.range
        assert span is not None
        assert (span["rule"], span["low"], span["high"]) == ("percentile", 1.0, 99.0)
        assert span["min"] == pytest.approx(low)  # one range for the whole sequence
        assert span["max"] == pytest.approx(high)
        stored = read(tmp_path / "out", record.file)[..., 0].astype(float)
        back = span["min"] + stored / span["levels"] * (span["max"] - span["min"])
        step = (span["max"] - span["min"]) / 255
        assert np.abs(back - counts.clip(low, high)).max() <= 0.51 * step
        np.testing.assert_array_equal(read(tmp_path / "out", record.raw_file), counts)


def test_keep_16bit_keeps_counts(tmp_path: Path) -> None:
    counts = raw_counts()
    record = only(run(tmp_path, save(tmp_path / "lwir.png", counts), size=0, keep_16bit=True))
    assert (record.dtype, record.channels, record.modality) == ("uint16", 1, "thermal")
    np.testing.assert_array_equal(read(tmp_path / "out", record.file), counts)


def test_degrees_and_raw_ranges(tmp_path: Path) -> None:
    path = save(tmp_path / "thermal.png", raw_counts())
    record = only(run(tmp_path, path, range="-20C,80C", gain=0.04, offset=-273.15, size=0))
    assert record.range is not None
    assert record.range["min"] == pytest.approx(253.15 / 0.04)
    assert (record.range["unit"], record.range["gain"]) == ("celsius", 0.04)
    record = only(run(tmp_path, path, output="raw", range="9000,12000", size=0))
    assert record.range is not None
    assert (record.range["rule"], record.range["min"], record.range["max"]) == (
        "fixed",
        9000.0,
        12000.0,
    )


def test_radiometric_jpeg_gives_its_counts(tmp_path: Path) -> None:
    counts = raw_counts()
    (tmp_path / "photo.jpg").write_bytes(radiometric(counts))
    record = only(run(tmp_path, tmp_path / "photo.jpg"))
    assert (record.modality, record.source_dtype, record.source_width) == ("thermal", "uint16", 60)
    assert record.exif is not None
    assert record.exif["FLIR"]["PlanckB"] == 1400.0
    np.testing.assert_array_equal(read(tmp_path / "out", record.raw_file), counts)


def test_depth_joins_the_picture_of_its_name(tmp_path: Path) -> None:
    root = tmp_path / "scan"
    for i in range(2):
        save(root / "color" / f"{i}.jpg", texture(40, 60, i))
        save(root / "depth" / f"{i}.png", raw_counts(seed=i))
    save(root / "depth" / "lonely.png", raw_counts())
    result = run(tmp_path, root, size=30)
    first, second, alone = result.records
    assert [r.modality for r in result.records] == ["visible", "visible", "depth"]
    assert alone.file.startswith("depth/")
    assert any("1 depth maps belong to no picture" in note for note in result.notes)
    assert first.depth is not None
    assert second.depth is not None
    file = f"depth/{second.id}.png"
    assert second.depth == {"file": file, "scale": 0.001, "unit": "m", "invalid": 0}
    nearest = raw_counts(seed=0)[1::2, 1::2]
    np.testing.assert_array_equal(read(tmp_path / "out", first.depth["file"]), nearest)


def test_raster_tiles_carry_their_place(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(100, 4000, (50, 70, 3)).astype(np.uint16)
    values[:, 36:] = 0
    path = write_raster(tmp_path / "land.tif", values, nodata="0", names=("a", "red", "b"))
    result = run(tmp_path, path, tile=32, overlap=8, keep_16bit=True)
    starts = [(r.transform[1][2], r.transform[0][2]) for r in result.records if r.transform]
    assert starts == [(0, 0), (0, 24), (18, 0), (18, 24)]  # from 38 on there is no data
    assert any("left out 2 of 6 parts without data" in note for note in result.notes)
    for record, (row, column) in zip(result.records, starts, strict=True):
        y, x = int(row), int(column)
        assert record.id == f"land_r{y:05d}_c{x:05d}"
        assert record.geo is not None
        assert record.geo["geotransform"] == [500000 + 10 * x, 10, 0, 4000000 - 10 * y, 0, -10]
        assert record.bands == ["a", "red", "b"]
        tile = values[y : y + 32, x : x + 32]
        np.testing.assert_array_equal(read(tmp_path / "out", record.file), tile)
        if record.mask is not None:
            mask = read(tmp_path / "out", record.mask)
            np.testing.assert_array_equal(mask > 0, (tile != 0).any(-1))
    assert result.records[1].mask is not None


def test_raster_bands_are_stretched_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(0, 100 * 9**i, (40, 40)) for i in range(3)], -1)
    values = values.astype(np.uint16)
    record = only(run(tmp_path, write_raster(tmp_path / "a.tif", values), size=0, bands="2,0,1"))
    assert record.range is not None
    expected = np.percentile(values[..., [2, 0, 1]].reshape(-1, 3), (2, 98), axis=0)
    np.testing.assert_allclose([record.range["min"], record.range["max"]], expected)
    assert record.bands == [2, 0, 1]


def test_resizing_does_not_mix_missing_data_in(tmp_path: Path) -> None:
    values = np.full((64, 64, 3), 3000, np.uint16)
    values[:, 30:] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata="0")
    record = only(run(tmp_path, path, size=16, keep_16bit=True))
    pixels = read(tmp_path / "out", record.file)
    mask = read(tmp_path / "out", record.mask) > 0
    assert (pixels[mask] == 3000).all()
    assert mask[:, :8].all()
    assert not mask[:, 8:].any()


def test_many_bands_are_kept_beside(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (20, 30, 6)).astype(np.uint16)
    names = ("B1", "blue", "green", "red", "nir", "swir")
    path = write_raster(tmp_path / "a.tif", values, names=names)
    try:
        import tifffile  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(MissingExtraError, match=r'pip install "sightline\[geo\]"'):
            run(tmp_path, path)
        return
    record = only(run(tmp_path, path, size=0, bands="all"))
    assert record.bands == ["red", "green", "blue", "B1", "nir", "swir"]
    kept = read_npz(tmp_path / "out" / str(record.bands_file))["values"]
    np.testing.assert_array_equal(kept, values[..., [3, 2, 1, 0, 4, 5]])


@pytest.mark.parametrize(
    ("mode", "shape"), [("resize", (16, 32)), ("crop", (32, 32)), ("pad", (32, 32))]
)
def test_transform_leads_back_to_the_stored_pixels(
    tmp_path: Path, mode: str, shape: tuple[int, int]
) -> None:
    """A bright square is found where the transform of the processed one points."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[20:30, 50:60] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    record = only(run(tmp_path, path, size=32, mode=mode))
    small = read(tmp_path / "out", record.file)[..., 0].astype(float)
    assert small.shape == shape
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    place = [(columns * small).sum() / small.sum(), (rows * small).sum() / small.sum(), 1]
    np.testing.assert_allclose(np.array(record.transform) @ place, (55, 25), atol=0.2)
    assert (record.mask is not None) == (mode == "pad")


def test_camera_follows_the_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", texture(60, 120))
    told = {"a.png": {"camera": {"model": "PINHOLE", "params": [100.0, 100.0, 60.0, 30.0]}}}
    (tmp_path / "m.json").write_text(json.dumps(told))
    metadata = str(tmp_path / "m.json")
    record = only(run(tmp_path, tmp_path / "a.png", size=30, mode="crop", metadata_json=metadata))
    assert record.camera == {
        "model": "PINHOLE",
        "params": [50.0, 50.0, 15.0, 15.0],
        "source": "given",
    }


def test_metadata_is_merged_and_mismatches_are_named(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", texture(20, 20))
    save(tmp_path / "in" / "b.png", texture(20, 20, 1))
    rows = [
        {"file": "a.png", "modality": "ir", "split": "test", "group": "g", "weather": "rain"},
        {"path": "gone.png"},
    ]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    metadata = str(tmp_path / "m.json")
    result = run(tmp_path, tmp_path / "in", metadata_json=metadata, val_split=0.5)
    first = result.records[0]
    assert (first.modality, first.split, first.group) == ("ir", "test", "g")
    assert first.labels == {"weather": "rain"}
    assert any("1 entries of m.json match no file: gone.png" in note for note in result.notes)
    assert any("1 files have no entry in m.json: b.png" in note for note in result.notes)
    with pytest.raises(InputError, match="gone.png"):
        run(tmp_path, tmp_path / "in", output="strict", metadata_json=metadata, strict=True)


def test_duplicates_and_blurred_pictures_stay_out(tmp_path: Path) -> None:
    picture = texture(80, 80)
    save(tmp_path / "in" / "a.png", picture)
    save(tmp_path / "in" / "b.jpg", picture, quality=60)
    save(tmp_path / "in" / "c.png", texture(80, 80, 5))
    save(tmp_path / "in" / "d.png", cv2.GaussianBlur(texture(80, 80, 9), (0, 0), 6))
    result = run(tmp_path, tmp_path / "in", dedup=True, min_sharpness=50.0)
    assert [r.id for r in result.records] == ["a", "c"]
    assert any("b (like a)" in note for note in result.notes)
    assert any("left out 1 blurred pictures (sharpness): d" in note for note in result.notes)
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == ["a.png", "c.png"]
    assert run(tmp_path, tmp_path / "in", dedup=True, min_sharpness=50.0).made == 0


def test_broken_files_are_named_and_skipped(tmp_path: Path) -> None:
    root = tmp_path / "in"
    save(root / "good.png", texture(30, 40))
    (root / "text.jpg").write_text("not a picture")
    (root / "empty.png").write_bytes(b"")
    whole = save(root / "cut.png", texture(90, 90)).read_bytes()
    (root / "cut.png").write_bytes(whole[:2000])
    (root / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\x30\0broken")
    (root / "cut.mp4").write_bytes(write_clip(tmp_path / "clip.mp4", moving(5)).read_bytes()[:900])
    (root / "cut_flir.jpg").write_bytes(radiometric(raw_counts())[:3000])
    with pytest.raises(FileFormatError, match=r"empty\.png"):
        run(tmp_path, root)
    assert not (tmp_path / "out").exists()
    result = run(tmp_path, root, keep_going=True)
    assert [r.id for r in result.records] == ["good"]
    told = " ".join(result.skipped)
    for name in ("text.jpg", "empty.png", "cut.png", "cut.tif", "cut.mp4", "cut_flir.jpg"):
        assert name in told
    assert len(result.skipped) == 6


def test_a_broken_picture_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i in range(6):
        save(root / f"{i}.png", texture(30, 40, i))
    whole = (root / "4.png").read_bytes()
    (root / "4.png").write_bytes(whole[:500])
    with pytest.raises(FileFormatError, match=r"4\.png"):
        run(tmp_path, root, workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (root / "4.png").write_bytes(whole)
    result = run(tmp_path, root)
    assert result.reused >= 4
    assert len(result.records) == 6


def test_changed_sources_are_prepared_again(tmp_path: Path) -> None:
    root = tmp_path / "in"
    save(root / "a.png", texture(30, 40))
    save(root / "b.png", texture(30, 40, 1))
    run(tmp_path, root)
    save(root / "b.png", texture(30, 40, 2))
    save(root / "c.png", texture(30, 40, 3))
    result = run(tmp_path, root)
    assert (result.made, result.reused) == (2, 1)
    (root / "a.png").unlink()
    assert [r.id for r in run(tmp_path, root).records] == ["b", "c"]
    assert not (tmp_path / "out" / "images" / "a.png").exists()
    (tmp_path / "out" / "images" / "b.png").unlink()
    run(tmp_path, root)
    assert (tmp_path / "out" / "images" / "b.png").exists()


def test_other_options_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", texture(30, 40))
    run(tmp_path, path, size=32)
    with pytest.raises(InputError, match=r"prepared with --size 32, now 64.*--overwrite"):
        run(tmp_path, path, size=64)
    again = prepare([path], tmp_path / "out", PrepareOptions(size=64), overwrite=True)
    assert again.records[0].width == 64
    with pytest.raises(InputError, match=r"a.png lies in the output folder .* choose another -o"):
        prepare([path], tmp_path, PrepareOptions())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty and holds no prepared data"):
        prepare([path], tmp_path / "mine", PrepareOptions(), overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


def test_frames_of_a_still_video_are_taken(tmp_path: Path) -> None:
    frames = [
        np.clip(texture(60, 80).astype(int) + i % 2, 0, 255).astype(np.uint8) for i in range(9)
    ]
    frames[4] = 255 - frames[4]
    clip = write_clip(tmp_path / "guard.mp4", frames)
    result = run(tmp_path, clip, num_frames=4)
    assert {r.group for r in result.records} == {f"{tmp_path.name}/guard"}
    assert all(r.video is not None and "time_s" in r.video for r in result.records)


def test_names_of_frames_never_meet_those_of_pictures(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_clip(root.parent / "clip.mp4", moving(6))
    root.mkdir()
    (root / "clip.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes())
    save(root / "clip_000000.png", texture(30, 40))
    result = run(tmp_path, root, every=1)
    assert len({r.id for r in result.records}) == len(result.records) == 7


def test_plan_writes_nothing(tmp_path: Path, mixed: Path) -> None:
    planned, _ = plan([mixed], tmp_path / "out", PrepareOptions(tile=32))
    assert not (tmp_path / "out").exists()
    kinds = sorted((p.kind, p.records) for p in planned if p.kind != "picture")
    assert kinds == [("raster", 4), ("video", None)]
    assert sum(p.kind == "picture" for p in planned) == 9


def test_given_cameras_and_depth_travel(tmp_path: Path) -> None:
    save(tmp_path / "in" / "rgb" / "0.png", texture(40, 60))
    save(tmp_path / "in" / "depth" / "0.png", raw_counts())
    c2w = np.eye(4)
    c2w[:3, 3] = (1, 2, 3)
    scene = {
        "fl_x": 50.0,
        "fl_y": 50.0,
        "cx": 30.0,
        "cy": 20.0,
        "w": 60,
        "h": 40,
        "frames": [
            {
                "file_path": "rgb/0.png",
                "depth_file_path": "depth/0.png",
                "transform_matrix": c2w.tolist(),
            }
        ],
    }
    (tmp_path / "in" / "transforms.json").write_text(json.dumps(scene))
    record = only(run(tmp_path, tmp_path / "in", size=30))
    assert record.camera is not None
    assert record.camera["params"][:4] == [25.0, 25.0, 15.0, 10.0]
    assert record.camera["source"] == "given"
    # OpenGL camera axes in the file, OpenCV's in the manifest
    np.testing.assert_allclose(np.array(record.pose), c2w @ np.diag([1.0, -1, -1, 1]), atol=1e-12)
    assert record.depth is not None
    assert read(tmp_path / "out", record.depth["file"]).shape == (20, 30)


def test_ray_gives_the_same(tmp_path: Path, mixed: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        run(tmp_path, mixed, output="cluster", size=32, cluster="auto")
    finally:
        ray.shutdown()
    run(tmp_path, mixed, output="here", size=32)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "here")


def test_shared_sets(tmp_path: Path, shared_data: Path) -> None:
    result = run(tmp_path, shared_data / "thermal", shared_data / "geotiff", size=128, dedup=True)
    modalities = [r.modality for r in result.records]
    # Each radiometric JPEG and the raw picture extracted from it look alike.
    assert (modalities.count("thermal"), modalities.count("satellite")) == (4, 3)
    codes = {r.geo["crs"] for r in result.records if r.geo is not None}
    assert codes == {"EPSG:32618", "EPSG:32621", "EPSG:26913"}
    masked = next(r for r in result.records if r.id == "RGB.byte")
    mask = read(tmp_path / "out", masked.mask) > 0
    assert 0.4 < mask.mean() < 0.7


def test_told_modality_and_depth_count(tmp_path: Path) -> None:
    """A TIFF without GeoTIFF tags becomes a raster, a picture gets its depth, by metadata."""
    values = np.stack([raw_counts(), raw_counts(seed=1), raw_counts(seed=2)], -1)
    write_raster(tmp_path / "a.tif", values, keys=())
    save(tmp_path / "b.png", texture(40, 60))
    save(tmp_path / "z16.png", raw_counts())
    told = {
        "a.tif": {"modality": "satellite", "bands": [2, 1, 0]},
        "b.png": {"depth": {"file": "z16.png", "scale": 0.01}},
    }
    (tmp_path / "m.json").write_text(json.dumps(told))
    inputs = (tmp_path / "a.tif", tmp_path / "b.png")
    result = run(tmp_path, *inputs, metadata_json=str(tmp_path / "m.json"), size=0)
    raster, photo = result.records
    assert (raster.modality, raster.bands) == ("satellite", [2, 1, 0])
    assert raster.range is not None
    assert raster.range["min"] == pytest.approx(
        np.percentile(values[..., ::-1].reshape(-1, 3), 2, axis=0)
    )
    assert photo.depth is not None
    assert photo.depth["scale"] == 0.01
    np.testing.assert_array_equal(read(tmp_path / "out", photo.depth["file"]), raw_counts())
    save(tmp_path / "z16.png", raw_counts(seed=5))
    again = run(tmp_path, *inputs, metadata_json=str(tmp_path / "m.json"), size=0)
    assert (again.made, again.reused) == (1, 1)


def test_transparency_is_laid_on_white_and_masked(tmp_path: Path) -> None:
    pixels = np.dstack([texture(40, 40), np.full((40, 40), 255, np.uint8)])
    pixels[:, 20:, 3] = 0
    record = only(run(tmp_path, save(tmp_path / "a.png", pixels), size=20))
    stored, mask = (read(tmp_path / "out", f) for f in (record.file, record.mask))
    assert (stored[:, 10:] == 255).all()
    assert (mask[:, :10] == 255).all()
    assert (mask[:, 10:] == 0).all()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", texture(30, 40))
    options = PrepareOptions()
    header = {"inputs": [str(path)], "options": options.content()}
    with (
        Journal(tmp_path / "out", header),
        pytest.raises(InputError, match="another sightline prepare is writing"),
    ):
        run(tmp_path, path)


def test_told_depth_is_not_shown(tmp_path: Path) -> None:
    save(tmp_path / "z.png", raw_counts())
    (tmp_path / "m.json").write_text('{"z.png": {"modality": "depth"}}')
    record = only(run(tmp_path, tmp_path / "z.png", metadata_json=str(tmp_path / "m.json"), size=0))
    assert (record.modality, record.file) == ("depth", "depth/z.png")
    np.testing.assert_array_equal(read(tmp_path / "out", record.file), raw_counts())


def test_no_sharp_picture_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", texture(30, 40))
    with pytest.raises(InputError, match="nothing is left: left out 1 blurred pictures"):
        run(tmp_path, path, min_sharpness=1e9)
