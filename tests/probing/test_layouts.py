"""Small copies of every data set's folders, made of a synthetic scene, through loader and probe."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.synthetic import make_scene
from sightline.errors import FileFormatError, InputError
from sightline.io.transforms import Transforms, write_transforms
from sightline.probing import clouds, dtu, layouts
from sightline.probing.config import config_from
from sightline.probing.datasets import DATASETS, expand_dataset
from sightline.probing.grid import plan_grid, run_grid
from sightline.probing.protocols import PROTOCOLS, find_protocol
from sightline.probing.report import write_report
from sightline.probing.results import collect
from sightline.probing.scenes import ProbeScene, SceneSource, load_scene, split_of
from sightline.probing.splits import read_splits
from sightline.types import Lenses, Reconstruction, Scene, Views
from tests.probing import tiny

HEIGHT, WIDTH, COUNT = 48, 64, 6
PHOTO_SETS = {  # scene, ending
    "LLFF": ("fortress", "JPG"),
    "DL3DV": ("Center", "png"),
    "Casual": ("erhai", "jpg"),
    "MipNeRF360": ("bicycle", "JPG"),
    "MVimgNet": ("bench", "jpeg"),
    "Tanks": ("Train", "png"),
    "Infer": ("cy", "jpg"),
}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(
        COUNT, HEIGHT, WIDTH, kind="simple", num_points=50, test_every=0, supersampling=1
    )


def picture(scene: Scene, view: int) -> Image.Image:
    pixels = (scene.views.images[view] * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def depth_of(scene: Scene) -> torch.Tensor:
    assert scene.ground_truth is not None
    assert scene.ground_truth.depth is not None
    return scene.ground_truth.depth


def save_photos(scene: Scene, folder: Path, ending: str, views: list[int] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view in range(COUNT) if views is None else views:
        kind = "PNG" if ending == "png" else "JPEG"
        picture(scene, view).save(folder / f"shot_{view}.{ending}", kind, quality=95)


def photo_sets(scene: Scene, root: Path) -> None:
    """The authors' layout: a split file for all but two, whose folders show it instead."""
    split: dict[str, Any] = {}
    for name, (part, ending) in PHOTO_SETS.items():
        save_photos(scene, root / name / part / "images", ending)
        entry = {"train": ["shot_1", "shot_3"], "test": ["shot_2"]}
        if name == "DL3DV":
            entry["hash"] = "cd9c981eeb4a"  # type: ignore[assignment]
        if name == "Casual":
            save_photos(scene, root / name / part / "2_views" / "images", ending, [0, 2])
        elif name != "Infer":
            split.setdefault(name, {})[part] = entry
    (root / "dataset_split.json").write_text(json.dumps(split))


def write_dtu(scene: Scene, folder: Path) -> None:
    for name in ("images", "depths", "cams", "binary_masks"):
        (folder / name).mkdir(parents=True)
    cameras = scene.ground_truth.cameras  # type: ignore[union-attr]
    for view in range(COUNT):
        stem = f"{view:08d}"
        picture(scene, view).save(folder / "images" / f"{stem}.png")
        np.save(folder / "depths" / f"{stem}.npy", 1000 * depth_of(scene)[view].numpy())
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        Image.fromarray(mask).save(folder / "binary_masks" / f"{stem}.png")
        w2c, K = cameras.w2c[view].double().clone(), cameras.K[view].double().clone()
        w2c[:3, 3] *= 1000
        K[:2, 2] -= 0.5  # MVSNet counts pixels from whole numbers
        rows = [" ".join(f"{v:.9g}" for v in row) for row in w2c.tolist()]
        lens = [" ".join(f"{v:.9g}" for v in row) for row in K.tolist()]
        text = "extrinsic\n" + "\n".join(rows) + "\n\nintrinsic\n" + "\n".join(lens) + "\n\n425 2\n"
        (folder / "cams" / f"{stem}_cam.txt").write_text(text)


