"""The CUDA backend: gsplat's own ``rasterization``."""

import inspect
from typing import Any

from torch import Tensor

from sightline.errors import InputError, MissingExtraError


def rasterize(arguments: dict[str, Any], defaults: dict[str, Any]) -> tuple[Tensor, Tensor, dict]:
    """Call gsplat with the arguments that the installed release knows.

    Releases before 1.6 lack some arguments and differ in constants (alpha is clamped at 0.999, and
    Gaussians reach 3 sigma).

    Args:
        arguments: All arguments by name.
        defaults: Their default values; an argument left at its default is not passed on.

    Raises:
        MissingExtraError: If gsplat is not installed.
        InputError: If an argument that was given is unknown to the installed release.
    """
    try:
        import gsplat  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "rasterization on CUDA", "gsplat", "cuda", "move the tensors to the CPU"
        ) from error
    known = inspect.signature(gsplat.rasterization).parameters
    given = {
        name: value
        for name, value in arguments.items()
        if name not in defaults or value is not defaults[name]
    }
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        msg = (
            f"the installed gsplat {getattr(gsplat, '__version__', '')} does not know "
            f"{', '.join(unknown)}; leave it out, or install a newer release"
        )
        raise InputError(msg)
    return gsplat.rasterization(**given)
