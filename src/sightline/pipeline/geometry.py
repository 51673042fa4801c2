"""Who finds the cameras of a run: the user's choice, or what input and machine offer."""

import dataclasses
from pathlib import Path
from typing import Any

from sightline.errors import InputError
from sightline.io.ingested import Ingested
from sightline.io.scene_arrays import write_reconstruction
from sightline.pipeline.work import Work
from sightline.protocols import GeometryEstimator
from sightline.types import Reconstruction, Views

FEW_VIEWS = 4
"""Up to so many views, a learned model that is at hand goes before structure from motion."""
_CHUNKED = ("vggt", "vggt-omega")
"""Methods that can be told how much memory to take."""
_ORDER = ("vggt", "mast3r", "vggt-omega", "dust3r", "splatt3r")
"""In which learned methods are tried by ``auto``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The estimator of a run."""

    name: str
    estimator: GeometryEstimator
    why: str = ""
    """A sentence for the user where ``auto`` did not take the usual way; else empty."""
    checkpoint: Path | None = None
    """Weights that it loads."""

    def facts(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the weights."""
        from sightline.reconstruction.learned.weights import checkpoint_facts

        assert self.checkpoint is not None
        return checkpoint_facts(getattr(self.estimator, "name", self.name), self.checkpoint)


def choose(work: Work, ingested: Ingested) -> Choice:
    """Return the estimator that the options ask for, or that suits input and machine.

    Raises:
        InputError: If the choice cannot work with this input; the text says what can.
        CheckpointError: If a learned method has no weights.
    """
    if work.estimator is not None:
        return _own(work.estimator)
    name, why = work.options.geometry, ""
    if name == "auto":
        name, why = _automatic(work, ingested)
    if name == "given":
        return _given(work, ingested)
    if name == "colmap":
        return Choice(name=name, estimator=_colmap(work), why=why)
    return _learned(work, name, why)


def _own(estimator: GeometryEstimator) -> Choice:
    """Return the user's own object, with the weights file of ours where it names one."""
    from sightline.reconstruction.learned.weights import LEARNED

    path = getattr(estimator, "checkpoint", None)
    known = getattr(estimator, "name", None) in LEARNED and path is not None
    file = Path(str(path)) if known and getattr(estimator, "model", None) is None else None
    return Choice(
        name=type(estimator).__name__,
        estimator=estimator,
        checkpoint=file if file is not None and file.is_file() else None,
    )


def stand_in(work: Work, failed: str) -> Choice | None:
    """Return a learned method for ``auto`` when structure from motion failed, if one is at hand.

    Args:
        work: The run.
        failed: Why, in the error's own words.
    """
    if work.estimator is not None or work.options.geometry != "auto":
        return None
    name = _at_hand()
    if name is None:
        return None
    return _learned(
        work,
        name,
        f"structure from motion failed, so {name} (downloaded before) took over: {failed}",
    )


def adjusted(work: Work, seen: Views, found: Reconstruction) -> tuple[Reconstruction, bool]:
    """Adjust learned cameras to matched features; cameras of other origin are adjusted already.

    What the model said is kept in ``stages/unrefined.npz``.

    Args:
        work: The run.
        seen: The pictures.
        found: Of any estimator.

    Returns:
        The reconstruction, and whether it changed.
    """
    from sightline.reconstruction.learned.refine import bundle_adjust

    if found.depth is None:
        work.folder.warn("--refine ba is for learned geometry; these cameras were left as they are")
        return found, False
    plain = dataclasses.replace(found, sparse=None)
    write_reconstruction(work.file("stages", "unrefined.npz"), plain)
    result = bundle_adjust(
        seen,
        found,
        workspace=work.file("stages", "adjust"),
        seed=work.options.seed,
        progress=work.progress,
    )
    work.folder.warn(result.note)
    return result.reconstruction, result.changed


def _method_of(checkpoint: str) -> tuple[str, str]:
    """Return the method that a weights file is for, from what is in it."""
    from sightline.checkpoints import read_checkpoint
    from sightline.hub import resolve
    from sightline.models.recognize import recognize

    file = resolve(checkpoint)
    found = recognize(read_checkpoint(file).weights)
    method = None if found is None else found.family.replace("_", "-")
    if found is None or method not in _ORDER:
        told = "no network known here" if found is None else found.family
        raise InputError(
            f"--checkpoint must be a model that sees geometry ({', '.join(_ORDER)}), but {file} "
            f"holds {told}; sightline models check tells more"
        )
    return method, f"{method} was chosen: {file.name} holds its weights"


def _automatic(work: Work, ingested: Ingested) -> tuple[str, str]:
    if work.options.checkpoint is not None:
        return _method_of(work.options.checkpoint)
    if ingested.given is not None:
        return "given", ""
    count = len(ingested)
    learned = _at_hand() if count <= FEW_VIEWS else None
    if learned is not None:
        shown = "one picture" if count == 1 else f"{count} pictures"
        return learned, f"{learned} was chosen: {shown} are few, and its weights are at hand"
    if count == 1:
        raise InputError(
            "one photo does not show depth to structure from motion; take more, or use a learned "
            "model: --geometry vggt with its weights (sightline models download vggt_1b, or "
            "--checkpoint FILE)"
        )
    return "colmap", ""


def _at_hand() -> str | None:
    """Return the first learned method whose weights are in a cache; asks no server."""
    from sightline.reconstruction import ESTIMATORS
    from sightline.reconstruction.learned.weights import cached_weights

    for name in _ORDER:
        if name in ESTIMATORS and cached_weights(name) is not None:
            return name
    return None


def _common(work: Work) -> dict[str, Any]:
    return {
        "workspace": work.file("stages", "sfm"),
        "seed": work.options.seed,
        "progress": work.progress,
    }


def _colmap(work: Work) -> GeometryEstimator:
    from sightline.reconstruction import create_estimator

    more = {"matching": work.options.matching, "mapper": work.options.mapper}
    return create_estimator("colmap", **_common(work), **more)


def _given(work: Work, ingested: Ingested) -> Choice:
    from sightline.reconstruction import create_estimator

    if ingested.given is None:
        raise InputError(
            "--geometry given needs cameras in the input (a COLMAP model or a transforms.json), "
            "and there are none; use --geometry colmap"
        )
    estimator = create_estimator("given", reconstruction=ingested.given, **_common(work))
    return Choice(name="given", estimator=estimator)


def _learned(work: Work, name: str, why: str) -> Choice:
    from sightline.reconstruction import create_estimator
    from sightline.reconstruction.learned.weights import find_weights

    checkpoint = find_weights(name, work.options.checkpoint, work.progress)
    more = {}
    if work.options.memory_limit is not None:
        if name not in _CHUNKED:
            raise InputError(
                f"--memory-limit is for --geometry {' and '.join(_CHUNKED)}, not {name}; "
                "leave it out"
            )
        more["memory_limit"] = work.options.memory_limit
    device = work.geometry_device
    key = (name, str(checkpoint), device)
    options: dict[str, Any] = {**_common(work), **more}
    estimator: Any = work.loaded.get(key)
    if estimator is None:
        estimator = create_estimator(name, checkpoint=checkpoint, device=device, **options)
    else:  # the network stays loaded
        estimator = dataclasses.replace(estimator, **options)
    work.loaded[key] = estimator
    return Choice(name=name, estimator=estimator, why=why, checkpoint=checkpoint)
