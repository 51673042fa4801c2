import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.multiview import sample_rng
from sightline.datasets.posed import (
    PosedScenes,
    is_pseudo,
    open_posed,
    read_colmap_map,
    split_scenes,
)
from sightline.errors import FileFormatError, InputError
from sightline.io.depth import write_depth_png, write_depth_scale
from sightline.io.scene_arrays import write_cameras, write_geometry
from sightline.io.transforms import Transforms, write_transforms
from sightline.run import RunFolder
from sightline.types import Cameras, Lenses, Reconstruction, Views
from tests.datasets.multiview import check_sample, worst_reprojection
from tests.datasets.replicas import HEIGHT, WIDTH, room

EXACT = room(5)
NAMES = tuple(f"view_{v}.png" for v in range(5))


def write_pictures(folder):
    folder.mkdir(parents=True)
    for name, image in zip(NAMES, EXACT.images, strict=True):
        pixels = (image.movedim(0, -1).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


def lenses():
    return Lenses(
        K=EXACT.K.double(),
        distortion=torch.zeros(5, 8, dtype=torch.float64),
        fisheye=torch.zeros(5, dtype=torch.bool),
        sizes=torch.tensor([[HEIGHT, WIDTH]]).expand(5, 2).clone(),
    )


def write_transforms_scene(folder, *, depth=True):
    write_pictures(folder / "images")
    if depth:
        for v, name in enumerate(NAMES):
            write_depth_png(folder / "maps" / name, EXACT.depth[v], 0.0005)
    write_transforms(
        folder / "transforms.json",
        Transforms(
            files=tuple(f"images/{n}" for n in NAMES),
            w2c=EXACT.w2c.double(),
            lenses=lenses(),
            depth_files=tuple(f"maps/{n}" for n in NAMES) if depth else None,
            depth_scale=0.0005 if depth else None,
        ),
    )
    return folder


def write_colmap_scene(folder, how):
    write_pictures(folder / "images")
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    K = EXACT.K[0].double()
    numbers = [float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])]
    text = " ".join(map(str, numbers))
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {text}\n")
    from sightline.geometry.rotation import matrix_to_quat

    quats = matrix_to_quat(EXACT.w2c[:, :3, :3].double())
    rows = []
    for v, name in enumerate(NAMES):
        numbers = [*quats[v].tolist(), *EXACT.w2c[v, :3, 3].double().tolist()]
        rows.append(f"{v + 1} {' '.join(map(str, numbers))} 1 {name}\n\n")
    (model / "images.txt").write_text("".join(rows))
    (model / "points3D.txt").write_text("")
    for v, name in enumerate(NAMES):
        if how == "png":
            write_depth_png(folder / "depth" / name, EXACT.depth[v], 0.0005)
        else:
            path = folder / "stereo" / "depth_maps" / f"{name}.geometric.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            head = f"{WIDTH}&{HEIGHT}&1&".encode()
            path.write_bytes(head + EXACT.depth[v].numpy().astype("<f4").tobytes())
    if how == "png":
        write_depth_scale(folder / "depth", 0.0005, metric=True)
    return folder


def write_run(folder):
    run = RunFolder.create(folder, {})
    run.save()
    cameras = Cameras(w2c=EXACT.w2c.double(), K=EXACT.K.double(), height=HEIGHT, width=WIDTH)
    views = Views(
        images=(EXACT.images * 255).round().to(torch.uint8),
        names=NAMES,
        from_original=torch.eye(3, dtype=torch.float64).expand(5, 3, 3).clone(),
        sizes=torch.tensor([[HEIGHT, WIDTH]]).expand(5, 2).clone(),
        cameras=cameras,
    )
    found = torch.ones(5, dtype=torch.bool)
    found[3] = False
    valid = EXACT.valid.clone()
    valid[:, :10] = False
    estimate = Reconstruction(
        cameras=cameras, registered=found, depth=EXACT.depth, valid=valid, metric=False
    )
    original = torch.tensor([[HEIGHT, WIDTH]]).expand(5, 2).clone()
    write_cameras(
        folder / "cameras.npz", views, estimate, original_size=original, test=torch.zeros(5) > 0
    )
    write_geometry(folder / "geometry.npz", views, estimate)
    return folder


