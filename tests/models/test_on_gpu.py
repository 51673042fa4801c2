"""Networks on CUDA: the CPU's numbers, bounded loss in bfloat16, compiled equal, bounded memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.models import dinov2, dinov3
from sightline.models.dust3r import AsymmetricCroCo3DStereo
from sightline.models.vggt import VGGT
from sightline.models.vggt_omega import VGGTOmega

pytestmark = pytest.mark.gpu

HEAD = {"depth": 1, "num_heads": 2}
DENSE: dict[str, Any] = {"features": 16, "out_channels": (8, 8, 16, 16)}
ENCODER = {"embed_dim": 64, "depth": 4, "num_heads": 2}
AGGREGATOR: dict[str, Any] = {
    "patch_embed": "dinov2_vits14_reg",
    "encoder": ENCODER,
    "depth": 4,
    "num_heads": 2,
}
CAMERA = {"trunk_depth": 1, "num_heads": 2}


def vggt() -> VGGT:
    dense = DENSE | {"intermediate_layer_idx": (0, 1, 2, 3)}
    return VGGT(56, 14, 64, aggregator=AGGREGATOR, camera=CAMERA, dpt=dense, track=None)


def omega() -> VGGTOmega:
    aggregator = {"depth": 4, "num_heads": 2, "encoder": HEAD}
    layers = {"register_attention_block_indices": [0, 2], "cached_layer_indices": [0, 1, 2, 3]}
    dense = DENSE | {"intermediate_layer_idx": (0, 1, 2, 3)}
    return VGGTOmega(64, 64, aggregator=aggregator | layers, camera=HEAD, dense=dense)


def pair() -> AsymmetricCroCo3DStereo:
    return AsymmetricCroCo3DStereo(
        head_type="dpt", enc_embed_dim=64, enc_depth=4, enc_num_heads=2, dec_embed_dim=32,
        dec_depth=4, dec_num_heads=2,
        dpt={"feature_dim": 16, "last_dim": 8, "layer_dims": [8, 8, 16, 16]},
    )  # fmt: skip


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "dinov2": (
        lambda: dinov2.DinoVisionTransformer(img_size=56, patch_size=14, **ENCODER),
        lambda: (pictures(2, 3, 56, 84),),
    ),
    "dinov3": (
        lambda: dinov3.DinoVisionTransformer(
            n_storage_tokens=2, layerscale_init=0.1, mask_k_bias=True, **ENCODER
        ),
        lambda: (pictures(2, 3, 64, 96),),
    ),
    "vggt": (vggt, lambda: (pictures(1, 3, 3, 56, 84),)),
    "vggt_omega": (omega, lambda: (pictures(1, 2, 3, 64, 96),)),
    "dust3r": (pair, lambda: tuple({"img": pictures(1, 3, 64, 96) * 2 - 1} for _ in range(2))),
}


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if weight.ndim == 1 and not key.endswith("bias_mask"):
                weight.add_(0.05 * torch.randn_like(weight))
    return network


def to_cuda(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.cuda(), inputs)


def leaves(outputs: Any) -> list[Tensor]:
    found = torch.utils._pytree.tree_leaves(outputs)
    return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]


def relative(value: Tensor, want: Tensor) -> float:
    value, want = value.double().cpu(), want.double().cpu()
    return float((value - want).norm() / want.norm().clamp(min=1e-12))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_gives_the_numbers_of_the_cpu(name: str) -> None:
    network, inputs = build(name), NETWORKS[name][1]()
    want = leaves(network(*inputs))
    got = leaves(network.cuda()(*to_cuda(inputs)))
    assert len(got) == len(want) > 0
    assert max(map(relative, got, want)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_loses_a_bounded_share(name: str) -> None:
    network, inputs = build(name).cuda(), to_cuda(NETWORKS[name][1]())
    want = leaves(network(*inputs))
    with torch.autocast("cuda", torch.bfloat16):
        got = leaves(network(*inputs))
    # Eight bits of mantissa: 0.4 % an operation; the CPU loses 0.6 % here.
    assert max(map(relative, got, want)) < 0.02
    assert max(map(relative, got, want)) > 0, "autocast did nothing"


COMPILE = """
import sys, torch
from tests.models.test_on_gpu import NETWORKS, build, leaves, relative, to_cuda
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
for name in ("dinov2", "dinov3", "vggt"):
    network, inputs = build(name).cuda(), to_cuda(NETWORKS[name][1]())
    with torch.no_grad():
        want = leaves(network(*inputs))
        got = leaves(torch.compile(network, fullgraph=True)(*inputs))
    worst = max(map(relative, got, want))
    assert worst < 1e-3, (name, worst)
print("ok")
"""


def test_compiled_networks_give_the_same() -> None:
    pytest.importorskip("triton", reason="torch.compile on CUDA needs Triton")
    done = subprocess.run(  # outside the runtime checks of shapes, which are no part of the product
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("ok"), done.stderr[-3000:]


@torch.no_grad()
def test_memory_of_vggt_grows_no_faster_than_its_frames() -> None:
    network = build("vggt").cuda()

    def peak(frames: int, chunk: int) -> int:
        images = pictures(1, frames, 3, 112, 112).cuda()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(images, frames_chunk_size=chunk)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    peak(2, 1)  # workspaces of the libraries
    assert peak(32, 1) < 2.2 * peak(16, 1), "attention keeps a matrix of all tokens"
    assert peak(32, 1) < peak(32, 32), "heads do not work a chunk at a time"
