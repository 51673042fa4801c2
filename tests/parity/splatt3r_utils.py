"""Golden family splatt3r_utils: head activations, covariances, harmonics, mask, scores."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.geometry.sh import C0, sh_basis
from sightline.metrics.splatt3r import (
    masked_mse,
    official_mse,
    official_mse_over_mask,
    seen_mask,
    ssim_map,
)
from sightline.models.dust3r_heads import DPTSizes, HeadOptions
from sightline.models.pose_encoding import quaternion_to_matrix
from sightline.models.splatt3r import GaussianHead, covariances
from tests.parity.compare import compare, read_config, read_io

INPUTS = {
    "post": r"post\.(?!desc_dim|sh\d+\.raw)",
    "cov": r"cov\.(?!scales|rot_xyzw)",
    "sh": r"sh\.(?!rgb|coeffs|dirs)",
    "mask": r"mask\.out",
    "mse": r"mse\.(?!color|target)",
    "ssim": r"ssim\.",
}


class Fixed(nn.Module):
    """Stands for a network part: gives what it was told."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: object) -> Tensor:
        return self.value


def cases(folder: Path) -> list[str]:
    return sorted({n.split(".")[0] for n in read_io(folder)})


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    got = {"post": post, "cov": cov, "sh": harmonics, "mask": mask, "mse": mse, "ssim": ssim}[case]
    compare(config, io, got(io), INPUTS[case] + ".*")


def post(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    width = int(io["post.desc_dim"])
    for name in [n for n in io if n.endswith(".raw")]:
        count = int(re.fullmatch(r"post\.sh(\d+)\.raw", name)[1])  # type: ignore[index]
        raw = io[name]
        for offsets in (True, False):
            head = GaussianHead(
                HeadOptions(
                    4, 4, 12, 1, ("exp", -torch.inf, torch.inf), ("exp", 1, torch.inf), DPTSizes()
                ),
                f"pts3d+gaussian+desc{width}",
                sh_degree=count,
                use_offsets=offsets,
            )
            head.dpt = Fixed(raw[:, :4])  # type: ignore[assignment]
            head.head_local_features = Fixed(raw[:, 4 : 5 + width].flatten(2).mT)  # type: ignore[assignment]
            head.gaussian_dpt.dpt = Fixed(raw[:, 5 + width :])
            tokens = [torch.zeros(1, raw.shape[2] * raw.shape[3], 4)] * 13
            out = head(tokens, raw.shape[2], raw.shape[3])
            for key, value in out.items():
                yield f"post.sh{count}.offsets{int(offsets)}.{key}", value


def cov(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "cov.out", covariances(io["cov.scales"], io["cov.rot_xyzw"])
    yield "cov.rotmat", quaternion_to_matrix(io["cov.rot_xyzw"], eps=1e-8)


def harmonics(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "sh.dc", (io["sh.rgb"] - 0.5) / C0
    for name in [n for n in io if n.startswith("sh.eval_deg")]:
        degree = int(name.removeprefix("sh.eval_deg"))
        basis = sh_basis(degree, io["sh.dirs"])
        yield name, (io["sh.coeffs"][..., : (degree + 1) ** 2] * basis[:, None]).sum(-1)


def mask(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    names = sorted({n.split(".")[1] for n in io if n.startswith("mask.") and n != "mask.out"})
    views = {
        name: {n.split(".")[2]: t for n, t in io.items() if n.startswith(f"mask.{name}.")}
        for name in names
    }
    contexts = [views[n] for n in names if n.startswith("context")]
    targets = [views[n] for n in names if n.startswith("target")]
    yield "mask.out", torch.stack([seen_mask(contexts, t) for t in targets], 1)


def mse(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    views = io["mse.color"], io["mse.target"], io["mask.out"]
    yield "mse.clean_masked_mean", masked_mse(*views)
    yield "mse.official_mean", official_mse(*views)
    if views[2].shape[1] in (1, 3):
        yield "mse.official_average_over_mask", official_mse_over_mask(*views)


def ssim(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    full = ssim_map(io["mse.target"].flatten(0, 1), io["mse.color"].flatten(0, 1))
    yield "ssim.full_map", full
    yield "ssim.mean", full[:, :, 5:-5, 5:-5].mean((1, 2, 3))
