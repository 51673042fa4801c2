"""References in, instances out: every kind of mark, negatives, unknown, one shot, no masks."""

from dataclasses import replace

import pytest
import torch

from sightline.errors import FileFormatError, InputError, UnknownNameError
from sightline.io.masks import write_mask
from sightline.segmentation import calibration, dense, memory, prompts
from sightline.segmentation.encoder import ColourTexture, Encoder, create_encoder, fingerprint
from sightline.segmentation.proposals import GraphProposer
from sightline.segmentation.references import Reference, read_references
from sightline.segmentation.segmenter import FewShotSegmenter
from sightline.segmentation.synthetic import write_dataset
from tests.segmentation import toy

NAMES = ("red", "green", "blue")


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("model", ["default", "amg"])
def test_known_masks_get_their_names(shots, model):
    image, masks = toy.squares(NAMES)
    found = toy.fitted(NAMES, masks, shots, model=model).predict([image, image])
    segmenter_names = sorted(NAMES)
    for one in found:
        top = {}
        for mask, label, score in zip(one.masks, one.labels.tolist(), one.scores, strict=True):
            key = int(masks.flatten(1).logical_and(mask.flatten()).sum(1).argmax())
            if float(score) > top.get(key, (0.0, 0))[0]:
                top[key] = (float(score), label)
        assert [segmenter_names[top[i][1]] for i in range(3)] == list(NAMES)


def test_encoding_is_batched():
    backbone = toy.TinyBackbone()
    image, masks = toy.squares(NAMES)
    segmenter = FewShotSegmenter(Encoder(backbone, 32), toy.KnownMasks(masks))
    segmenter.fit(toy.references(NAMES, 2)).predict([image] * 5)
    assert backbone.calls == [4, 2, 4, 1]


def test_no_mask_found_is_an_empty_result():
    image, masks = toy.squares(NAMES)
    (found,) = toy.fitted(NAMES, masks[:0]).predict([image])
    assert found.masks.shape == (0, 48, 48)
    assert found.boxes.shape == (0, 4)


def test_negatives_push_a_look_alike_down():
    image, masks = toy.squares(["red", "blue"])
    segmenter = toy.fitted(["red"], masks)
    orange = torch.tensor((0.9, 0.5, 0.1))
    image[:, masks[1]] = orange[:, None]
    plain = segmenter.predict([image])[0]
    look_alike = Reference(image=image, label="red", mask=masks[1])
    lowered = segmenter.fit([], [look_alike]).predict([image])[0]
    assert len(plain.scores) == len(lowered.scores) == 2
    assert lowered.scores[1] < plain.scores[1] - 0.02
    torch.testing.assert_close(lowered.scores[0], plain.scores[0], atol=0.05, rtol=0)


def test_unknown_objects_are_dropped_or_named():
    image, masks = toy.squares(["red", "green", "blue"])
    for unknown, labels in (("off", 3), ("drop", 2), ("keep", 3)):
        segmenter = toy.fitted(["red", "green"], masks, 3, unknown=unknown)
        assert segmenter.bank is not None
        bank = segmenter.bank
        segmenter = segmenter.with_bank(replace(bank, thresholds=torch.tensor([0.9, 0.9])))
        (found,) = segmenter.predict([image])
        blue = [
            label
            for label, mask in zip(found.labels.tolist(), found.masks, strict=True)
            if bool((mask & masks[2]).any())
        ]
        if unknown == "keep":
            assert blue == [-1] or blue == []
        if unknown == "drop":
            assert blue == []
        assert len(found.labels) <= labels


def test_thresholds_part_the_classes():
    segmenter = toy.fitted(NAMES, torch.zeros(0, 8, 8, dtype=torch.bool), 3)
    assert segmenter.bank is not None
    assert segmenter.bank.thresholds is not None
    for label in range(3):
        high, low = calibration.class_evidence(segmenter.bank, label)
        cut = segmenter.bank.thresholds[label]
        assert (high > cut).all()
        assert (low < cut).all()


def test_the_report_names_a_wrong_reference():
    rows = toy.references(NAMES, 3)
    wrong = toy.references(["blue"])[0]
    rows.append(Reference(image=wrong.image, label="red", mask=wrong.mask, name="odd.png#1"))
    bank = FewShotSegmenter(toy.encoder()).fit(rows).bank
    assert bank is not None
    notes = {row.name: row.notes for row in calibration.reference_report(bank) if row.notes}
    assert "looks more like blue" in notes["odd.png#1"][0]
    assert not any(name.startswith(("green", "blue")) for name in notes)


