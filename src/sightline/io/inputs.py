"""Find out what was given: pictures, folders, videos, COLMAP models, ``transforms.json``, manifests.

Kinds are told by content, never by suffix alone; mixed lists keep their order. Nothing is decoded
here.
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sightline.errors import FileFormatError, InputError
from sightline.io.colmap import find_colmap
from sightline.io.decoding import SUPPORTED as PICTURES
from sightline.io.decoding import image_format, read_head
from sightline.io.masks import MASK_FOLDERS
from sightline.io.reading import read_json
from sightline.io.video import SUPPORTED as VIDEOS
from sightline.io.video import is_video

Kind = Literal["photos", "video", "colmap", "transforms", "manifest"]

MANIFEST_FORMAT = "sightline-manifest"

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
    + (".heic", ".heif", ".avif")
)
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts")
    + (".wmv", ".3gp")
)
# Pictures that cannot be read; in a folder they are left out with a note, since cameras write raw
# files beside JPEGs.
_OTHER_PICTURES = frozenset(
    (".gif", ".psd", ".exr", ".svg", ".jxl", ".jp2", ".dng", ".nef", ".nrw", ".cr2", ".cr3")
    + (".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".3fr")
)
_SIDE_FOLDERS = frozenset(("depth", "depths", "sparse", "exports", "renders"))
_IGNORED_FOLDERS = frozenset(("__macosx", "@eadir"))
_MAX_FILES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One thing that was given."""

    kind: Kind
    path: Path
    """The file or folder; for photos the folder that masks are looked for in."""
    files: tuple[Path, ...] = ()
    """The pictures, in order; of photos only."""
    unreadable: tuple[Path, ...] = ()
    """Files that claim to be pictures or videos by their names and are not."""
    notes: tuple[str, ...] = ()


def discover(
    inputs: Sequence[str | Path], *, kind: Kind | None = None, keep_going: bool = False
) -> tuple[Source, ...]:
    """Sort out a list of files, folders and patterns.

    Args:
        inputs: Pictures, videos, folders (searched recursively; hidden files are skipped; natural
            order), glob patterns, COLMAP workspaces, nerfstudio folders or their
            ``transforms.json``, prepared data with a ``manifest.json``.
        kind: Take every input as this instead of finding out.
        keep_going: Skip files that are not what their names claim, instead of stopping.

    Returns:
        What was found, in the order given; neighbouring single pictures form one source.

    Raises:
        InputError: If something is missing, or holds no pictures or videos.
        FileFormatError: If a file is not what its name claims.
    """
    if not inputs:
        raise InputError("nothing was given; give photos, a folder, a video or a COLMAP workspace")
    sources: list[Source] = []
    seen: set[Path] = set()
    for item in inputs:
        for path in expand_input(str(item)):
            for source in _inspect(path, kind):
                _append(sources, _without_repeats(source, seen))
    sources = [s for s in sources if s.kind != "photos" or s.files or s.unreadable]
    unreadable = [path for source in sources for path in source.unreadable]
    if unreadable and not keep_going:
        shown = ", ".join(str(path) for path in unreadable[:5])
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise FileFormatError(
            f"not readable as a picture or video, whatever the name says: {shown}{more}; remove or "
            "replace what is damaged, or skip it with --keep-going"
        )
    readable = [s for s in sources if s.kind != "photos" or s.files]
    if not readable:
        raise InputError(
            f"nothing readable in {', '.join(str(i) for i in inputs)}: all "
            f"{len(unreadable)} files are damaged or empty"
        )
    return tuple(readable)


def natural_key(path: Path | str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that puts ``img2`` before ``img10``, whatever the case."""
    text = str(path)
    parts = re.split(r"(\d+)", text.casefold())
    # isdecimal: the pattern also finds digits of other scripts, which int() reads as well
    key = tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)
    return key, text


def unique_names(paths: Sequence[Path], suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return one safe file name a path, unique also without suffix and case.

    Names keep their stem; where two are alike, the folder is put in front, then a number behind.
    Characters that file systems or COLMAP's text files cannot hold become ``_``.

    Args:
        paths: The originals.
        suffixes: The suffix of each new name, with its dot.
    """
    plain = [_safe(path.stem) for path in paths]
    with_folder = [_safe("_".join((*path.parts[-2:-1], path.stem))) for path in paths]
    counts: dict[str, int] = {}
    for stem in plain:
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    taken: set[str] = set()
    names = []
    for stem, longer, suffix in zip(plain, with_folder, suffixes, strict=True):
        wanted = stem if counts[stem.casefold()] == 1 else longer
        name, number = wanted, 2
        while name.casefold() in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name + suffix)
    return tuple(names)


