"""Weights of learned geometry: where they are, whose they are, and what to do without them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints import read_checkpoint
from sightline.errors import CheckpointError
from sightline.hub import CATALOGUE, cached, record_of, resolve
from sightline.protocols import Progress

if TYPE_CHECKING:
    from torch import nn

LEARNED = {
    "vggt": ("vggt_1b", "vggt_1b_commercial"),
    "vggt-omega": ("vggt_omega_1b_512",),
    "dust3r": ("DUSt3R_ViTLarge_BaseDecoder_512_dpt",),
    "mast3r": ("MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",),
    "splatt3r": ("splatt3r_v1.0",),
}
"""Name on the command line -> published weights that fit, the usual ones first."""


def load_pair_network(name: str, path: Path) -> "nn.Module":
    """Return the network of a pair method from a file, in the size that the file has.

    A Splatt3R with a second backbone fused in gets its backbone.

    Raises:
        CheckpointError: The file is no network of this method.
    """
    from sightline.models import load
    from sightline.models.networks import names
    from sightline.models.recognize import recognize

    found = recognize(read_checkpoint(path).weights)
    if found is not None and found.report.strict and found.family == "splatt3r_fused":
        from sightline.backbones.fusion import load_fused

        if name == "splatt3r":
            return load_fused(path)
    own = names()[network_of(name)]
    if found is not None and found.report.strict and found.family == own and not found.names:
        return load(path)
    return load(network_of(name), path)  # which says what the file is, where it is another


def load_own_size(name: str, path: Path) -> "nn.Module | None":
    """Return the network of a method from a file of no published size; None for all others."""
    from sightline.models import load
    from sightline.models.networks import names
    from sightline.models.recognize import recognize

    found = recognize(read_checkpoint(path).weights)
    if found is None or not found.report.strict or found.names:
        return None
    return load(path) if found.family == names()[network_of(name)] else None


def network_of(name: str) -> str:
    """Return what `sightline.models.load` calls the network of a method."""
    return CATALOGUE[LEARNED[name][0]].network


def cached_weights(name: str) -> Path | None:
    """Return weights of a method that were downloaded before; asks no server."""
    found = (cached(weights) for weights in LEARNED[name])
    return next((path for path in found if path is not None), None)


def find_weights(
    name: str, checkpoint: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """Return the weights file of a method.

    Args:
        name: A key of `LEARNED`.
        checkpoint: A file, or anything else that `hub.resolve` takes; then it may be downloaded,
            since it was asked for by name. None takes what was downloaded before.
        progress: Told of a download.

    Raises:
        CheckpointError: If there are none; the text says how to get them.
        InputError: If ``checkpoint`` does not exist.
    """
    if checkpoint is not None:
        return resolve(checkpoint, progress=progress)
    found = cached_weights(name)
    if found is None:
        raise CheckpointError(
            f"--geometry {name} needs weights, and none were given or downloaded before; give a "
            f"file with --checkpoint FILE, choose --geometry colmap, which needs none, or fetch them "
            f"with: sightline models download {LEARNED[name][0]}"
        )
    return found


def checkpoint_facts(name: str, checkpoint: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of weights: method, file, size, SHA-256 and licence."""
    record = record_of(checkpoint)
    published = CATALOGUE[LEARNED[name][0]].licence
    return {
        "model": name,
        "file": checkpoint.name,
        "source": record.source,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "licence": record.licence or f"unknown; of the published weights: {published}",
    }