def test_a_reference_without_mark_is_the_whole_picture(caplog):
    image = torch.tensor(toy.COLOURS["red"]).view(3, 1, 1).expand(3, 20, 20)
    bank = FewShotSegmenter(toy.encoder()).fit([Reference(image=image, label="red")]).bank
    assert bank is not None
    assert "whole picture" in caplog.text
    assert int(bank.shots.hard_counts[0]) == 64


@pytest.mark.parametrize("kind", ["polygons", "box", "points", "scribble"])
def test_every_mark_becomes_the_object(kind):
    image, masks = toy.squares(["red"], 64)
    mask = masks[0]
    y, x = mask.nonzero().float().mean(0).tolist()
    scribble = torch.zeros_like(mask)
    scribble[int(y), 20:40] = True
    marks = {
        "polygons": {"polygons": ((2.0, 8.0, 62.0, 8.0, 62.0, 56.0, 2.0, 56.0),)},
        "box": {"box": (1.0, 6.0, 62.0, 52.0)},
        "points": {
            "points": torch.tensor([[x, y], [5.0, 2.0]]),
            "inside": torch.tensor([True, False]),
        },
        "scribble": {"scribble": scribble},
    }
    reference = Reference(image=image, label="red", **marks[kind])
    from sightline.segmentation.references import resolve_mask

    got, origin = resolve_mask(reference, prompts.GraphCutMasker())
    inter = (got.bool() & mask).sum() / (got.bool() | mask).sum()
    assert inter > 0.9, origin


def test_marks_outside_the_picture_are_refused():
    image, _ = toy.squares(["red"])
    for mark in ({"box": (60.0, 0.0, 5.0, 5.0)}, {"points": torch.tensor([[99.0, 1.0]])}):
        with pytest.raises(InputError, match="outside"):
            FewShotSegmenter(toy.encoder()).fit([Reference(image=image, label="a", **mark)])
    nothing = torch.zeros(48, 48, dtype=torch.bool)
    with pytest.raises(InputError, match="empty"):
        FewShotSegmenter(toy.encoder()).fit([Reference(image=image, label="a", mask=nothing)])
    with pytest.raises(InputError, match="at least one"):
        FewShotSegmenter(toy.encoder()).fit([])
    with pytest.raises(InputError, match="fit first"):
        FewShotSegmenter(toy.encoder()).predict([image])


def test_a_tiny_object_still_counts():
    image, _ = toy.squares(["red"], 64)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[31, 3] = True
    bank = FewShotSegmenter(toy.encoder(8)).fit([Reference(image=image, label="a", mask=mask)]).bank
    assert bank is not None
    assert bank.shots.means.isfinite().all()


def test_banks_change_without_refilling(tmp_path):
    whole = toy.fitted(NAMES, torch.zeros(0, 8, 8, dtype=torch.bool), 3).bank
    assert whole is not None
    less = whole.remove_class("green")
    assert less.names == ("blue", "red")
    fresh = toy.fitted(["red", "blue"], torch.zeros(0, 8, 8, dtype=torch.bool), 3).bank
    assert fresh is not None
    torch.testing.assert_close(less.prototypes(), fresh.prototypes())
    torch.testing.assert_close(less.class_means(), fresh.class_means())
    back = less.merge(whole.only(["green"]))
    assert back.counts.tolist() == [3, 3, 3]
    fewer = whole.remove_shot(0)
    assert fewer.counts.sum() == 8
    assert fewer.shots.names == whole.shots.names[1:]
    assert set(fewer.shots.token_shots.tolist()) == set(range(8))
    single = whole.remove_shot(0).remove_shot(0)
    gone = single.remove_shot(0)
    assert len(gone.classes) == 2
    path = tmp_path / "bank.safetensors"
    whole.save(path)
    read = memory.MemoryBank.load(path)
    assert read.names == whole.names
    assert read.encoder == whole.encoder
    assert torch.equal(read.shots.means, whole.shots.means)
    assert read.thresholds is not None
    assert torch.equal(read.prototypes(), whole.prototypes())
    assert read.centres("red", 3).shape == (3, 6)
    assert read.covariance("red").shape == (6, 6)
    assert 0.9 < read.agreement("red") <= 1
    with pytest.raises(UnknownNameError, match="red"):
        read.index("rad")
    with pytest.raises(InputError, match="filled with"):
        FewShotSegmenter(toy.encoder(64), bank=read)


def test_damaged_banks_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    bank = toy.fitted(["red"], torch.zeros(0, 8, 8, dtype=torch.bool)).bank
    assert bank is not None
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    tensors, bad = load_file(path), tmp_path / "bad.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = file.metadata()

    def refuse(change: dict, text: dict | None = None) -> None:
        save_file({**tensors, **change}, bad, meta if text is None else text)
        with pytest.raises(FileFormatError):
            memory.MemoryBank.load(bad)

    refuse({"shots.labels": torch.tensor([7])})
    refuse({"shots.means": torch.full((1, 6), float("nan"))})
    refuse({"shots.means": torch.zeros(2, 6)})
    refuse({"shots.token_shots": tensors["shots.token_shots"] - 5})
    refuse({}, {"bank": "{"})
    refuse({}, {"bank": '{"format": "other", "version": 1}'})
    refuse({}, {"other": "1"})
    bad.write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        memory.MemoryBank.load(bad)


