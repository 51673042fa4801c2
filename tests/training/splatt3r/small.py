"""A Splatt3R of a few thousand weights and batches of 32 x 32 pixels."""

from functools import cache
from typing import Any

import torch

from sightline.datasets.multiview import collate, sample_rng
from sightline.datasets.rooms import Rooms
from sightline.models.fusion import FusedSplatt3R
from sightline.training.splatt3r.batch import PairBatch, pair_batch
from sightline.training.splatt3r.settings import Splatt3rSettings
from sightline.types import MultiView

NETWORK: dict[str, Any] = {
    "enc_embed_dim": 64,
    "enc_depth": 2,
    "enc_num_heads": 1,
    "dec_embed_dim": 32,
    "dec_depth": 4,
    "dec_num_heads": 1,
    "hidden_dim_factor": 0.25,
    "output_mode": "pts3d+gaussian+desc4",
    "dpt": {"feature_dim": 16, "last_dim": 8, "layer_dims": [8, 8, 8, 8]},
}


def settings(**changes: Any) -> Splatt3rSettings:
    values: dict[str, Any] = {
        "steps": 3,
        "size": "tiny",
        "network": NETWORK,
        "resolution": 32,
        "batch_size": 2,
        "targets": 2,
        "val_pairs": 2,
        "backbone": "iuvrgb",
        "lpips": "none",
        "log_every": 1,
        "device": "cpu",
        "loggers": "csv",
        **changes,
    }
    return Splatt3rSettings(**values)


@cache
def views(side: int = 32) -> MultiView:
    """Return a batch of two samples of two contexts and two targets."""
    source = Rooms(num_context=2, baseline=(0.1, 0.4))
    return collate([source.draw(sample_rng(3, "test", row), 4, side, side) for row in range(2)])


@cache
def pairs(side: int = 32) -> PairBatch:
    return pair_batch(views(side))


def lively(network: FusedSplatt3R) -> FusedSplatt3R:
    """Let the adapters add something, as they do after a step."""
    torch.manual_seed(2)
    for name, parameter in network.fusion.adapters.named_parameters():
        if ".out." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return network
