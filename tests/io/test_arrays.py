import io
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sightline.errors import FileFormatError, InputError
from sightline.io.arrays import read_npz, write_npz

EXAMPLE = {
    "depth": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "names": np.array(["a.jpg", "Köln.png"]),
    "metric": np.array(True),
    "empty": np.zeros((0, 3), np.int32),
}


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def npy(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize("compress", [True, False])
def test_round_trip_numpy_reads_it_and_bytes_repeat(tmp_path, compress):
    write_npz(tmp_path / "a.npz", EXAMPLE, compress=compress)
    write_npz(tmp_path / "b.npz", EXAMPLE, compress=compress)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    theirs = np.load(tmp_path / "a.npz", allow_pickle=False)
    ours = read_npz(tmp_path / "a.npz")
    assert list(ours) == list(EXAMPLE)
    for key, value in EXAMPLE.items():
        assert ours[key].dtype == value.dtype
        np.testing.assert_array_equal(ours[key], value)
        np.testing.assert_array_equal(theirs[key], value)
    assert list(read_npz(tmp_path / "a.npz", ["names"])) == ["names"]


@given(
    array=hnp.arrays(
        st.sampled_from(["<f4", ">f8", "<i4", "|u1", "|b1", "<U3"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
    ),
    fortran=st.booleans(),
)
def test_reads_what_numpy_writes(tmp_path_factory, array, fortran):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, a=np.asfortranarray(array) if fortran else array)
    np.testing.assert_array_equal(read_npz(path)["a"], np.load(path)["a"])


def test_objects_are_refused_both_ways(tmp_path):
    with pytest.raises(TypeError, match="x must hold numbers"):
        write_npz(tmp_path / "a.npz", {"x": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []
    zip_of(tmp_path / "a.npz", x=npy(np.array([{}], dtype=object)))
    with pytest.raises(FileFormatError, match=r"a\.npz: expected plain numbers or text in x\.npy"):
        read_npz(tmp_path / "a.npz")


def test_bombs_are_refused_before_allocating(tmp_path):
    path = tmp_path / "a.npz"
    zip_of(path, x=npy(np.zeros((300 << 20,), np.uint8)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        FileFormatError, match=r"expected at most \d+ unpacked bytes, got 314572928"
    ):
        read_npz(path)
    zip_of(path, x=npy(np.zeros(1 << 20, np.uint8)))
    with pytest.raises(FileFormatError, match="expected at most 1000 unpacked bytes"):
        read_npz(path, max_bytes=1000)
    big = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }\n"
    zip_of(path, x=b"\x93NUMPY\1\0" + len(big).to_bytes(2, "little") + big)
    with pytest.raises(FileFormatError, match=r"expected 800000000070 bytes in x\.npy, got 78"):
        read_npz(path)


def test_missing_things(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(InputError, match="is a folder"):
        read_npz(tmp_path)
    with pytest.raises(InputError, match="is a device or a pipe"):
        read_npz(tmp_path.__class__("/dev/zero"))
    write_npz(tmp_path / "a.npz", {"x": [1]})
    with pytest.raises(FileFormatError, match="expected the arrays depth, x, got no depth"):
        read_npz(tmp_path / "a.npz", ["x", "depth"])


@given(data=st.data())
def test_damage_never_gives_another_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write_npz(path, EXAMPLE, compress=data.draw(st.booleans()))
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    with suppress(FileFormatError):
        read_npz(path)
