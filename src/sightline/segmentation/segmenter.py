"""`FewShotSegmenter`: references in, labelled instances of new pictures out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sightline.errors import InputError
from sightline.protocols import Progress
from sightline.segmentation.calibration import calibrate
from sightline.segmentation.crops import grid_mask, mask_box, reference_crop, square_target
from sightline.segmentation.dense import DenseMatcher
from sightline.segmentation.encoder import Encoder
from sightline.segmentation.matching import AmgOptions, MatchOptions, match_amg, match_proposals
from sightline.segmentation.memory import BankClass, MemoryBank
from sightline.segmentation.prompts import GraphCutMasker
from sightline.segmentation.proposals import GraphProposer, Proposals, Proposer
from sightline.segmentation.references import Masker, Reference, load_image, resolve_mask
from sightline.segmentation.shots import (
    TOKENS_PER_SHOT,
    Shots,
    join_shots,
    no_shots,
    summarize_shots,
)
from sightline.segmentation.similarity import cosine, with_negatives
from sightline.types import InstanceMasks

log = logging.getLogger(__name__)

Picture = Float[Tensor, "3 h w"] | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions:
    """How references are cut out and proposals are judged."""

    model: Literal["default", "amg"] = "default"
    match: MatchOptions = field(default_factory=MatchOptions)
    amg: AmgOptions = field(default_factory=AmgOptions)
    context: float = 0.2
    """How much longer a reference crop is than its object."""
    target_size: int | None = 1024
    """Side of the square that target pictures pass through on their way to the encoder, as
    published; None goes straight to the encoder's size."""
    negative_sigma: float = 0.8
    unknown: Literal["off", "drop", "keep"] = "off"
    """What becomes of instances below their class's threshold; kept ones have the label -1."""
    batch: int = 4
    tokens_per_shot: int | None = TOKENS_PER_SHOT


