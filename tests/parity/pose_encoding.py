"""Golden family pose_encoding: cameras to numbers and back, and unprojection."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from sightline.models import pose_encoding as pe
from tests.parity.compare import compare, read_config, read_io

INPUTS = "extrinsics|intrinsics|raw_encoding|quaternions|depth|depth_extrinsics|depth_intrinsics"


def cases(folder: Path) -> list[str]:
    return [""]


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    height, width = config["image_size_hw"]
    compare(config, io, stages(io, (height, width)), rf"(?!(?:{INPUTS})$).*")


def stages(io: dict[str, Tensor], size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    if "quaternions" in io:
        yield "rotations", pe.quaternion_to_matrix(io["quaternions"])
    if "rotations" in io:
        yield "quaternions_back", pe.matrix_to_quaternion(io["rotations"])
    if "extrinsics" in io:
        yield "pose_encoding", pe.encode_cameras(io["extrinsics"], io["intrinsics"], size)
    for prefix, name in (("roundtrip", "pose_encoding"), ("raw", "raw_encoding")):
        if name in io:
            extrinsics, intrinsics = pe.decode_cameras(io[name], size)
            yield f"{prefix}_extrinsics", extrinsics
            yield f"{prefix}_intrinsics", intrinsics
    if "depth_extrinsics" in io:
        yield "inverse_extrinsics", pe.invert_extrinsics(io["depth_extrinsics"])
    if "depth" in io:
        cameras = io["depth_extrinsics"], io["depth_intrinsics"]
        yield "world_points", pe.unproject_depth(io["depth"], *cameras)
