"""A run as its user sees it: open it, look at what is in it, export it, render a video of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sightline.errors import FileFormatError, InputError, UnknownNameError
from sightline.geometry.cloud import dense_cloud
from sightline.io.export import EXPORTERS, ExportOptions, SceneResult
from sightline.io.scene_arrays import CameraFile, GeometryFile
from sightline.protocols import Progress
from sightline.run import RunFolder
from sightline.types import Cameras, Gaussians, PointCloud, Reconstruction, Views

if TYPE_CHECKING:
    from sightline.splatting.scene_features import SceneFeatures

RENDER_MODES = ("rgb", "depth", "normal")
COLORS = ("photo", "features")


@dataclass(frozen=True)
class Run:
    """The folder that ``sightline.reconstruct`` wrote. Everything is read when asked for.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def state(self) -> dict[str, Any]:
        """All of ``run.json``."""
        return RunFolder.open(self.path).state

    @property
    def status(self) -> str:
        """``running``, ``done``, ``failed`` or ``cancelled``."""
        return str(self.state["status"])

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options."""
        return self.state["config"]

    @property
    def metrics(self) -> dict[str, Any]:
        """``{views, registered, splats, test: {psnr: {mean, per_view}, ...}}``."""
        return self.state["metrics"]

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one sentence each."""
        return self.state["warnings"]

    def camera_file(self) -> CameraFile:
        """Return everything that ``cameras.npz`` holds."""
        return CameraFile(self.path / "cameras.npz")

    def geometry_file(self) -> GeometryFile:
        """Return everything that ``geometry.npz`` holds."""
        return GeometryFile(self.path / "geometry.npz", self.camera_file())

    def cameras(self) -> Cameras:
        """Return one camera a view at model resolution, float64; NaN where not registered."""
        return self.camera_file().cameras

    def views(self) -> Views:
        """Return the pictures (uint8) with their cameras."""
        cameras = self.camera_file()
        geometry = GeometryFile(self.path / "geometry.npz", cameras)
        return Views(
            images=geometry.images,
            names=cameras.names,
            from_original=cameras.from_original,
            sizes=cameras.sizes,
            cameras=cameras.cameras,
            masks=geometry.valid,
            files=self.picture_files(cameras.names),
        )

    def geometry(self) -> Reconstruction | None:
        """Return cameras and points, or None before the ``views`` stage."""
        if not (self.path / "geometry.npz").is_file():
            return None
        cameras = self.camera_file()
        geometry = GeometryFile(self.path / "geometry.npz", cameras)
        return Reconstruction(
            cameras=cameras.cameras,
            registered=cameras.registered,
            metric=cameras.metric,
            depth=geometry.depth,
            points=geometry.points,
            confidence=geometry.confidence,
            valid=geometry.geometry_valid,
            sparse=geometry.sparse,
            lenses=cameras.lenses,
        )

    def points(self) -> PointCloud | None:
        """Return the points of the depth maps, thinned, or the triangulated ones.

        ``confidence`` is the model's own, or the number of views that saw a point.
        """
        if not (self.path / "geometry.npz").is_file():
            return None
        cameras = self.camera_file()
        geometry = GeometryFile(self.path / "geometry.npz", cameras)
        if geometry.depth is not None:
            return dense_cloud(
                geometry.images,
                geometry.depth,
                cameras.cameras,
                valid=geometry.surface,
                confidence=geometry.confidence,
            )
        sparse = geometry.sparse
        if sparse is None:
            return None
        seen = torch.bincount(sparse.tracks[:, 0].long(), minlength=len(sparse.points))
        return PointCloud(
            points=sparse.points, colors=sparse.colors.float() / 255, confidence=seen.float()
        )

    def splats(self) -> Gaussians | None:
        """Return the splats, or None when the run has none (yet)."""
        from sightline.io.ply import read_gaussian_ply

        file = self.path / "splats.ply"
        return read_gaussian_ply(file) if file.is_file() else None

    def picture_files(self, names: Sequence[str]) -> tuple[Path, ...]:
        """Return the full-size pictures; names that would leave the folder are refused."""
        root = (self.path / "images").resolve()
        files = tuple((root / name).resolve() for name in names)
        for file in files:
            if not file.is_relative_to(root):
                raise FileFormatError(
                    f"cameras.npz: the view name {file.name!r} points outside images/; "
                    "make the run again"
                )
        return files

    def features(self) -> "SceneFeatures | None":
        """Return the backbone's features on splats and points, if ``--features`` made any."""
        from sightline.splatting.scene_features import read_scene_features

        file = self.path / "features.npz"
        return read_scene_features(file) if file.is_file() else None

    def scene(self, colors: str = "photo") -> SceneResult:
        """Return what exporters work from.

        Args:
            colors: ``photo``, or ``features`` for the principal components of ``--features``.

        Raises:
            InputError: If the run has no cameras yet, or no features where they are asked for.
        """
        if colors not in COLORS:
            raise UnknownNameError("kind of colours", colors, COLORS)
        if not (self.path / "cameras.npz").is_file():
            raise InputError(
                f"{self.path} has no cameras yet (status: {self.status}); finish it with "
                f"sightline reconstruct -o {self.path} --resume"
            )
        cameras = self.camera_file()
        geometry = GeometryFile(self.path / "geometry.npz", cameras)
        points, gaussians = self.points(), self.splats()
        sparse = geometry.sparse
        if colors == "features":
            found = self.features()
            if found is None:
                raise InputError(
                    f"{self.path} carries no features; make them with sightline reconstruct "
                    "--features NAME"
                )
            points, gaussians = found.paint_points(points), found.paint_splats(gaussians)
            if sparse is not None and points is not None and geometry.depth is None:
                sparse = replace(sparse, colors=(points.colors * 255).round().to(torch.uint8))
        return SceneResult(
            names=cameras.names,
            cameras=cameras.cameras,
            from_original=cameras.from_original,
            original_sizes=cameras.original_size,
            registered=cameras.registered,
            metric=cameras.metric,
            points=points,
            sparse=sparse,
            gaussians=gaussians,
            depth=geometry.depth,
            confidence=geometry.confidence,
            files=self.picture_files(cameras.names),
            lenses=cameras.lenses,
            images=geometry.images,
            test=tuple(int(i) for i in cameras.test.nonzero()[:, 0]),
            title=self.path.resolve().name,
        )

    def export(
        self,
        formats: Sequence[str],
        *,
        folder: Path | None = None,
        min_confidence: float = 0.0,
        colors: str = "photo",
    ) -> list[Path]:
        """Write the scene in other tools' formats.

        Args:
            formats: Some of ``options.EXPORT_NAMES``.
            folder: Where to; default ``exports/`` of the run.
            min_confidence: Percentage of the least certain points to leave out.
            colors: See `scene`; feature colours go to ``exports/features/`` by default.

        Raises:
            InputError: If a format is unknown or the run lacks what it needs.
            OutputError: If a file cannot be written.
        """
        scene = self.scene(colors)
        if folder is None:
            folder = self.path / "exports" / ("features" if colors == "features" else "")
        if "depth" in formats and scene.depth is None and scene.gaussians is not None:
            scene = _with_rendered_depth(scene)
        return _export(scene, formats, folder, min_confidence)

    def render(
        self,
        path: str | Path,
        *,
        trajectory: str = "interpolate",
        modes: Sequence[str] = ("rgb",),
        frames: int = 120,
        fps: float = 30.0,
        size: tuple[int, int] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Render a camera path to a video; several modes stand side by side.

        Args:
            path: The ``.mp4`` to write.
            trajectory: Name of a path, see ``geometry.trajectory``.
            modes: Some of ``rgb``, ``depth`` (turbo, near is warm), ``normal``.
            frames: Number of frames.
            fps: Frames a second.
            size: Width and height of one mode's picture; default as fitted.
            overwrite: Replace an existing file.
            progress: Called as ``progress("render", done, total)``.

        Raises:
            InputError: If the run has no splats, a name is unknown, or the file exists.
            OutputError: If the video cannot be written.
        """
        from sightline.report.render_video import render_video

        for mode in modes:
            if mode not in RENDER_MODES:
                raise UnknownNameError("render mode", mode, RENDER_MODES)
        path = Path(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; give another -o, or --overwrite")
        splats = self.splats()
        if splats is None:
            raise InputError(
                f"{self.path} has no splats to render (status: {self.status}); make them with "
                "sightline reconstruct --splats optimize"
            )
        cameras = self.camera_file()
        return render_video(
            splats,
            cameras.cameras.select(cameras.registered),
            path,
            trajectory=trajectory,
            modes=tuple(modes),
            frames=frames,
            fps=fps,
            size=size,
            progress=progress,
        )

    def products(self) -> list[Path]:
        """Return the files that a user opens next."""
        names = ("splats.ply", "report.html")
        exports = sorted((self.path / "exports").glob("*"))
        return [p for p in [*(self.path / n for n in names), *exports] if p.exists()]

    def summary(self) -> dict[str, Any]:
        """Return what scripts want to know, as plain values."""
        state = self.state
        return {
            "path": str(self.path),
            "status": state["status"],
            "seconds": state["seconds"],
            "peak_memory_mb": state["peak_memory_mb"],
            "metrics": state["metrics"],
            "warnings": state["warnings"],
            "files": [str(path) for path in self.products()],
        }

    def sentence(self) -> str:
        """Return what came out, in one line."""
        state = self.state
        metrics = state["metrics"]
        parts = [f"{metrics.get('registered', 0)} of {metrics.get('views', 0)} views registered"]
        if metrics.get("splats"):
            parts.append(f"{metrics['splats']:,} splats")
        if "test" in metrics:
            parts.append(f"held-out PSNR {metrics['test']['psnr']['mean']:.2f} dB")
        parts.append(f"{state['seconds']:.0f} s")
        parts.append(f"{state['peak_memory_mb'] / 1000:.1f} GB")
        return ", ".join(parts)


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        InputError: If it is not one.
    """
    RunFolder.open(Path(path))
    return Run(Path(path))


def export_scene(
    path: Path,
    formats: Sequence[str],
    *,
    folder: Path | None = None,
    min_confidence: float = 0.0,
    colors: str = "photo",
    overwrite: bool = False,
) -> list[Path]:
    """Export a run, or a single splat or point file.

    Args:
        path: A run folder, or a ``.ply``, ``.splat``, ``.spz`` or ``.glb`` file.
        formats: Some of ``options.EXPORT_NAMES``.
        folder: Where to; default ``exports/`` of the run. Needed for a single file.
        min_confidence: Percentage of the least certain points to leave out.
        colors: See `Run.scene`.
        overwrite: Replace files in a folder that the user named.

    Raises:
        InputError: If something is missing, or ``folder`` is not empty.
    """
    if folder is not None and folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty; give a new folder with -o, or --overwrite")
    if path.is_dir():
        run = open_run(path)
        return run.export(formats, folder=folder, min_confidence=min_confidence, colors=colors)
    if folder is None:
        raise InputError(f"{path} is a single file: give the folder to write with -o")
    if colors != "photo":
        raise InputError(f"{path} is a single file and carries no features; give a run folder")
    return _export(scene_from_file(path), formats, folder, min_confidence)


def scene_from_file(path: Path) -> SceneResult:
    """Read a splat file or a point file as a scene without cameras.

    Raises:
        InputError: If the file is missing or of no known kind.
        FileFormatError: If it is damaged.
    """
    from sightline.io.glb import read_glb
    from sightline.io.ply import is_gaussian_ply, read_gaussian_ply, read_point_ply
    from sightline.io.splat import read_splat
    from sightline.io.spz import read_spz

    suffix = path.suffix.lower()
    if suffix == ".glb":
        return SceneResult.bare(points=read_glb(path).points)
    if suffix == ".ply" and path.is_file() and not is_gaussian_ply(path):
        return SceneResult.bare(points=read_point_ply(path))
    readers = {".ply": read_gaussian_ply, ".splat": read_splat, ".spz": read_spz}
    if suffix not in readers:
        raise InputError(
            f"{path} is no run folder and no .ply, .splat, .spz or .glb file; give one"
        )
    return SceneResult.bare(gaussians=readers[suffix](path))


def _export(
    scene: SceneResult, formats: Sequence[str], folder: Path, min_confidence: float
) -> list[Path]:
    from sightline.report.scene_html import export_html

    exporters = {**EXPORTERS, "html": export_html}
    options = ExportOptions(min_confidence=min_confidence)
    written: list[Path] = []
    for name in formats:
        if name not in exporters:
            raise UnknownNameError("export format", name, exporters)
        written += exporters[name](scene, folder, options)
    return list(dict.fromkeys(written))  # some formats share files


def _with_rendered_depth(scene: SceneResult) -> SceneResult:
    """Add the splats' expected depth as the views' depth maps."""
    from sightline.splatting.render import render_gaussians

    assert scene.gaussians is not None
    shown = scene.cameras.select(scene.registered)
    rendering = render_gaussians(scene.gaussians, shown.map(lambda t: t.float()))
    assert rendering.depth is not None
    depth = torch.zeros(len(scene.names), scene.cameras.height, scene.cameras.width)
    # Where the scene is mostly transparent the expected depth means nothing.
    depth[scene.registered] = torch.where(rendering.alpha > 0.5, rendering.depth, 0.0)
    return replace(scene, depth=depth)
