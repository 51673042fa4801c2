"""Weights of learned geometry: which network a name means, its licence, and what to do without."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWeights:
    """Published weights behind a name of ``--geometry``."""

    network: str
    """The name that `sightline.models.load` knows."""
    licence: str
    """Of the published weights."""


LEARNED = {
    "vggt": LearnedWeights(network="vggt_1b", licence="CC-BY-NC-4.0"),
    "vggt-omega": LearnedWeights(
        network="vggt_omega_1b_512", licence="FAIR Noncommercial Research License"
    ),
    "dust3r": LearnedWeights(
        network="DUSt3R_ViTLarge_BaseDecoder_512_dpt", licence="CC-BY-NC-SA-4.0"
    ),
    "mast3r": LearnedWeights(
        network="MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", licence="CC-BY-NC-SA-4.0"
    ),
    "splatt3r": LearnedWeights(network="splatt3r_v1.0", licence="CC-BY-NC-SA-4.0"),
}
"""Name on the command line -> published weights."""


def missing_weights(name: str) -> CheckpointError:
    """Return the error for a learned method without a weights file."""
    return CheckpointError(
        f"--geometry {name} needs weights, and none were given or downloaded before; give a file "
        f"with --checkpoint FILE, or fetch them with: sightline models download {name}"
    )


def checkpoint_facts(name: str, checkpoint: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of a checkpoint: name, file, size, SHA-256 and licence.

    Args:
        name: The method that it was loaded for.
        checkpoint: The file.
    """
    with checkpoint.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "model": name,
        "file": checkpoint.name,
        "bytes": checkpoint.stat().st_size,
        "sha256": digest,
        "licence": LEARNED[name].licence,
    }
