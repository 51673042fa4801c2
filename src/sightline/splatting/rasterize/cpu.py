"""The CPU backend: two autograd functions around the kernels.

``_Project`` turns 3D Gaussians into what callers may look at (means, conics, opacities, depths on the
picture) and into *records*, one compact row a visible Gaussian. ``_Blend`` paints records.
Gradients return the same way, so the published means are a true node of the graph.

Memory beyond inputs and outputs, in bytes: with N Gaussians, V of them visible, P pairs of a Gaussian
and a tile (32 x 32 pixels) that its box touches, D channels, R = 64 ceil((11 + D) / 16) and S =
64 ceil((8 + D) / 16), a forward pass takes ``64 N`` once and ``(R + 16) V + 24 P`` for each picture,
which stay until the backward pass, and while it works ``24 V + 24 P``; a backward pass takes ``R V``
for each picture and ``S P`` while it works. To that comes ``4096 (3 + D)`` a thread. P is counted,
in 64 bits, before anything of its size is allocated.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sightline.errors import OutOfMemoryError
from sightline.splatting.rasterize import blend, project, project_backward, tiles
from sightline.splatting.rasterize.jit import run_chunks

_FIXED = (3, 4)
"""Channel counts with kernels of their own."""


@dataclass(frozen=True)
class Settings:
    """The arguments that are not tensors."""

    width: int
    height: int
    near: float
    far: float
    radius_clip: float
    eps2d: float
    antialiased: bool
    sh_degree: int
    """-1: colours are given."""
    use_depth: bool
    expected_depth: bool
    absgrad: bool
    packed: bool

    @property
    def tiles_x(self) -> int:
        """Tiles across."""
        return -(-self.width // tiles.TILE_WIDTH)

    @property
    def num_tiles(self) -> int:
        """Tiles of a picture."""
        return self.tiles_x * -(-self.height // tiles.TILE_HEIGHT)


@dataclass
class _Picture:
    """What one camera's forward pass leaves for its backward pass; V visible, P pairs."""

    index: int
    base: int
    """First row in what was published."""
    ids: np.ndarray
    """[V] which Gaussians."""
    records: np.ndarray
    """[V ...] columns of ``project.FLAT``, then colours."""
    start: np.ndarray
    count: np.ndarray
    """[V] where a Gaussian's pairs are numbered from, and how many there are."""
    where: np.ndarray
    """[pairs] the place of each pair in ``lists``."""
    offsets: np.ndarray
    """[tiles + 1] where a tile's list begins."""
    lists: np.ndarray
    """[P 2] mask of blocks, Gaussian."""


def _numpy(tensor: Tensor) -> np.ndarray:
    # not torch's contiguous(): its threads would keep spinning beside ours
    return np.ascontiguousarray(tensor.detach().numpy())


def _empty(*shape: int) -> np.ndarray:
    """Float32 memory that begins at a cache line."""
    return torch.empty(shape).numpy()


