from typing import Any

import pytest
import torch

from sightline.checkpoints import load_strict
from sightline.errors import ShapeError
from sightline.models.croco import CroCoNet, Encoded
from sightline.models.dust3r import (
    AsymmetricCroCo3DStereo,
    PairDecoder,
    is_symmetrized,
    restore_second_decoder,
)
from sightline.models.dust3r_heads import activate_confidence, activate_points
from sightline.models.mast3r import AsymmetricMASt3R, descriptor_width
from sightline.models.splatt3r import Splatt3R

TINY: dict[str, Any] = {
    "patch_size": 16,
    "enc_embed_dim": 16,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 8,
    "dec_depth": 4,
    "dec_num_heads": 1,
    "dpt": {"feature_dim": 8, "last_dim": 4, "layer_dims": [4, 4, 8, 8]},
}


def dust3r(**options: Any) -> AsymmetricCroCo3DStereo:
    return AsymmetricCroCo3DStereo(**(TINY | options)).eval()


def mast3r(**options: Any) -> AsymmetricMASt3R:
    sizes: dict[str, Any] = {"hidden_dim_factor": 1.0, **TINY, **options}
    return AsymmetricMASt3R(**sizes).eval()


def splatt3r(**options: Any) -> Splatt3R:
    sizes: dict[str, Any] = {"hidden_dim_factor": 1.0, **TINY, **options}
    return Splatt3R(**sizes).eval()


def view(batch: int, height: int, width: int, **extra: Any) -> dict[str, Any]:
    return {"img": torch.randn(batch, 3, height, width), **extra}


@pytest.mark.parametrize(
    ("options", "millions"),
    [({}, 532.3), ({"head_type": "dpt"}, 571.2)],
)
def test_published_sizes(options: dict, millions: float) -> None:
    model = AsymmetricCroCo3DStereo(**options, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)


def test_mast3r_size() -> None:
    count = sum(p.numel() for p in AsymmetricMASt3R(device="meta").parameters()) / 1e6
    assert count == pytest.approx(688.6, abs=0.06)


@pytest.mark.parametrize("make", [dust3r, lambda: dust3r(head_type="dpt"), mast3r])
def test_results_have_the_size_of_their_view(make: Any) -> None:
    model = make()
    result1, result2 = model(view(1, 32, 48), view(1, 48, 32))
    assert result1["pts3d"].shape == (1, 32, 48, 3)
    assert result2["pts3d_in_other_view"].shape == (1, 48, 32, 3)
    assert (result1["conf"] >= 1).all()
    assert (result2["conf"] >= 1).all()
    if "desc" in result1:
        assert torch.allclose(result1["desc"].norm(dim=-1), torch.ones(1, 32, 48))
        assert result1["desc_conf"].shape == (1, 32, 48)


def test_stored_portraits_equal_upright_ones() -> None:
    model: Any = dust3r(head_type="dpt")
    tall, other = view(2, 48, 32), view(2, 48, 32)
    upright = model(tall, other)
    model.landscape_only = True
    shape = torch.tensor([[48, 32], [48, 32]])
    stored = [{"img": v["img"].transpose(-1, -2), "true_shape": shape} for v in (tall, other)]
    for result, want in zip(model(*stored), upright, strict=True):
        for name, value in result.items():
            assert torch.allclose(value.transpose(1, 2), want[name], atol=1e-5), name


def test_mixed_layouts_are_split_and_merged() -> None:
    model: Any = dust3r(landscape_only=True)
    shape = torch.tensor([[32, 48], [48, 32], [32, 48]])
    first = view(3, 32, 48, true_shape=shape)
    second = view(3, 32, 48, true_shape=shape.flip(0))
    whole = model(first, second)
    for i in range(3):
        parts = [{k: v[i : i + 1] for k, v in w.items()} for w in (first, second)]
        for result, want in zip(whole, model(*parts), strict=True):
            for name, value in result.items():
                assert torch.allclose(value[i : i + 1], want[name], atol=1e-5), name
    with pytest.raises(ShapeError, match="stored with width >= height"):
        model(view(1, 48, 32, true_shape=torch.tensor([[48, 32]])), second)


def test_symmetrized_batches_encode_half() -> None:
    model: Any = dust3r()
    a, b = view(4, 32, 48), view(4, 32, 48)
    a["img"][1::2], b["img"][1::2] = b["img"][::2], a["img"][::2]
    plain = model(a, b)
    seen = []
    handle = model.patch_embed.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    a["instance"], b["instance"] = ["0", "1", "2", "3"], ["1", "0", "3", "2"]
    halved = model(a, b)
    handle.remove()
    assert sum(seen) == 4
    for result, want in zip(halved, plain, strict=True):
        for name, value in result.items():
            assert torch.allclose(value, want[name], atol=1e-6), name
    assert not is_symmetrized(["0"], ["0"])
    assert not is_symmetrized(["0", "1"], ["2", "3"])
    assert not is_symmetrized(["0", "1", "2"], ["1", "0", "2"])


def test_one_encoding_serves_many_pairs() -> None:
    model: Any = dust3r()
    images = torch.randn(3, 3, 32, 32)
    encoded = model.encode_views(images)
    pairs = [(0, 1), (1, 0), (2, 1)]
    left = Encoded(encoded.tokens[[i for i, _ in pairs]], encoded.positions)
    right = Encoded(encoded.tokens[[j for _, j in pairs]], encoded.positions)
    tokens = model.decode_pair(left, right)[0]
    points = model.read_out(1, tokens, (32, 32))["pts3d"]
    for row, (i, j) in enumerate(pairs):
        alone = model({"img": images[i : i + 1]}, {"img": images[j : j + 1]})[0]["pts3d"]
        assert torch.allclose(points[row : row + 1], alone, atol=1e-5)