class FewShotSegmenter:
    """Training-free segmentation: ``FewShotSegmenter(encoder).fit(references).predict(images)``.

    Attributes:
        encoder: Features of references and pictures.
        proposer: Class-agnostic masks: `GraphProposer` needs no weights, `sam.PointProposer` is the
            published choice, `DenseMatcher` compares features cell by cell instead.
        masker: Turns boxes, points and scribbles of references into masks.
        options: Numbers.
        bank: The references, once `fit`.
    """

    def __init__(
        self,
        encoder: Encoder,
        proposer: Proposer | DenseMatcher | None = None,
        masker: Masker | None = None,
        *,
        options: SegmentOptions | None = None,
        bank: MemoryBank | None = None,
    ) -> None:
        """Put the parts together.

        Raises:
            InputError: The bank was filled with another encoder.
        """
        self.encoder = encoder
        self.proposer: Proposer | DenseMatcher = proposer or GraphProposer()
        self.masker: Masker = masker or GraphCutMasker()
        self.options = options or SegmentOptions()
        self.bank = bank
        if bank is not None and bank.encoder and bank.encoder != encoder.signature:
            raise InputError(
                f"the bank was filled with {_named(bank.encoder)}, not with "
                f"{_named(encoder.signature)}; use the bank's encoder or fit again"
            )

    def fit(
        self,
        references: Sequence[Reference],
        negatives: Sequence[Reference] = (),
        *,
        progress: Progress | None = None,
    ) -> "FewShotSegmenter":
        """Return a segmenter that knows these references; what it knew before is kept.

        Class indices of a new bank follow the category ids, or the names where there are none.

        Args:
            references: At least one.
            negatives: What was taken for a class by mistake, under that class's label.
            progress: Called with the number of references done.

        Raises:
            InputError: There are none, a mark is outside its picture, or a mask is empty.
        """
        if not references and self.bank is None:
            raise InputError("expected at least one reference, got none; mark an object first")
        bank = self.bank
        for rows, negative in ((references, False), (negatives, True)):
            if not rows:
                continue
            classes = _classes(rows, bank)
            shots = self.collect(rows, classes, progress=progress)
            if bank is None:
                empty = no_shots(shots.means.shape[1])
                bank = MemoryBank(
                    classes=(), shots=empty, negatives=empty, encoder=self.encoder.signature
                )
            bank = bank.add(shots, classes, negative=negative)
        assert bank is not None
        return self.with_bank(calibrate(bank))

    def with_bank(self, bank: MemoryBank) -> "FewShotSegmenter":
        """Return the same segmenter over another bank."""
        return FewShotSegmenter(
            self.encoder, self.proposer, self.masker, options=self.options, bank=bank
        )

    @torch.inference_mode()
    def collect(
        self,
        references: Sequence[Reference],
        classes: Sequence[BankClass],
        *,
        progress: Progress | None = None,
    ) -> Shots:
        """Return what the bank keeps of references, whose labels then index ``classes``."""
        place = {c.name: i for i, c in enumerate(classes)}
        tables = []
        for start in range(0, len(references), self.options.batch):
            if progress is not None:
                progress("references", float(start), float(len(references)))
            tables.append(self._collect(references[start : start + self.options.batch], place))
        if progress is not None:
            progress("references", float(len(references)), float(len(references)))
        # Out of inference mode's tensors, so that what was collected may be changed later.
        return join_shots(tables).map(lambda t: t.clone())

    def _collect(self, references: Sequence[Reference], place: dict[str, int]) -> Shots:
        images, masks, labels, names = [], [], [], []
        for reference in references:
            loaded = reference.loaded()
            assert isinstance(loaded.image, Tensor)
            name = loaded.name or f"reference {len(names)}"
            mask, origin = resolve_mask(loaded, self.masker)
            if origin == "whole picture":
                log.warning("reference %s has no mark: the whole picture counts as object", name)
            if not bool((mask > 0).any()):
                raise InputError(f"the mask of {name} is empty; mark the object again")
            box = loaded.box if origin == "mask" and loaded.box else mask_box(mask)
            image, soft = reference_crop(
                loaded.image, mask, box, self.encoder.size, self.options.context
            )
            cells = grid_mask(soft, self.encoder.grid)
            if not bool((cells > 0).any()):
                # A thin object may fall between the centres of cells.
                log.warning("reference %s is tiny on the feature grid: its area is used", name)
                cells = torch.nn.functional.adaptive_avg_pool2d(soft[None], self.encoder.grid)[0]
            images.append(image)
            masks.append(cells.flatten())
            labels.append(place[loaded.label])
            names.append(name)
        features = self.encoder.encode(torch.stack(images)).flatten(2).mT  # [B, N, C]
        stacked = torch.stack(masks).to(features)
        return summarize_shots(
            features, stacked, torch.tensor(labels), names, self.options.tokens_per_shot
        )

    def predict(
        self, images: Sequence[Picture], *, progress: Progress | None = None
    ) -> list[InstanceMasks]:
        """Return the instances of each picture at its original size; possibly none.

        Labels index the bank's classes, by falling score. -1 is "unknown".

        Raises:
            InputError: Nothing was fitted, or a picture is unreadable.
        """
        return list(self.iterate(images, progress=progress))

    def iterate(
        self, images: Sequence[Picture], *, progress: Progress | None = None
    ) -> Iterator[InstanceMasks]:
        """Yield what `predict` returns, so that no more than a batch is held."""
        for index, (image, features) in enumerate(self._encoded(images)):
            if progress is not None:
                progress("predict", float(index), float(len(images)))
            with torch.inference_mode():
                found = self._match(image, features)
            yield found.map(lambda t: t.clone())
        if progress is not None:
            progress("predict", float(len(images)), float(len(images)))

    def predict_semantic(self, images: Sequence[Picture]) -> list[Int64[Tensor, "h w"]]:
        """Return the class of every pixel by dense matching; -1 where none stands out."""
        bank = self._bank()
        matcher = self.proposer if isinstance(self.proposer, DenseMatcher) else DenseMatcher()
        return [
            matcher.semantic(image, features, bank).clone()
            for image, features in self._encoded(images)
        ]

    def propose(self, image: Float[Tensor, "3 h w"], features: Float[Tensor, "c a b"]) -> Proposals:
        """Return class-agnostic masks of a picture."""
        if isinstance(self.proposer, DenseMatcher):
            return self.proposer.propose(image, features, self._bank())
        return self.proposer.propose(image)

    def _bank(self) -> MemoryBank:
        if self.bank is None or not len(self.bank.shots):
            raise InputError("the segmenter knows no references yet; call fit first")
        return self.bank

    def _encoded(
        self, images: Sequence[Picture]
    ) -> Iterator[tuple[Float[Tensor, "3 h w"], Float[Tensor, "c a b"]]]:
        self._bank()
        for start in range(0, len(images), self.options.batch):
            batch = [
                load_image(image) if isinstance(image, Path) else image
                for image in images[start : start + self.options.batch]
            ]
            with torch.inference_mode():
                features = self.encoder.encode(torch.stack([self._square(i) for i in batch]))
            yield from zip(batch, features, strict=True)

    def _square(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s2"]:
        return square_target(image, self.options.target_size or self.encoder.size)

    def _match(
        self, image: Float[Tensor, "3 h w"], features: Float[Tensor, "c a b"]
    ) -> InstanceMasks:
        bank, options = self._bank(), self.options
        size = (image.shape[1], image.shape[2])
        proposals = self.propose(image, features)
        logits, quality = proposals.logits.to(features), proposals.quality.to(features)
        if options.model == "amg":
            means = bank.class_means(unit=True).to(features)
            return match_amg(features, logits, means, size, options.amg)
        prototypes = bank.prototypes().to(features)
        found = match_proposals(
            features,
            logits,
            quality,
            prototypes,
            size,
            options.match,
            similarity=_similarity(bank, prototypes, options),
        )
        labels = torch.where(found.labels == len(bank.classes), -1, found.labels)
        return replace(found, labels=labels)


def _similarity(
    bank: MemoryBank, prototypes: Float[Tensor, "k c"], options: SegmentOptions
) -> Callable[[Float[Tensor, "p c"]], Float[Tensor, "p l"]]:
    """Return the measure of objects: negatives and thresholds included where there are any.

    With unknown kept, the last column is "unknown": as alike as the best class, where even that one
    is below its threshold.
    """
    thresholds = bank.thresholds if options.unknown != "off" else None

    def measure(objects: Float[Tensor, "p c"]) -> Float[Tensor, "p l"]:
        if len(bank.negatives):
            negatives, valid = bank.padded_negatives()
            alike = with_negatives(
                objects,
                bank.class_means().to(objects),
                negatives.to(objects),
                options.negative_sigma,
                valid.to(objects.device),
            )
        else:
            alike = cosine(objects, prototypes)
        if thresholds is None:
            return alike
        known = alike * (alike >= thresholds.to(alike))
        if options.unknown == "drop":
            return known
        lost = (known == 0).all(1)
        return torch.cat((known, (alike.amax(1) * lost)[:, None]), 1)

    return measure


def _classes(references: Sequence[Reference], bank: MemoryBank | None) -> list[BankClass]:
    known = {} if bank is None else {c.name: c.category_id for c in bank.classes}
    found: dict[str, int | None] = {}
    for reference in references:
        category = reference.category_id
        if found.get(reference.label) is None:
            found[reference.label] = category
        elif category is not None and found[reference.label] != category:
            raise InputError(
                f'class "{reference.label}" has category {found[reference.label]} and {category}; '
                "give it one id"
            )
    taken = {c for c in (*found.values(), *known.values()) if c is not None}
    free = (i for i in range(1, len(taken) + len(found) + 2) if i not in taken)
    rows = []
    for name in sorted(found):
        category = found[name]
        if name in known:
            category = known[name]
        rows.append(BankClass(name=name, category_id=next(free) if category is None else category))
    return sorted(rows, key=lambda c: c.category_id)


def _named(encoder: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in encoder.items())
