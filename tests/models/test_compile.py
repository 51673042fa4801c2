"""Networks go through ``torch.compile`` as one graph.

In a process of their own: the runtime shape checks of the test suite are no part of the product.
"""

import subprocess
import sys

SCRIPT = """
import torch
from sightline.models import dinov2, dinov3
from sightline.models.dust3r import (AsymmetricCroCo3DStereo)
from sightline.models.mast3r import AsymmetricMASt3R
from sightline.models.sam2 import SAM2
from sightline.models.vggt import VGGT
from sightline.models.vggt_omega import VGGTOmega

torch.set_num_threads(1)
head = {"depth": 1, "num_heads": 2}
dense = {"features": 8, "out_channels": (4, 4, 8, 8), "intermediate_layer_idx": (0, 0, 1, 1)}
encoder = {"embed_dim": 16, "depth": 1, "num_heads": 2}
track = {"features": 8, "corr_levels": 2, "corr_radius": 1, "hidden_size": 16, "depth": 1,
         "num_heads": 2, "num_virtual_tracks": 2, "iters": 1}
aggregator = {"patch_embed": "dinov2_vits14_reg", "encoder": encoder, "depth": 2, "num_heads": 2}
camera = {"trunk_depth": 1, "num_heads": 2}
vggt = VGGT(28, 14, 16, aggregator=aggregator, camera=camera, dpt=dense, track=track)
omega = VGGTOmega(
    16, 16,
    aggregator={"depth": 2, "num_heads": 2, "encoder": head, "register_attention_block_indices": [0],
                "cached_layer_indices": [0, 1]},
    camera=head, dense=dense,
)
sizes = {
    "enc_embed_dim": 16, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 8, "dec_depth": 4,
    "dec_num_heads": 1, "dpt": {"feature_dim": 8, "last_dim": 4, "layer_dims": [4, 4, 8, 8]},
}
pair = AsymmetricCroCo3DStereo(head_type="dpt", **sizes)
views = tuple({"img": torch.rand(1, 3, 32, 48)} for _ in range(2))
second = dinov2.DinoVisionTransformer(img_size=28, patch_size=14, num_register_tokens=1, **encoder)
third = dinov3.DinoVisionTransformer(n_storage_tokens=2, layerscale_init=0.1, mask_k_bias=True,
                                     **encoder)
sam = SAM2(64, hiera={"embed_dim": 8, "stages": (1, 1, 1, 1), "global_att_blocks": (2,)},
           neck={"d_model": 32})
cases = [
    (vggt, (torch.rand(1, 2, 3, 28, 42), torch.rand(1, 2, 2) * 20)),
    (omega, (torch.rand(1, 2, 3, 32, 48),)),
    (pair, views),
    (AsymmetricMASt3R(hidden_dim_factor=1.0, **sizes), views),
    (second, (torch.rand(1, 3, 28, 42),)),
    (third, (torch.rand(1, 3, 32, 48),)),
    (sam.encode, (torch.rand(1, 3, 64, 64),)),
]
for network, inputs in cases:
    getattr(network, "eval", lambda: None)()
    with torch.no_grad():
        want = network(*inputs)
        got = torch.compile(network, backend="eager", fullgraph=True)(*inputs)
    leaves = zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (want, got)), strict=True)
    for a, b in leaves:
        assert torch.allclose(a, b, atol=1e-5), type(network)
print("ok")
"""


def test_there_are_no_graph_breaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "ok", done.stderr[-3000:]
