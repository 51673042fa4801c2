"""The old interface: its YAML keys, every stage, and checkpoints of the original."""

import json

import pytest
import torch
import yaml

from sightline.errors import FileFormatError, InputError, SightlineError, UnknownNameError
from sightline.segmentation import compat, staged
from sightline.segmentation.coco import read_coco
from sightline.segmentation.memory import BankClass, MemoryBank
from sightline.segmentation.old_files import read_bank
from sightline.segmentation.sampling import shots_to_json
from sightline.segmentation.synthetic import write_dataset

PUBLISHED = """
seed_everything: 42
model:
  class_path: no_time_to_train.pl_wrapper.sam2matcher_pl.Sam2MatcherLightningModel
  init_args:
    test_mode: none
    model_cfg:
      name: matching_baseline_noAMG
      sam2_cfg_file: sam2_hiera_l.yaml
      sam2_ckpt_path: ./checkpoints/sam2_hiera_large.pt
      sam2_infer_cfgs: {points_per_side: 32, testing_point_bs: 256, iou_thr: 0.4, nms_thr: 0.5,
                        num_out_instance: 100, kmeans_k: 4, n_pca_components: 3,
                        cls_num_per_mask: 1, with_negative_refs: false}
      encoder_cfg: {name: dinov2_large, img_size: 518, patch_size: 14}
      encoder_ckpt_path: ./checkpoints/dinov2/dinov2_vitl14_pretrain.pth
      memory_bank_cfg: {enable: true, category_num: 20, length: 10, length_negative: 10}
      dataset_name: coco
      dataset_imgs_path: null
      class_names: null
      online_vis: false
      vis_thr: 0.5
    dataset_cfgs:
      fill_memory: {name: coco, root: r, json_file: a.json, memory_pkl: a.pkl, image_size: 518,
                    memory_length: 10, context_ratio: 0.2, norm_img: false,
                    class_split: few_shot_classes}
      support: {name: coco, root: r, json_file: a.json, image_size: 1024, norm_img: false}
      test: {name: coco, root: r, json_file: a.json, image_size: 1024, norm_img: false,
             with_query_points: false, cat_names: "a,b"}
    data_load_cfgs: {workers: 4}
trainer: {devices: 4, benchmark: true, precision: 32}
"""


@pytest.fixture
def config(tmp_path):
    data = write_dataset(tmp_path / "data", 3, height=120, width=160, seed=1)
    every = data / "instances.json"
    dataset = read_coco(every)
    chosen = {
        key: [(a.image_id, [a.id]) for a in rows[:2]] for key, rows in dataset.by_class().items()
    }
    (tmp_path / "refs.json").write_text(json.dumps(shots_to_json(chosen)))
    source = {"name": "coco", "root": str(data / "images"), "json_file": str(every)}
    model = {
        "name": "matching_baseline_noAMG",
        "encoder_cfg": {"name": "colour", "img_size": 160, "patch_size": 8},
        "memory_bank_cfg": {"enable": True, "category_num": 3, "length": 2, "length_negative": 2},
        "sam2_infer_cfgs": {"kmeans_k": 4, "n_pca_components": 3, "num_out_instance": 20},
        "dataset_name": "toy",
    }
    content = {
        "model": {
            "class_path": staged.CLASS_PATHS[0],
            "init_args": {
                "test_mode": "none",
                "model_cfg": model,
                "dataset_cfgs": {
                    "fill_memory": {**source, "memory_pkl": str(tmp_path / "refs.json")},
                    "support": source,
                    "test": source,
                },
            },
        }
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content))))  # without aliases
    return path


def test_the_published_yaml_parses(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(PUBLISHED)
    words = ["test", "--config", str(path), "--model.test_mode", "fill_memory"]
    words += ["--model.init_args.model_cfg.memory_bank_cfg.length=3", "--trainer.devices", "1"]
    words += ["--model.init_args.model_cfg.test.vis_thr", "0.4", "--out_path", "b.ckpt"]
    stage = staged.parse_stage(words)
    assert stage.mode == "fill_memory"
    assert stage.model["memory_bank_cfg"]["length"] == 3
    assert stage.model["vis_thr"] == 0.4
    assert stage.data["fill_memory"]["context_ratio"] == 0.2


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.init_args.model_cfg.sam2_infer_cfgs.iou_threshold", "1", "iou_thr"),
        ("model.init_args.model_cfg.encoder_cfg.image_size", "518", "img_size"),
        ("model.init_args.model_cfg.memory_bank_cfg.lenght", "2", "length"),
        ("model.init_args.dataset_cfgs.test.jsonfile", "x", "json_file"),
        ("model.init_args.dataset_cfgs.tests.root", "x", "test"),
        ("model.init_args.test_mode", "tests", "test"),
        ("model.class_path", "os.system", "Sam2MatcherLightningModel"),
        ("model.init_args.model_cfg.name", "matching", "matching_baseline"),
        ("trainer.device", "1", "devices"),
        ("optimizer.lr", "1", "optimizer"),
    ],
)
def test_unknown_keys_are_refused_by_name(config, key, value, named):
    words = ["--config", str(config), "--model.test_mode", "fill_memory", "--out_path", "x.ckpt"]
    with pytest.raises(UnknownNameError, match=named):
        staged.run_stage([*words, f"--{key}", value])
    with pytest.raises(UnknownNameError, match="--out_path"):
        staged.run_stage([*words, "--outpath", "x"])


def test_yaml_is_plain_data(tmp_path):
    path = tmp_path / "x.yaml"
    for text in (
        "a: !!python/object/apply:os.system [ls]",
        "a: &a [1]\nb: *a",
        "[1",
        "- 1",
        "\x00",
    ):
        path.write_text(text)
        with pytest.raises(FileFormatError):
            staged.read_yaml(path)


