"""Files that once broke a reader: each is read, or refused with one sentence.

They were found by `benchmarks/fuzz.py`; a folder of `tests/corpus` is named after what reads it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.checkpoints import read_checkpoint
from sightline.cli.parser import VerbParser
from sightline.datasets.annotations import Entry
from sightline.errors import FileFormatError, SightlineError
from sightline.io.arrays import read_npy, read_npz
from sightline.io.glb import read_glb
from sightline.io.images import read_image
from sightline.io.intrinsics import parse_intrinsics
from sightline.io.ply import read_gaussian_ply
from sightline.options import ReconstructOptions
from sightline.preparation.metadata import read_metadata
from sightline.segmentation.old_files import read_chosen
from sightline.segmentation.staged import read_yaml
from sightline.segmentation.voc import read_voc
from tests.io.hostile import survives

CORPUS = Path(__file__).parent / "corpus"


def options(path: Path) -> object:
    parser = VerbParser("reconstruct", "")
    parser.add_record(ReconstructOptions)
    return parser.parse_args(["--config", str(path)])


def annotations(path: Path) -> object:
    folder = path.parent / "Annotations"
    folder.mkdir()
    path.rename(folder / "a.xml")
    return read_voc(path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": read_checkpoint,
    "chosen": read_chosen,
    "grid": read_yaml,
    "intrinsics": lambda path: parse_intrinsics(path.read_text("utf-8", "replace")),
    "mesh": read_glb,
    "metadata": read_metadata,
    "npy": read_npy,
    "npz": read_npz,
    "options": options,
    "picture": read_image,
    "splats": read_gaussian_ply,
    "voc": annotations,
}
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_broke_a_reader_is_answered(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    said, code = "", 2
    try:
        READERS[file.parent.name](copy)
    except SightlineError as error:
        said = str(error)
    except SystemExit as stop:
        said = capsys.readouterr().err.removesuffix("\n")
        code = stop.code
    assert "\n" not in said
    assert code == 2


def test_the_corpus_is_small() -> None:
    assert FILES
    assert sum(file.stat().st_size for file in FILES) < 200_000


def test_a_pickle_of_references_takes_no_memory() -> None:
    survives(read_chosen, CORPUS / "chosen" / "far_memo")


def test_pixels_that_no_file_of_that_size_holds_are_not_made_room_for() -> None:
    with pytest.raises(FileFormatError, match="510 bytes, which cannot hold them"):
        read_image(CORPUS / "picture" / "wide.png")
    with pytest.raises(FileFormatError, match="172 million pixels, got 600 bytes"):
        read_image(CORPUS / "picture" / "claims.webp")


@pytest.mark.parametrize("text", ["1e999", "NaN", "1" + "0" * 400, "-1" + "0" * 400])
def test_numbers_of_annotations_are_finite(text: str) -> None:
    entry = Entry(Path("x.json"), json.loads(f'{{"n": {text}, "a": [{text}, 1]}}'), "the file")
    for read in (lambda: entry.number("n"), lambda: entry.array("a", 2)):
        with pytest.raises(FileFormatError, match="number"):
            read()
