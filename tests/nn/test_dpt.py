import math

import pytest
import torch
from torch.nn import functional

from sightline.nn.dpt import FusionBlock, ResidualConvUnit, frames_at_once, sincos_map


def test_both_kinds_of_skip() -> None:
    unit = ResidualConvUnit(4)
    x = torch.randn(1, 4, 5, 6)
    added = unit.conv2(unit.conv1(x.relu()).relu())
    assert torch.allclose(unit(x), added + x)
    unit.skip = "relu"
    assert torch.allclose(unit(x), added + x.relu())


def test_the_convolution_may_run_before_the_enlargement() -> None:
    block = FusionBlock(4)
    coarse, fine = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    joined = block.resConfUnit2(coarse + block.resConfUnit1(fine))
    for size in ((6, 10), (5, 9)):
        grown = functional.interpolate(joined, size, mode="bilinear", align_corners=True)
        out = block(coarse, fine, None if size == (6, 10) else size)
        assert torch.allclose(out, block.out_conv(grown), atol=1e-5)
    assert block(coarse, enlarge=False).shape == coarse.shape
    assert not [n for n in FusionBlock(4, lateral=False).state_dict() if "Unit1" in n]


def test_position_map() -> None:
    table = sincos_map(3, 4, 8, aspect=4 / 3)
    x = 0.8 * 3 / 4
    assert table[0, 0].tolist() == pytest.approx([math.sin(t) for t in (-x, -x / 3, x / 3, x)])
    y = 0.6 * 2 / 3
    assert table[5, :, 1].tolist() == pytest.approx([math.sin(t / 10) for t in (-y, 0, y)])
    assert table[6, :, 1].tolist() == pytest.approx([math.cos(t) for t in (-y, 0, y)])
    with pytest.raises(ValueError, match="multiple of 4 channels for a position map, got 6"):
        sincos_map(3, 4, 6, aspect=1.0)


def test_frames_at_once() -> None:
    cpu = torch.device("cpu")
    assert frames_at_once(518, 518, cpu) == 1
    assert frames_at_once(112, 112, cpu) == 4
    assert frames_at_once(2000, 2000, cpu) == 1
    assert frames_at_once(518, 518, torch.device("cuda")) == 8
