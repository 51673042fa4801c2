"""The compressed ``.spz`` splat format, versions 2 to 4 (Niantic's open format).

The file's axes are RUB (x right, y up, z back), so everything is turned by 180 degrees about x on
the way in and out. Version 3 is one gzip stream, version 4 a plain header, a table of sizes and one
zstd frame for each attribute. Attributes follow each other: positions in fixed point, opacities,
view-independent colours, log scales, rotations, higher spherical harmonics.
"""

import importlib
import importlib.util
import struct
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8

from sightline.errors import InputError
from sightline.io.atomic import atomic_write_bytes
from sightline.io.reading import bad_file, check_growth, read_whole
from sightline.io.splat_arrays import (
    COEFFICIENTS,
    SplatArrays,
    gaussians_from_arrays,
    splat_arrays,
    to_bytes,
)
from sightline.types import Gaussians

_MAGIC = b"NGSP"
_FRACTIONAL_BITS = 12
_COLOR_SCALE = 0.15
_ROWS = 8192
_GZIP_LEVEL = 4  # 1 % larger than level 6 in a third of the time
_ANTIALIASED = 1
_V4_HEADER = struct.Struct("<4sIIBBBBI12x")
_V3_HEADER = struct.Struct("<4sIIBBBx")
_FLIP_QUAT = np.array([1, 1, -1, -1], np.float32)  # wxyz
_FLIP_MEAN = np.array([1, -1, -1], np.float32)
_FLIP_SH = np.array(
    # Parity in y times parity in z of each basis function, degree 0 to 4.
    [1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1, -1, 1],
    np.float32,
)


def write_spz(
    path: Path,
    gaussians: Gaussians,
    *,
    version: int = 3,
    sh_degree: int | None = None,
    sh_bits: tuple[int, int] = (5, 4),
    fractional_bits: int = _FRACTIONAL_BITS,
) -> None:
    """Write splats, compressed about 10 to 1 against the 3DGS PLY.

    Largest errors with the defaults: position 2^-13 scene units, log scale 1/32, opacity 1/510,
    view-independent colour 0.0131 of a coefficient, quaternion component 1/723.

    Args:
        path: The ``.spz`` file.
        gaussians: Splats on any device.
        version: 3 is read everywhere; 4 is smaller and needs the ``zstandard`` package.
        sh_degree: Highest colour degree; default 3 at most.
        sh_bits: Precision of degree 1 and of higher degrees, 1 to 8 bits.
        fractional_bits: Precision of positions; lowered when the scene is too wide for 24 bits.

    Raises:
        InputError: If a value cannot be written, or version 4 is asked for without ``zstandard``.
        OutputError: If the file cannot be written.
    """
    if version not in (3, 4):
        raise InputError(f"spz can be written as version 3 or 4, got {version}; choose one")
    degree = min(3, gaussians.sh_degree) if sh_degree is None else sh_degree
    splats = splat_arrays(gaussians, degree)
    bits = min(fractional_bits, _fitting_bits(path, splats.means))
    streams = _encode(splats, bits, sh_bits)
    degree = COEFFICIENTS.index(splats.sh.shape[1])
    flags = _ANTIALIASED if gaussians.antialiased else 0
    count = len(splats.means)
    if version == 3:
        header = _V3_HEADER.pack(_MAGIC, 3, count, degree, bits, flags)
        packer = zlib.compressobj(
            _GZIP_LEVEL, zlib.DEFLATED, 31
        )  # 31: with a gzip header, without a date
        parts = [packer.compress(part) for part in (header, *streams)]
        atomic_write_bytes(path, b"".join([*parts, packer.flush()]))
        return
    compress = _zstandard("writing").ZstdCompressor(level=6).compress
    frames = [compress(stream) for stream in streams]
    header = _V4_HEADER.pack(_MAGIC, 4, count, degree, bits, flags, len(frames), _V4_HEADER.size)
    table = b"".join(
        struct.pack("<QQ", len(frame), len(stream))
        for frame, stream in zip(frames, streams, strict=True)
    )
    atomic_write_bytes(path, b"".join([header, table, *frames]))


def read_spz(path: Path) -> Gaussians:
    """Read splats of version 2, 3 or 4, degree 0 to 4.

    Raises:
        InputError: If the file is missing, or of version 4 without the ``zstandard`` package.
        FileFormatError: If it is damaged, or would unpack to unreasonably much.
    """
    path = Path(path)
    data = read_whole(path)
    if data[:2] == b"\x1f\x8b":
        return _read_gzip(path, data)
    if data[:4] == _MAGIC:
        return _read_zstd(path, data)
    raise bad_file(path, "an .spz file (gzip or NGSP)", repr(data[:8])[1:])