def test_debiasing_removes_what_depends_on_the_place_alone():
    image = torch.tensor(toy.COLOURS["red"]).view(3, 1, 1).expand(1, 3, 32, 32)
    biased = Encoder(toy.TinyBackbone(place=0.3), 32).encode(image)
    clean = Encoder(toy.TinyBackbone(place=0.3), 32, debias=2).encode(image)
    spread = torch.nn.functional.normalize(biased, dim=1).flatten(2).std(-1).sum()
    assert clean.flatten(2).std(-1).sum() < 0.05 * spread
    with pytest.raises(InputError, match="debias"):
        Encoder(toy.TinyBackbone(), 32, debias=99).encode(image)


def test_layers_are_joined_and_weights_told_apart():
    joined = toy.encoder(layers=(0, 1)).encode(torch.rand(1, 3, 40, 40))
    assert joined.shape == (1, 12, 8, 8)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(a) != fingerprint(b)
    assert create_encoder("colour").signature["weights"] == ""


def test_the_control_prefers_the_same_colours():
    image, objects = toy.synthetic()
    features = ColourTexture(8).extract(image[None])[0].patches
    assert features.shape[1] == ColourTexture(8).embed_dim
    unit = features.norm(dim=1)
    torch.testing.assert_close(unit, unit[:1, :1, :1].expand_as(unit), atol=1e-3, rtol=0)
    assert objects


def test_superpixels_find_a_plain_object():
    image, objects = toy.synthetic(1)
    proposals = GraphProposer().propose(image)
    assert (proposals.quality[:-1] >= proposals.quality[1:]).all()
    inside = proposals.logits > 0
    coin = next(mask for name, mask in objects if name == "coin")
    iou = (inside & coin).flatten(1).sum(1) / (inside | coin).flatten(1).sum(1)
    assert iou.max() > 0.85
    again = GraphProposer().propose(image)
    assert torch.equal(again.logits, proposals.logits)


def test_dense_matching_needs_no_proposals():
    image, masks = toy.squares(NAMES, 96)
    segmenter = FewShotSegmenter(toy.encoder(48), dense.DenseMatcher()).fit(
        toy.references(NAMES, 2)
    )
    (found,) = segmenter.predict([image])
    assert segmenter.bank is not None
    got = {segmenter.bank.names[label] for label in found.labels.tolist()}
    assert got == set(NAMES)
    (labels,) = segmenter.predict_semantic([image])
    for name, mask in zip(NAMES, masks, strict=True):
        right = labels == segmenter.bank.index(name)
        assert (right & mask).sum() / (right | mask).sum() > 0.8
    plain = torch.full((3, 40, 40), 0.5)
    assert segmenter.predict([plain])[0].masks.shape[1:] == (40, 40)


def test_references_from_folders_and_files(tmp_path):
    data = write_dataset(tmp_path / "coco", 4, height=96, width=128, seed=3)
    every = read_references(data)
    assert {r.label for r in every} == {"coin", "leaf", "tile"}
    assert all(r.name.startswith("0000.png#") for r in every)  # the support pictures only
    pictures = tmp_path / "folders" / "coin"
    pictures.mkdir(parents=True)
    (pictures / "a.png").write_bytes((data / "images" / "0000.png").read_bytes())
    (pictures / "masks").mkdir()
    write_mask(pictures / "masks" / "a.png", torch.ones(96, 128, dtype=torch.bool).numpy())
    (row,) = read_references(tmp_path / "folders")
    assert row.label == "coin"
    assert row.mask is not None
    marks = tmp_path / "marks.json"
    marks.write_text(
        '{"references": [{"image": "coco/images/0000.png", "class": "coin", "box": [1, 2, 30, 30]}]}'
    )
    (row,) = read_references(marks)
    assert row.box == (1.0, 2.0, 30.0, 30.0)
    for text in (
        '{"references": [{"image": "../x.png", "class": "a"}]}',
        '{"references": [{"image": "x.png", "class": "a", "eval": "1"}]}',
        '{"references": [{"image": "x.png", "class": "a", "box": [1, 2]}]}',
        '{"references": [{"image": "x.png"}]}',
        "[1]",
    ):
        marks.write_text(text)
        with pytest.raises(FileFormatError):
            read_references(marks)
    with pytest.raises(InputError, match="no file or folder"):
        read_references(tmp_path / "missing")