MAKERS = {
    "transforms": write_transforms_scene,
    "colmap with pictures of depth": lambda folder: write_colmap_scene(folder, "png"),
    "colmap with its own depth": lambda folder: write_colmap_scene(folder, "bin"),
    "run": write_run,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_scene_gives_views_that_agree(tmp_path, kind):
    scenes = open_posed(MAKERS[kind](tmp_path / "scene"))
    assert [s.name for s in scenes] == ["scene"]
    assert is_pseudo(scenes) == (kind == "run")
    assert len(scenes[0]) == (4 if kind == "run" else 5)
    source = PosedScenes(scenes=scenes)
    for place in range(3):
        sample = source.draw(sample_rng(0, "train", place), 2, 48, 64)
        check_sample(sample, 2, 48, 64)
        share, apart = worst_reprojection(sample)
        assert share > 0.35
        assert apart < 0.04
        assert "view_3.png" not in sample.names[0] or kind != "run"


def test_neighbours_come_first(tmp_path):
    (scene,) = open_posed(write_transforms_scene(tmp_path / "scene"))
    assert scene.near.shape == (5, 4)
    assert all(v not in scene.near[v] for v in range(5))


def test_a_folder_of_scenes(tmp_path):
    write_transforms_scene(tmp_path / "scene_10")
    write_colmap_scene(tmp_path / "scene_9", "png")
    (tmp_path / "notes").mkdir()
    assert [s.name for s in open_posed(tmp_path)] == ["scene_9", "scene_10"]


def test_scenes_without_truth_are_refused_with_the_way_to_make_it(tmp_path):
    bare = write_transforms_scene(tmp_path / "bare", depth=False)
    with pytest.raises(InputError, match=r"got 0 views with depth.*sightline reconstruct"):
        open_posed(bare)
    write_pictures(tmp_path / "photos")
    with pytest.raises(InputError, match=r"pictures without poses; make both with: sightline"):
        open_posed(tmp_path / "photos")
    with pytest.raises(InputError, match="there is no"):
        open_posed(tmp_path / "none")


def test_more_views_than_there_are(tmp_path):
    source = PosedScenes(scenes=open_posed(write_transforms_scene(tmp_path / "scene")))
    with pytest.raises(InputError, match="at least 6 views, got 5 at most"):
        source.draw(sample_rng(0, "train", 0), 6, 24, 24)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"4&3&1&1234")
    with pytest.raises(FileFormatError, match=r"a\.bin: expected COLMAP's depth map.*got 4 bytes"):
        read_colmap_map(file)
    file.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="another beginning"):
        read_colmap_map(file)
    scene = write_transforms_scene(tmp_path / "scene")
    source = PosedScenes(scenes=open_posed(scene))
    for name in NAMES:
        (scene / "maps" / name).write_bytes(b"broken")
    with pytest.raises(FileFormatError, match=r"view_\d\.png"):
        source.draw(sample_rng(0, "train", 0), 2, 24, 24)
    content = json.loads((scene / "transforms.json").read_text())
    (scene / "transforms.json").write_text(json.dumps(content)[:-5])
    with pytest.raises(FileFormatError, match=r"transforms\.json"):
        open_posed(scene)


def test_scenes_are_held_out(tmp_path):
    (scene,) = open_posed(write_transforms_scene(tmp_path / "scene"))
    for count, held in ((25, [9, 19]), (3, [2]), (1, [])):
        scenes = tuple(replace(scene, name=str(i)) for i in range(count))
        train, val = split_scenes(scenes)
        assert [int(s.name) for s in val] == held
        assert {s.name for s in train} | {s.name for s in val} == {s.name for s in scenes}
        assert len(train) + len(val) == count