def test_heads_stay_in_float32() -> None:
    model: Any = mast3r()
    with torch.autocast("cpu", torch.bfloat16):
        result, _ = model(view(1, 32, 32), view(1, 32, 32))
    assert {value.dtype for value in result.values()} == {torch.float32}


def test_croco_weights_start_a_network() -> None:
    torch.manual_seed(1)
    sizes = {k: v for k, v in TINY.items() if k != "dpt"}
    croco: Any = CroCoNet(pos_embed="RoPE100", **sizes)
    state = restore_second_decoder(croco.state_dict())
    model: Any = dust3r()
    own = {k: v for k, v in model.state_dict().items() if k.startswith("downstream_head")}
    state = {k: v for k, v in state.items() if not k.startswith("prediction_head")}
    load_strict(model, state | own)
    assert torch.equal(model.dec_blocks2[3].norm1.weight, croco.dec_blocks[3].norm1.weight)


def test_training_reaches_every_weight() -> None:
    model: Any = mast3r().train()
    results = model(view(1, 32, 32), view(1, 32, 32))
    torch.stack([v.sum() for r in results for v in r.values()]).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    dead = {n for n in without if "refinenet4.resConfUnit1" in n}
    assert without - dead == {"mask_token"}
    assert len(dead) == 8


def test_activations() -> None:
    xyz = torch.tensor([[[[3.0, 0.0, 4.0]]]])
    assert activate_points(xyz)[0, 0, 0].tolist() == pytest.approx([88.4479, 0.0, 117.9305], 1e-5)
    square = activate_points(xyz, ["square", "-inf", "inf"])
    assert square[0, 0, 0].tolist() == pytest.approx([15.0, 0.0, 20.0])
    assert torch.equal(activate_points(xyz, ("linear", "-inf", "inf")), xyz)
    assert activate_points(torch.zeros(1, 1, 1, 3)).isfinite().all()
    x = torch.tensor([[[0.0, 9.0]]])
    assert activate_confidence(x, ("exp", 1, 3)).flatten().tolist() == [2.0, 3.0]
    assert activate_confidence(x, ("sigmoid", 0, 2))[0, 0, 0] == 1.0
    for mode in (("exp", 0, 5), ("cube", "-inf", "inf")):
        with pytest.raises(ValueError, match="expected .*depth_mode"):
            activate_points(xyz, mode)
    with pytest.raises(ValueError, match='conf_mode "exp" or "sigmoid", got "x"'):
        activate_confidence(x, ("x", 0, 1))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="head_type linear or dpt .* got catconv and pts3d"):
        dust3r(head_type="catconv")
    with pytest.raises(ValueError, match="output_mode pts3d, got linear and depth"):
        dust3r(output_mode="depth")
    with pytest.raises(ValueError, match=r"expected head_type catmlp\+dpt, got linear"):
        mast3r(head_type="linear")
    with pytest.raises(ValueError, match="like pts3d\\+desc24, got pts3d"):
        descriptor_width("pts3d")
    with pytest.raises(ValueError, match='desc_mode "norm", got "raw"'):
        mast3r(desc_mode="raw")
    assert descriptor_width("pts3d+gaussian+desc16") == 16
    single: Any = mast3r(two_confs=False)
    result, _ = single(view(1, 32, 32), view(1, 32, 32))
    assert torch.equal(result["conf"], result["desc_conf"])


@pytest.mark.parametrize(
    "make", [dust3r, lambda: dust3r(head_type="dpt"), mast3r, lambda: splatt3r().encoder]
)
def test_pairs_among_encoded_images(make: Any) -> None:
    model = make()
    images = torch.randn(3, 3, 32, 48)
    pairs = [(0, 1), (1, 0), (2, 0), (0, 2)]
    with torch.no_grad():
        want = model({"img": images[[0, 1, 2, 0]]}, {"img": images[[1, 0, 0, 2]]})
        decoder = PairDecoder(model, model.encode_views(images), (32, 48))
        whole = decoder.decode(pairs)
        parts = [decoder.decode(pairs[:1]), decoder.decode(pairs[1:])]
    for view in range(2):
        for name, value in want[view].items():
            plain = name.removesuffix("_in_other_view")
            assert torch.allclose(whole[view][plain], value, atol=1e-5), name
            joined = torch.cat([part[view][plain] for part in parts])
            assert torch.allclose(joined, value, atol=1e-5), name


def test_what_depends_on_one_image_is_computed_once() -> None:
    model = mast3r()
    seen: list[int] = []
    first: Any = model.get_submodule("downstream_head1.dpt.scratch.layer1_rn")
    first.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    decoder = PairDecoder(model, model.encode_views(torch.randn(3, 3, 32, 48)), (32, 48))
    for pair in ((0, 1), (1, 0), (2, 1)):
        decoder.decode([pair])
    assert seen == [3]


def test_pairs_of_portrait_items() -> None:
    model = mast3r(landscape_only=True)
    images, shapes = torch.randn(2, 3, 32, 48), torch.tensor([[48, 32], [32, 48]])
    views = [{"img": images[[i]], "true_shape": shapes[[i]]} for i in range(2)]
    with torch.no_grad():
        want = model(*views)
        encoded = model.encode_views(images, shapes)
        got = PairDecoder(model, encoded, (32, 48), shapes).decode([(0, 1)])
    assert torch.allclose(got[0]["pts3d"], want[0]["pts3d"], atol=1e-5)
    assert torch.allclose(got[1]["pts3d"], want[1]["pts3d_in_other_view"], atol=1e-5)