def test_every_stage_after_the_other(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stage(mode: str, **options: str) -> list:
        words = ["test", "--config", str(config), "--model.test_mode", mode]
        for key, value in options.items():
            words += [f"--{key}", value]
        return staged.run_stage(words)

    assert stage("fill_memory", out_path="a.ckpt")
    stage("postprocess_memory", ckpt_path="a.ckpt", out_path="b.ckpt")
    bank = MemoryBank.load("b.ckpt")
    assert bank.counts.tolist() == [2, 2, 2]
    assert bank.names == ("coin", "leaf", "tile")
    assert bank.thresholds is not None
    pictures = stage("vis_memory", ckpt_path="b.ckpt", output="vis")
    assert len(pictures) == 6
    assert all(p.is_file() and p.parent.name == "memory_vis" for p in pictures)
    wrote = stage("test", ckpt_path="b.ckpt", export_result="results.json")
    scores = json.loads(wrote[1].read_text())
    assert scores["segm"]["ap50"] > 20
    stage(
        "test_support", ckpt_path="b.ckpt", out_support_res="s.json", out_neg_json="n.json",
        out_neg_pkl="n.pkl",
    )  # fmt: skip
    mined = json.loads((tmp_path / "n.pkl").read_text())
    assert max(len(rows) for rows in mined.values()) == 2
    stage(
        "fill_memory_neg", ckpt_path="b.ckpt", out_path="c.ckpt", out_neg_json="n.json",
        out_neg_pkl="n.pkl",
    )  # fmt: skip
    stage("postprocess_memory_neg", ckpt_path="c.ckpt", out_path="d.ckpt")
    filled = MemoryBank.load("d.ckpt")
    assert len(filled.negatives) == sum(len(rows) for rows in mined.values())
    stage(
        "test", ckpt_path="d.ckpt", export_result="r.json",
        **{"model.init_args.model_cfg.sam2_infer_cfgs.with_negative_refs": "true"},
        **{"model.init_args.model_cfg.test.online_vis": "true"},
    )  # fmt: skip
    assert (tmp_path / "results_analysis" / "toy" / "0000.png").is_file()
    with pytest.raises(InputError, match="ckpt_path"):
        stage("test")


def test_the_number_of_references_is_checked(config, tmp_path):
    words = ["--config", str(config), "--model.test_mode", "fill_memory", "--out_path", "x"]
    for key, value, said in (
        ("memory_bank_cfg.length", "3", "expected 3 references"),
        ("memory_bank_cfg.category_num", "4", "expected 4 classes"),
    ):
        with pytest.raises(InputError, match=said):
            staged.run_stage([*words, f"--model.init_args.model_cfg.{key}", value])


def test_checkpoints_of_the_original_are_read(tmp_path):
    classes = [BankClass(name=n, category_id=i) for i, n in enumerate("ab")]
    features, masks = torch.randn(2, 3, 16, 4), torch.rand(2, 3, 16)
    state = {
        "seg_model.mem_fill_counts": torch.tensor([3, 2]),
        "seg_model.mem_feats": features,
        "seg_model.mem_masks": masks,
        "seg_model.encoder.weight": torch.zeros(3),
    }
    path = tmp_path / "memory.ckpt"
    torch.save({"state_dict": state}, path)
    bank = read_bank(path, classes, {"name": "x"})
    assert bank.counts.tolist() == [3, 2]
    want = (features * masks[..., None]).sum(2) / masks.sum(2, keepdim=True)
    torch.testing.assert_close(bank.instance_means("a"), want[0])
    torch.save({"state_dict": {
        "mem_fill_counts": torch.tensor([3, 2]), "mem_feats_ins_avg": want
    }}, path)  # fmt: skip
    again = read_bank(path, classes, {"name": "x"})
    torch.testing.assert_close(again.prototypes(), bank.prototypes())
    with pytest.raises(FileFormatError, match="classes"):
        read_bank(path, classes[:1], {})
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(FileFormatError, match="memory bank"):
        read_bank(path, classes, {})


def test_old_arguments_build_the_models():
    encoder = {"name": "colour", "img_size": 64, "patch_size": 8}
    first = compat.Sam2MatchingBaseline_noAMG(
        sam2_cfg_file="sam2_hiera_l.yaml", sam2_infer_cfgs={"nms_thr": 0.3}, encoder_cfg=encoder
    )
    assert first.segmenter.options.match.nms_thr == 0.3
    second = compat.Sam2MatchingBaseline(
        sam2_cfg_file="configs/sam2.1/sam2.1_hiera_b+.yaml", sam2_amg_cfg={}, encoder_cfg=encoder
    )
    assert second.segmenter.options.model == "amg"
    with pytest.raises(UnknownNameError, match="stability_score_thresh"):
        compat.Sam2MatchingBaseline(sam2_amg_cfg={"sel_stability_score_thresh": 0.9})
    for change in ({"name": "dinov3_tiny"}, {"name": "colour", "patch_size": 14}):
        with pytest.raises(SightlineError):
            compat.Sam2MatchingBaseline_noAMG(encoder_cfg=change)
    with pytest.raises(InputError, match="huge_plus"):
        compat.Sam2MatchingBaseline_noAMG(encoder_cfg={"name": "dinov3_giant"})
    with pytest.raises(UnknownNameError, match="sam2_hiera_l"):
        compat.Sam2MatchingBaseline_noAMG(sam2_cfg_file="sam2_hiera_x.yaml")
