"""Scoring splats on photos that they were not fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import InputError
from sightline.metrics.images import color_corrected_psnr, psnr, ssim
from sightline.protocols import Progress
from sightline.splatting.exposure import Exposure
from sightline.splatting.render import render_gaussians
from sightline.types import Cameras, Gaussians, Views


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Scores by view, and what they were taken on.

    ``scores`` has ``psnr`` and ``cc_psnr`` in dB and ``ssim``, in the order of ``index``.
    """

    index: tuple[int, ...]
    names: tuple[str, ...]
    scores: Mapping[str, Float[Tensor, " M"]]
    renders: Float[Tensor, "M 3 H W"]
    """As the held-out photos would show the scene, in [0, 1]."""

    def metrics(self) -> dict[str, dict[str, object]]:
        """Return ``{metric: {mean, per_view: {name: value}}}`` as plain numbers."""
        return {
            metric: {
                "mean": float(values.mean()),
                "per_view": dict(zip(self.names, values.tolist(), strict=True)),
            }
            for metric, values in self.scores.items()
        }


def evaluate_splats(
    gaussians: Gaussians,
    views: Views,
    index: Sequence[int],
    *,
    cameras: Cameras | None = None,
    exposure: Exposure | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Render views and compare them with their photos.

    Args:
        gaussians: The scene.
        views: Photos and cameras; masked pixels do not count.
        index: Views to score.
        cameras: Of all views, if not those of ``views``.
        exposure: Corrections of all views. Those of held-out views were inferred from training
            views; no held-out pixel has been looked at, and ``psnr`` is plain.
        progress: Called as ``progress("evaluate", done, total)``.

    Raises:
        InputError: If there is nothing to score, or no camera.
    """
    cameras = cameras if cameras is not None else views.cameras
    if cameras is None or not index:
        raise InputError("scoring needs at least one view with a camera, got none; name some")
    metrics = {"psnr": psnr, "ssim": ssim, "cc_psnr": color_corrected_psnr}
    scores: dict[str, list[Tensor]] = {name: [] for name in metrics}
    renders = []
    for done, view in enumerate(index):
        rendering = render_gaussians(gaussians, cameras.select([view]), with_depth=False)
        picture = rendering.rgb.cpu()
        if exposure is not None:
            picture = exposure.apply(picture, [view])
        photo, mask = _photo(views, view)
        for name, metric in metrics.items():
            scores[name].append(metric(picture, photo, mask))
        renders.append(picture)
        if progress is not None:
            progress("evaluate", float(done + 1), float(len(index)))
    return Evaluation(
        index=tuple(index),
        names=tuple(views.names[i] for i in index),
        scores={name: torch.cat(values) for name, values in scores.items()},
        renders=torch.cat(renders),
    )


def _photo(
    views: Views, view: int
) -> tuple[Float[Tensor, "1 3 H W"], Bool[Tensor, "1 H W"] | None]:
    image = views.images[view : view + 1]
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    mask = None if views.masks is None else views.masks[view : view + 1]
    return image, mask
