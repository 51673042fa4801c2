from typing import Any

import pytest
import torch

from sightline.models.hiera import (
    Hiera,
    Neck,
    cut_windows,
    join_windows,
    max_pool,
    sine_positions,
)
from sightline.models.sam2 import CONFIG_NAMES, PUBLISHED, SAM2, ImageFeatures, Masks

HIERA: dict[str, Any] = {
    "embed_dim": 8,
    "stages": (1, 1, 2, 1),
    "global_att_blocks": (2,),
    "window_spec": (4, 4, 7, 5),
}


def sam2(**options: Any) -> SAM2:
    given: dict[str, Any] = {"hiera": HIERA, "neck": {"d_model": 32}, **options}
    return SAM2(64, **given).eval()


def points(count: int) -> dict[str, torch.Tensor]:
    where = torch.rand(count, 1, 2) * 63
    return {"points": where, "labels": torch.ones(count, 1, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 38.9), ("small", 46.0), ("base_plus", 80.8), ("large", 224.4)]
)
def test_published_sizes(size: str, millions: float) -> None:
    model = SAM2(**PUBLISHED[f"sam2_hiera_{size}"], device="meta")
    count = sum(t.numel() for t in model.state_dict().values()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)


def test_original_configurations_are_known() -> None:
    assert set(CONFIG_NAMES.values()) == set(PUBLISHED)
    assert CONFIG_NAMES["sam2_hiera_l.yaml"] == "sam2_hiera_large"


def test_video_weights_are_kept_apart() -> None:
    model: Any = sam2(video="2.1")
    assert {"obj_ptr_tpos_proj.bias", "maskmem_tpos_enc"} < model.held_names
    assert model.held_names - sam2(video="2").held_names == {
        "no_obj_embed_spatial",
        "obj_ptr_tpos_proj.weight",
        "obj_ptr_tpos_proj.bias",
    }
    assert not model.held_names & {name for name, _ in model.named_parameters()}


def test_chunks_and_image_batches_change_nothing() -> None:
    model: Any = sam2()
    images = torch.randn(2, 3, 64, 64)
    features = model.encode(images)
    prompts = points(5)
    first = ImageFeatures(
        features.embedding[:1], (features.high_res[0][:1], features.high_res[1][:1])
    )
    whole = model(first, **prompts)
    parts = model(first, **prompts, chunk=2)
    assert torch.allclose(whole.logits, parts.logits, atol=1e-5)
    pair = {name: value[:2] for name, value in prompts.items()}
    both = model(features, **pair)
    assert torch.allclose(both.logits[:1], whole.logits[:1], atol=1e-5)
    assert not torch.allclose(both.logits[1], whole.logits[1], atol=1e-3)
    assert model(features, **pair, chunk=1).logits.shape == (2, 4, 16, 16)


def test_prompts_and_the_memory_embedding_matter() -> None:
    model: Any = sam2()
    features = model.encode(torch.randn(1, 3, 64, 64))
    prompts = points(1)
    plain = model(features, **prompts)
    assert plain.logits.shape == (1, 4, 16, 16)
    assert ((plain.ious >= 0) & (plain.ious <= 1)).all()
    without = model(features, **prompts, add_no_mem_embed=False)
    assert not torch.allclose(plain.logits, without.logits)
    boxed = model(features, boxes=torch.tensor([[3.0, 4.0, 40.0, 50.0]]))
    assert boxed.logits.shape == plain.logits.shape
    hinted = model(features, **prompts, masks=torch.randn(1, 1, 16, 16))
    assert not torch.allclose(hinted.logits, plain.logits)
    sparse, dense = model.sam_prompt_encoder()
    assert sparse.shape == (1, 0, 32)
    assert dense.shape == (1, 32, 1, 1)


def test_the_single_mask_is_used_where_it_is_stable() -> None:
    logits = torch.zeros(2, 4, 2, 2)
    logits[0, 0] = 5.0
    logits[1, 0] = torch.tensor([[5.0, 0.01], [-0.01, -5.0]])
    logits[:, 2] = 1.0
    ious = torch.tensor([[0.5, 0.1, 0.9, 0.3]] * 2)
    out = sam2().sam_mask_decoder.single_mask(Masks(logits, ious, torch.zeros(2, 1)))
    assert torch.equal(out.logits[0, 0], logits[0, 0])
    assert torch.equal(out.logits[1, 0], logits[1, 2])
    assert out.ious.flatten().tolist() == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (8, 4)])
def test_windows_go_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    windows, padded = cut_windows(x, 4)
    assert windows.shape[1:] == (4, 4, 3)
    assert torch.equal(join_windows(windows, 2, padded)[:, : size[0], : size[1]], x)


def test_trunk_and_neck() -> None:
    trunk = Hiera(**HIERA).eval()
    maps = trunk(torch.randn(1, 3, 96, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 24, 24), (16, 12, 12), (32, 6, 6), (64, 3, 3)]
    levels = Neck(16, trunk.channels[::-1])(maps)
    assert [tuple(m.shape[1:]) for m in levels] == [(16, 24, 24), (16, 12, 12), (16, 6, 6)]
    with torch.inference_mode():
        assert trunk.position_table(8, 8) is trunk.position_table(8, 8)
    assert torch.equal(
        max_pool(torch.tensor([[[[1.0], [2.0]], [[3.0], [0.0]]]]), 2).flatten(), torch.tensor([3.0])
    )
    assert sine_positions(4, 6, 16).shape == (1, 16, 4, 6)


def test_training_reaches_every_image_weight() -> None:
    model: Any = sam2().train()
    features = model.encode(torch.randn(1, 3, 64, 64))
    boxes = torch.tensor([[3.0, 4.0, 40.0, 50.0]])
    corners = {"points": boxes.view(1, 2, 2), "labels": torch.tensor([[0, 1]])}
    total = torch.zeros(())
    for prompts in ({"boxes": boxes}, corners, {**corners, "masks": torch.randn(1, 1, 16, 16)}):
        masks = model(features, **prompts)
        total = total + masks.logits.sum() + masks.ious.sum() + masks.object_logits.sum()
    total.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
