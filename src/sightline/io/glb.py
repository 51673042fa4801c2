"""GLB (binary glTF 2.0): a point cloud with the cameras that saw it.

glTF's axes are x right, y up, z to the viewer, for the world and for cameras alike, so the OpenCV
world is turned by 180 degrees about x. ``COLOR_0`` is linear by the standard, so sRGB colours are
converted on the way in and out.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from sightline.errors import InputError
from sightline.io.atomic import atomic_write_bytes
from sightline.io.reading import bad_file, read_whole
from sightline.io.splat_arrays import to_bytes, to_numpy
from sightline.types import Cameras, PointCloud

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_POINTS, _LINES = 0, 1
_FLOAT, _BYTE, _SHORT = 5126, 5121, 5123
_COMPONENT = {_FLOAT: "<f4", _BYTE: "u1", _SHORT: "<u2"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
_FLIP_POINT = np.array([1, -1, -1], np.float32)
_CAMERA_COLOR = (0.05, 0.25, 0.9, 1.0)
_PYRAMID = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1], "<u2")
_MAX_NODES = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class GlbScene:
    """What a GLB file of ours holds."""

    points: PointCloud | None
    names: tuple[str, ...]
    """Of the cameras."""
    w2c: Float[Tensor, "V 4 4"]
    yfov: Float[Tensor, " V"]
    """Vertical field of view in radians."""
    aspect: Float[Tensor, " V"]
    """Width over height."""


def write_glb(
    path: Path,
    points: PointCloud | None,
    cameras: Cameras | None = None,
    names: tuple[str, ...] = (),
    *,
    sizes: Int64[Tensor, "V 2"] | None = None,
    camera_size: float | None = None,
) -> None:
    """Write points and one pyramid, with a real glTF camera, a view.

    Args:
        path: The ``.glb`` file.
        points: World points with sRGB colours; stored as linear bytes, so the darkest sRGB levels
            merge. Normals and confidence are not written.
        cameras: Pinhole cameras; the principal point shapes the pyramid but has no place in a glTF
            camera.
        names: One for each camera, which names its node.
        sizes: Height and width of each camera's picture, where they are unlike.
        camera_size: Depth of the pyramids in scene units; default 3 % of the scene's spread.

    Raises:
        InputError: If there is nothing to write, a value is not finite or names do not match.
        OutputError: If the file cannot be written.
    """
    if points is None and cameras is None:
        raise InputError("a GLB needs points or cameras, got neither; reconstruct a scene first")
    count = 0 if cameras is None else len(cameras)
    if len(names) != count:
        raise InputError(f"a GLB needs one name a camera, got {len(names)} for {count}")
    file = _Builder()
    xyz = np.zeros((0, 3), np.float32) if points is None else to_numpy(points.points)
    if not np.isfinite(xyz).all():
        raise InputError("points must be finite, got NaN or infinity; drop such rows")
    if points is not None and len(xyz):
        _add_points(file, xyz, to_numpy(points.colors))
    if cameras is not None:
        w2c = cameras.w2c.detach().cpu().double().numpy()
        if not np.isfinite(w2c).all():
            raise InputError("cameras must be finite, got NaN; leave unregistered views out")
        size = camera_size or 0.03 * _spread(xyz, w2c)
        # All pyramids share the colour and the edges.
        shared = file.add_material(_CAMERA_COLOR), file.add_accessor(_PYRAMID, _SHORT)
        for i, name in enumerate(names):
            height, width = (cameras.height, cameras.width) if sizes is None else sizes[i].tolist()
            K = cameras.K[i].detach().cpu().double().numpy()
            _add_camera(file, shared, name, w2c[i], K, (width, height), size)
    atomic_write_bytes(path, file.pack())


def read_glb(path: Path) -> GlbScene:
    """Read the points and cameras of a GLB file made by `write_glb`, or of one as plain.

    Points of all nodes are joined; nodes may be turned by a ``matrix`` but not nested.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged, or uses more of glTF than that.
    """
    path = Path(path)
    document, binary = _unpack(path, read_whole(path))
    reader = _Reader(path, document, binary)
    clouds: list[tuple[np.ndarray, np.ndarray]] = []
    names: list[str] = []
    views: list[np.ndarray] = []
    lenses: list[tuple[float, float]] = []
    for node in reader.entries("nodes"):
        matrix = reader.matrix(node)
        if "mesh" in node:
            clouds += reader.clouds(node["mesh"], matrix)
        if "camera" in node:
            names.append(str(node.get("name", "")))
            views.append(matrix)
            lenses.append(reader.lens(node["camera"]))
    cloud = None
    if clouds:
        cloud = PointCloud(
            points=torch.from_numpy(np.concatenate([points for points, _ in clouds])),
            colors=torch.from_numpy(np.concatenate([colors for _, colors in clouds])),
        )
    c2w = np.stack(views) if views else np.zeros((0, 4, 4))
    w2c = np.linalg.inv(_FLIP @ c2w @ _FLIP)
    fields = torch.from_numpy(np.array(lenses, np.float64).reshape(-1, 2))
    return GlbScene(cloud, tuple(names), torch.from_numpy(w2c), fields[:, 0], fields[:, 1])


def srgb_to_linear(colors: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Undo the sRGB curve (IEC 61966-2-1) of values in [0, 1]."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(colors: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Apply the sRGB curve (IEC 61966-2-1) to linear values in [0, 1]."""
    return np.where(colors <= 0.0031308, colors * 12.92, 1.055 * colors ** (1 / 2.4) - 0.055)


