"""Encoding once, decoding together, and the cache on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.models import build
from sightline.models.dust3r import PairNetwork
from sightline.reconstruction.pairwise.estimators import (
    Dust3rEstimator,
    Mast3rEstimator,
    Splatt3rEstimator,
)
from sightline.reconstruction.pairwise.graph import make_pairs
from sightline.reconstruction.pairwise.images import Picture, fit_dust3r
from sightline.reconstruction.pairwise.inference import PairCache, model_key, run_pairs
from tests.reconstruction.pairwise.stand_in import StandIn, make_truth

TINY: dict[str, Any] = {
    "enc_embed_dim": 16, "enc_depth": 1, "enc_num_heads": 2,
    "dec_embed_dim": 16, "dec_depth": 4, "dec_num_heads": 2,
    "dpt": {"feature_dim": 8, "last_dim": 8, "layer_dims": [4, 8, 8, 8]},
}  # fmt: skip


def pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (64, 48), (48, 64), (48, 64)]
    return [fit_dust3r(rng.integers(0, 256, (*s, 3), dtype=np.uint8), 64) for s in sizes]


@pytest.mark.parametrize("family", ["dust3r_linear", "mast3r", "splatt3r"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_picture_is_encoded_once(family: str, batch: int) -> None:
    model = build(family, TINY | {"landscape_only": False}).eval()
    inner: Any = getattr(model, "encoder", model)
    assert isinstance(inner, PairNetwork)
    count = 0
    encode = inner.encode_views

    def counted(image: Tensor, true_shape: Tensor | None = None) -> Any:
        nonlocal count
        count += len(image)
        return encode(image, true_shape)

    inner.encode_views = counted  # type: ignore[method-assign]
    some = pictures()
    pairs = make_pairs("complete", len(some))
    found = {}
    for both in run_pairs(model, some, pairs, batch=batch):
        found |= both
    assert set(found) == set(pairs)
    assert count == len(some)
    inner.encode_views = encode  # type: ignore[method-assign]
    with torch.no_grad():
        for i, j in [(1, 0), (0, 1), (2, 0), (3, 2)]:
            views = [{"img": some[n].normalized()[None]} for n in (i, j)]
            for side, want in zip(found[i, j], model(*views), strict=True):
                for name, value in want.items():
                    got = side[name.removesuffix("_in_other_view")]
                    assert torch.allclose(got, value[0], rtol=1e-3, atol=1e-4), name


def test_the_cache_is_used_and_knows_pictures_and_network(tmp_path: Path) -> None:
    truth = make_truth(3, 40, 30)
    model = StandIn(truth, 32, metric=True, descriptors=True)
    options: dict[str, Any] = {"size": 32, "coarse": (5, 0.07, 1.5), "fine": (5, 0.01, 0.5)}
    first = Mast3rEstimator(model=model, cache=tmp_path, **options).estimate(truth.views)
    assert model.calls == 6
    again = Mast3rEstimator(model=model, cache=tmp_path, **options).estimate(truth.views)
    assert model.calls == 6
    assert torch.equal(first.cameras.w2c, again.cameras.w2c)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 6
    assert {f.suffix for f in tmp_path.rglob("*") if f.is_file()} == {".safetensors"}
    files[0].write_bytes(b"damaged")
    Mast3rEstimator(model=model, cache=tmp_path, **options).estimate(truth.views)
    assert model.calls == 8  # the pair with the damaged file, both ways
    other = StandIn(truth, 32, metric=True, noise=0.01, descriptors=True)
    Mast3rEstimator(model=other, cache=tmp_path, **options).estimate(truth.views)
    assert other.calls == 6


def test_networks_that_nothing_tells_apart_are_not_cached(tmp_path: Path) -> None:
    assert model_key(nn.Identity()) is None
    cache = PairCache(tmp_path, nn.Identity())
    one, two = pictures()[:2]
    cache.store(one, two, {"x": torch.zeros(1)})
    assert cache.load(one, two) is None
    assert not list(tmp_path.iterdir())


def test_the_key_of_a_network_sees_every_weight() -> None:
    model = nn.Linear(4, 4)
    key = model_key(model)
    assert key == model_key(model)
    assert key != model_key(model, "other")
    with torch.no_grad():
        model.weight[3, 3] += 1e-6
    assert key != model_key(model)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("dust3r_dpt", Dust3rEstimator), ("mast3r", Mast3rEstimator), ("splatt3r", Splatt3rEstimator)],
)
def test_untrained_networks_give_finite_nonsense(family: str, kind: Any) -> None:
    views = make_truth(3).views
    torch.manual_seed(1)
    model = build(family, TINY | {"landscape_only": False})
    options: dict[str, Any] = {"size": 64, "iterations": 10, "most_points": 100}
    if kind is Mast3rEstimator:
        options |= {"coarse": (10, 0.07, 1.5), "fine": (10, 0.01, 0.5)}
    found = kind(model=model, **options).estimate(views)
    assert bool(found.registered.all())
    for value in (found.cameras.w2c, found.cameras.K, found.depth, found.confidence):
        assert value is not None
        assert bool(value.isfinite().all())
