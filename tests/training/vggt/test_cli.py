import pytest

from sightline.cli.train import run, trainer_parser
from sightline.errors import InputError
from sightline.models.check import check_file
from sightline.options import find_config
from tests.datasets.test_posed import write_pictures, write_transforms_scene
from tests.training.vggt.small import settings

SIZES = {
    name: getattr(settings(), name)
    for name in [
        "encoder_dim",
        "encoder_depth",
        "encoder_heads",
        "embed_dim",
        "depth",
        "heads",
        "registers",
        "features",
        "camera_depth",
        "max_frames",
        "width",
        "min_aspect",
        "val_scenes",
        "val_frames",
    ]
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]


def test_the_scene_builder_trains_with_its_own_options(tmp_path, monkeypatch, capsys):
    data = write_transforms_scene(tmp_path / "scene")
    monkeypatch.chdir(tmp_path)
    given = ["--dataset-dir", str(data), "--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]
    run(["vggt", *given, "--device", "cpu", *FLAGS])
    assert check_file(tmp_path / "checkpoints" / "vggt_custom.pt").strict
    assert "checkpoints/vggt_custom.pt" in capsys.readouterr().out


def test_photos_alone_are_refused_before_anything_starts(tmp_path):
    write_pictures(tmp_path / "photos")
    given = [
        "vggt",
        "--data",
        str(tmp_path / "photos"),
        "--steps",
        "1",
        "-o",
        str(tmp_path / "out"),
    ]
    with pytest.raises(InputError, match="sightline reconstruct"):
        run([*given, *FLAGS])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["vggt_smoke", "vggt_synthetic", "vggt_1b"])
def test_configurations_that_come_with_us_are_read(name):
    parser = trainer_parser("vggt")
    chosen = parser.parse_args(
        ["--config", str(find_config(f"configs/train/{name}.yaml", "train"))]
    )
    assert chosen.steps > 0
