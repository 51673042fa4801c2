"""The CPU rasteriser keeps what it promises: checks, dictionary, gradients, robustness, order."""

import inspect
import pickle
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError, OutOfMemoryError, ShapeError, UnknownNameError
from sightline.splatting.rasterize import cpu, jit, rasterization
from tests.splatting.scenes import random_scene

SIZE = {"width": 33, "height": 21}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(scene):
    return {name: tensor.clone().requires_grad_() for name, tensor in scene.items()}


def assert_same_picture(a, b, tolerance):
    off = (a - b).abs() > tolerance
    assert off.double().mean() < 0.01  # a pixel at the cut-off may fall on its other side


def test_signature_begins_like_gsplats():
    names = list(inspect.signature(rasterization).parameters)
    assert names[:15] == [
        *("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height"),
        *("near_plane", "far_plane", "radius_clip", "eps2d", "sh_degree", "packed"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_draws_nothing_but_the_background_without_gaussians(packed):
    scene = trained(random_scene(0))
    picture, alpha, meta = rasterization(**scene, **SIZE, packed=packed)
    assert torch.equal(picture, scene["backgrounds"][:, None, None].expand_as(picture))
    assert not alpha.any()
    assert meta["isect_ids"].shape == (0,)
    picture.sum().backward()
    assert scene["means"].grad.shape == (0, 3)
    assert torch.equal(scene["backgrounds"].grad, torch.full((2, 3), 33.0 * 21))


def test_one_gaussian_is_what_the_formula_says():
    scene = {
        "means": torch.tensor([[0.0, 0.0, 2.0]]),
        "quats": torch.tensor([[1.0, 0, 0, 0]]),
        "scales": torch.full((1, 3), 0.2),
        "opacities": torch.tensor([0.8]),
        "colors": torch.tensor([[1.0, 0.5, 0.25]]),
        "viewmats": torch.eye(4)[None],
        "Ks": torch.tensor([[[20.0, 0, 8.5], [0, 20, 8.5], [0, 0, 1]]]),
    }
    picture, alpha, meta = rasterization(**scene, width=17, height=17, render_mode="RGB+ED")
    variance = (20 * 0.2 / 2) ** 2 + 0.3
    for offset in (0, 3):
        expected = 0.8 * torch.tensor(-(offset**2) / (2 * variance)).exp()
        torch.testing.assert_close(alpha[0, 8, 8 + offset, 0], expected)
        torch.testing.assert_close(
            picture[0, 8, 8 + offset], torch.tensor([1, 0.5, 0.25, 2 / expected]) * expected
        )
    assert meta["depths"].tolist() == [2.0]
    assert meta["means2d"].tolist() == [[8.5, 8.5]]


def test_dictionary_has_gsplats_entries():
    scene = random_scene(batch=(2,), cameras=3)
    _, _, dense = rasterization(**scene, **SIZE, packed=False)
    _, _, packed = rasterization(**scene, **SIZE, packed=True)
    assert dense["radii"].shape == dense["means2d"].shape == (2, 3, 40, 2)
    assert dense["radii"].dtype == torch.int32
    assert dense["gaussian_ids"] is None
    seen = (dense["radii"] > 0).all(-1)
    rows = packed["batch_ids"], packed["camera_ids"], packed["gaussian_ids"]
    assert torch.equal(torch.stack(rows, -1), seen.nonzero())
    for name in ("means2d", "conics", "opacities", "depths", "radii"):
        assert torch.equal(packed[name], dense[name][seen]), name
        assert not dense[name][~seen].any(), name
    for meta in (dense, packed):
        assert (meta["tile_height"], meta["tile_width"], meta["tile_size"]) == (2, 3, 16)
        assert (meta["n_batches"], meta["n_cameras"]) == (2, 3)
        assert (meta["width"], meta["height"]) == (33, 21)
    assert torch.equal(dense["isect_ids"], packed["isect_ids"])
    assert dense["isect_offsets"].shape == (2, 3, 2, 3)


def test_tile_lists_hold_every_box_in_depth_order():
    scene = random_scene(60, cameras=2)
    _, _, meta = rasterization(**scene, **SIZE, packed=False, tile_size=8)
    assert (meta["tile_height"], meta["tile_width"]) == (3, 5)
    centres, radii = meta["means2d"].reshape(-1, 2), meta["radii"].reshape(-1, 2)
    offsets = [*meta["isect_offsets"].flatten().tolist(), len(meta["flatten_ids"])]
    found = 0
    for index in range(2 * 3 * 5):
        picture, row, column = index // 15, index % 15 // 5, index % 5
        rows = meta["flatten_ids"][offsets[index] : offsets[index + 1]].long()
        low = torch.tensor([column, row]) * 8.0
        touches = (centres + radii > low) & (centres - radii < low + 8) & (radii > 0)
        expected = touches.all(-1).nonzero()[:, 0]
        expected = expected[expected // 60 == picture]
        assert sorted(rows.tolist()) == expected.tolist()
        depths = meta["depths"].flatten()[rows]
        assert torch.equal(depths, depths.sort().values)
        found += len(rows)
    assert found == meta["tiles_per_gauss"].sum() == len(meta["isect_ids"])
    assert dict(meta.items()).keys() == meta.keys()
    assert meta.get("isect_ids") is meta["isect_ids"]
    assert meta.get("nothing", 3) == 3
    _, _, again = rasterization(**scene, **SIZE, tile_size=8)
    assert dict(again)["isect_ids"] is not None
    assert (again | {"extra": 1})["flatten_ids"] is not None
    assert torch.equal(pickle.loads(pickle.dumps(again))["isect_ids"], meta["isect_ids"])


@pytest.mark.parametrize("packed", [False, True])
def test_means2d_is_a_node_of_the_graph(packed):
    scene = trained(random_scene())
    picture, _, meta = rasterization(**scene, **SIZE, packed=packed, absgrad=True)
    meta["means2d"].retain_grad()
    picture.square().sum().backward()
    gradient = meta["means2d"].grad
    assert gradient.shape == meta["means2d"].shape
    assert gradient.any()
    assert meta["means2d"].absgrad.shape == gradient.shape
    assert (meta["means2d"].absgrad >= gradient.abs() * 0.999).all()


def test_gradients_do_not_depend_on_packing():
    scene = random_scene(batch=(2,))
    found = []
    for packed in (False, True):
        leaves = trained(scene)
        picture, alpha, _ = rasterization(**leaves, **SIZE, packed=packed, render_mode="RGB+ED")
        (picture.square().sum() + alpha.square().sum()).backward()
        found.append([leaf.grad for leaf in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_published_values_carry_gradients():
    scene = trained(random_scene(20, cameras=1))
    _, _, meta = rasterization(**scene, **SIZE, packed=False, rasterize_mode="antialiased")
    weights = torch.Generator().manual_seed(0)
    names = ("means2d", "depths", "conics", "opacities")
    seen = (meta["radii"] > 0).all(-1)
    total = sum(
        (meta[n][seen] * torch.randn(meta[n][seen].shape, generator=weights)).sum() for n in names
    )
    total.backward()
    from sightline.splatting.rasterize import reference

    exact = {k: v.detach().double().requires_grad_() for k, v in scene.items()}
    _, _, want = reference.rasterization(**exact, **SIZE, rasterize_mode="antialiased")
    weights = torch.Generator().manual_seed(0)
    total = sum(
        (want[n][seen] * torch.randn(want[n][seen].shape, generator=weights)).sum() for n in names
    )
    total.backward()
    for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks"):
        expected = exact[name].grad
        error = (scene[name].grad - expected).abs().max()
        assert error <= 1e-4 * expected.abs().max(), name


def test_same_bits_for_any_number_of_threads(two_threads):
    scene = random_scene(3000, width=150, height=100)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        leaves = trained(scene)
        picture, alpha, meta = rasterization(**leaves, width=150, height=100, absgrad=True)
        weights = torch.Generator().manual_seed(4)
        loss = torch.randn(picture.shape, generator=weights)
        torch.autograd.backward([picture, alpha], [loss, loss[..., :1]])
        found.append([picture, alpha, meta["means2d"].absgrad, *(v.grad for v in leaves.values())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors"])
def test_a_gaussian_that_is_not_finite_is_not_drawn(name, value):
    scene = random_scene(30, cameras=1)
    alone = {k: v[1:] if len(v) == 30 else v for k, v in scene.items()}
    expected, _, _ = rasterization(**alone, **SIZE)
    scene[name] = scene[name].clone()
    scene[name][0] = value
    leaves = trained(scene)
    picture, _, meta = rasterization(**leaves, **SIZE, packed=False)
    assert torch.equal(picture, expected)
    assert not meta["radii"][0, 0].any()
    picture.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@pytest.mark.parametrize("size", [1e-30, 1e10, 1e25])
def test_extreme_sizes_stay_finite(size):
    scene = random_scene(10, cameras=1)
    scene["scales"] = torch.full_like(scene["scales"], size)
    leaves = trained(scene)
    picture, _, _ = rasterization(**leaves, **SIZE)
    picture.sum().backward()
    assert picture.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@given(seed=st.integers(0, 2**16))
def test_order_and_invisible_gaussians_do_not_matter(seed):
    scene = random_scene(30, cameras=1, seed=seed)
    picture, _, _ = rasterization(**scene, **SIZE)
    extra = {k: v.clone() for k, v in random_scene(9, cameras=1, seed=seed + 1).items()}
    extra["opacities"] *= 0
    order = torch.randperm(39, generator=torch.Generator().manual_seed(seed))
    for name in ("means", "quats", "scales", "opacities", "colors"):
        scene[name] = torch.cat([scene[name], extra[name]])[order]
    again, _, _ = rasterization(**scene, **SIZE)
    assert_same_picture(picture, again, 1e-5)


@given(seed=st.integers(0, 2**16), turn=st.floats(-3, 3))
def test_moving_world_and_cameras_together_changes_nothing(seed, turn):
    scene = random_scene(20, seed=seed)
    picture, _, _ = rasterization(**scene, **SIZE)
    angle = torch.tensor(turn)
    move = torch.eye(4)
    move[0, 0] = move[2, 2] = angle.cos()
    move[0, 2], move[2, 0] = angle.sin(), -angle.sin()
    move[:3, 3] = torch.tensor([0.3, -0.2, 0.5])
    half = torch.tensor([(angle / 2).cos(), 0.0, (angle / 2).sin(), 0.0])
    w, x, y, z = scene["quats"].unbind(-1)
    a, b = half[0], half[2]
    scene["quats"] = torch.stack([a * w - b * y, a * x + b * z, a * y + b * w, a * z - b * x], -1)
    scene["means"] = scene["means"] @ move[:3, :3].mT + move[:3, 3]
    scene["viewmats"] = scene["viewmats"] @ torch.linalg.inv(move)
    again, _, _ = rasterization(**scene, **SIZE)
    assert_same_picture(picture, again, 1e-3)


def test_changing_a_picture_in_place_before_backward_is_noticed():
    scene = trained(random_scene(10))
    picture, _, _ = rasterization(**scene, **SIZE)
    total = picture.square().sum()
    with torch.no_grad():
        picture.clamp_(0, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_inputs_may_be_strided_and_expanded():
    scene = random_scene(30)
    want, _, _ = rasterization(**scene, **SIZE)
    strided = {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in scene.items()}
    got, _, _ = rasterization(**strided, **SIZE)
    assert torch.equal(want, got)
    shared = scene | {"Ks": scene["Ks"][:1].expand(2, 3, 3)}
    rasterization(**shared, **SIZE)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"means": torch.zeros(5)}, ShapeError, r"means must be \[.., N, 3\], got \[5\]"),
        (
            {"opacities": torch.zeros(8, 1)},
            ShapeError,
            r"opacities must be \[8\], got \[8, 1\]; drop the last axis with .squeeze\(-1\)",
        ),
        ({"quats": torch.zeros(8, 3)}, ShapeError, r"quats must be \[8, 4\], got \[8, 3\]"),
        ({"quats": None}, ShapeError, "quats must be .* got None; only covars can replace"),
        ({"covars": torch.zeros(8, 6)}, ShapeError, r"covars must be \[8, 3, 3\]"),
        ({"viewmats": torch.eye(4)}, ShapeError, r"viewmats must be \[C, 4, 4\].*viewmats\[None\]"),
        ({"Ks": torch.eye(3)}, ShapeError, r"Ks must be \[2, 3, 3\], got \[3, 3\]"),
        ({"backgrounds": torch.zeros(3)}, ShapeError, r"backgrounds must be \[2, 3\]"),
        ({"colors": None}, ShapeError, "colors must be given unless render_mode"),
        ({"colors": torch.zeros(8, 16, 3)}, ShapeError, "spherical harmonics need sh_degree"),
        ({"sh_degree": 3}, ShapeError, "K at least 16 for sh_degree 3"),
        ({"sh_degree": 4}, InputError, "sh_degree must be 0 to 3, got 4"),
        ({"means": torch.zeros(8, 3).double()}, InputError, "float32 on the CPU, got float64"),
        ({"means": torch.zeros(8, 3, device="meta")}, InputError, "cpu or cuda, got .* meta"),
        ({"width": 0}, InputError, "width must be at least 1 pixel, got 0"),
        ({"eps2d": -1.0}, InputError, "eps2d must not be negative"),
        ({"radius_clip": float("nan")}, InputError, "radius_clip must not be negative"),
        ({"render_mode": "rgb"}, UnknownNameError, 'no render_mode "rgb"'),
        ({"rasterize_mode": "fast"}, UnknownNameError, 'no rasterize_mode "fast"'),
        ({"camera_model": "fisheye"}, InputError, 'must be "pinhole" on the CPU, got "fisheye"'),
        ({"with_ut": True}, InputError, "with_ut is not supported on the CPU"),
        ({"distributed": True}, InputError, "distributed is not supported on the CPU"),
        ({"sparse_grad": True}, InputError, "sparse_grad is not supported on the CPU"),
        ({"lidar_coeffs": object()}, InputError, "lidar_coeffs is not supported on the CPU"),
    ],
)
def test_wrong_arguments_are_explained(change, error, text):
    with pytest.raises(error, match=text):
        rasterization(**(random_scene(8) | SIZE | change))


def test_harmless_arguments_are_accepted():
    rolling = type("Shutter", (), {"name": "GLOBAL"})()
    rasterization(
        **random_scene(8), **SIZE, segmented=True, channel_chunk=1, rolling_shutter=rolling
    )


def test_too_many_pairs_are_refused_before_they_are_listed(monkeypatch):
    monkeypatch.setattr(cpu.os, "sysconf", lambda _: 64)
    with pytest.raises(OutOfMemoryError, match="pairs of a Gaussian and a tile"):
        rasterization(**random_scene(200), **SIZE)


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    real = jit.numba.njit

    def njit(function, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(jit.numba, "njit", njit)
    assert jit.kernel(lambda x: x + 1)(2) == 3


def test_pieces_cover_everything_once(two_threads):
    for count in (0, 1, 7, 64, 1000):
        hits = [0] * count

        def mark(first, last, hits=hits):
            for i in range(first, last):
                hits[i] += 1

        jit.run_chunks(mark, count, 7)
        assert hits == [1] * count


def test_no_piece_is_at_work_after_the_call(two_threads):
    torch.set_num_threads(8)  # more than cores: some helpers wake up after all is taken
    for _ in range(100):
        hits = []

        def mark(first, last, hits=hits):
            time.sleep(0.002 * (first == 1))
            hits.append(first)

        jit.run_chunks(mark, 8, 1)
        assert sorted(hits) == list(range(8))


def test_errors_of_any_thread_reach_the_caller(two_threads):
    def fail(first, last):
        if first == 50:
            raise ValueError("piece 50")

    for _ in range(20):
        with pytest.raises(ValueError, match="piece 50"):
            jit.run_chunks(fail, 100, 1)
