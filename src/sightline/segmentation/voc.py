"""PASCAL VOC folders as annotated pictures: boxes, without masks."""

from pathlib import Path
from xml.etree import ElementTree

from sightline.errors import InputError
from sightline.io.images import MAX_PIXELS
from sightline.io.reading import bad_file, check_file, inside, read_whole
from sightline.segmentation.coco import Annotation, CocoDataset, CocoImage
from sightline.segmentation.sampling import VOC_CLASSES

_MAX_BYTES = 1 << 20


def is_voc(folder: Path) -> bool:
    """Say whether a folder is laid out like VOC: ``Annotations/`` and ``JPEGImages/``."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def read_voc(folder: Path, split: str | None = None) -> CocoDataset:
    """Read a VOC folder; difficult objects become crowds, which nothing is sampled from.

    Boxes are ``xmin ymin xmax ymax`` with both ends included and counted from 1. Objects have no
    masks: as references their boxes are the marks, as truth only box scores mean something.

    Args:
        folder: With ``Annotations/*.xml`` and ``JPEGImages/``.
        split: Name of a list below ``ImageSets/Main``; all annotated pictures by default.

    Raises:
        InputError: The list is missing, or there are no annotations.
        FileFormatError: A file is damaged, or declares entities.
    """
    if split is None:
        files = sorted((folder / "Annotations").glob("*.xml"))
    else:
        listed = folder / "ImageSets" / "Main" / f"{split}.txt"
        names = read_whole(listed).decode("utf-8", "replace").split()
        files = [folder / "Annotations" / f"{inside(listed, name)}.xml" for name in names]
    if not files:
        raise InputError(f"{folder / 'Annotations'} has no annotations (*.xml); check the folder")
    found, images, annotations = set(), {}, []
    for number, file in enumerate(files):
        image, rows = _read_file(file, number + 1)
        images[image.id] = image
        for name, box, difficult in rows:
            found.add(name)
            annotations.append((name, box, difficult, image.id))
    known = [n for n in VOC_CLASSES if n in found] + sorted(found - set(VOC_CLASSES))
    ids = {name: i + 1 for i, name in enumerate(known)}
    return CocoDataset(
        images=images,
        annotations=tuple(
            Annotation(
                id=i + 1,
                image_id=image,
                category_id=ids[name],
                bbox=box,
                area=box[2] * box[3],
                crowd=difficult,
            )
            for i, (name, box, difficult, image) in enumerate(annotations)
        ),
        categories={i: name for name, i in ids.items()},
        frequencies={},
    )


Row = tuple[str, tuple[float, float, float, float], bool]


def _read_file(path: Path, number: int) -> tuple[CocoImage, list[Row]]:
    if check_file(path) > _MAX_BYTES:
        raise bad_file(path, f"annotations of at most {_MAX_BYTES} bytes", "more")
    data = read_whole(path)
    # Declarations may expand without end; in UTF-16 they would look otherwise.
    if b"\0" in data or b"<!" in data.replace(b"<!--", b""):
        raise bad_file(path, "XML in UTF-8 without declarations", "something else")
    try:
        root = ElementTree.fromstring(data)
        height, width = int(_text(root, "size/height")), int(_text(root, "size/width"))
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise ValueError
        name = inside(path, root.findtext("filename") or f"{path.stem}.jpg")
        rows: list[Row] = []
        for item in root.findall("object"):
            x0, y0, x1, y1 = (
                float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if not (0 <= x0 <= x1 <= width + 1 and 0 <= y0 <= y1 <= height + 1):
                raise ValueError
            box = (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)
            rows.append((_text(item, "name"), box, item.findtext("difficult") == "1"))
    except (ElementTree.ParseError, ValueError) as error:
        raise bad_file(path, "VOC annotations", f"{error}"[:80] or "other XML") from error
    return CocoImage(id=number, file_name=name, height=height, width=width), rows


def _text(item: ElementTree.Element, key: str) -> str:
    value = item.findtext(key)
    if not value:
        raise ValueError(f"no {key}")
    return value.strip()
