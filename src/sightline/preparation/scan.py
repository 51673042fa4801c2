"""List what there is to prepare: pictures, videos, rasters, depth maps, all with their places."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sightline.errors import FileFormatError, InputError
from sightline.io.decoding import SUPPORTED as PICTURES
from sightline.io.given import GivenView, read_given
from sightline.io.images import is_deep
from sightline.io.inputs import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Kind,
    content_kind,
    expand_input,
    folder_kind,
    json_kind,
    walk_files,
)
from sightline.io.masks import find_masks
from sightline.io.video import SUPPORTED as VIDEOS

_DEPTH_WORDS = ("depth", "depths")
_COLOUR_WORDS = ("image", "images", "rgb", "color", "colour", "colors", "photo", "photos")
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One file that records are made of."""

    path: Path
    kind: Literal["picture", "video"]
    source: str
    """As given."""
    name: str
    """Relative to the input that it was found in, with forward slashes."""
    group: str
    words: frozenset[str]
    """Of its name and folders, lower case."""
    mask: Path | None = None
    given: GivenView | None = None
    given_kind: str = "given"
    depth: Path | None = None
    depth_scale: float = 0.001
    depth_unit: str = "m"

    @property
    def is_depth(self) -> bool:
        """True for a 16-bit picture that is named as a depth map."""
        named = bool(self.words & set(_DEPTH_WORDS))
        return self.kind == "picture" and named and is_deep(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything that was found."""

    sources: tuple[Source, ...]
    unreadable: tuple[Path, ...]
    """Files that claim to be pictures or videos by their names and are not."""
    notes: tuple[str, ...]


def scan(inputs: Sequence[str | Path], output: Path, *, keep_going: bool = False) -> Found:
    """Find the files of all inputs, in the order given; folders are searched in natural order.

    Args:
        inputs: Pictures, videos, folders, glob patterns, COLMAP workspaces, ``transforms.json``,
            prepared data.
        output: Left out where it lies inside an input.
        keep_going: Leave out what is unreadable instead of stopping.

    Raises:
        InputError: If an input is missing or lies in the output, or nothing is found.
        FileFormatError: If files are not what their names claim.
    """
    sources: list[Source] = []
    unreadable: list[Path] = []
    notes: list[str] = []
    seen: set[Path] = set()
    if not inputs:
        raise InputError("nothing was given; give pictures, folders or videos")
    for item in inputs:
        for path in expand_input(str(item)):
            if output.resolve() in (place := path.resolve(), *place.parents):
                raise InputError(
                    f"the input {path} lies in the output folder {output}, whose files are left "
                    "out; choose another -o, such as a new folder beside the input"
                )
            kind = _kind(path)
            if kind in ("photos", "video", None):
                _search(path, output, sources, unreadable, notes)
            else:
                _add_given(kind, path, sources, notes, keep_going=keep_going)
    unique = []
    for source in sources:
        place = source.path.resolve()
        if place not in seen:
            seen.add(place)
            unique.append(source)
    if len(unique) < len(sources):
        notes.append(f"left out {len(sources) - len(unique)} files that were given twice")
    if unreadable and not keep_going:
        shown = ", ".join(str(path) for path in unreadable[:_LISTED])
        more = f" and {len(unreadable) - _LISTED} more" if len(unreadable) > _LISTED else ""
        raise FileFormatError(
            f"not readable as a picture or video, whatever the name says: {shown}{more}; remove or "
            "replace what is damaged, or skip it with --keep-going"
        )
    if not unique:
        what = f"all {len(unreadable)} files are damaged or empty" if unreadable else "no file fits"
        raise InputError(
            f"nothing to prepare in {', '.join(str(i) for i in inputs)}: {what}; supported are "
            f"{PICTURES}, and {VIDEOS}"
        )
    return Found(
        sources=tuple(_with_depth(unique, notes)),
        unreadable=tuple(unreadable),
        notes=tuple(dict.fromkeys(notes)),
    )


def words_of(name: str) -> frozenset[str]:
    """Return the words of a path, lower case."""
    return frozenset(re.findall(r"[^\W\d_]+", name.lower()))


def _kind(path: Path) -> Kind | None:
    if path.is_dir():
        return folder_kind(path)
    return json_kind(path) if path.suffix.lower() == ".json" else "photos"


def _search(
    path: Path, output: Path, sources: list[Source], unreadable: list[Path], notes: list[str]
) -> None:
    """Add one file, or all pictures and videos below a folder."""
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        left_out: list[str] = []
        here = output.resolve()
        files = [
            file
            for file in walk_files(path, left_out, side_folders=True)
            if here not in file.resolve().parents
        ]
        notes += [f"left out {name}: a finished run" for name in left_out]
    else:
        files = [path]
    place = root.resolve().name or "all"
    found: list[Source] = []
    others: list[str] = []
    for file in files:
        content = content_kind(file)
        if content is None:
            claims = file.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES
            if claims or not path.is_dir():
                unreadable.append(file)
            else:
                others.append(file.name)
            continue
        name = file.relative_to(root).as_posix()
        folder = file.relative_to(root).parent.as_posix()
        group = place if folder == "." else f"{place}/{folder}"
        found.append(
            Source(
                path=file,
                kind="video" if content == "video" else "picture",
                source=str(file),
                name=name,
                group=f"{group}/{file.stem}" if content == "video" else group,
                words=words_of(f"{place}/{name.rsplit('.', 1)[0]}"),
            )
        )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        notes.append(f"left out {len(others)} files of other kinds in {path}: {shown}")
    pictures = [s for s in found if s.kind == "picture"]
    masks, said = find_masks([s.path for s in pictures], root=root) if pictures else ((), ())
    if any(masks):
        notes += said
    with_mask = {s.path: mask for s, mask in zip(pictures, masks, strict=True)}
    sources += [replace(s, mask=with_mask.get(s.path)) for s in found]


def _add_given(
    kind: Kind, path: Path, sources: list[Source], notes: list[str], *, keep_going: bool
) -> None:
    """Add the views of a COLMAP model, ``transforms.json`` or manifest, with their cameras."""
    file = path
    if path.is_dir() and kind == "transforms":
        file = path / "transforms.json"
    elif path.is_dir() and kind == "manifest":
        names = ("manifest.json", "inputs.json")
        file = next((path / n for n in names if (path / n).is_file()), path)
    scene = read_given(kind, file, keep_going=keep_going)
    notes += scene.notes
    root = path if path.is_dir() else path.parent
    sources += [
        Source(
            path=view.file,
            kind="picture",
            source=str(view.file),
            name=view.name.replace("\\", "/"),
            group=view.group or root.name or "all",
            words=words_of(f"{root.name}/{view.name}"),
            mask=view.mask,
            given=view,
            given_kind="colmap" if kind == "colmap" else "given",
            depth=view.depth,
            depth_scale=view.depth_scale,
            depth_unit="scene",
        )
        for view in scene.views
    ]


def _with_depth(sources: Sequence[Source], notes: list[str]) -> list[Source]:
    """Give depth maps to the pictures of the same name; those without one stay by themselves."""
    maps = {s.path for s in sources if s.given is None and s.is_depth}
    if not maps:
        return list(sources)
    views: dict[tuple[Path, str], Source] = {}
    for source in sources:
        if source.path not in maps and source.kind == "picture" and source.depth is None:
            views.setdefault(_pair_key(source), source)
    of_view: dict[Path, Path] = {}
    alone = 0
    for source in sources:
        if source.path in maps:
            view = views.pop(_pair_key(source), None)
            if view is not None:
                of_view[view.path] = source.path
            else:
                alone += 1
    if alone:
        notes.append(f"{alone} depth maps belong to no picture of the same name: kept as depth")
    paired = set(of_view.values())
    return [replace(s, depth=of_view.get(s.path, s.depth)) for s in sources if s.path not in paired]


def _pair_key(source: Source) -> tuple[Path, str]:
    """Return what a picture and its depth map share: the name without what tells them apart."""
    root = source.path
    for _ in Path(source.name).parts:
        root = root.parent
    if root.name.lower() in _DEPTH_WORDS + _COLOUR_WORDS:
        root = root.parent
    *folders, file = Path(source.name).with_suffix("").parts
    apart = "|".join(_DEPTH_WORDS + _COLOUR_WORDS)
    stem = re.sub(rf"(?:^|[-_. ]+)(?:{apart})(?=[-_. ]|$)", "", file.lower()).strip("-_. ")
    kept = [f.lower() for f in folders if f.lower() not in _DEPTH_WORDS + _COLOUR_WORDS]
    return root, "/".join([*kept, stem])