class _Builder:
    """Collects the JSON part and the binary part."""

    def __init__(self) -> None:
        self.binary: list[bytes] = []
        self.length = 0
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "sightline"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": []}],
            "nodes": [],
            "meshes": [],
            "cameras": [],
            "materials": [],
            "accessors": [],
            "bufferViews": [],
        }

    def add(self, key: str, entry: dict[str, Any]) -> int:
        """Append to one of the JSON lists and return the index."""
        self.json[key].append(entry)
        return len(self.json[key]) - 1

    def add_node(self, entry: dict[str, Any]) -> None:
        self.json["scenes"][0]["nodes"].append(self.add("nodes", entry))

    def add_material(self, color: tuple[float, ...]) -> int:
        return self.add(
            "materials",
            {
                "pbrMetallicRoughness": {"baseColorFactor": list(color), "metallicFactor": 0},
                "extensions": {"KHR_materials_unlit": {}},
            },
        )

    def add_accessor(self, array: np.ndarray, kind: int, **extra: object) -> int:
        """Append an array [N C] or [N] whose rows are a multiple of 4 bytes, or indices."""
        data = np.ascontiguousarray(array).tobytes()
        target = 34963 if kind == _SHORT else 34962  # indices or vertices
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data), "target": target}
        data += bytes(-len(data) % 4)
        self.binary.append(data)
        self.length += len(data)
        width = 1 if array.ndim == 1 else array.shape[1]
        name = next(name for name, n in _WIDTH.items() if n == width)
        entry = {"componentType": kind, "count": len(array), "type": name, **extra}
        return self.add("accessors", {"bufferView": self.add("bufferViews", view), **entry})

    def add_positions(self, xyz: Float32[np.ndarray, "N 3"]) -> int:
        bounds = {"min": xyz.min(0).tolist(), "max": xyz.max(0).tolist()}
        return self.add_accessor(xyz.astype("<f4"), _FLOAT, **bounds)

    def pack(self) -> bytes:
        used = {key: value for key, value in self.json.items() if value != []}
        used["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(used, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.length
        head = struct.pack("<III", _MAGIC, 2, total)
        head += struct.pack("<II", len(text), _JSON) + text
        return b"".join([head, struct.pack("<II", self.length, _BIN), *self.binary])


def _add_points(file: _Builder, xyz: np.ndarray, colors: np.ndarray) -> None:
    rgba = np.full((len(xyz), 4), 255, np.uint8)
    rgba[:, :3] = to_bytes(255 * srgb_to_linear(colors.clip(0, 1)))
    attributes = {
        "POSITION": file.add_positions(xyz * _FLIP_POINT),
        "COLOR_0": file.add_accessor(rgba, _BYTE, normalized=True),
    }
    material = file.add_material((1.0, 1.0, 1.0, 1.0))
    primitive = {"mode": _POINTS, "attributes": attributes, "material": material}
    file.add_node({"name": "points", "mesh": file.add("meshes", {"primitives": [primitive]})})


def _add_camera(
    file: _Builder,
    shared: tuple[int, int],
    name: str,
    w2c: Float64[np.ndarray, "4 4"],
    K: Float64[np.ndarray, "3 3"],
    picture: tuple[int, int],
    size: float,
) -> None:
    width, height = picture
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    rays = (corners - (cx, cy)) / (fx, fy) * (1, -1)
    vertices = np.zeros((5, 3), np.float32)
    vertices[1:, :2] = size * rays
    vertices[1:, 2] = -size
    material, indices = shared
    primitive = {
        "mode": _LINES,
        "attributes": {"POSITION": file.add_positions(vertices)},
        "indices": indices,
        "material": material,
    }
    lens = {
        "type": "perspective",
        "perspective": {
            "yfov": 2 * math.atan(height / (2 * fy)),
            # Where the focal lengths differ, pixels are not square and the aspect is not W / H.
            "aspectRatio": width / height * (fy / fx),
            "znear": size / 100,
        },
    }
    rigid = np.eye(4)
    rigid[:3, :3] = w2c[:3, :3].T
    rigid[:3, 3] = -w2c[:3, :3].T @ w2c[:3, 3]
    matrix = _FLIP @ rigid @ _FLIP
    file.add_node(
        {
            "name": name,
            "matrix": matrix.T.ravel().tolist(),  # column by column
            "mesh": file.add("meshes", {"primitives": [primitive]}),
            "camera": file.add("cameras", lens),
        }
    )


def _spread(xyz: np.ndarray, w2c: np.ndarray) -> float:
    """Return the size of the scene: the middle 90 % of points, or the cameras' box, or 1."""
    centers = -np.einsum("vji,vj->vi", w2c[:, :3, :3], w2c[:, :3, 3])
    if len(xyz):
        low, high = np.percentile(xyz[:: max(1, len(xyz) // 100_000)], (5, 95), axis=0)
        size = float(np.linalg.norm(high - low))
    else:
        size = float(np.linalg.norm(np.ptp(centers, axis=0))) if len(centers) else 0.0
    return size or 1.0


def _unpack(path: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON part and the binary part."""
    if len(data) < 20 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise bad_file(path, "a GLB file that begins with glTF", repr(data[:4])[1:])
    _, version, total, length, kind = struct.unpack_from("<IIIII", data)
    if version != 2 or total != len(data):
        raise bad_file(path, f"glTF 2 in {len(data)} bytes", f"version {version} in {total} bytes")
    if kind != _JSON or length > len(data) - 20:
        raise bad_file(path, "a JSON chunk that fits the file", f"{length} bytes of {kind:#x}")
    try:
        document = json.loads(data[20 : 20 + length])
    except (ValueError, RecursionError) as error:
        raise bad_file(path, "JSON in the first chunk", f"an error ({error})") from error
    if not isinstance(document, dict):
        raise bad_file(path, "a JSON object in the first chunk", type(document).__name__)
    rest = data[20 + length :]
    if not rest:
        return document, b""
    if len(rest) < 8:
        raise bad_file(path, "a binary chunk", f"{len(rest)} bytes")
    length, kind = struct.unpack_from("<II", rest)
    if kind != _BIN or length > len(rest) - 8:
        raise bad_file(path, "a binary chunk that fits the file", f"{length} bytes of {kind:#x}")
    return document, rest[8 : 8 + length]


class _Reader:
    """Follows the indices of a stranger's document, each one checked."""

    def __init__(self, path: Path, document: dict[str, Any], binary: bytes) -> None:
        self.path = path
        self.document = document
        self.binary = binary
        self.budget = len(binary)  # bytes that accessors may add up to, so that none is read twice
        self.visits = _MAX_NODES  # primitives that may be looked at
        self.lists: dict[str, list[dict[str, Any]]] = {}

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Return one of the document's lists of objects."""
        if key in self.lists:
            return self.lists[key]
        found = self.document.get(key, [])
        good = isinstance(found, list) and len(found) <= _MAX_NODES
        if not good or not all(isinstance(entry, dict) for entry in found):
            raise bad_file(self.path, f"a list of objects in {key}", type(found).__name__)
        self.lists[key] = found
        return found

    def entry(self, key: str, index: object) -> dict[str, Any]:
        found = self.entries(key)
        if type(index) is not int or not 0 <= index < len(found):
            raise bad_file(self.path, f"one of {len(found)} {key}", f"{str(index)[:40]}")
        return found[index]

    def number(self, entry: dict[str, Any], key: str, default: int | None = None) -> int:
        value = entry.get(key, default)
        if type(value) is not int or not 0 <= value < 1 << 40:
            raise bad_file(self.path, f"a count in {key}", f"{str(value)[:40]}")
        return value

    def matrix(self, node: dict[str, Any]) -> Float64[np.ndarray, "4 4"]:
        """Return a node's own matrix; rotations and children are beyond this reader."""
        for key in ("translation", "rotation", "scale", "children"):
            if key in node:
                raise bad_file(self.path, "nodes with a matrix only", f"a {key}")
        values = self.floats(node.get("matrix", np.eye(4).ravel().tolist()), 16)
        matrix = values.reshape(4, 4).T
        block = matrix[:3, :3]
        rigid = np.abs(block @ block.T - np.eye(3)).max() < 1e-3 and np.linalg.det(block) > 0
        if not rigid or (matrix[3] != (0, 0, 0, 1)).any():
            raise bad_file(self.path, "nodes with rigid matrices", "another matrix")
        return matrix

    def floats(self, values: object, count: int) -> Float64[np.ndarray, " count"]:
        numbers: list[Any] = values if isinstance(values, list) and len(values) == count else [""]
        if not all(type(v) in (int, float) and abs(v) < 1e18 for v in numbers):
            raise bad_file(self.path, f"{count} finite numbers", f"{str(values)[:40]}")
        return np.array(numbers, np.float64)

    def lens(self, index: object) -> tuple[float, float]:
        """Return vertical field of view and aspect."""
        lens = self.entry("cameras", index).get("perspective")
        if not isinstance(lens, dict):
            raise bad_file(self.path, "perspective cameras", "another kind")
        yfov, aspect = self.floats([lens.get("yfov"), lens.get("aspectRatio")], 2)
        return float(yfov), float(aspect)

    def clouds(
        self, index: object, matrix: Float64[np.ndarray, "4 4"]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return points (OpenCV world) and sRGB colours of a mesh's point primitives."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        primitives = self.entry("meshes", index).get("primitives", [])
        if not isinstance(primitives, list) or not all(isinstance(p, dict) for p in primitives):
            raise bad_file(self.path, "a list of primitives", type(primitives).__name__)
        self.visits -= len(primitives)
        if self.visits < 0:
            raise bad_file(self.path, f"at most {_MAX_NODES} primitives", "more")
        for primitive in primitives:
            attributes = primitive.get("attributes")
            if primitive.get("mode") != _POINTS or not isinstance(attributes, dict):
                continue
            xyz = self.accessor(attributes.get("POSITION"), 3)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                xyz = (xyz @ matrix[:3, :3].T + matrix[:3, 3]) * _FLIP_POINT
            colors = np.full((len(xyz), 3), 0.5, np.float32)
            if "COLOR_0" in attributes:
                linear = self.accessor(attributes["COLOR_0"], 4)[:, :3]
                colors = linear_to_srgb(linear.clip(0, 1)).astype(np.float32)
            if len(colors) != len(xyz) or not np.isfinite(xyz).all():
                raise bad_file(self.path, "finite points, each with a colour", "others")
            with np.errstate(over="ignore"):
                points = xyz.astype(np.float32)
            if not np.isfinite(points).all():
                raise bad_file(self.path, "points within the range of 32-bit floats", "others")
            found.append((points, colors))
        return found

    def accessor(self, index: object, most: int) -> Float[np.ndarray, "N C"]:
        """Return an accessor of 3 to ``most`` columns as floats, integers scaled to [0, 1]."""
        entry = self.entry("accessors", index)
        kind = entry.get("componentType")
        width = _WIDTH.get(str(entry.get("type")), 0)
        if kind not in _COMPONENT or not 3 <= width <= most or "sparse" in entry:
            raise bad_file(self.path, "vectors of floats or colours", f"{str(entry)[:60]}")
        view = self.entry("bufferViews", entry.get("bufferView"))
        dtype = np.dtype(_COMPONENT[kind])
        count = self.number(entry, "count")
        packed = width * dtype.itemsize
        stride = self.number(view, "byteStride", packed)
        start = self.number(view, "byteOffset", 0) + self.number(entry, "byteOffset", 0)
        self.budget -= count * packed
        end = start + (count - 1) * stride + packed if count else start
        if not packed <= stride <= 1024 or end > len(self.binary) or self.budget < 0:
            raise bad_file(
                self.path, f"{count} vectors within {len(self.binary)} bytes", "fewer bytes"
            )
        raw = np.ndarray((count, width), dtype, self.binary, start, (stride, dtype.itemsize))
        with np.errstate(invalid="ignore"):
            values = raw.astype(np.float32)
        return values if kind == _FLOAT else values / np.float32(np.iinfo(dtype).max)
