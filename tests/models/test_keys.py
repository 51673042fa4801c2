"""Every official key list: same names, shapes and dtypes on the meta device, and in a saved file.

``keys.json`` keeps a digest of each list, so that the check runs without the lists themselves.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sightline.models import (
    croco,
    dinov2,
    dinov3,
    dust3r,
    mast3r,
    sam2,
    splatt3r,
    vggt,
    vggt_omega,
)
from tests.conftest import SHARED

META: dict[str, Any] = {"pretrained": False, "device": "meta"}

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda n=name: dinov2.build_dinov2(n, **META) for name in dinov2.MODELS},
    **{
        name: lambda n=name: dinov3.build_dinov3(n, **META)
        for name, entry in (dinov3.MODELS | dinov3.CONVNEXTS).items()
        if entry.files
    },
    **{
        name: lambda n=name: croco.CroCoNet(**croco.PUBLISHED[n], device="meta")
        for name in croco.PUBLISHED
        if name != "CroCo"
    },
    **{
        name: lambda n=name: dust3r.AsymmetricCroCo3DStereo(**dust3r.PUBLISHED[n], device="meta")
        for name in dust3r.PUBLISHED
    },
    **{
        name: lambda n=name: mast3r.AsymmetricMASt3R(**mast3r.PUBLISHED[n], device="meta")
        for name in mast3r.PUBLISHED
    },
    **{
        name: lambda n=name: splatt3r.Splatt3R(**splatt3r.PUBLISHED[n], device="meta")
        for name in splatt3r.PUBLISHED
    },
    "vggt_1b": lambda: vggt.VGGT(device="meta"),
    **{
        name: lambda n=name: vggt_omega.VGGTOmega(**vggt_omega.PUBLISHED[n], device="meta")
        for name in vggt_omega.PUBLISHED
    },
    **{
        name: lambda n=name: sam2.SAM2(**sam2.PUBLISHED[n], device="meta")
        for name in sam2.PUBLISHED
    },
    "dinov3_vitl16_sat493m": lambda: dinov3.dinov3_vitl16(weights="sat493m", **META),
}

Row = tuple[str, ...]


def rows_of(model: nn.Module) -> list[Row]:
    return sorted(
        (name, "x".join(map(str, t.shape)), str(t.dtype).removeprefix("torch."))
        for name, t in model.state_dict().items()
    )


def digest(rows: list[Row]) -> str:
    text = "\n".join("\t".join(row) for row in sorted(rows))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept() -> dict[str, list]:
    return json.loads((Path(__file__).parent / "keys.json").read_text(encoding="utf-8"))


def test_every_key_list_is_covered() -> None:
    assert kept().keys() == BUILDERS.keys()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_keys_are_the_official_ones(name: str) -> None:
    ours = rows_of(BUILDERS[name]())
    listed = SHARED / "keys" / f"{name}.tsv"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        official = sorted(tuple(line.split("\t")) for line in lines)
        missing, extra = sorted(set(official) - set(ours)), sorted(set(ours) - set(official))
        assert not missing, f"{len(missing)} missing: {missing[:3]}; {len(extra)}: {extra[:3]}"
        assert not extra, f"{len(extra)} that the original lacks: {extra[:3]}"
        assert kept()[name] == [len(official), digest(official)]
    assert [len(ours), digest(ours)] == kept()[name]