def write_scannetpp(scene: Scene, dslr: Path) -> None:
    for name in ("nerfstudio", layouts.PICTURES[0], layouts.MASKS[0], layouts.DEPTH[0]):
        (dslr / name).mkdir(parents=True)
    cameras = scene.ground_truth.cameras  # type: ignore[union-attr]
    names = tuple(f"DSC{view:05d}.JPG" for view in range(COUNT))
    for view, name in enumerate(names):
        picture(scene, view).save(dslr / layouts.PICTURES[0] / name, quality=95)
        small = (1000 * depth_of(scene)[view]).round().numpy().astype(np.uint16)
        Image.fromarray(small).save((dslr / layouts.DEPTH[0] / name).with_suffix(".png"))
        mask = Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8))
        mask.save((dslr / layouts.MASKS[0] / name).with_suffix(".png"))
    lenses = Lenses(
        K=cameras.K.double(),
        distortion=torch.zeros(COUNT, 8, dtype=torch.float64),
        fisheye=torch.zeros(COUNT, dtype=torch.bool),
        sizes=torch.tensor([[HEIGHT, WIDTH]] * COUNT),
    )
    made = Transforms(files=names, w2c=cameras.w2c.double(), lenses=lenses)
    write_transforms(dslr / layouts.TRANSFORMS, made)


def write_co3d(scene: Scene, folder: Path, kind: str = "ndc_isotropic") -> None:
    for name in ("images", "depths", "depth_masks"):
        (folder / name).mkdir(parents=True)
    cameras = scene.ground_truth.cameras  # type: ignore[union-attr]
    category, sequence = folder.parent.name, folder.name
    half = np.array([WIDTH, HEIGHT]) / 2
    unit = np.full(2, HEIGHT / 2) if kind == "ndc_isotropic" else half
    flip = np.diag([-1.0, -1.0, 1.0])
    frames: list[dict[str, Any]] = [{"sequence_name": "another", "image": {"path": "x"}}]
    for view in range(COUNT):
        name = f"frame{view:06d}"
        picture(scene, view).save(folder / "images" / f"{name}.jpg", quality=95)
        halves = (depth_of(scene)[view] / 2).numpy().astype(np.float16)
        file = folder / "depths" / f"{name}.jpg.geometric.png"
        Image.fromarray(halves.view(np.uint16)).save(file)
        seen = Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8))
        seen.save(folder / "depth_masks" / f"{name}.png")
        K, w2c = cameras.K[view].double().numpy(), cameras.w2c[view].double().numpy()
        base = f"{category}/{sequence}"
        frames.append(
            {
                "sequence_name": sequence,
                "image": {"path": f"{base}/images/{name}.jpg", "size": [HEIGHT, WIDTH]},
                "depth": {
                    "path": f"{base}/depths/{file.name}",
                    "scale_adjustment": 2.0,
                    "mask_path": f"{base}/depth_masks/{name}.png",
                },
                "viewpoint": {
                    "R": (flip @ w2c[:3, :3]).T.tolist(),
                    "T": (flip @ w2c[:3, 3]).tolist(),
                    "focal_length": (K[[0, 1], [0, 1]] / unit).tolist(),
                    "principal_point": ((half - K[:2, 2]) / unit).tolist(),
                    **({"intrinsics_format": kind} if kind == "ndc_isotropic" else {}),
                },
            }
        )
    with gzip.open(folder.parent / layouts.ANNOTATIONS, "wt") as file:
        json.dump(frames, file)


def check_cameras(found: ProbeScene, scene: Scene, *, atol: float) -> None:
    """Cameras and depth are those of the scene the files were made of."""
    assert found.cameras is not None
    assert found.depth is not None
    truth = scene.ground_truth
    assert truth is not None
    index = [int("".join(c for c in Path(name).stem if c.isdigit())) for name in found.names]
    want = truth.cameras.select(index)
    torch.testing.assert_close(found.cameras.w2c.float(), want.w2c.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cameras.K.float(), want.K.float(), rtol=1e-4, atol=1e-3)
    depth = depth_of(scene)[index]
    known = (found.depth > 0) & (depth > 0)
    assert known.float().mean() > 0.9
    torch.testing.assert_close(found.depth[known], depth[known], rtol=2e-3, atol=atol)