def _safe(stem: str) -> str:
    text = re.sub(r'[\s\x00-\x1f\x7f\\/:*?"<>|]+', "_", stem).lstrip(".")
    return text[:120] or "picture"


def expand_input(item: str) -> list[Path]:
    """Return the path that an input names, or the files that match it as a pattern.

    Raises:
        InputError: If there is none.
    """
    path = Path(item).expanduser()
    if path.exists():
        return [path]
    if glob.has_magic(item):
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207  # patterns may be absolute
        hits = [Path(p) for p in found if not _hidden(Path(p))]
        if not hits:
            raise InputError(f"no file matches {item}; check the pattern and the folder")
        return sorted(hits, key=natural_key)
    if re.match(r"[a-z]+://", item):
        raise InputError(f"{item} is an address, not a file; download it first")
    if path.is_symlink():
        raise InputError(f"{item} is a link to a file that does not exist; check the link")
    raise InputError(f"there is no file or folder {item}; check the path")


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")


def _without_repeats(source: Source, seen: set[Path]) -> Source:
    """Drop files that were given before: two equal views tell nothing about depth."""
    new = tuple(path for path in source.files if path.resolve() not in seen)
    seen.update(path.resolve() for path in new)
    if len(new) == len(source.files):
        return source
    note = f"left out {len(source.files) - len(new)} pictures that were given twice"
    return replace(source, files=new, notes=(*source.notes, note))


def _append(sources: list[Source], new: Source) -> None:
    """Add a source; single pictures of one folder join those before them."""
    last = sources[-1] if sources else None
    if last and last.kind == new.kind == "photos" and last.path == new.path:
        sources[-1] = Source(
            kind="photos",
            path=last.path,
            files=last.files + new.files,
            unreadable=last.unreadable + new.unreadable,
            notes=last.notes + new.notes,
        )
    else:
        sources.append(new)


def _inspect(path: Path, kind: Kind | None) -> list[Source]:
    if path.is_dir():
        return _inspect_folder(path, kind)
    if not path.is_file():
        raise InputError(f"{path} is a device or a pipe, not a file; copy it to a file first")
    if kind in ("colmap", "transforms", "manifest"):
        return [Source(kind=kind, path=path)]
    if path.suffix.lower() == ".json":
        return [Source(kind=json_kind(path), path=path)]
    if path.suffix.lower() in (".bin", ".txt") and find_colmap(path.parent) == path.parent:
        return [Source(kind="colmap", path=path.parent)]
    content = content_kind(path)
    if content is None:
        if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES or not path.stat().st_size:
            return [Source(kind="photos", path=path.parent, unreadable=(path,))]
        raise FileFormatError(
            f"{path.name}: expected a picture ({PICTURES}), a video ({VIDEOS}), transforms.json or "
            "a folder, got another kind of file"
        )
    if kind is not None and kind != content:
        raise InputError(f"{path} should be of kind {kind}, but its content is {content}")
    if content == "video":
        return [Source(kind="video", path=path)]
    return [Source(kind="photos", path=path.parent, files=(path,))]


def content_kind(path: Path) -> Literal["photos", "video"] | None:
    """Return what a file's first bytes are, None for neither."""
    if image_format(read_head(path)) is not None:
        return "photos"
    return "video" if is_video(path) else None


def json_kind(path: Path) -> Kind:
    """Return what a JSON file describes; raises FileFormatError for anything else."""
    data = read_json(path)
    if isinstance(data, dict) and data.get("format") == MANIFEST_FORMAT:
        return "manifest"
    if isinstance(data, dict) and isinstance(data.get("frames"), list):
        return "transforms"
    raise FileFormatError(
        f"{path.name}: expected a transforms.json (with frames) or a manifest.json (with format "
        f'"{MANIFEST_FORMAT}"), got other JSON'
    )