def _fitting_bits(path: Path, means: Float[np.ndarray, "N 3"]) -> int:
    """Return the most fractional bits with which every coordinate fits 24 bits."""
    extent = float(np.abs(means).max(initial=0))
    for bits in range(23, -1, -1):
        if extent * 2**bits < 2**23 - 1:
            return bits
    raise InputError(
        f"{path.name}: .spz holds coordinates up to 8 million, got {extent:g}; scale the scene"
    )


def _encode(splats: SplatArrays, bits: int, sh_bits: tuple[int, int]) -> list[bytes]:
    """Return the attribute streams; rows go through in blocks that fit the processor's cache."""
    blocks = [
        _encode_rows(splats, slice(start, start + _ROWS), bits, sh_bits)
        for start in range(0, len(splats.means), _ROWS)
    ]
    return [b"".join(stream) for stream in zip(*blocks, strict=True)]


def _encode_rows(
    splats: SplatArrays, rows: slice, bits: int, sh_bits: tuple[int, int]
) -> list[bytes]:
    sh = splats.sh[rows]
    fixed = np.rint(splats.means[rows] * _FLIP_MEAN * np.float64(2**bits)).astype("<i4")
    streams = [
        fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3],
        to_bytes(255 * splats.opacities[rows]),
        to_bytes(255 * (_COLOR_SCALE * sh[:, 0] + 0.5)),
        to_bytes(16 * (np.log(splats.scales[rows]) + 10)),
        _pack_rotations(splats.quats[rows] * _FLIP_QUAT),
    ]
    coefficients = sh.shape[1]
    if coefficients > 1:
        higher = np.rint(128 * sh[:, 1:] * _FLIP_SH[1:coefficients, None]) + 128
        steps = np.full((coefficients - 1, 1), 2 ** (8 - sh_bits[1]), np.float32)
        steps[:3] = 2 ** (8 - sh_bits[0])
        # The middle of the buckets stays at 128, so that zero is exact.
        streams.append(to_bytes(np.floor(higher / steps + np.float32(0.5)) * steps))
    return [np.ascontiguousarray(stream).tobytes() for stream in streams]


