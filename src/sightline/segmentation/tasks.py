"""The steps behind ``sightline segment``: fit a bank, predict, evaluate, or all three."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.errors import CheckpointError, InputError
from sightline.io.atomic import atomic_folder
from sightline.io.images import is_image, read_image
from sightline.io.inputs import natural_key
from sightline.io.reading import read_json
from sightline.protocols import Progress
from sightline.segmentation.calibration import reference_report
from sightline.segmentation.cdfsod import is_cdfsod, read_test
from sightline.segmentation.coco import (
    CocoDataset,
    Id,
    encode_results,
    image_path,
    read_coco,
    write_json,
)
from sightline.segmentation.dense import DenseMatcher
from sightline.segmentation.encoder import Encoder, create_encoder
from sightline.segmentation.evaluate import evaluate_instances, evaluate_semantic
from sightline.segmentation.matching import AmgOptions, MatchOptions
from sightline.segmentation.memory import MemoryBank
from sightline.segmentation.options import EncoderOptions, MaskOptions, ReferenceOptions
from sightline.segmentation.pictures import (
    contact_sheet,
    draw_instances,
    label_picture,
    side_by_side,
    write_png,
)
from sightline.segmentation.prompts import GraphCutMasker
from sightline.segmentation.proposals import GraphProposer, Proposer
from sightline.segmentation.references import (
    Masker,
    Reference,
    chosen_references,
    picture_folder,
    read_references,
    read_split,
)
from sightline.segmentation.sampling import CLASS_LISTS, class_list, shots_from_json
from sightline.segmentation.segmenter import FewShotSegmenter, SegmentOptions
from sightline.segmentation.spread import Cluster, SpreadSegmenter
from sightline.segmentation.voc import is_voc, read_voc
from sightline.types import InstanceMasks

log = logging.getLogger(__name__)

_SHEET = 12
"""Pictures on a contact sheet."""


def open_encoder(options: EncoderOptions, masks: MaskOptions) -> Encoder:
    """Return the encoder that options ask for; the AMG model takes features before the last norm."""
    return create_encoder(
        options.backbone,
        options.checkpoint,
        size=options.size,
        layers=options.layer_numbers(),
        debias=options.debias,
        norm=masks.matching != "amg",
        device=masks.device,
    )


def encoder_of(bank: MemoryBank, options: EncoderOptions, device: str = "auto") -> Encoder:
    """Return the encoder that a bank was filled with; only the weights come from ``options``.

    Raises:
        InputError: The bank does not say, or these are other weights.
    """
    try:
        return _encoder_like(bank.encoder, options, device)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("the bank does not say which encoder filled it; fit it again") from error


def _encoder_like(told: Mapping[str, Any], options: EncoderOptions, device: str) -> Encoder:
    """Return the encoder of a signature."""
    return create_encoder(
        str(told["name"]),
        options.checkpoint,
        size=int(told["size"]),
        layers=tuple(int(layer) for layer in told["layers"]),
        debias=int(told["debias"]),
        norm=bool(told["norm"]),
        device=device,
    )


def spread(
    segmenter: FewShotSegmenter, checkpoint: str | None, masks: MaskOptions, cluster: str | None
) -> FewShotSegmenter:
    """Return a segmenter that works on a Ray cluster, or the same one where none is named.

    Args:
        segmenter: Of this process.
        checkpoint: Weights of its encoder, at a path that all machines see.
        masks: The options that it was opened with.
        cluster: ``auto`` for this machine's cluster, or an address.
    """
    if cluster is None:
        return segmenter
    told = dict(segmenter.encoder.signature)
    places = MaskOptions(**{**asdict(masks), "sam": _absolute(masks.sam)})
    arguments = (told, _absolute(checkpoint), places)
    on_gpu = masks.device == "cuda" or (masks.device == "auto" and torch.cuda.is_available())
    return SpreadSegmenter(
        segmenter,
        Cluster(
            address=cluster,
            open=partial(_open_there, *arguments),
            key=repr(arguments),
            gpus=1.0 if on_gpu else 0.0,
        ),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _open_there(
    told: dict[str, Any], checkpoint: str | None, masks: MaskOptions
) -> FewShotSegmenter:
    """Open a segmenter in a worker, as its encoder says of itself."""
    options = EncoderOptions(checkpoint=checkpoint)
    return open_segmenter(_encoder_like(told, options, masks.device), masks)


def open_segmenter(
    encoder: Encoder, options: MaskOptions, bank: MemoryBank | None = None
) -> FewShotSegmenter:
    """Return a segmenter with the proposer and masker that options ask for."""
    kind = options.proposals
    if kind == "auto":
        kind = "points" if options.sam else "graph"
    masker: Masker = GraphCutMasker()
    proposer: Proposer | DenseMatcher = DenseMatcher() if kind == "dense" else GraphProposer()
    if options.sam is not None:
        from sightline.segmentation.sam import AutomaticMasks, PointProposer, SamMasker

        model = load_sam(options.sam, options.device)
        masker = SamMasker(model=model)
        if kind == "points":
            proposer = PointProposer(
                model=model, points_per_side=options.points_per_side, iou_thr=options.iou_thr
            )
        elif kind == "amg":
            proposer = AutomaticMasks(model=model, points_per_side=options.points_per_side)
    return FewShotSegmenter(
        encoder,
        proposer,
        masker,
        bank=bank,
        options=SegmentOptions(
            model=options.matching,
            match=MatchOptions(nms_thr=options.nms_thr, num_out_instance=options.num_out_instance),
            amg=AmgOptions(num_out_instance=options.num_out_instance),
            unknown=options.unknown,
            batch=options.batch,
        ),
    )


def load_sam(path: str, device: str = "auto") -> Any:  # noqa: ANN401
    """Return SAM 2 from a file of weights.

    Raises:
        CheckpointError: The file holds another network.
    """
    from sightline import models
    from sightline.models.sam2 import SAM2

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.load(path, device=device)
    if not isinstance(model, SAM2):
        raise CheckpointError(f"expected SAM 2 in {path}, got {type(model).__name__}")
    return model.eval().requires_grad_(False)


def gather_references(options: ReferenceOptions) -> list[Reference]:
    """Return the references that options ask for.

    Raises:
        InputError: None are given, or a file lacks them.
    """
    if options.references is None:
        raise InputError("give the references with --references: a COCO file or a folder")
    path = Path(options.references)
    images = None if options.images is None else Path(options.images)
    if options.selection is not None:
        file = path / "instances.json" if path.is_dir() else path
        chosen = shots_from_json(read_json(Path(options.selection)))
        return chosen_references(read_coco(file), chosen, picture_folder(file, images))
    classes = None
    if options.classes is not None:
        classes = named_classes(options.classes, path)
    return read_references(
        path,
        images=images,
        shots=options.shots,
        seed=options.seed,
        source=options.source,
        classes=classes,
    )


def named_classes(text: str, annotations: Path | None = None) -> tuple[str, ...]:
    """Return a named class list, or the names that a text holds with commas between them."""
    name = text.strip()
    if name in CLASS_LISTS or name.startswith("lvis"):
        dataset = read_coco(annotations) if annotations and name.startswith("lvis") else None
        return class_list(name, dataset)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fit(
    references: ReferenceOptions,
    encoder: EncoderOptions,
    masks: MaskOptions,
    output: Path,
    *,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> MemoryBank:
    """Fill a bank from references, here or on a cluster (see `spread`), and write it."""
    rows = gather_references(references)
    against = []
    if references.negatives is not None:
        against = read_references(Path(references.negatives))
    segmenter = open_segmenter(open_encoder(encoder, masks), masks)
    segmenter = spread(segmenter, encoder.checkpoint, masks, cluster)
    bank = segmenter.fit(rows, against, progress=progress).bank
    assert bank is not None
    for quality in reference_report(bank):
        for note in quality.notes:
            log.warning("%s (%s): %s", quality.name, quality.label, note)
    bank.save(output)
    return bank


def list_pictures(inputs: Sequence[str]) -> list[Path]:
    """Return pictures from files and folders, folders in natural order.

    Raises:
        InputError: There is nothing of the name, or a folder has no pictures.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.is_file() and is_image(p)]
            if not inside:
                raise InputError(f"there are no pictures in {path}; give a folder with pictures")
            found += sorted(inside, key=lambda p: natural_key(p.name))
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is no file or folder {path}; check the input")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Writes what a segmenter finds, picture by picture."""

    folder: Path
    bank: MemoryBank
    least_score: float

    def write(
        self, name: str, image: Path, found: InstanceMasks, truth: InstanceMasks | None = None
    ) -> Any:  # noqa: ANN401
        """Write masks and overlay; return the overlay's pixels."""
        pixels = read_image(image).pixels
        drawn = draw_instances(pixels, found, self.bank.names, self.least_score)
        if truth is not None:
            drawn = side_by_side(draw_instances(pixels, truth, self.bank.names), drawn)
        write_png(self.folder / "overlays" / f"{name}.png", drawn)
        labels = label_picture(found)
        write_png(self.folder / "masks" / f"{name}.png", labels[..., None].repeat(3, -1))
        return drawn


