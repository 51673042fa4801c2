"""CUDA tensors go to gsplat, whichever release is installed."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.errors import InputError, MissingExtraError
from sightline.splatting.rasterize import api, gsplat
from tests.parity import raster
from tests.splatting.scenes import random_scene

GOLDEN = Path(__file__).parents[1] / "golden" / "raster"


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
@pytest.mark.parametrize("case", raster.cases(GOLDEN))
def test_gsplat_gives_the_golden_values(case):
    release = pytest.importorskip("gsplat").__version__
    config = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    kwargs = next(c["kwargs"] for c in config["cases"] if c["name"] == case)
    tensors = {k: v.cuda() for k, v in load_file(GOLDEN / f"{case}.safetensors").items()}
    try:
        got = raster.draw(api.rasterization, tensors, kwargs | {"packed": False}, torch.float32)
    except InputError as error:
        pytest.skip(f"gsplat {release}: {error}")
    # Before 1.6 alpha is clamped at 0.999 and splats end at 3 sigma, so that some pixels differ.
    exact = tuple(int(x) for x in release.split(".")[:2]) >= (1, 6)
    clear = ~tensors["out.ambiguous"][..., None] if "out.ambiguous" in tensors else 1
    for name in ("out.colors", "out.alphas", "grad.means", "grad.opacities", "grad.colors"):
        if name not in tensors or not tensors[name].numel():
            continue
        want = tensors[name].double()
        error = (got[name].double().reshape(want.shape) - want).abs()
        error = error * clear if name.startswith("out.") else error
        scale = 1 + want.abs().max() if name.startswith("out.") else want.abs().max()
        assert error.mean() <= 5e-3 * scale, name
        if exact:
            assert error.max() <= 1e-3 * scale, name


@pytest.mark.gpu
def test_gsplat_draws_the_same_picture():
    pytest.importorskip("gsplat")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scene = random_scene(40)
    on_cpu, _, _ = api.rasterization(**scene, width=33, height=21)
    on_gpu, _, _ = api.rasterization(**{k: v.cuda() for k, v in scene.items()}, width=33, height=21)
    assert (on_gpu.cpu() - on_cpu).abs().mean() < 2e-3  # older releases differ in constants