def _pack_rotations(quats: Float[np.ndarray, "N 4"]) -> UInt8[np.ndarray, "N 4"]:
    """Pack ``wxyz`` into 32 bits: which of x y z w is largest, then the others, 10 bits each."""
    xyzw = quats[:, [1, 2, 3, 0]]
    largest = np.abs(xyzw).argmax(1)
    rows = np.arange(len(xyzw))
    xyzw = xyzw * np.where(xyzw[rows, largest] < 0, -1, 1)[:, None]
    others = xyzw[rows[:, None], _OTHERS[largest]]
    size = np.minimum(np.rint(511 * np.sqrt(2) * np.abs(others)), 511).astype("<u4")
    codes = size | (others < 0).astype("<u4") << 9
    packed = largest.astype("<u4") << 30 | codes[:, 0] << 20 | codes[:, 1] << 10 | codes[:, 2]
    return packed.astype("<u4")[:, None].view(np.uint8)


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The three components that are stored, by which one is not."""


def _unpack_rotations(packed: UInt8[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    word = np.ascontiguousarray(packed).view("<u4")[:, 0]
    largest = (word >> 30).astype(np.int64)
    codes = np.stack([word >> 20, word >> 10, word], 1) & 1023
    others = (codes & 511).astype(np.float32) / np.float32(511 * np.sqrt(2))
    others = np.where(codes & 512, -others, others)
    rows = np.arange(len(word))
    xyzw = np.empty((len(word), 4), np.float32)
    xyzw[rows[:, None], _OTHERS[largest]] = others
    xyzw[rows, largest] = np.sqrt(np.maximum(0, 1 - np.square(others).sum(1)))
    return xyzw[:, [3, 0, 1, 2]]


def _unpack_short_rotations(packed: UInt8[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 4"]:
    """Return ``wxyz`` of version 2, which stores x y z of a quaternion with w >= 0."""
    xyz = packed.astype(np.float32) / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(1, keepdims=True)))
    return np.concatenate([w, xyz], 1)


def _read_gzip(path: Path, data: bytes) -> Gaussians:
    unpacker = zlib.decompressobj(31)
    try:
        header = unpacker.decompress(data, _V3_HEADER.size)
        if len(header) < _V3_HEADER.size or header[:4] != _MAGIC:
            raise bad_file(path, "the magic NGSP", repr(header[:4])[1:])
        _, version, count, degree, bits, flags = _V3_HEADER.unpack(header)
        if version not in (2, 3):
            raise bad_file(path, "version 2, 3 or 4", f"{version}", "save it with a newer tool")
        sizes = _stream_sizes(path, version, count, degree, bits)
        total = sum(sizes)
        check_growth(path, len(data), total)
        body = unpacker.decompress(unpacker.unconsumed_tail, total + 1)
    except zlib.error as error:
        raise bad_file(path, "an undamaged gzip stream", f"an error ({error})") from error
    if len(body) != total:
        got = "more" if len(body) > total else f"{len(body)}"
        raise bad_file(path, f"{total} bytes of {count} splats", got)
    if not unpacker.eof:
        raise bad_file(path, "a gzip stream with a checksum", "a file that is cut off")
    ends = np.cumsum(sizes).tolist()
    streams = [body[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return _decode(path, version, count, degree, bits, flags, streams)


def _read_zstd(path: Path, data: bytes) -> Gaussians:
    if len(data) < _V4_HEADER.size:
        raise bad_file(path, f"a header of {_V4_HEADER.size} bytes", f"{len(data)} bytes")
    _, version, count, degree, bits, flags, num_streams, table = _V4_HEADER.unpack_from(data)
    if version != 4:
        raise bad_file(path, "version 4 after a plain header", f"{version}")
    sizes = _stream_sizes(path, version, count, degree, bits)
    if num_streams < len(sizes) or table + 16 * num_streams > len(data):
        raise bad_file(path, f"a table of {len(sizes)} streams", f"{num_streams} at byte {table}")
    rows = struct.unpack_from(f"<{2 * num_streams}Q", data, table)
    packed, unpacked = rows[::2], list(rows[1::2])
    start = table + 16 * num_streams
    if unpacked[: len(sizes)] != sizes or start + sum(packed) > len(data):
        raise bad_file(path, f"streams of {sizes} bytes for {count} splats", f"{unpacked}")
    check_growth(path, len(data), sum(sizes))
    module = _zstandard("reading")
    streams: list[bytes] = []
    for length, size in zip(packed, sizes, strict=False):
        frame = data[start : start + length]
        start += length
        streams.append(_unzstd(path, module, frame, size) if size else b"")
    return _decode(path, version, count, degree, bits, flags, streams)


def _unzstd(path: Path, module: ModuleType, frame: bytes, size: int) -> bytes:
    try:
        with module.ZstdDecompressor(max_window_size=1 << 27).stream_reader(frame) as reader:
            stream = reader.read(size + 1)
    except module.ZstdError as error:
        raise bad_file(path, "an undamaged zstd stream", f"an error ({error})") from error
    if len(stream) != size:
        raise bad_file(path, f"a stream of {size} bytes", f"{len(stream)} or more")
    return stream


def _zstandard(doing: str) -> ModuleType:
    """Return the zstandard module, which only version 4 needs."""
    if importlib.util.find_spec("zstandard") is None:
        raise InputError(
            f"{doing} .spz version 4 needs the zstandard package: pip install zstandard, or use "
            "version 3"
        )
    return importlib.import_module("zstandard")


def _stream_sizes(path: Path, version: int, count: int, degree: int, bits: int) -> list[int]:
    if degree >= len(COEFFICIENTS) or bits > 24:
        raise bad_file(path, "degree 0 to 4 and at most 24 fractional bits", f"{degree} and {bits}")
    if count == 0:
        raise bad_file(path, "one or more splats", "none")
    widths = [9, 1, 3, 3, 3 if version == 2 else 4]
    if degree:
        widths.append(3 * (COEFFICIENTS[degree] - 1))
    return [count * width for width in widths]


def _decode(
    path: Path, version: int, count: int, degree: int, bits: int, flags: int, streams: list[bytes]
) -> Gaussians:
    raw = [np.frombuffer(stream, np.uint8).reshape(count, -1) for stream in streams]
    fixed = np.zeros((count, 3, 4), np.uint8)
    fixed[:, :, 1:] = raw[0].reshape(count, 3, 3)  # the sign bit lands on top, value times 256
    means = fixed.view("<i4")[:, :, 0] / np.float64(2 ** (bits + 8))
    quats = _unpack_short_rotations(raw[4]) if version == 2 else _unpack_rotations(raw[4])
    sh = np.empty((count, COEFFICIENTS[degree], 3), np.float32)
    sh[:, 0] = (raw[2].astype(np.float32) / 255 - 0.5) / np.float32(_COLOR_SCALE)
    if degree:
        sh[:, 1:] = (raw[5].reshape(count, -1, 3).astype(np.float32) - 128) / 128
    return gaussians_from_arrays(
        path,
        antialiased=bool(flags & _ANTIALIASED),
        means=means.astype(np.float32) * _FLIP_MEAN,
        quats=quats * _FLIP_QUAT,
        scales=np.exp(raw[3].astype(np.float32) / 16 - 10),
        opacities=raw[1][:, 0].astype(np.float32) / 255,
        sh=sh * _FLIP_SH[: COEFFICIENTS[degree], None],
    )
