import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.backbones.controls import NoiseBackbone
from sightline.backbones.extract import write_features
from sightline.cli import features, main
from sightline.errors import InputError
from tests.backbones import tiny


def photos(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"p{index}.png")
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "features.npz") as file:
        return dict(file)


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_folder_of_features(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (84, 112), (84, 112), (84, 112))
    torch.manual_seed(0)
    backbone = tiny.BACKBONES["dinov2"]()
    seen: list[tuple[str, float, float]] = []
    files = write_features(
        [source],
        tmp_path / "out",
        backbone,
        layers=[0, -1],
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert files == [tmp_path / "out" / "features.npz"] + [
        tmp_path / "out" / "pca" / f"p{i}.png" for i in range(3)
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["features.npz", "pca"]
    assert ("encode", 3.0, 3.0) in seen
    arrays = load(tmp_path / "out")
    assert arrays["patches"].shape == (3, 32, 6, 8)
    assert arrays["cls"].shape == (3, 32)
    assert arrays["names"].tolist() == ["p0.png", "p1.png", "p2.png"]
    assert arrays["layers"].tolist() == [0, 2]
    assert arrays["pixels"].shape == (6, 8, 2)
    assert arrays["pixels"][0, 0].tolist() == [7.0, 7.0]
    images = [np.asarray(Image.open(source / f"p{i}.png")) for i in range(3)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    want = backbone.extract(pixels, layers=[0, -1])
    np.testing.assert_allclose(arrays["patches"][:, :16], want[0].patches, atol=1e-5)
    np.testing.assert_allclose(arrays["patches"][:, 16:], want[1].patches, atol=1e-5)
    picture = np.asarray(Image.open(files[1]))
    assert picture.shape == (84, 112, 3)
    assert picture.std() > 20


def test_positions_are_in_pixels_of_the_originals(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (90, 120), (90, 120))
    write_features([source], tmp_path / "out", NoiseBackbone(), resolution=60)
    arrays = load(tmp_path / "out")
    rows, cols = arrays["patches"].shape[2:]
    assert (rows, cols) == (3, 4)
    np.testing.assert_allclose(arrays["pixels"][0, 0], [15, 15])
    np.testing.assert_allclose(arrays["pixels"][-1, -1], [105, 75])
    assert arrays["sizes"].tolist() == [[90, 120]] * 2
    assert "cls" not in arrays


def test_unlike_sizes_are_padded_and_keep_their_positions(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (64, 96), (96, 64))
    write_features([source], tmp_path / "out", NoiseBackbone())
    arrays = load(tmp_path / "out")
    assert arrays["patches"].shape == (2, 256, 6, 6)
    assert arrays["pixels"].shape == (6, 6, 2)  # nothing was scaled
    shapes = [np.asarray(Image.open(tmp_path / "out" / "pca" / f"p{i}.png")).shape for i in (0, 1)]
    assert shapes == [(64, 96, 3), (96, 64, 3)]
    write_features([source], tmp_path / "small", NoiseBackbone(), resolution=50)
    pixels = load(tmp_path / "small")["pixels"]
    assert pixels.shape[0] == 2  # 96x64 shrinks to 50x33: the two are scaled differently
    np.testing.assert_allclose(pixels[0, 0, 0, 0] / pixels[1, 0, 0, 0], (96 / 50) / (64 / 33))


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (32, 32))
    out = tmp_path / "out"
    write_features([source], out, NoiseBackbone())
    before = (out / "features.npz").read_bytes()
    with pytest.raises(InputError, match="already holds features; replace them with --overwrite"):
        write_features([source], out, NoiseBackbone(seed=1))
    assert (out / "features.npz").read_bytes() == before
    write_features([source], out, NoiseBackbone(seed=1), overwrite=True)
    assert (out / "features.npz").read_bytes() != before
    with pytest.raises(InputError, match=r"not empty and holds no features\.npz"):
        write_features([source], source, NoiseBackbone(), overwrite=True)
    with pytest.raises(InputError, match="lies inside the output folder"):
        write_features([out / "pca"], out, NoiseBackbone(), overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        write_features([source], source / "p0.png", NoiseBackbone())


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (32, 32))

    def stop(stage: str, done: float, total: float) -> None:
        if stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features([source], tmp_path / "out", NoiseBackbone(), progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_layers_of_unlike_grids_are_refused(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", (32, 32))
    with pytest.raises(InputError, match="layer 0: 16x16, layer 2: 4x4; choose one"):
        write_features([source], tmp_path / "out", tiny.BACKBONES["sam2"](), layers=[0, 2])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("narrow")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = photos(tmp_path / "in", (40, 56), (40, 56)), tmp_path / "out"
    words = ["features", str(source), "-o", str(out), "--backbone", "random:dinov3_vits16"]
    assert code_of(*words, "--layers", "-4", "-1", "--json", "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["features"] == str(out / "features.npz")
    assert load(out)["patches"].shape == (2, 64, 3, 4)
    assert load(out)["layers"].tolist() == [8, 11]


@pytest.mark.parametrize(
    "words", [["--layers", "-4,-1"], ["--layers=8,11"], ["--layers", "8", "-1"], ["--config", "c"]]
)
def test_ways_to_give_layers(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("layers: [8, 11]\n")
    words = [str(file) if word == "c" else word for word in words]
    verb = features.parser()
    found = verb.parse_args(features._joined(["in", *words]))
    assert [layer % 12 for layer in features._layers(found.layers, verb)] == [8, 11]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["in", "-o", "out", "--backbone", "iuv", "--layers", "a"], 'whole numbers, got "a"'),
        (["in", "--backbone", "iuv"], "give the output with -o"),
        (["in", "-o", "out"], "give the vision model with --backbone"),
        (["-o", "out", "--backbone", "iuv"], "give at least one photo"),
        (["in", "-o", "out", "--backbone", "dinov9"], 'no backbone "dinov9"; closest: '),
        (["in", "-o", "out", "--backbone", "dinov2_vits14"], "random:dinov2_vits14"),
        (["nothing", "-o", "out", "--backbone", "iuv"], "nothing"),
        (["in", "-o", "out", "--backbone", "iuv", "--layers", "3"], "expected layers from 0 to 0"),
        (["in", "-o", "out", "--backbone", "iuv", "--resolution", "3"], "--resolution must be 16"),
        (["in", "-o", "in", "--backbone", "iuv"], "is not empty"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos(tmp_path / "in", (32, 32))
    monkeypatch.chdir(tmp_path)
    assert code_of("features", *words) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert "sightline features: " in shown.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
