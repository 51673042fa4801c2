"""Options of verbs whose command line has no record of them: the names are the same."""

import re
from dataclasses import dataclass
from typing import Literal

from sightline.errors import InputError, UnknownNameError
from sightline.hub.catalogue import CATALOGUE
from sightline.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """Which layers ``features`` takes."""

    layers: str = option("-1", "layers from 0 or from the end, comma-separated")


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOptions:
    """How objects that a memory bank finds are shown."""

    vis_thr: float = option(0.5, "least score that is drawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Which annotated pictures a memory bank is scored on."""

    keep_references: bool = option(False, "also score on pictures that references came from")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftOptions:
    """How masks of views become objects."""

    unnumbered: bool = option(
        False, "the same value in two mask pictures need not be the same object"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOptions:
    """A grid of probes on one scene."""

    protocol: str = option("sightline-1", "sightline-1, fast or feat2gs-v1")
    features: list[str] | None = option(None, "names, or A+B")
    modes: list[str] | None = option(None, "some of G T A Gft Tft Aft")
    seeds: list[int] | None = option(None, "whole numbers")
    geometry: str = option("auto", "where points come from")
    probes: list[str] | None = option(None, "some of depth normals correspondence")
    videos: list[str] | None = option(None, "camera paths to render")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the heavy work runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """Published weights, by a name of the catalogue or by repository and file."""

    name: str | None = option(None, "a name of the catalogue")
    repo_id: str | None = option(None, "OWNER/NAME of a repository, with --filename")
    filename: str | None = option(None, "a file of --repo-id")
    revision: str = option("main", "branch, tag or commit of a repository")
    target: Literal["cache", "dinov3_uploaded", "vggt"] = option(
        "cache", "the cache, where --geometry and --backbone find weights, or a folder of the app"
    )

    def __post_init__(self) -> None:
        """Refuse half a request."""
        if (self.name is None) == (self.repo_id is None) or (self.repo_id is None) != (
            self.filename is None
        ):
            raise InputError("give the name of the catalogue, or both repo_id and filename")
        if self.name is not None and self.name not in CATALOGUE:
            raise UnknownNameError("published weights", self.name, CATALOGUE, "the list of models")
        if self.repo_id is not None and not re.fullmatch(
            r"[\w.-]+/[\w.-]+", self.repo_id, re.ASCII
        ):
            raise InputError(f"repo_id must be OWNER/NAME, got {self.repo_id}; look it up")
