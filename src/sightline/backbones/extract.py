"""Features of photos, folders and videos as files: ``features.npz`` and PCA pictures."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sightline.backbones.grid import Placement, pixel_positions, placement_of
from sightline.backbones.pca import pca_maps, to_colors
from sightline.errors import InputError
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_folder
from sightline.io.frames import FrameOptions
from sightline.io.ingest import IngestOptions, ingest
from sightline.io.views import load_views
from sightline.protocols import Backbone, Progress
from sightline.types import Features, Views

FEATURES = "features.npz"
PICTURES = "pca"


def write_features(
    inputs: Sequence[str | Path],
    output: Path,
    backbone: Backbone,
    *,
    layers: Sequence[int] = (-1,),
    resolution: int | None = None,
    frames: FrameOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Encode pictures and write a folder of features.

    ``features.npz`` holds ``patches [V D h w]`` (several layers have their channels side by side,
    in the order of ``layers``), ``cls [V D]`` where the backbone has class tokens, ``pixels
    [h w 2]`` (the centre x, y of every patch in pixels of the original pictures; ``[V h w 2]``
    where the pictures were scaled differently), ``names``, ``layers`` counted from 0, and ``sizes
    [V 2]``, height and width of the originals. Pictures of unlike sizes are padded with black at
    the right and bottom. ``pca/NAME.png`` shows the first three principal components, with axes
    and colours common to all views.

    Args:
        inputs: Photos, folders, globs and videos, as for ``reconstruct``.
        output: The folder to write.
        backbone: What encodes them.
        layers: Which layers; negative ones count from the end.
        resolution: Long side in pixels that pictures are shrunk to; by default as near to 512 as
            whole patches come (518 for a patch of 14).
        frames: Which frames of videos, and how many views at most.
        overwrite: Replace a folder that this function wrote.
        progress: Called with pictures read and views encoded.

    Returns:
        The files: ``features.npz``, then the pictures.

    Raises:
        InputError: An input is missing, the output exists, or layers cannot be joined.
        OutputError: The folder cannot be written.
        Cancelled: ``progress`` raised it; nothing is left.
    """
    check_output(output, inputs, overwrite=overwrite)
    if resolution is None:
        resolution = max(1, round(512 / backbone.patch_size)) * backbone.patch_size
    with atomic_folder(output) as folder:
        staged = folder / "inputs"
        options = IngestOptions(frames=frames or FrameOptions())
        stored = ingest(inputs, staged, options, progress)
        views = load_views(
            stored.files,
            stored.names,
            long_side=resolution,
            mask_files=stored.mask_files if any(stored.mask_files) else None,
            progress=progress,
        )
        found = encode_views(backbone, views, layers, progress)
        size = (views.images.shape[-2], views.images.shape[-1])
        pixels = _original_pixels(views, pixel_positions(found[0], size, backbone))
        patches = join_layers(found)
        arrays = {
            "patches": patches.numpy(),
            "pixels": pixels.numpy(),
            "names": list(views.names),
            "layers": [features.layer for features in found],
            "sizes": stored.sizes.numpy(),
        }
        tokens = [features.cls for features in found if features.cls is not None]
        if len(tokens) == len(found):
            arrays["cls"] = torch.cat(tokens, 1).numpy()
        write_npz(folder / FEATURES, arrays, compress=False)
        placement = placement_of(backbone, size, (patches.shape[-2], patches.shape[-1]))
        pictures = _write_pictures(folder / PICTURES, patches, views, placement)
        shutil.rmtree(staged)
    return [output / FEATURES, *(output / PICTURES / name for name in pictures)]


def check_output(output: Path, inputs: Sequence[str | Path], *, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something else than features, or the inputs.

    Raises:
        InputError: It must not be written to.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"the output {output} is a file; give a folder with -o")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / FEATURES).is_file():
        raise InputError(
            f"the output folder {output} is not empty and holds no {FEATURES}; give a new folder "
            "with -o"
        )
    if not overwrite:
        raise InputError(
            f"the output folder {output} already holds features; replace them with --overwrite, "
            "or give another folder with -o"
        )
    for item in inputs:
        if Path(item).resolve().is_relative_to(output.resolve()):
            raise InputError(
                f"the input {item} lies inside the output folder {output}, which --overwrite "
                "would empty; give another folder with -o"
            )


def encode_views(
    backbone: Backbone,
    views: Views,
    layers: Sequence[int] = (-1,),
    progress: Progress | None = None,
) -> list[Features]:
    """Return one record a layer for all views, on the CPU in float32.

    Views go through the backbone a few at a time, unless it looks at all of them together.
    """
    count, _, height, width = views.images.shape
    at_once = getattr(backbone, "views_at_once", None)
    step = (at_once(height, width) if at_once is not None else 1) or count
    parts: list[list[Features]] = []
    for start in range(0, count, step):
        if progress is not None:
            progress("encode", float(start), float(count))
        images = views.images[start : start + step]
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        parts.append([one.to("cpu") for one in backbone.extract(images, layers=layers)])
    if progress is not None:
        progress("encode", float(count), float(count))
    return [join_views(rows) for rows in zip(*parts, strict=True)]


def join_views(parts: Sequence[Features]) -> Features:
    """Return the features of one layer for the views of all parts, in order."""

    def join(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    first = parts[0]
    return Features(
        patches=torch.cat([part.patches for part in parts]),
        cls=join([part.cls for part in parts]),
        registers=join([part.registers for part in parts]),
        layer=first.layer,
        normed=first.normed,
    )


def join_layers(found: Sequence[Features]) -> Float[Tensor, "V D h w"]:
    """Return the channels of several layers side by side.

    Raises:
        InputError: Their grids differ.
    """
    grids = {tuple(features.patches.shape[-2:]) for features in found}
    if len(grids) > 1:
        named = ", ".join(
            f"layer {f.layer}: {'x'.join(map(str, f.patches.shape[-2:]))}" for f in found
        )
        raise InputError(f"expected layers of one grid, got {named}; choose one of them")
    return torch.cat([features.patches for features in found], 1)


def _original_pixels(views: Views, pixels: Float[Tensor, "h w 2"]) -> Float[Tensor, "*views h w 2"]:
    """Return positions in pixels of the original pictures; one table where one serves all."""
    scale = views.from_original.diagonal(dim1=1, dim2=2)[:, :2]
    if (scale == scale[0]).all():
        return pixels / scale[0]
    return pixels / scale.view(-1, 1, 1, 2)


def _write_pictures(
    folder: Path, patches: Float[Tensor, "V D h w"], views: Views, placement: Placement
) -> list[str]:
    """Write a PCA picture of the size of each view, smoothly enlarged; masked pixels are black."""
    maps = pca_maps(patches, _known(views, patches.shape[-2], patches.shape[-1]))
    names = [f"{Path(name).stem}.png" for name in views.names]
    folder.mkdir()
    for index, (name, (height, width)) in enumerate(zip(names, views.sizes.tolist(), strict=True)):
        y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (height, width))
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        colors = to_colors(placement.sample(maps[index : index + 1], pixels, "bicubic")[0])
        if views.masks is not None:
            colors[~views.masks[index, :height, :width]] = 0
        Image.fromarray(colors.numpy()).save(folder / name)
    return names


def _known(views: Views, rows: int, cols: int) -> Bool[Tensor, "V h w"] | None:
    """Return where at least half of a patch counts; None where nothing is masked or padded."""
    if views.masks is None:
        return None
    share = functional.adaptive_avg_pool2d(views.masks.unsqueeze(1).float(), (rows, cols))[:, 0]
    known = share >= 0.5
    return known if known.any() else None
