"""CUDA tensors go to gsplat, whichever release is installed."""

import sys
import types

import pytest
import torch

from sightline.errors import InputError, MissingExtraError
from sightline.splatting.rasterize import api, gsplat
from tests.splatting.scenes import random_scene


def install(monkeypatch, function):
    module = types.ModuleType("gsplat")
    module.rasterization = function
    module.__version__ = "1.5.3"
    monkeypatch.setitem(sys.modules, "gsplat", module)


def arguments(**changes):
    return api._defaults() | random_scene(4) | {"width": 8, "height": 6} | changes


def test_missing_gsplat_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sightline\[cuda\]"'):
        gsplat.rasterize(arguments(), api._defaults())


def test_only_what_was_given_is_passed_on(monkeypatch):
    seen = {}

    def older(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **rest):
        seen.update(rest, width=width)
        return torch.zeros(1), torch.ones(1), {}

    install(monkeypatch, older)
    older.__signature__ = api.inspect.signature(
        lambda means, quats, scales, opacities, colors, viewmats, Ks, width, height, packed=True,
        backgrounds=None: None
    )  # fmt: skip
    _, alphas, _ = gsplat.rasterize(arguments(packed=False), api._defaults())
    assert alphas == 1
    assert seen.keys() == {"packed", "backgrounds", "width"}
    assert seen["packed"] is False


def test_arguments_unknown_to_the_release_are_refused(monkeypatch):
    install(monkeypatch, lambda means, quats, scales, opacities, colors, viewmats, Ks, width,
            height, backgrounds=None: None)  # fmt: skip
    with pytest.raises(InputError, match="gsplat 1.5.3 does not know absgrad, with_ut"):
        gsplat.rasterize(arguments(absgrad=True, with_ut=True), api._defaults())


@pytest.mark.gpu
def test_gsplat_draws_the_same_picture():
    pytest.importorskip("gsplat")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scene = random_scene(40)
    on_cpu, _, _ = api.rasterization(**scene, width=33, height=21)
    on_gpu, _, _ = api.rasterization(**{k: v.cuda() for k, v in scene.items()}, width=33, height=21)
    assert (on_gpu.cpu() - on_cpu).abs().mean() < 2e-3  # older releases differ in constants