def _check_memory(pairs: int, channels: int) -> None:
    need = pairs * (48 + 64 * -(-(8 + channels) // 16))
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        msg = (
            f"drawing needs {need / 2**30:.0f} GiB for {pairs} pairs of a Gaussian and a tile, this "
            f"machine has {have / 2**30:.0f} GiB; draw a smaller picture, or remove Gaussians that "
            f"cover it all"
        )
        raise OutOfMemoryError(msg)


def _list_tiles(records: np.ndarray, settings: Settings) -> tuple[np.ndarray, ...]:
    """List the Gaussians of each tile in depth order."""
    visible = len(records)
    size = (settings.width, settings.height)
    order = np.empty(visible, np.int32)
    tiles.sort_by_depth(records, order)
    bound = np.empty(visible, np.int64)
    run_chunks(tiles.bound_tiles, visible, 32768, records, *size, bound)
    start = np.zeros(visible + 1, np.int64)
    np.cumsum(bound, out=start[1:])
    most = int(start[-1])
    _check_memory(most, records.shape[1] - project.FLAT)
    grain = max(1024, -(-visible // (4 * torch.get_num_threads())))
    pieces = -(-visible // grain)
    capacity = np.empty(pieces, np.int64)
    tiles.bound_pieces(0, pieces, grain, order, bound, capacity)
    begin = np.cumsum(capacity) - capacity
    pairs = np.empty((most, 3), np.uint64)
    count = np.empty(visible, np.int32)
    counts = np.empty((pieces, settings.num_tiles), np.int64)
    stopped = np.empty(pieces, np.int64)
    run_chunks(
        tiles.cover, pieces, 1, grain, order, records, *size, settings.tiles_x,
        begin, pairs, count, counts, stopped,
    )  # fmt: skip
    offsets = np.zeros(settings.num_tiles + 1, np.int64)
    np.cumsum(counts.sum(0), out=offsets[1:])
    position = np.cumsum(counts, 0)
    position -= counts
    position += offsets[:-1]
    lists = np.empty((int(offsets[-1]), 2), np.uint64)
    where = np.zeros(most, np.int64)
    run_chunks(tiles.place, pieces, 1, begin, stopped, pairs, start, position, lists, where)
    return start, count, where, offsets, lists


def _tile_grain(number: int) -> int:
    return max(1, number // (8 * torch.get_num_threads()))


@dataclass(frozen=True)
class _Inputs:
    """The tensors as contiguous arrays, empty where absent."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    covars: np.ndarray
    opacities: np.ndarray
    colors: np.ndarray
    viewmats: np.ndarray
    intrinsics: np.ndarray

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> "_Inputs":
        means = tensors[0]
        assert means is not None
        batches, number = means.shape[:2]
        absent = {1: (batches, 0, 4), 2: (batches, 0, 3), 3: (batches, 0, 3, 3), 5: (1, number, 0)}
        return cls(
            *(
                _empty(*absent[place]) if tensor is None else _numpy(tensor)
                for place, tensor in enumerate(tensors)
            )
        )

    def zeros(self, colors: bool) -> "_Inputs":
        """Return room for gradients; that of the colours is empty unless ``colors``."""
        names = [field.name for field in fields(self)]
        arrays = {name: np.zeros_like(getattr(self, name)) for name in names if name != "colors"}
        shape = self.colors.shape if colors else (len(self.colors), 0, 0, 0)
        return _Inputs(**arrays, colors=np.zeros(shape, np.float32))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        means: Tensor,
        quats: Tensor | None,
        scales: Tensor | None,
        covars: Tensor | None,
        opacities: Tensor,
        colors: Tensor | None,
        viewmats: Tensor,
        intrinsics: Tensor,
        color_index: list[int],
        shape: tuple[int, ...],
        settings: Settings,
    ) -> tuple:
        ctx.set_materialize_grads(False)
        tensors = (means, quats, scales, covars, opacities, colors, viewmats, intrinsics)
        x = _Inputs.of(tensors)
        batches, number = means.shape[:2]
        cameras = viewmats.shape[1]
        degree = settings.sh_degree
        packed = settings.packed
        kernel = project.project_kernel(covars is not None)
        pieces = -(-number // project.CHUNK)
        radii = np.empty((batches * cameras, number, 2), np.int32)
        flat = _empty(number, project.FLAT)
        sh_colors = _empty(number if degree >= 0 else 0, 3)
        counts = np.zeros(pieces, np.int64)
        no_features, no_sh = _empty(0, 0), _empty(0, 0, 0)
        pictures: list[_Picture] = []
        published: list[tuple[np.ndarray, ...]] = []
        base = 0
        for index in range(batches * cameras):
            b, c = divmod(index, cameras)
            colors_here = x.colors[color_index[index]]
            features, sh = (no_features, colors_here) if degree >= 0 else (colors_here, no_sh)
            run_chunks(
                kernel, pieces, 1, x.means[b], x.quats[b], x.scales[b], x.covars[b],
                x.opacities[b], features, sh, x.viewmats[b, c], x.intrinsics[b, c],
                settings.width, settings.height, np.float32(settings.near),
                np.float32(settings.far), np.float32(settings.radius_clip),
                np.float32(settings.eps2d), settings.antialiased, degree, flat, radii[index],
                sh_colors, counts,
            )  # fmt: skip
            visible = int(counts.sum())
            shown = sh_colors if degree >= 0 else features
            channels = shown.shape[1] + settings.use_depth
            records = _empty(visible, -(-(project.FLAT + channels) // 16) * 16)
            ids = np.empty(visible, np.int32)
            rows = visible if packed else number
            make = _empty if packed else lambda *s: np.zeros(s, np.float32)
            out = (make(rows, 2), make(rows, 3), make(rows), make(rows))
            seen = np.empty((visible, 2), np.int32) if packed else radii[index]
            run_chunks(
                tiles.collect, pieces, 16, project.CHUNK, np.cumsum(counts) - counts, packed,
                radii[index], flat, shown, settings.use_depth, ids, records, *out, seen,
            )  # fmt: skip
            pictures.append(_Picture(index, base, ids, records, *_list_tiles(records, settings)))
            published.append((*out, seen))
            base += rows
        lead = (base,) if packed else (*shape, cameras, number)
        joined = [_join(parts) for parts in zip(*published, strict=True)]
        outputs = [torch.from_numpy(a).view(*lead, *a.shape[1:]) for a in joined]
        records = torch.from_numpy(_join([p.records for p in pictures]))
        ctx.mark_non_differentiable(outputs[-1])
        ctx.save_for_backward(*tensors)
        ctx.color_index = color_index
        ctx.settings = settings
        ctx.pictures = pictures
        ctx.rows = base
        return (*outputs, records, pictures)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        x = _Inputs.of(ctx.saved_tensors)
        settings: Settings = ctx.settings
        need = ctx.needs_input_grad
        cameras = x.viewmats.shape[1]
        posed = need[6] or need[7]
        kernel = project_backward.project_backward_kernel(ctx.saved_tensors[3] is not None)
        by_sh = settings.sh_degree >= 0
        out = x.zeros(colors=by_sh and need[5])
        grad_published = [
            _empty(0, *tail) if g is None else _numpy(g).reshape(ctx.rows, *tail)
            for g, tail in zip(grads[:4], ((2,), (3,), (), ()), strict=True)
        ]
        if grads[0] is None:
            grad_published[0] = np.zeros((ctx.rows, 2), np.float32)
        total_visible = sum(len(p.ids) for p in ctx.pictures)
        width = ctx.pictures[0].records.shape[1]
        grad_records = (
            np.zeros((total_visible, width), np.float32) if grads[5] is None else _numpy(grads[5])
        )
        no_sh = _empty(0, 0, 0)
        begin = 0
        for p in ctx.pictures:
            b, c = divmod(p.index, cameras)
            end = begin + len(p.ids)
            pieces = -(-len(p.ids) // project.CHUNK)
            partial = _empty(pieces, 16)
            chosen = ctx.color_index[p.index]
            run_chunks(
                kernel, pieces, 1, p.ids, p.base, settings.packed, x.means[b], x.quats[b],
                x.scales[b], x.covars[b], x.opacities[b],
                x.colors[chosen] if by_sh else no_sh,
                x.viewmats[b, c], x.intrinsics[b, c], settings.width, settings.height,
                np.float32(settings.eps2d), settings.antialiased, settings.sh_degree, posed,
                p.records, grad_records[begin:end], *grad_published,
                out.means[b], out.quats[b], out.scales[b], out.covars[b], out.opacities[b],
                out.colors[chosen] if by_sh else no_sh, partial,
            )  # fmt: skip
            if posed:
                total = partial.sum(0, dtype=np.float64)
                out.viewmats[b, c, :3, :3] = total[:9].reshape(3, 3)
                out.viewmats[b, c, :3, 3] = total[9:12]
                out.intrinsics[b, c, [0, 1], [0, 1]] = total[12:14]
                out.intrinsics[b, c, :2, 2] = total[14:]
            begin = end
        results = [
            torch.from_numpy(getattr(out, field.name)) if wanted else None
            for field, wanted in zip(fields(out), need, strict=False)
        ]
        results[5] = results[5] if by_sh else None
        return (*results, None, None, None)


def _join(parts: Any) -> np.ndarray:  # noqa: ANN401
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        means2d: Tensor,
        records: Tensor,
        colors: Tensor | None,
        backgrounds: Tensor | None,
        pictures: list[_Picture],
        channels: int,
        color_index: list[int],
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        w, h = settings.width, settings.height
        image = _empty(len(pictures), h, w, channels)
        alphas = _empty(len(pictures), h, w)
        draw = blend.blend_kernel(channels if channels in _FIXED else 0)
        background = np.zeros((len(pictures), channels), np.float32)
        if backgrounds is not None:
            background[:, : backgrounds.shape[1]] = _numpy(backgrounds)
        for p in pictures:
            run_chunks(
                draw, settings.num_tiles, _tile_grain(settings.num_tiles), settings.tiles_x, w, h,
                channels, p.offsets, p.lists, p.records, background[p.index],
                settings.expected_depth, image[p.index].reshape(-1), alphas[p.index].reshape(-1),
            )  # fmt: skip
        results = (torch.from_numpy(image), torch.from_numpy(alphas))
        ctx.save_for_backward(means2d, *results)
        ctx.settings = settings
        ctx.pictures = pictures
        ctx.color_index = color_index
        ctx.color_shape = None if colors is None else colors.shape
        ctx.background_width = 0 if backgrounds is None else backgrounds.shape[1]
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor | None, g_alpha: Tensor | None) -> tuple:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        means2d, *results = ctx.saved_tensors
        settings: Settings = ctx.settings
        image, alphas = (_numpy(t) for t in results)
        w, h = settings.width, settings.height
        channels = image.shape[-1]
        gi = np.zeros_like(image) if g_image is None else _numpy(g_image)
        ga = np.zeros_like(alphas) if g_alpha is None else _numpy(g_alpha)
        rows = means2d.numel() // 2
        grad_means2d = np.zeros((rows, 2), np.float32)
        absolute = np.zeros((rows if settings.absgrad else 0, 2), np.float32)
        grad_records = _empty(
            sum(len(p.ids) for p in ctx.pictures), ctx.pictures[0].records.shape[1]
        )
        grad_colors = np.zeros(ctx.color_shape, np.float32) if ctx.needs_input_grad[2] else None
        wide = ctx.background_width if ctx.needs_input_grad[3] else 0
        grad_background = np.zeros((len(ctx.pictures), wide), np.float32)
        draw = blend.blend_backward_kernel(channels if channels in _FIXED else 0, settings.absgrad)
        sums_width = blend.MOMENTS + 2 * settings.absgrad + channels
        number = settings.num_tiles
        flat = (image, alphas, gi, ga)
        begin = 0
        for p in ctx.pictures:
            end = begin + len(p.ids)
            sums = _empty(len(p.lists), -(-sums_width // 16) * 16)
            tile_background = np.empty((number, wide), np.float32)
            run_chunks(
                draw, number, _tile_grain(number), settings.tiles_x, w, h, channels, p.offsets,
                p.lists, p.records, settings.expected_depth, *(a[p.index].reshape(-1) for a in flat), sums, tile_background,
            )  # fmt: skip
            grad_background[p.index] = tile_background.sum(0, dtype=np.float64)
            grads = grad_records[begin:end]
            run_chunks(
                blend.sum_pairs, len(p.ids), 2048, channels, settings.use_depth, settings.absgrad,
                p.records, p.start, p.count, p.where, sums, p.ids, p.base, settings.packed, grads,
                grad_means2d, absolute,
            )  # fmt: skip
            if grad_colors is not None:
                run_chunks(
                    tiles.scatter_colors, len(p.ids), 8192, p.ids, grads,
                    grad_colors.shape[-1], grad_colors[ctx.color_index[p.index]],
                )  # fmt: skip
            begin = end
        if settings.absgrad:
            means2d.absgrad = torch.from_numpy(absolute).view_as(means2d)
        return (
            torch.from_numpy(grad_means2d).view_as(means2d),
            torch.from_numpy(grad_records),
            None if grad_colors is None else torch.from_numpy(grad_colors),
            torch.from_numpy(grad_background) if wide else None,
            None,
            None,
            None,
            None,
        )


def rasterize(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    covars: Tensor | None,
    opacities: Tensor,
    colors: Tensor | None,
    viewmats: Tensor,
    intrinsics: Tensor,
    backgrounds: Tensor | None,
    color_index: list[int],
    shape: tuple[int, ...],
    settings: Settings,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Draw ``[batches N ...]`` Gaussians with ``[batches cameras ...]`` cameras.

    ``colors [sets N ...]`` are spherical harmonics, colours, or nothing; ``color_index`` names each
    picture's set. ``shape`` is the batch shape that published tensors get back. Returns pictures
    ``[pictures H W channels]``, alphas ``[pictures H W]`` and the published tensors.
    """
    by_sh = settings.sh_degree >= 0
    shown = colors if by_sh or colors is None else colors.detach()
    inputs = (means, quats, scales, covars, opacities, shown, viewmats, intrinsics)
    projected: Any = _Project.apply(*inputs, color_index, shape, settings)
    means2d, conics, blended, depths, radii, records, pictures = projected
    direct = None if by_sh else colors
    channels = (0 if colors is None else colors.shape[-1]) + settings.use_depth
    painted: Any = _Blend.apply(
        means2d, records, direct, backgrounds, pictures, channels, color_index, settings
    )
    published = {
        "means2d": means2d,
        "conics": conics,
        "opacities": blended,
        "depths": depths,
        "radii": radii,
        "ids": [p.ids for p in pictures],
    }
    return *painted, published
