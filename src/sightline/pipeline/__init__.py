"""From pictures to a scene, stage by stage; every stage leaves files and can be resumed.

``ingest -> cameras -> views -> splats -> evaluate -> features -> export -> report``, each a function of the
run folder that reads what earlier stages wrote. Nothing is handed on in memory, so that a resumed
run computes exactly what an uninterrupted one does.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.errors import Cancelled, InputError, SightlineError
from sightline.options import ReconstructOptions, export_names
from sightline.pipeline import stages
from sightline.pipeline.compare import compare
from sightline.pipeline.summary import write_summary
from sightline.pipeline.work import LiveNumbers, Loaded, Work, choose_device, load_backbone
from sightline.protocols import GeometryEstimator, Progress
from sightline.results import Run
from sightline.run import RunFolder, is_run


def reconstruct(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    geometry: str | GeometryEstimator = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_step: LiveNumbers | None = None,
    command: str | None = None,
    loaded: Loaded | None = None,
    **options: Any,  # noqa: ANN401 - the fields of ReconstructOptions
) -> Run:
    """Make a 3D scene from photos, folders, videos, a COLMAP model or a ``transforms.json``.

    Args:
        inputs: One or many of them; kinds may be mixed and are told apart by content.
        output: The run folder.
        geometry: A name, or any object with ``estimate(views) -> Reconstruction``.
        resume: Continue an interrupted run in ``output``; finished stages are kept as they are.
        overwrite: Replace a run in ``output``.
        progress: Called as ``progress(stage, done, total)``; may raise ``Cancelled``.
        on_step: Gets live numbers while splats are optimised.
        command: What the report shows for repeating the run.
        loaded: Keeps networks of learned methods loaded: give the same dictionary to several calls.
        options: The fields of ``sightline.options.ReconstructOptions``.

    Returns:
        The finished run.

    Raises:
        InputError: If an input, an option or the output folder is unusable; nothing is lost.
        ReconstructionError: If the pictures were readable but give no scene.
        OutputError: If a result cannot be written.
        Cancelled: If ``progress`` raised it; the folder stays resumable.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    name = geometry if isinstance(geometry, str) else "auto"
    wanted = ReconstructOptions(geometry=name, **options)  # type: ignore[arg-type]
    loaded = {} if loaded is None else loaded
    if wanted.features is not None:  # its weights may be missing: better known before any work
        load_backbone(wanted, choose_device(wanted.device), loaded)
    folder, settings = _open(
        Path(output),
        [str(item) for item in given],
        wanted,
        None if isinstance(geometry, str) else type(geometry).__name__,
        resume=resume,
        overwrite=overwrite,
    )
    folder.state["command"] = folder.state.get("command") or command or _command(given, output)
    work = Work(
        folder=folder,
        options=settings,
        device=choose_device(settings.device),
        estimator=None if isinstance(geometry, str) else geometry,
        progress=progress,
        on_step=on_step,
        loaded=loaded,
    )
    with folder.locked(), folder.working():
        folder.check_files()
        folder.state["device"] = work.device
        folder.state["config"]["export"] = settings.export
        stages.ingest(work)
        stages.cameras(work)
        stages.views(work)
        if settings.splats != "none":
            make = stages.splats if settings.splats == "optimize" else stages.feedforward
            make(work)
            stages.evaluate(work)
            if settings.splats == "optimize":
                compare(work)
        if settings.features is not None:
            stages.features(work)
        stages.export(work)
        write_summary(work)
    return Run(folder.path)


def reconstruct_each(
    inputs: Sequence[str | Path],
    output: str | Path,
    **options: Any,  # noqa: ANN401 - those of `reconstruct`
) -> list[Run]:
    """Make one scene of every input, each in a run folder of its own; networks stay loaded.

    Args:
        inputs: Each is the only input of its run.
        output: Folder of the runs, which are named after their inputs.
        options: As for `reconstruct`.

    Returns:
        The runs, in the order of the inputs.

    Raises:
        SightlineError: The first error, once all inputs were tried; the finished runs are kept.
        Cancelled: At once, if ``progress`` raised it.
    """
    loaded: Loaded = {}
    runs: list[Run] = []
    failed: list[tuple[str, SightlineError]] = []
    for item, name in zip(inputs, _names(inputs), strict=True):
        try:
            runs.append(reconstruct(item, Path(output) / name, loaded=loaded, **options))
        except Cancelled:
            raise
        except SightlineError as error:
            failed.append((str(item), error))
    if failed:
        item, error = failed[0]
        others = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
        summed = SightlineError(f"{item}: {error}{others}")
        summed.exit_code = error.exit_code
        raise summed from error
    return runs


def _names(inputs: Sequence[str | Path]) -> list[str]:
    """Return a folder name for every input, told apart by number where stems repeat."""
    names: list[str] = []
    for item in inputs:
        stem = Path(item).resolve().stem or "scene"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _command(inputs: Sequence[str | Path], output: str | Path) -> str:
    return shlex.join(["sightline", "reconstruct", *map(str, inputs), "-o", str(output)])


def _open(
    output: Path,
    inputs: list[str],
    wanted: ReconstructOptions,
    estimator: str | None,
    *,
    resume: bool,
    overwrite: bool,
) -> tuple[RunFolder, ReconstructOptions]:
    """Return the run folder and the options that hold for it."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; keep one of them")
    if resume and is_run(output):
        folder = RunFolder.open(output)
        return folder, _resumed_options(folder, wanted)
    if not inputs:
        raise InputError(
            f"{output} holds no run to resume; give photos, a folder or a video to start one"
        )
    if overwrite:
        _refuse_inputs_inside(inputs, output)
    config = {
        "inputs": [str(Path(item).resolve()) for item in inputs],
        "estimator": estimator,
        **wanted.as_dict(),
    }
    return RunFolder.create(output, config, overwrite=overwrite), wanted


def _refuse_inputs_inside(inputs: list[str], output: Path) -> None:
    root = output.resolve()
    for item in inputs:
        if Path(item).resolve().is_relative_to(root):
            raise InputError(
                f"the input {item} lies inside the output folder {output}, which --overwrite "
                "would empty; give another folder with -o"
            )


def _resumed_options(folder: RunFolder, wanted: ReconstructOptions) -> ReconstructOptions:
    """Return the run's own options; those given now must agree, except for new exports."""
    known = {item.name for item in dataclasses.fields(ReconstructOptions)}
    recorded = {k: v for k, v in folder.state["config"].items() if k in known}
    try:
        before = ReconstructOptions(**recorded)
    except TypeError as error:
        raise InputError(f"{folder.file('run.json')} has unreadable options ({error})") from error
    for item in dataclasses.fields(ReconstructOptions):
        now, then = getattr(wanted, item.name), getattr(before, item.name)
        if item.name not in ("export", "device") and now not in (item.default, then):
            flag = f"--{item.name.replace('_', '-')}"
            raise InputError(
                f"--resume keeps the run's options: {flag} is {then} in {folder.file('run.json')}, "
                f"got {now}; leave it out, or start again with --overwrite"
            )
    names = (*export_names(before.export), *export_names(wanted.export))
    return dataclasses.replace(before, export=",".join(dict.fromkeys(names)))
