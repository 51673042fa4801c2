"""What VGGT is trained on: sources of views by what lies in a folder, and batches of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.checkpoints.read import PSEUDO
from sightline.datasets.augment import BatchShapes, ColorJitter
from sightline.datasets.co3d import Co3d, open_co3d
from sightline.datasets.multiview import MultiViewSource, camera_points, collate, world_points
from sightline.datasets.posed import PosedScenes, is_pseudo, open_posed, split_scenes
from sightline.datasets.rooms import Rooms
from sightline.datasets.scannetpp import ScanNetPP, open_scannetpp
from sightline.errors import InputError
from sightline.training.draws import Draw, generator
from sightline.training.vggt.settings import VggtSettings
from sightline.training.vggt_losses import Truth
from sightline.types import MultiView


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where views come from."""

    train: MultiViewSource
    val: MultiViewSource
    kind: str
    pictures: int
    """Of one pass over the training data; 0 for an endless stream."""
    scenes: int
    pseudo: bool
    """Whether the truth is an estimate of `sightline reconstruct`."""
    apart: bool
    """Whether validation has scenes of its own."""

    def facts(self) -> dict[str, Any]:
        """Return what should stand in ``run.json``."""
        return {
            "data": self.kind,
            "training scenes": self.scenes or "without end",
            "training pictures": self.pictures or "without end",
            "validation": "scenes of its own" if self.apart else "other views of the same scene",
            PSEUDO: self.pseudo,
        }


def open_sources(settings: VggtSettings) -> Sources:
    """Find out what the data are and open them; no picture is read.

    Raises:
        InputError: If they are none of the kinds, or lack poses or depth.
        FileFormatError: If a file is damaged.
    """
    scale = (settings.min_scale, settings.max_scale)
    if settings.data is None:
        rooms = Rooms(
            paints=settings.paints,
            views=settings.stand,
            objects=((settings.objects + 1) // 2, settings.objects),
            rays=settings.rays,
        )
        return Sources(
            train=rooms,
            val=rooms,
            kind=f"generated rooms: {settings.paints} paints, cameras {settings.stand}",
            pictures=0,
            scenes=0,
            pseudo=False,
            apart=True,
        )
    root = Path(settings.data).expanduser()
    if (root / "raw" / "splits").is_dir():
        train = open_scannetpp(root)
        # All views are alike to VGGT.
        return Sources(
            train=ScanNetPP(scenes=train, scale=scale, num_context=0),
            val=ScanNetPP(scenes=open_scannetpp(root, split="val"), num_context=0),
            kind="ScanNet++",
            pictures=sum(map(len, train)),
            scenes=len(train),
            pseudo=False,
            apart=True,
        )
    if root.is_dir() and any(root.glob("*/frame_annotations.jgz")):
        sequences = open_co3d(root)
        held = _co3d_validation(root)
        return Sources(
            train=Co3d(root=root, sequences=sequences, scale=scale),
            val=Co3d(root=root, sequences=held or sequences, mask_background=False),
            kind="CO3D",
            pictures=sum(map(len, sequences)),
            scenes=len(sequences),
            pseudo=False,
            apart=bool(held),
        )
    scenes = open_posed(root)
    train, held = split_scenes(scenes)
    return Sources(
        train=PosedScenes(scenes=train, scale=scale),
        val=PosedScenes(scenes=held or train),
        kind="scenes with poses and depth",
        pictures=sum(map(len, train)),
        scenes=len(train),
        pseudo=is_pseudo(scenes),
        apart=bool(held),
    )


def _co3d_validation(root: Path) -> tuple[Any, ...]:
    try:
        return open_co3d(root, split="test")
    except InputError:  # the single-sequence subset has none
        return ()


def shapes_of(settings: VggtSettings, patch: int) -> BatchShapes:
    """Return how large steps are.

    Raises:
        InputError: If the width is no multiple of the patch, or the aspect leaves no patch.
    """
    return BatchShapes(
        frames=(settings.min_frames, settings.max_frames),
        images_per_step=settings.batch_size,
        width=settings.width,
        aspect=(settings.min_aspect, settings.max_aspect),
        patch_size=patch,
    )


def training_batch(
    draw: Draw, source: MultiViewSource, shapes: BatchShapes, jitter: ColorJitter | None
) -> MultiView:
    """Return the batch of one share of a step.

    All shares of a step have one number of views and one size. Samples are numbered through the
    shares, so that two processes make of the stream what one with twice the pictures does.
    """
    samples, views, height, width = shapes.draw(draw.of_step("shape"))
    made = []
    for row in range(samples):
        rng = draw.of_step("sample", draw.part * samples + row)
        sample = source.draw(rng, views, height, width)
        made.append(sample if jitter is None else jitter(sample, rng))
    return collate(made)


def fixed_samples(
    source: MultiViewSource, what: str, count: int, views: int, size: tuple[int, int], seed: int
) -> list[MultiView]:
    """Return samples that are the same at every call; ``what`` keeps streams apart."""
    return [source.draw(generator(seed, what, i), views, *size) for i in range(count)]


def truth_of(batch: MultiView) -> Truth:
    """Return the ground truth in the scene's own world and units."""
    return Truth(
        extrinsics=batch.w2c[..., :3, :],
        world_points=world_points(batch),
        cam_points=camera_points(batch),
        depths=batch.depth,
        masks=batch.valid,
    )


def true_tracks(
    batch: MultiView, count: int, rng: np.random.Generator, tolerance: float = 0.03
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b s n 2"], Bool[Tensor, "b s n"]]:
    """Follow random pixels of the first view through the others, by depth and cameras.

    Returns:
        Query pixels of the first view, their places in every view, and where each is seen: inside
        the picture and on the surface that is nearest there. Pixels count as VGGT's tracker does,
        with the first pixel's centre at 0.
    """
    height, width = batch.size
    samples, views = batch.images.shape[:2]
    device = batch.depth.device
    known = batch.valid[:, 0].flatten(1).float().cpu()
    known = torch.where(known.sum(1, keepdim=True) > 0, known, torch.ones_like(known))
    noise = torch.from_numpy(rng.random(known.shape).astype(np.float32))
    # The largest of random numbers, known pixels first: a draw without repetition.
    chosen = (noise + known).topk(min(count, height * width), dim=1).indices.to(device)
    points = world_points(batch)[:, 0].flatten(1, 2)
    world = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    rotation, shift = batch.w2c[:, :, :3, :3], batch.w2c[:, :, :3, 3]
    local = torch.einsum("bsij,bnj->bsni", rotation, world) + shift[:, :, None]
    shown = torch.einsum("bsij,bsnj->bsni", batch.K, local)
    z = local[..., 2]
    pixels = shown[..., :2] / torch.where(z > 1e-6, z, 1.0)[..., None]
    size = pixels.new_tensor([width, height])
    grid = (pixels / size * 2 - 1).reshape(samples * views, -1, 1, 2)
    depth = functional.grid_sample(
        batch.depth.flatten(0, 1)[:, None], grid, mode="nearest", align_corners=False
    )[:, 0, :, 0].unflatten(0, (samples, views))
    inside = ((pixels > 0) & (pixels < size)).all(-1) & (z > 1e-6)
    seen = inside & ((depth - z).abs() < tolerance * z)
    seen &= batch.valid[:, 0].flatten(1).gather(1, chosen)[:, None]
    queries = torch.stack([chosen % width, chosen // width], -1).to(batch.depth.dtype)
    return queries, pixels - 0.5, seen