@pytest.mark.parametrize("kind", ["dtu", "scannetpp", "co3d", "co3d_v1"])
def test_cameras_and_depth_of_each_form(scene: Scene, tmp_path: Path, kind: str) -> None:
    protocol = find_protocol("fast", {"long_side": WIDTH})
    if kind == "dtu":
        write_dtu(scene, tmp_path / "scan1")
        source = SceneSource(id="s", path=str(tmp_path / "scan1"), kind="dtu")
        # The working picture is cut about the principal point, here the middle.
        assert load_scene(source, protocol).frame.window == (0, 0, HEIGHT, WIDTH)
    elif kind == "scannetpp":
        write_scannetpp(scene, tmp_path / "dslr")
        source = SceneSource(id="s", path=str(tmp_path / "dslr"))
    else:
        form = "ndc_isotropic" if kind == "co3d" else "ndc_norm_image_bounds"
        write_co3d(scene, tmp_path / "apple" / "110_1", form)
        source = SceneSource(id="s", path=str(tmp_path / "apple" / "110_1"))
    check_cameras(load_scene(source, protocol), scene, atol=1e-3)


class Oracle:
    """A geometry estimator that knows the scene that the pictures show."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def estimate(self, views: Views) -> Reconstruction:
        index = [int(Path(name).stem.split("_")[1]) for name in views.names]
        truth = self.scene.ground_truth
        assert truth is not None
        height, width = views.images.shape[-2:]
        cameras = truth.cameras.select(index)
        scale = torch.diag(torch.tensor([width / WIDTH, height / HEIGHT, 1.0]))
        small = torch.nn.functional.interpolate(
            depth_of(self.scene)[index][:, None], (height, width), mode="nearest"
        )[:, 0]
        return Reconstruction(
            cameras=dataclasses.replace(
                cameras, K=scale.to(cameras.K) @ cameras.K, height=height, width=width
            ),
            registered=torch.ones(len(index), dtype=torch.bool),
            depth=small,
        )


def test_every_photo_set_is_probed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds, "_estimator", lambda *_: Oracle(scene))
    root = tmp_path / "data"
    photo_sets(scene, root)
    entries = [
        {"name": name, "root": str(root), "scenes": [part]}
        for name, (part, _) in PHOTO_SETS.items()
    ]
    config = config_from(
        tiny.grid(scenes=[], datasets=entries, features=["iuvrgb"], geometry="dust3r")
    )
    output = tmp_path / "out"
    outcome = run_grid(config, output)
    assert not outcome.failed, outcome.failed
    rows = {row.scene: row for row in collect(output).rows}
    assert set(rows) == {f"{name}/{part}" for name, (part, _) in PHOTO_SETS.items()}
    for name, row in rows.items():
        if name.startswith("Infer/"):
            assert not row.test  # inference only
            assert (row.folder / "poses.npz").is_file()
        elif name.startswith("Casual/"):
            assert len(row.test) == COUNT - 2  # all but the two that were copied
        else:
            assert [Path(view).stem for view in row.test] == ["shot_2"]
            assert 5 < row.mean("psnr") < 50
    split = read_splits(output / "dataset_split.json")
    assert split["Casual"]["erhai"].train == ("shot_0", "shot_2")
    assert split["DL3DV"]["Center"].hash == "cd9c981eeb4a"
    assert (split["LLFF"]["fortress"].train, split["LLFF"]["fortress"].test) == (
        ("shot_1", "shot_3"),
        ("shot_2",),
    )
    assert "Infer/cy" in write_report(output).read_text("utf-8")


def test_sets_with_depth_are_probed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dtu(scene, tmp_path / "DTU" / "scan1")
    write_scannetpp(scene, tmp_path / "spp" / "data" / "0a7cc12c0e" / "dslr")
    write_co3d(scene, tmp_path / "co3d" / "apple" / "110_1")
    # The stage is metres large; a hundredth of the published noise suits its rounding.
    monkeypatch.setitem(DATASETS, "DTU", dataclasses.replace(DATASETS["DTU"], noise=0.05))
    entries = [
        {"name": "DTU", "root": str(tmp_path), "scenes": ["scan1"]},
        {"name": "ScanNetpp", "root": str(tmp_path / "spp")},
        {"name": "CO3D", "root": str(tmp_path / "co3d"), "scenes": ["apple/110_1"]},
    ]
    config = config_from(tiny.grid(scenes=[], datasets=entries, features=["iuvrgb"]))
    outcome = run_grid(config, tmp_path / "out")
    assert not outcome.failed, outcome.failed
    rows = {row.scene: row for row in collect(tmp_path / "out").rows}
    assert set(rows) == {"DTU/scan1", "ScanNetpp/0a7cc12c0e", "CO3D/apple/110_1"}
    for row in rows.values():
        assert row.test
        assert 0 < row.mean("accuracy") <= row.mean("distance") + 1e-9
    errors = json.loads((rows["DTU/scan1"].folder / "3d_metrics.json").read_text())
    (values,) = errors["ours_14"].values()
    assert 1000 * values["Distance"] == pytest.approx(rows["DTU/scan1"].mean("distance"))


def test_dtu_noise_moves_points_and_not_scales(scene: Scene, tmp_path: Path) -> None:
    write_dtu(scene, tmp_path / "scan1")
    source = SceneSource(id="s", path=str(tmp_path / "scan1"), kind="dtu")
    protocol = find_protocol("fast", {"long_side": WIDTH, "unit_world": False})
    loaded = load_scene(source, protocol)
    clean = clouds.make_cloud(loaded, "depth", protocol)
    noisy = clouds.make_cloud(loaded, "depth", protocol, noise=0.01)
    assert noisy.clean is not None
    torch.testing.assert_close(noisy.clean, clean.points)
    moved = (noisy.points - clean.points)[clean.valid]
    assert float(moved.std()) == pytest.approx(0.01, rel=0.02)
    again = clouds.make_cloud(loaded, "depth", protocol, noise=0.01)
    assert torch.equal(noisy.points, again.points)  # seed 0
    first, second = (clouds.probe_input(cloud, loaded).start for cloud in (clean, noisy))
    assert torch.equal(first["scaling"], second["scaling"])
    assert not torch.equal(first["xyz"], second["xyz"])


def test_dtu_is_cut_about_the_principal_point() -> None:
    published, ours = PROTOCOLS["feat2gs-v1"], PROTOCOLS["sightline-1"]
    # DTU's size and lens: (823, 619) of 1600 x 1200 leaves 1554 x 1162 about it.
    from sightline.probing.frames import lift_intrinsics, make_frame

    frame = make_frame((1200, 1600), ours, (823.2, 619.1))
    assert frame.working == (384, 512)
    scale = max(512 / 1554, 384 / 1162)
    top, left, height, width = frame.window
    assert (height, width) == pytest.approx((384 / scale, 512 / scale))
    assert (left + width / 2, top + height / 2) == pytest.approx((823, 619))
    # The reference cuts so too, but then takes the cut for the whole picture.
    frame = make_frame((1200, 1600), published, (823.2, 619.1))
    assert frame.window == (0, 0, 1200, 1600)
    assert frame.source[2:] == pytest.approx((height, width))
    K = torch.tensor([[[2892.0, 0, 823.7], [0, 2883, 619.6], [0, 0, 1]]], dtype=torch.float64)
    working = frame.working_from_original() @ K
    assert working[0, 0, 2].item() == pytest.approx(256, abs=0.5)
    lifted = lift_intrinsics(working, frame, published)[0]
    ratio = 800 / working[0, 0, 2].item()
    assert lifted[0, 0].item() == pytest.approx(2892 * scale * ratio)
    assert lifted[1, 1].item() == pytest.approx(2883 * scale * ratio)
    assert lifted[:2, 2].tolist() == [800, 600]
    with pytest.raises(InputError, match="principal point near the centre"):
        make_frame((1200, 1600), ours, (200.0, 600.0))


def test_dtu_reader_masks_and_shifts(scene: Scene, tmp_path: Path) -> None:
    write_dtu(scene, tmp_path / "scan1")
    found = dtu.read_dtu(tmp_path / "scan1", ["00000001"])
    assert scene.ground_truth is not None
    K = scene.ground_truth.cameras.K[1].double()
    torch.testing.assert_close(found["cameras"].K[0], K, rtol=1e-6, atol=1e-6)
    assert found["center"] == pytest.approx((float(K[0, 2]) - 0.5, float(K[1, 2]) - 0.5))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_data_is_one_sentence(tmp_path: Path, name: str) -> None:
    entry = {"name": name, "root": str(tmp_path)}
    with pytest.raises(InputError) as caught:
        expand_dataset(entry)
    text = str(caught.value)
    assert "\n" not in text
    assert "{" not in text  # all fields are filled in
    assert str(tmp_path) in text
    assert any(word in text for word in ("get ", "use photos of your own"))


def test_incomplete_forms_are_one_sentence(scene: Scene, tmp_path: Path) -> None:
    write_scannetpp(scene, tmp_path / "dslr")
    (tmp_path / "dslr" / layouts.PICTURES[0] / "DSC00003.JPG").unlink()
    with pytest.raises(InputError, match="1 of 6 pictures that are not in .*toolbox"):
        layouts.read_scannetpp(tmp_path / "dslr")
    sequence = tmp_path / "apple" / "110_1"
    write_co3d(scene, sequence)
    with pytest.raises(InputError, match="says nothing of 1 views of 110_1"):
        layouts.read_co3d(sequence, ["frame000099"])
    file = tmp_path / "apple" / layouts.ANNOTATIONS
    whole = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(whole[: len(whole) // 2]))
    with pytest.raises(FileFormatError, match="cut off"):
        layouts.read_co3d(sequence, ["frame000005"])
    file.write_bytes(b"no gzip")
    with pytest.raises(FileFormatError, match="no gzip file"):
        layouts.read_co3d(sequence, ["frame000001"])


def test_names_with_points_and_scenes_without_a_split(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "scene" / "images"
    folder.mkdir(parents=True)
    for view in range(COUNT):
        picture(scene, view).save(folder / f"IMG.2024.{view}.png")
    protocol = find_protocol("fast", {"train_views": 2, "test_views": 1})
    source = SceneSource(id="s", path=str(tmp_path / "scene"))
    split = split_of(source, protocol)
    assert all(name.startswith("IMG.2024.") for name in (*split.train, *split.test))
    config = tiny.grid(
        scenes=[
            {
                "path": str(tmp_path / "scene"),
                "train": ["IMG.2024.0", "IMG.2024.2.png"],
                "test": ["IMG.2024.1"],
            }
        ],
        geometry="dust3r",
    )
    (planned,) = plan_grid(config_from(config)).sources
    assert (planned.train, planned.test) == (("IMG.2024.0", "IMG.2024.2"), ("IMG.2024.1",))
    assert load_scene(planned, protocol).num_test == 1


def test_dtu_under_the_published_protocol(scene: Scene, tmp_path: Path) -> None:
    """All quirks on, from files to scores, shape, a published path and error maps."""
    write_dtu(scene, tmp_path / "DTU" / "scan1")
    changes = {**tiny.CHANGES, "long_side": 64}
    config = config_from(
        tiny.grid(
            protocol="feat2gs-v1",
            changes=changes,
            scenes=[],
            datasets=[{"name": "DTU", "root": str(tmp_path), "scenes": ["scan1"]}],
            features=["iuvrgb"],
            maps=True,
        )
    )
    outcome = run_grid(config, tmp_path / "out")
    assert not outcome.failed, outcome.failed
    results = collect(tmp_path / "out")
    (row,) = results.rows
    assert row.mean("distance") > 0
    assert row.mean("psnr") > 3
    (maps,) = (c for c in results.companions if c["kind"] == "maps")
    assert "psnr_map_00000.png" in maps["summary"]["files"]
    assert results.protocol == "feat2gs-v1+changes"
