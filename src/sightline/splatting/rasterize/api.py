"""``rasterization``: gsplat's call, checked and sent to the backend of the tensors' device."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError, ShapeError, UnknownNameError
from sightline.splatting.rasterize import gsplat
from sightline.splatting.rasterize.meta import Meta, TileLists

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
MAX_SH_DEGREE = 3

_CUDA_ONLY = (
    "sparse_grad",
    "distributed",
    "with_ut",
    "with_eval3d",
    "return_normals",
    "rays",
    "radial_coeffs",
    "tangential_coeffs",
    "thin_prism_coeffs",
    "ftheta_coeffs",
    "lidar_coeffs",
    "external_distortion_coeffs",
    "rolling_shutter",
    "viewmats_rs",
    "ut_params",
    "extra_signals",
    "extra_signals_sh_degree",
    "renderer_config",
)


# The hook of the test suite would refuse wrong shapes before the sentences below could: hence "...".
def rasterization(
    means: Float[Tensor, "..."],
    quats: Float[Tensor, "..."] | None,
    scales: Float[Tensor, "..."] | None,
    opacities: Float[Tensor, "..."],
    colors: Float[Tensor, "..."] | None,
    viewmats: Float[Tensor, "..."],
    Ks: Float[Tensor, "..."],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int | None = None,
    backgrounds: Float[Tensor, "..."] | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Float[Tensor, "..."] | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    return_normals: bool = False,
    global_z_order: bool = True,
    rays: Any = None,  # noqa: ANN401
    radial_coeffs: Any = None,  # noqa: ANN401
    tangential_coeffs: Any = None,  # noqa: ANN401
    thin_prism_coeffs: Any = None,  # noqa: ANN401
    ftheta_coeffs: Any = None,  # noqa: ANN401
    lidar_coeffs: Any = None,  # noqa: ANN401
    external_distortion_coeffs: Any = None,  # noqa: ANN401
    rolling_shutter: Any = None,  # noqa: ANN401
    viewmats_rs: Any = None,  # noqa: ANN401
    ut_params: Any = None,  # noqa: ANN401
    extra_signals: Any = None,  # noqa: ANN401
    extra_signals_sh_degree: int | None = None,
    renderer_config: Any = None,  # noqa: ANN401
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], dict[str, Any]]:
    """Draw Gaussians into pictures, differentiably; a drop-in for gsplat's function of that name.

    CPU tensors are drawn by our own kernels, CUDA tensors by gsplat. ``..`` below are any number of
    batch axes, N Gaussians, C cameras, D channels, K spherical-harmonic coefficients.

    Args:
        means: ``[.. N 3]`` centres in the world.
        quats: ``[.. N 4]`` orientations ``wxyz``, of any length.
        scales: ``[.. N 3]`` standard deviations along the axes.
        opacities: ``[.. N]`` in [0, 1].
        colors: ``[.. N D]``, ``[.. C N D]``, or with ``sh_degree`` ``[N K 3]`` (also ``[.. N K 3]``
            or ``[.. C N K 3]``); None in the depth modes.
        viewmats: ``[.. C 4 4]`` world to camera, OpenCV axes.
        Ks: ``[.. C 3 3]`` intrinsics in pixels, without skew.
        width: Of the pictures, in pixels.
        height: Of the pictures, in pixels.
        near_plane: Gaussians whose centre is nearer are not drawn.
        far_plane: Nor are those beyond this depth.
        radius_clip: Nor those whose radii are both at most this many pixels.
        eps2d: Blur added to the projected covariance, in square pixels.
        sh_degree: Degree of the spherical harmonics in ``colors``, 0 to 3; None: plain colours.
        packed: Whether the published tensors hold only visible pairs of camera and Gaussian. The
            pictures are the same.
        tile_size: Of the tile lists in the dictionary, 16 by default; the CPU kernels have tiles of
            their own.
        backgrounds: ``[.. C D]`` colours behind everything; black by default.
        render_mode: ``RGB``, ``D`` (accumulated depth), ``ED`` (expected depth), ``RGB+D``,
            ``RGB+ED`` (depth as the last channel).
        sparse_grad: CUDA only.
        absgrad: Also leave the sums of absolute gradients in ``meta["means2d"].absgrad``.
        rasterize_mode: ``classic``, or ``antialiased`` to dim what the blur enlarged.
        channel_chunk: CUDA only in effect; the CPU draws any number of channels at once.
        distributed: CUDA only.
        camera_model: ``pinhole``; others CUDA only.
        segmented: How gsplat sorts; no effect on the CPU.
        covars: ``[.. N 3 3]`` covariances instead of quats and scales; only their symmetric part
            counts.
        with_ut: CUDA only, as all that follow but ``global_z_order``.
        with_eval3d: See above.
        return_normals: See above.
        global_z_order: True on the CPU.
        rays: See above.
        radial_coeffs: See above.
        tangential_coeffs: See above.
        thin_prism_coeffs: See above.
        ftheta_coeffs: See above.
        lidar_coeffs: See above.
        external_distortion_coeffs: See above.
        rolling_shutter: See above.
        viewmats_rs: See above.
        ut_params: See above.
        extra_signals: See above.
        extra_signals_sh_degree: See above.
        renderer_config: See above.

    Returns:
        Pictures ``[.. C H W X]`` (X: D, 1, or D + 1 channels), alphas ``[.. C H W 1]``, and a
        dictionary with gsplat's keys. In it, ``means2d`` (pixels) is a node of the graph: call
        ``retain_grad()`` on it before ``backward``. ``radii`` are int32 and zero where nothing is
        drawn. A Gaussian with any value that is not finite is not drawn.

    Raises:
        ShapeError: If a shape does not fit.
        InputError: If the dtype, the device or an argument is not supported.

    The CPU result is the same bit for bit for any number of threads (``torch.set_num_threads``).

    >>> picture, alpha, _ = rasterization(
    ...     means=torch.tensor([[0.0, 0.0, 3.0]]),
    ...     quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
    ...     scales=torch.full((1, 3), 0.2),
    ...     opacities=torch.tensor([0.9]),
    ...     colors=torch.tensor([[1.0, 0.0, 0.0]]),
    ...     viewmats=torch.eye(4)[None],
    ...     Ks=torch.tensor([[[20.0, 0, 16], [0, 20, 12], [0, 0, 1]]]),
    ...     width=32,
    ...     height=24,
    ... )
    >>> picture.shape, alpha.flatten().argmax().item() in (11 * 32 + 15, 11 * 32 + 16)
    (torch.Size([1, 24, 32, 3]), True)
    """
    arguments = dict(locals())
    device = means.device.type
    if device == "cuda":
        return gsplat.rasterize(arguments, _defaults())
    if device != "cpu":
        msg = f"rasterization draws on cpu or cuda, got tensors on {device}; move them first"
        raise InputError(msg)
    _refuse_cuda_only(arguments)
    batch, number, cameras = _check(arguments)

    from sightline.splatting.rasterize import cpu

    pictures = batch.numel() * cameras
    has_rgb = render_mode.startswith("RGB")
    sets, color_index = None, [0] * pictures
    if has_rgb and colors is not None:
        tail = 2 if sh_degree is not None else 1
        lead = colors.shape[: colors.ndim - tail - 1]
        sets = colors.reshape(lead.numel(), number, *colors.shape[colors.ndim - tail :])
        if sets.shape[0] == pictures:
            color_index = list(range(pictures))
        elif sets.shape[0] == batch.numel():
            color_index = [i // cameras for i in range(pictures)]

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(batch.numel(), *tensor.shape[len(batch) :])

    by_covars = covars is not None
    settings = cpu.Settings(
        width=width,
        height=height,
        near=near_plane,
        far=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased",
        sh_degree=-1 if sh_degree is None or not has_rgb else sh_degree,
        use_depth=render_mode != "RGB",
        expected_depth=render_mode.endswith("ED"),
        absgrad=absgrad,
        packed=packed,
    )
    image, alpha, published = cpu.rasterize(
        flat(means),
        None if by_covars or quats is None else flat(quats),
        None if by_covars or scales is None else flat(scales),
        flat(covars) if covars is not None else None,
        flat(opacities),
        sets,
        flat(viewmats),
        flat(Ks),
        backgrounds.reshape(pictures, -1) if has_rgb and backgrounds is not None else None,
        color_index,
        tuple(batch),
        settings,
    )
    shape = (*batch, cameras)
    meta = _describe(published, shape, number, width, height, tile_size or 16, packed)
    return (
        image.view(*shape, height, width, image.shape[-1]),
        alpha.view(*shape, height, width, 1),
        meta,
    )


@functools.cache
def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(inspect.unwrap(rasterization)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _refuse_cuda_only(arguments: dict[str, Any]) -> None:
    defaults = _defaults()
    for name in _CUDA_ONLY:
        value = arguments[name]
        usual = value is defaults[name] or getattr(value, "name", None) == "GLOBAL"
        if not usual:
            msg = (
                f"{name} is not supported on the CPU, got {value!r}; leave it out, or move the "
                f"tensors to a CUDA device (gsplat)"
            )
            raise InputError(msg)
    if arguments["camera_model"] != "pinhole":
        msg = (
            f'camera_model must be "pinhole" on the CPU, got "{arguments["camera_model"]}"; '
            f"undistort the pictures first, or move the tensors to a CUDA device (gsplat)"
        )
        raise InputError(msg)
    if not arguments["global_z_order"]:
        msg = "global_z_order must be true on the CPU: leave it out"
        raise InputError(msg)


def _check(given: dict[str, Any]) -> tuple[torch.Size, int, int]:
    """Check values and shapes; return the batch shape, N and C."""
    for name in ("width", "height"):
        if given[name] < 1:
            msg = f"{name} must be at least 1 pixel, got {given[name]}"
            raise InputError(msg)
    for name in ("radius_clip", "eps2d", "near_plane"):
        if not given[name] >= 0:
            msg = f"{name} must not be negative, got {given[name]}"
            raise InputError(msg)
    if given["tile_size"] is not None and given["tile_size"] < 1:
        msg = f"tile_size must be at least 1 pixel, got {given['tile_size']}"
        raise InputError(msg)
    mode = given["render_mode"]
    if mode not in RENDER_MODES:
        raise UnknownNameError("render_mode", mode, RENDER_MODES)
    if given["rasterize_mode"] not in RASTERIZE_MODES:
        raise UnknownNameError("rasterize_mode", given["rasterize_mode"], RASTERIZE_MODES)

    means, viewmats = given["means"], given["viewmats"]
    if means.ndim < 2 or means.shape[-1] != 3:
        msg = f"means must be [.., N, 3], got {list(means.shape)}"
        raise ShapeError(msg)
    batch, number = means.shape[:-2], means.shape[-2]
    if viewmats.ndim != len(batch) + 3:
        msg = (
            f"viewmats must be [{_dims(batch)}C, 4, 4], got {list(viewmats.shape)}; one camera "
            f"needs an axis of its own: viewmats[None]"
        )
        raise ShapeError(msg)
    cameras = viewmats.shape[-3]
    if not batch.numel() * cameras:
        msg = f"there must be at least one picture to draw, got viewmats {list(viewmats.shape)}"
        raise ShapeError(msg)
    expected = {
        "opacities": (number,),
        "viewmats": (cameras, 4, 4),
        "Ks": (cameras, 3, 3),
    }
    if given["covars"] is not None:
        expected["covars"] = (number, 3, 3)
    else:
        expected |= {"quats": (number, 4), "scales": (number, 3)}
    for name, tail in expected.items():
        tensor, want = given[name], [*batch, *tail]
        if tensor is None:
            msg = f"{name} must be {want}, got None; only covars can replace quats and scales"
            raise ShapeError(msg)
        if list(tensor.shape) != want:
            hint = "; drop the last axis with .squeeze(-1)" if name == "opacities" else ""
            msg = f"{name} must be {want}, got {list(tensor.shape)}{hint}"
            raise ShapeError(msg)
    if mode.startswith("RGB"):
        channels = _check_colors(given["colors"], given["sh_degree"], batch, number, cameras)
        backgrounds = given["backgrounds"]
        want = [*batch, cameras, channels]
        if backgrounds is not None and list(backgrounds.shape) != want:
            msg = f"backgrounds must be {want}, one colour a camera, got {list(backgrounds.shape)}"
            raise ShapeError(msg)
    for name, tensor in given.items():
        if isinstance(tensor, Tensor):
            if tensor.device != means.device:
                msg = f"{name} must be on {means.device} like means, got {tensor.device}"
                raise InputError(msg)
            if tensor.dtype != torch.float32:
                msg = (
                    f"{name} must be float32 on the CPU, got {str(tensor.dtype)[6:]}; convert it "
                    f"with .float(), or for small float64 scenes call "
                    f"sightline.splatting.rasterize.reference.rasterization"
                )
                raise InputError(msg)
    return batch, number, cameras


def _check_colors(
    colors: Tensor | None, degree: int | None, batch: torch.Size, number: int, cameras: int
) -> int:
    """Return the number of channels."""
    if colors is None:
        msg = 'colors must be given unless render_mode is "D" or "ED"'
        raise ShapeError(msg)
    got = list(colors.shape)
    if degree is None:
        if got[:-1] not in ([*batch, number], [*batch, cameras, number]) or not got[-1]:
            msg = (
                f"colors must be [{_dims(batch)}{number}, D] or [{_dims(batch)}{cameras}, "
                f"{number}, D], got {got}; spherical harmonics need sh_degree"
            )
            raise ShapeError(msg)
        return got[-1]
    if not 0 <= degree <= MAX_SH_DEGREE:
        msg = f"sh_degree must be 0 to {MAX_SH_DEGREE}, got {degree}"
        raise InputError(msg)
    least = (degree + 1) ** 2
    leads = ([number], [*batch, number], [*batch, cameras, number])
    if len(got) < 3 or got[:-2] not in leads or got[-2] < least or got[-1] != 3:
        msg = (
            f"colors must be [{number}, K, 3] with K at least {least} for sh_degree {degree}, "
            f"got {got}"
        )
        raise ShapeError(msg)
    return 3


def _dims(batch: torch.Size) -> str:
    return "".join(f"{n}, " for n in batch)


def _describe(
    published: dict[str, Any],
    shape: tuple[int, ...],
    number: int,
    width: int,
    height: int,
    tile_size: int,
    packed: bool,
) -> Meta:
    """Build the dictionary; packed rows are in order of picture, then Gaussian."""
    cameras = shape[-1]
    pictures = torch.Size(shape).numel()
    ids = published.pop("ids")
    rows = torch.tensor([len(i) for i in ids] if packed else [number] * pictures)

    def picture_ids() -> Tensor:
        return torch.arange(pictures).repeat_interleave(rows)

    lazy: dict[str, Callable[[], Tensor | None]] = dict.fromkeys(
        ("batch_ids", "camera_ids", "gaussian_ids"), lambda: None
    )
    if packed:
        lazy = {
            "batch_ids": lambda: picture_ids() // cameras,
            "camera_ids": lambda: picture_ids() % cameras,
            "gaussian_ids": lambda: torch.from_numpy(np.concatenate(ids)).long(),
        }
    grid = (-(-height // tile_size), -(-width // tile_size))
    lists = TileLists(
        published["means2d"], published["radii"], published["depths"], rows, grid, tile_size, shape
    )
    values = published | {
        "tile_width": grid[1],
        "tile_height": grid[0],
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_batches": pictures // cameras,
        "n_cameras": cameras,
    }
    return Meta(values, lazy | lists.lazy())