def _inspect_folder(folder: Path, kind: Kind | None) -> list[Source]:
    found = kind or folder_kind(folder)
    if found == "manifest":
        names = [n for n in ("manifest.json", "inputs.json") if (folder / n).is_file()]
        if not names:
            raise InputError(f"there is no manifest.json in {folder}; check the folder")
        return [Source(kind="manifest", path=folder / names[0])]
    if found == "transforms":
        if not (folder / "transforms.json").is_file():
            raise InputError(f"there is no transforms.json in {folder}; check the folder")
        return [Source(kind="transforms", path=folder / "transforms.json")]
    if found == "colmap":
        return [Source(kind="colmap", path=folder)]
    return _search(folder, found)


def folder_kind(folder: Path) -> Kind | None:
    """Return what the files of a folder describe, None for loose pictures and videos."""
    for name in ("manifest.json", "inputs.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            if isinstance(data, dict) and data.get("format") == MANIFEST_FORMAT:
                return "manifest"
    if (folder / "transforms.json").is_file():
        return "transforms"
    return "colmap" if find_colmap(folder) is not None else None


def _search(folder: Path, kind: Kind | None) -> list[Source]:
    """Collect the pictures below a folder, or its videos when it has no pictures."""
    photos: list[Path] = []
    videos: list[Path] = []
    unreadable: list[Path] = []
    others: list[Path] = []
    left_out: list[str] = []
    for path in walk_files(folder, left_out):
        suffix = path.suffix.lower()
        content = None if suffix in _OTHER_PICTURES else content_kind(path)
        if content == "photos":
            photos.append(path)
        elif content == "video":
            videos.append(path)
        elif suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
            unreadable.append(path)
        else:
            others.append(path)
    notes = [f"left out {name}: taken for depth maps or results" for name in left_out]
    foreign = [path.name for path in others if path.suffix.lower() in _OTHER_PICTURES]
    if foreign:
        notes.append(f"left out {len(foreign)} files of unsupported kinds: {_listed(foreign)}")
    if kind == "video" or (not photos and kind is None):
        photos_unread = [] if videos else unreadable
        sources = [Source(kind="video", path=path) for path in videos]
        if photos_unread:
            sources.append(Source(kind="photos", path=folder, unreadable=tuple(photos_unread)))
        if not sources:
            raise InputError(_nothing(folder, others + photos))
        return sources
    if videos:
        # Phones store a short video beside each "live" photo.
        names = [path.name for path in videos]
        notes.append(f"left out {len(videos)} videos beside the photos: {_listed(names)}")
    if not photos and not unreadable:
        raise InputError(_nothing(folder, others))
    return [
        Source(
            kind="photos",
            path=folder,
            files=tuple(photos),
            unreadable=tuple(unreadable),
            notes=tuple(notes),
        )
    ]


def _nothing(folder: Path, others: Sequence[Path]) -> str:
    if not others:
        return f"{folder} is empty; give a folder with pictures or a video"
    names = _listed([path.name for path in others])
    return (
        f"no pictures or videos in {folder}, only {len(others)} other files ({names}); supported "
        f"are {PICTURES}, and {VIDEOS}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def walk_files(folder: Path, left_out: list[str], *, side_folders: bool = False) -> list[Path]:
    """Return the visible files below a folder in natural order, without masks.

    Args:
        folder: Where to look.
        left_out: Names of folders that are taken for results are added here.
        side_folders: Also look into folders of depth maps and of exports.
    """
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        kept = []
        for name in folders:
            lower = name.lower()
            if name.startswith(".") or lower in _IGNORED_FOLDERS:
                continue
            side = lower in _SIDE_FOLDERS and not side_folders
            if side or Path(root, name, "run.json").is_file():
                # Also runs of ours that lie beside their photos.
                left_out.append(str(Path(root, name)))
            elif lower not in MASK_FOLDERS:
                kept.append(name)
        folders[:] = kept
        found += [Path(root, n) for n in files if not _hidden(Path(n))]
        if len(found) > _MAX_FILES:
            raise InputError(
                f"{folder} holds more than {_MAX_FILES:,} files; give the folder of the pictures"
            )
    found = [path for path in found if path.is_file()]  # drops broken links and devices
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))
