"""COCO files from strangers, run lengths, polygons, class lists and sampling."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sightline.errors import FileFormatError, InputError, UnknownNameError
from sightline.segmentation import coco, rle, sampling, voc
from sightline.segmentation.old_files import read_chosen


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_run_lengths_give_the_mask_back(mask):
    record = rle.encode_mask(mask)
    assert np.array_equal(rle.decode_segmentation(record, *mask.shape), mask)
    runs = rle.encode_runs(mask)
    assert rle.text_to_runs(rle.runs_to_text(runs)) == runs
    assert np.array_equal(
        rle.decode_segmentation({"size": list(mask.shape), "counts": runs}, *mask.shape), mask
    )


def test_text_is_that_of_pycocotools():
    mask = np.zeros((104, 187), bool)
    mask[10:40, 12:18] = True
    assert rle.encode_mask(mask)["counts"] == "ZW1n0Z2000000000nTa0"


@given(st.text(max_size=30))
def test_any_text_is_decoded_or_refused(text):
    try:
        mask = rle.decode_segmentation({"size": [4, 5], "counts": text}, 4, 5)
    except FileFormatError:
        return
    assert mask.shape == (4, 5)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 5], "counts": [10, 11]},
        {"size": [4, 5], "counts": [-1, 21]},
        {"size": [4, 5], "counts": [2**70]},
        {"size": [4, 5], "counts": ["a"]},
        {"size": [4, 5], "counts": None},
        {"size": [400000, 500000], "counts": [1]},
        {"size": [4, 5], "counts": [0] * 100},
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 1e12]],
        [["a"] * 6],
        ["abcdef"],
        7,
    ],
)
def test_wrong_masks_are_refused(segmentation):
    with pytest.raises(FileFormatError):
        rle.decode_segmentation(segmentation, 4, 5)


def test_polygons_fill_as_pycocotools_does():
    square = rle.fill_polygons([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    want = np.zeros((5, 6), bool)
    want[1:3, 1:4] = True
    assert np.array_equal(square, want)
    beyond = rle.fill_polygons([[-3, -3, 9, -3, 9, 9, -3, 9]], 5, 6)
    assert beyond.all()
    closed = rle.fill_polygons([[1, 1, 4, 1, 4, 3, 1, 3, 1, 1]], 5, 6)
    assert np.array_equal(closed, want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of pycocotools
def test_random_polygons_agree_with_pycocotools():
    mask_api = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for trial in range(200):
        height, width = (int(v) for v in generator.integers(5, 50, 2))
        points = generator.random((int(generator.integers(3, 8)), 2)) * [1.3 * width, 1.3 * height]
        points -= [0.15 * width, 0.15 * height]
        flat = (np.round(points) if trial % 3 == 0 else points).ravel().tolist()
        want = mask_api.decode(mask_api.frPyObjects([flat], height, width))[..., 0].astype(bool)
        assert np.array_equal(rle.fill_polygons([flat], height, width), want)


def small() -> dict:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 120}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "bbox": [20, 20, 40, 40], "area": 1600}
        ],
        "categories": [{"id": 2, "name": "cat"}],
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["images"][0].update(file_name="../../etc/passwd"),
        lambda c: c["images"][0].update(file_name="/etc/passwd"),
        lambda c: c["images"][0].update(height=10**9),
        lambda c: c["images"][0].update(height="1"),
        lambda c: c["images"].append(dict(c["images"][0])),
        lambda c: c["annotations"][0].update(image_id=9),
        lambda c: c["annotations"][0].update(category_id=9),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("inf"), 4]),
        lambda c: c["annotations"][0].update(segmentation="x"),
        lambda c: c["categories"][0].update(name=7),
        lambda c: c.update(images=None),
        lambda c: c.update(annotations=[1]),
    ],
)
def test_contradictions_are_refused(change):
    content = small()
    change(content)
    with pytest.raises(FileFormatError, match=r"toy\.json"):
        coco.parse_coco(content, Path("toy.json"))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"", b"[", b"[]", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(FileFormatError):
            coco.read_coco(path)
    with pytest.raises(InputError):
        coco.read_coco(tmp_path / "none.json")


def test_lvis_names_its_files_and_classes():
    content = small()
    content["images"][0] = {
        "id": 5,
        "coco_url": "http://images.cocodataset.org/train2017/5.jpg",
        "height": 9,
        "width": 9,
    }
    content["annotations"] = []
    content["categories"] = [
        {"id": 1, "name": "a", "frequency": "r"},
        {"id": 2, "name": "b", "frequency": "f"},
    ]
    dataset = coco.parse_coco(content, Path("lvis.json"))
    assert dataset.images[5].file_name == "5.jpg"
    assert sampling.class_list("lvis_rare", dataset) == ("a",)
    assert sampling.class_list("lvis_minival_frequent", dataset) == ("b",)
    assert sampling.class_list("lvis", dataset) == ("a", "b")
    with pytest.raises(InputError, match="LVIS"):
        sampling.class_list("lvis_rare")


def test_named_lists_have_their_published_sizes():
    sizes = {"default_classes": 80, "few_shot_classes": 20, "pascal_voc": 20}
    sizes |= {f"coco_semantic_split_{i}": 20 for i in range(1, 5)}
    sizes |= {f"pascal_voc_split_{i}": 5 for i in range(1, 4)}
    for name, size in sizes.items():
        assert len(set(sampling.class_list(name))) == size
    folds = [set(sampling.class_list(f"coco_semantic_split_{i}")) for i in range(1, 5)]
    assert set.union(*folds) == set(sampling.COCO_CLASSES)
    for i in range(1, 4):
        assert set(sampling.class_list(f"pascal_voc_split_{i}")) <= set(sampling.VOC_CLASSES)
    assert set(sampling.FEW_SHOT_CLASSES) <= set(sampling.COCO_CLASSES)
    with pytest.raises(UnknownNameError, match="few_shot_classes"):
        sampling.class_list("few_shots")


def voc_file(objects: str, head: str = "") -> str:
    size = "<size><width>120</width><height>100</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>1.jpg</filename>{size}{objects}</annotation>"


def voc_object(name: str, box: tuple[int, ...], difficult: int = 0) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{inner}</bndbox></object>"
    )


def test_voc_folders_are_read(tmp_path):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    path = tmp_path / "Annotations" / "1.xml"
    rows = voc_object("zebu", (21, 31, 60, 80)) + voc_object("cat", (1, 1, 120, 100), 1)
    path.write_text(voc_file(rows))
    assert voc.is_voc(tmp_path)
    dataset = voc.read_voc(tmp_path)
    assert dataset.categories == {1: "cat", 2: "zebu"}  # VOC's own classes come first
    zebu, cat = dataset.annotations
    assert zebu.bbox == (20.0, 30.0, 40.0, 50.0)
    assert zebu.mask(100, 120) is None
    assert cat.crowd
    assert cat.bbox == (0.0, 0.0, 120.0, 100.0)
    assert sampling.sample_shots(dataset.select_classes(["zebu"]), 1, 0)[2][0][1] == [1]
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    for text in (
        voc_file(rows, bomb), "<annotation>", voc_file(voc_object("a", (5, 5, 900, 9))), "<a/>",
        voc_file("").replace("1.jpg", "../1.jpg"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(FileFormatError):
            voc.read_voc(tmp_path)
    with pytest.raises(InputError):
        voc.read_voc(tmp_path, "trainval")


def crowd(pictures: int) -> coco.CocoDataset:
    content = small()
    content["images"] = [
        {"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 120} for i in range(pictures)
    ]
    content["annotations"] = [
        {"id": 10 * i + k, "image_id": i, "category_id": 2, "bbox": box, "iscrowd": int(k == 3)}
        for i in range(pictures)
        for k, box in enumerate(
            ([20, 20, 40, 40], [20, 20, 31, 40], [5, 20, 40, 40], [20, 20, 40, 40])
        )
    ]
    return coco.parse_coco(content, Path("toy.json"))


def test_only_clear_objects_are_sampled_one_an_image():
    dataset = crowd(6)
    chosen = sampling.sample_shots(dataset, 5, seed=33)[2]
    assert len({image for image, _ in chosen}) == 5
    assert all(ids[0] % 10 == 0 for _, ids in chosen)  # neither small, cut off nor crowd
    assert chosen == sampling.sample_shots(dataset, 5, seed=33)[2]
    with pytest.raises(InputError, match="fewer shots"):
        sampling.sample_shots(dataset, 7, seed=33)
    repeated = sampling.sample_shots(dataset, 8, seed=33, source="lvis")[2]
    assert len(repeated) == 8
    assert repeated[6:] == repeated[:2]


def test_chosen_references_are_read_as_json_or_plain_pickle(tmp_path):
    chosen = {2: [(1, [1])]}
    path = tmp_path / "a.pkl"
    path.write_text(json.dumps(sampling.shots_to_json(chosen)))
    assert read_chosen(path) == chosen
    path.write_bytes(pickle.dumps(OrderedDict({2: [{"img_id": 1, "ann_ids": [1]}]})))
    assert read_chosen(path) == chosen

    class Evil:
        def __reduce__(self):
            return (print, ("boo",))

    for data in (pickle.dumps(Evil()), b"\x80\x04.", b"", pickle.dumps({2: [{"img_id": 1}]})):
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_chosen(path)


def test_cd_fsod_folders_fix_their_references(tmp_path):
    from PIL import Image

    from sightline.segmentation.options import EncoderOptions, MaskOptions, ReferenceOptions
    from sightline.segmentation.references import read_references
    from sightline.segmentation.tasks import fit, open_dataset, without_references

    folder = tmp_path / "FISH"
    for part in ("train", "test", "annotations"):
        (folder / part).mkdir(parents=True)
    for part, files in (("train", ("1_shot", "5_shot")), ("test", ("test",))):
        picture = Image.new("RGB", (60, 50), "blue")
        picture.paste("orange", (10, 10, 40, 40))
        picture.save(folder / part / "a.png")
        for name in files:
            content = {
                "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30]}
                ],
                "categories": [{"id": 1, "name": "fish"}],
            }
            (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
    (found,) = read_references(folder, shots=1)
    assert found.image == folder / "train" / "a.png"
    assert found.box == (10, 10, 30, 30)
    for wrong in (None, 3):
        with pytest.raises(InputError, match=f"for 1, 5 shots, got --shots {wrong}"):
            read_references(folder, shots=wrong)
    bank = fit(
        ReferenceOptions(references=str(folder), shots=1),
        EncoderOptions(backbone="colour", size=64),
        MaskOptions(device="cpu"),
        tmp_path / "bank.safetensors",
    )
    dataset, root = open_dataset(folder, None, bank)
    # Pictures of one name in both parts are not the same picture.
    dataset, left_out = without_references(dataset, bank)
    assert left_out == 0
    assert (root / dataset.images[1].file_name).is_file()
    several = {"categories": [{"id": 1, "name": "fish"}, {"id": 2, "name": "ship"}]}
    file = folder / "annotations" / "1_shot.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | several))
    with pytest.raises(InputError, match="expected the 1 classes of FISH"):
        read_references(folder, shots=1)
