"""The reference is differentiable, and the CPU kernels compute what it defines."""

import pytest
import torch

from sightline.splatting.rasterize import rasterization, reference
from tests.splatting.scenes import random_covars, random_scene

SIZE = {"width": 33, "height": 21}


def draw(function, scene, dtype, **options):
    """Draw, go back through fixed random weights, and return pictures and gradients by name."""
    leaves = {k: v.to(dtype, copy=True).requires_grad_() for k, v in scene.items()}
    picture, alpha, meta = function(**leaves, **options)
    meta["means2d"].retain_grad()
    weights = torch.Generator().manual_seed(9)
    loss = (picture * torch.randn(picture.shape, generator=weights).to(dtype)).sum()
    loss = loss + (alpha * torch.randn(alpha.shape, generator=weights).to(dtype)).sum()
    loss.backward()
    found = {"picture": picture.detach(), "alpha": alpha.detach(), "radii": meta["radii"]}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            symmetric = name == "covars"
            found[f"grad {name}"] = (leaf.grad + leaf.grad.mT) / 2 if symmetric else leaf.grad
    found["grad means2d"] = meta["means2d"].grad
    if options.get("absgrad"):
        found["absgrad means2d"] = meta["means2d"].absgrad
    return found


def assert_agree(scene, **options):
    got = draw(rasterization, scene, torch.float32, packed=False, **SIZE, **options)
    want = draw(reference.rasterization, scene, torch.float64, **SIZE, **options)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        difference = (got[name].double() - value.double()).abs().max()
        if name == "radii":
            assert difference <= 1
        elif "grad" in name:
            assert difference <= 2e-4 * value.abs().max(), name
        else:
            assert difference <= 2e-5 * (1 + value.abs().max()), name


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_kernels_follow_the_reference_for_any_batch_shape(batch, mode):
    assert_agree(random_scene(batch=batch, seed=1), render_mode=mode)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_kernels_follow_the_reference_with_spherical_harmonics(degree):
    scene = random_scene(sh_degree=3, seed=2 + degree)
    assert_agree(scene, sh_degree=degree)


@pytest.mark.parametrize("per", ["batch", "camera"])
@pytest.mark.parametrize("degree", [None, 1])
def test_kernels_follow_the_reference_with_colors_of_every_picture(per, degree):
    scene = random_scene(batch=(2,), seed=6)
    lead = (2, 40) if per == "batch" else (2, 2, 40)
    tail = (5,) if degree is None else (4, 3)
    scene["colors"] = torch.randn(*lead, *tail)
    scene["backgrounds"] = torch.rand(2, 2, tail[-1])
    assert_agree(scene, sh_degree=degree)


@pytest.mark.parametrize("channels", [2, 35])
def test_kernels_follow_the_reference_for_any_number_of_channels(channels):
    assert_agree(random_scene(channels=channels, seed=7), absgrad=True)


def test_kernels_follow_the_reference_when_antialiased():
    scene = random_scene(seed=8)
    scene["scales"] *= 0.2
    assert_agree(scene, rasterize_mode="antialiased", absgrad=True)


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_kernels_follow_the_reference_with_covariances(mode):
    scene = random_scene(seed=9)
    scene["covars"] = random_covars(scene)
    scene["quats"] = scene["scales"] = None
    scene = {k: v for k, v in scene.items() if v is not None}

    def without_shape(function):
        return lambda **given: function(quats=None, scales=None, **given)

    got = draw(
        without_shape(rasterization),
        scene,
        torch.float32,
        packed=False,
        rasterize_mode=mode,
        **SIZE,
    )
    want = draw(
        without_shape(reference.rasterization), scene, torch.float64, rasterize_mode=mode, **SIZE
    )
    for name, value in want.items():
        allowed = 1 if name == "radii" else 2e-4 * (1 + value.abs().max())
        assert (got[name].double() - value.double()).abs().max() <= allowed, name


def test_kernels_follow_the_reference_when_culling():
    scene = random_scene(160, seed=10)
    scene["means"][:40, 2] *= -1
    scene["scales"][60:70] *= 8
    assert_agree(scene, near_plane=2.0, far_plane=6.0, radius_clip=6.0)


def test_kernels_follow_the_reference_when_pixels_are_full():
    scene = random_scene(220, seed=11)
    scene["scales"] *= 3
    scene["opacities"] = 1 - 10 ** -(1 + 3 * torch.rand(220))
    got = draw(rasterization, scene, torch.float32, packed=False, **SIZE)
    want = draw(reference.rasterization, scene, torch.float64, **SIZE)
    off = (got["picture"] - want["picture"]).abs() > 1e-4
    assert off.double().mean() < 0.01  # float32 may stop a pixel one Gaussian earlier or later
    assert got["alpha"].min() > 0.99


@pytest.mark.parametrize(("mode", "blur"), [("RGB", "classic"), ("RGB+ED", "antialiased")])
def test_reference_passes_gradcheck(mode, blur):
    scene = random_scene(4, cameras=1, width=6, height=5, sh_degree=1, seed=3, dtype=torch.float64)
    scene["backgrounds"] = scene["backgrounds"][..., :3]
    names = list(scene)

    def function(*tensors):
        picture, alpha, _ = reference.rasterization(
            **dict(zip(names, tensors, strict=True)),
            width=6,
            height=5,
            sh_degree=1,
            render_mode=mode,
            rasterize_mode=blur,
        )
        return picture, alpha

    inputs = tuple(tensor.requires_grad_() for tensor in scene.values())
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, fast_mode=True)
