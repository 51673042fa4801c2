"""Test poses of a second reconstruction, brought into the world of the first."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, align_umeyama
from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.probing.protocols import Protocol


def find_similarity(
    again: Float[Tensor, "V h w 3"],
    first: Float[Tensor, "V h w 3"],
    valid: Bool[Tensor, "V h w"],
) -> Similarity:
    """Fit the similarity from the second run's training points to the first's, pixel by pixel.

    Unweighted (Umeyama 1991), over all pixels that both runs know.
    """
    known = valid & again.isfinite().all(-1) & first.isfinite().all(-1)
    return align_umeyama(again[known].double(), first[known].double())


def register_poses(
    w2c: Float[Tensor, "T 4 4"], similarity: Similarity, protocol: Protocol
) -> Float[Tensor, "T 4 4"]:
    """Move test poses by a similarity: each centre ``c`` becomes ``s R c + t``.

    With the quirk ``scaled_registration`` camera-to-world is multiplied by ``[R | s t]`` from the
    left, which makes the centre ``R c + s t``.
    """
    c2w = invert_se3(w2c.double())
    rotation = similarity.rotation.double() @ c2w[:, :3, :3]
    center = c2w[:, :3, 3] @ similarity.rotation.double().mT
    scale, shift = similarity.scale.double(), similarity.translation.double()
    if protocol.quirks.scaled_registration:
        center = center + scale * shift
    else:
        center = scale * center + shift
    return invert_se3(rigid_matrix(rotation, center))


def require_one_focal(K: Float[Tensor, "V 3 3"], protocol: Protocol) -> None:
    """Refuse unlike focal lengths where the quirk ``needs_one_focal`` does.

    Raises:
        InputError: If they differ.
    """
    focal = K[:, [0, 1], [0, 1]]
    if protocol.quirks.needs_one_focal and not bool(
        torch.isclose(focal, focal.mean(), rtol=1e-6).all()
    ):
        raise InputError(
            "test views need one focal length for all training views under the quirk "
            f"needs_one_focal, got {focal.flatten().tolist()}; switch it off"
        )