def predict(
    segmenter: FewShotSegmenter,
    files: Sequence[Path],
    output: Path,
    *,
    vis_thr: float = 0.5,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Segment pictures and write ``results.json``, ``masks/``, ``overlays/``, ``contact.png``.

    Image ids are the numbers that file names are, or the file names. A mask picture holds 1, 2, ...
    for the instances of ``results.json`` in order, and 0 elsewhere.
    """
    bank = segmenter.bank
    assert bank is not None
    check_output(output, overwrite)
    names = unique_names(files)
    with atomic_folder(output) as folder:
        writer = _Writer(folder=folder, bank=bank, least_score=vis_thr)
        rows, drawn = [], []
        for file, name, found in zip(
            files, names, segmenter.iterate(list(files), progress=progress), strict=True
        ):
            rows += encode_results(found, image_id(file), bank.category_ids)
            picture = writer.write(name, file, found)
            drawn += [picture] if len(drawn) < _SHEET else []
        write_json(folder / "results.json", rows)
        write_json(folder / "classes.json", _class_table(bank))
        if drawn:
            write_png(folder / "contact.png", contact_sheet(drawn))
    return [output / "results.json", output / "masks", output / "overlays", output / "contact.png"]


def image_id(file: Path) -> Id:
    """Return a file's number where its name is one (COCO), else its name."""
    return int(file.stem) if file.stem.isascii() and file.stem.isdigit() else file.name


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each result, from the file names; repeated ones get a number."""
    seen: dict[str, int] = {}
    names = []
    for file in files:
        seen[file.stem] = seen.get(file.stem, 0) + 1
        names.append(file.stem if seen[file.stem] == 1 else f"{file.stem}_{seen[file.stem]}")
    return names


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse to replace a result that is there.

    Raises:
        InputError: It is, and nobody asked to replace it.
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; choose another -o or add --overwrite")


def open_dataset(path: Path, images: Path | None, bank: MemoryBank) -> tuple[CocoDataset, Path]:
    """Return the data set to score on, with the bank's classes, and its picture folder.

    For a COCO folder with ``fewshot.json`` only its query pictures count.
    """
    split: dict[str, Any] = {}
    if path.is_dir() and is_voc(path):
        dataset, folder = read_voc(path), path / "JPEGImages"
    elif path.is_dir() and is_cdfsod(path):
        dataset, folder = read_test(path), path
    else:
        if path.is_dir():
            split = read_split(path)
            path = path / "instances.json"
        dataset, folder = read_coco(path), picture_folder(path, images)
    if isinstance(split.get("query_images"), list):
        dataset = dataset.select_images(split["query_images"])
    known = [name for name in bank.names if name in dataset.categories.values()]
    if not known:
        raise InputError(
            f"{path.name} has none of the bank's classes ({', '.join(bank.names[:10])}); give the "
            "data set that they are from"
        )
    return dataset.select_classes(known), folder


def without_references(dataset: CocoDataset, bank: MemoryBank) -> tuple[CocoDataset, int]:
    """Return the data set without pictures that references came from, and how many those are."""
    used = {name.rsplit("#", 1)[0] for name in bank.shots.names}
    kept = [key for key, image in dataset.images.items() if image.file_name not in used]
    return dataset.select_images(kept), len(dataset.images) - len(kept)


def evaluate(
    segmenter: FewShotSegmenter,
    dataset: CocoDataset,
    images: Path,
    output: Path,
    *,
    vis_thr: float = 0.5,
    pictures: int = _SHEET,
    overwrite: bool = False,
    extra: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict a data set, score it, write ``results.json``, ``scores.json`` and overlays.

    Args:
        segmenter: With a bank.
        dataset: True objects of the bank's classes, see `open_dataset`.
        images: Picture folder.
        output: Folder to write.
        vis_thr: Least score of what is drawn.
        pictures: How many overlays are written (truth left, found right).
        overwrite: Replace ``output``.
        extra: Written into the scores as well.
        progress: Called with the number of pictures done.

    Returns:
        The scores.
    """
    bank = segmenter.bank
    assert bank is not None
    if not dataset.images:
        raise InputError("there are no pictures to score on; give a data set with others")
    check_output(output, overwrite)
    categories = _categories(dataset, bank)
    rows = list(dataset.images.values())
    files = [image_path(images, image) for image in rows]
    truth = dataset.by_image()
    with atomic_folder(output) as folder:
        writer = _Writer(folder=folder, bank=bank, least_score=vis_thr)
        results: list[dict[str, Any]] = []
        drawn = []
        found = segmenter.iterate(list(files), progress=progress)
        for image, file, one in zip(rows, files, found, strict=True):
            results += encode_results(one, image.id, categories)
            if len(drawn) < pictures:
                size = (image.height, image.width)
                want = true_instances(dataset, truth[image.id], size, bank)
                name = Path(image.file_name).stem
                drawn.append(writer.write(name, file, one, want))
        scores = score(dataset, results)
        scores |= {"images": len(rows), "classes": list(dataset.categories.values())}
        scores |= {"shots": int(bank.counts.max()), "encoder": bank.encoder, **(extra or {})}
        write_json(folder / "results.json", results)
        write_json(folder / "scores.json", scores)
        if drawn:
            write_png(folder / "contact.png", contact_sheet(drawn, columns=3, width=640))
    return scores


def score(dataset: CocoDataset, results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return box and mask AP and the semantic IoU, in percent."""
    rows = list(results)
    return {
        "bbox": evaluate_instances(dataset, rows, "bbox").as_dict(),
        "segm": evaluate_instances(dataset, rows, "segm").as_dict(),
        "semantic": evaluate_semantic(dataset, rows).as_dict(),
    }


def _categories(dataset: CocoDataset, bank: MemoryBank) -> list[int]:
    """Return the data set's category of each class of the bank; -1 for one it lacks."""
    ids = {name: key for key, name in dataset.categories.items()}
    return [ids.get(name, -1) for name in bank.names]


def true_instances(
    dataset: CocoDataset, rows: Sequence[Any], size: tuple[int, int], bank: MemoryBank
) -> InstanceMasks:
    """Return true objects as a record, to draw them; without crowds and boxes without mask."""
    masks, boxes, labels = [], [], []
    for item in rows:
        mask = None if item.crowd else item.mask(*size)
        if mask is None:
            continue
        x, y, width, height = item.bbox
        masks.append(torch.from_numpy(mask))
        boxes.append((x, y, x + width, y + height))
        labels.append(bank.index(dataset.categories[item.category_id]))
    return InstanceMasks(
        masks=torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        boxes=torch.tensor(boxes).view(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.ones(len(labels)),
    )


def _class_table(bank: MemoryBank) -> list[dict[str, Any]]:
    return [{"id": c.category_id, "name": c.name} for c in bank.classes]
