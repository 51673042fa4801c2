"""The staged interface of no-time-to-train: one YAML, one stage a call, ``test_mode`` picks it.

``sightline segment [test] --config X.yaml [--model.init_args.KEY VALUE ...]``. Class paths are names
in a fixed table, and nothing of the file is evaluated; a key that nobody reads is refused by name.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from sightline.errors import InputError, UnknownNameError
from sightline.io.reading import bad_file, check_file, read_whole
from sightline.protocols import Progress
from sightline.segmentation.calibration import calibrate
from sightline.segmentation.coco import (
    CocoDataset,
    encode_results,
    image_path,
    read_coco,
    write_json,
)
from sightline.segmentation.compat import MODELS, Sam2MatchingBaseline_noAMG, check_keys
from sightline.segmentation.crops import mask_box, reference_crop
from sightline.segmentation.memory import BankClass, MemoryBank
from sightline.segmentation.negatives import false_positives
from sightline.segmentation.old_files import read_bank, read_chosen
from sightline.segmentation.pictures import draw_instances, side_by_side, write_png
from sightline.segmentation.references import Reference, chosen_references, load_image
from sightline.segmentation.sampling import Shots as Chosen
from sightline.segmentation.sampling import class_list
from sightline.segmentation.tasks import score, true_instances

log = logging.getLogger(__name__)

STAGES = (
    *("fill_memory", "postprocess_memory", "vis_memory", "test", "test_support"),
    *("fill_memory_neg", "postprocess_memory_neg"),
)
CLASS_PATHS = (
    "no_time_to_train.pl_wrapper.sam2matcher_pl.Sam2MatcherLightningModel",
    "Sam2MatcherLightningModel",
)
_OPTIONS = (
    *("config", "out_path", "out_support_res", "out_neg_pkl", "out_neg_json", "export_result"),
    *("seed", "n_shot", "coco_semantic_split", "ckpt_path", "output"),
)
_MODEL_KEYS = (
    *("name", "sam2_cfg_file", "sam2_ckpt_path", "sam2_infer_cfgs", "sam2_amg_cfg", "encoder_cfg"),
    *("encoder_ckpt_path", "memory_bank_cfg", "dataset_name", "dataset_imgs_path", "class_names"),
    *("online_vis", "vis_thr"),
)
_DATA_KEYS = (
    *("name", "root", "json_file", "memory_pkl", "image_size", "memory_length", "context_ratio"),
    *("norm_img", "class_split", "cat_names", "with_query_points"),
)
_TRAINER_KEYS = (
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks"),
    *("benchmark", "deterministic", "max_epochs", "log_every_n_steps", "default_root_dir"),
    *("enable_progress_bar", "enable_checkpointing", "inference_mode", "num_sanity_val_steps"),
    *("use_distributed_sampler", "limit_test_batches"),
)
_SHORT = {
    "model.test_mode": "model.init_args.test_mode",
    **{
        f"model.init_args.model_cfg.test.{old}": f"model.init_args.model_cfg.{new}"
        for old, new in (
            ("imgs_path", "dataset_imgs_path"),
            ("online_vis", "online_vis"),
            ("vis_thr", "vis_thr"),
        )
    },
}
_MAX_YAML = 1 << 20
_MAX_DEPTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One call: the checked configuration, and the options around it."""

    mode: str
    model: dict[str, Any]
    data: dict[str, dict[str, Any]]
    options: dict[str, str]

    def source(self, name: str) -> dict[str, Any]:
        """Return one entry of ``dataset_cfgs``.

        Raises:
            InputError: It is missing, or has no annotation file.
        """
        entry = self.data.get(name)
        if not entry or not entry.get("json_file"):
            raise InputError(f"the stage {self.mode} needs dataset_cfgs.{name}.json_file; give it")
        return entry

    def path(self, option: str) -> Path:
        """Return an option that the stage cannot do without, as a path."""
        value = self.options.get(option)
        if value is None:
            raise InputError(f"the stage {self.mode} needs --{option}; give it")
        return Path(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file of plain data.

    Raises:
        InputError: It is missing.
        FileFormatError: It is too large, no YAML, or holds more than plain data.
    """
    if check_file(path) > _MAX_YAML:
        raise bad_file(path, f"a configuration of at most {_MAX_YAML} bytes", "a larger file")
    data = read_whole(path)
    if _depth(data) > _MAX_DEPTH:  # each further bracket costs the parser a look at all before it
        raise bad_file(path, f"YAML of at most {_MAX_DEPTH} levels", "more")
    try:
        if b"&" in data and any(isinstance(t, yaml.AliasToken) for t in yaml.scan(data)):
            raise bad_file(path, "YAML without aliases", "some", "write the values out")
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        why = " ".join(str(error).split())[:80]
        raise bad_file(path, "YAML of plain data", why) from error
    if not isinstance(content, dict):
        raise bad_file(path, "keys and values", type(content).__name__)
    return content


def _depth(data: bytes) -> int:
    """Return how deep brackets are nested, those in texts included."""
    now = most = 0
    for found in re.finditer(rb"[\[\]{}]", data):
        now += 1 if found[0] in b"[{" else -1
        most = max(most, now)
    return most


def parse_stage(words: Sequence[str]) -> Stage:
    """Read the configuration and lay the command line's values over it.

    Raises:
        UnknownNameError: A key, option, class path or stage is unknown.
        InputError: Something needed is missing.
    """
    words = list(words[1:]) if words and words[0] == "test" else list(words)
    pairs = _pairs(words)
    options = {key: value for key, value in pairs.items() if "." not in key}
    options = {"output" if key == "o" else key: value for key, value in options.items()}
    for key in options:
        if key not in _OPTIONS:
            raise UnknownNameError("option", f"--{key}", [f"--{name}" for name in _OPTIONS])
    if "config" not in options:
        raise InputError("give the configuration with --config")
    content = read_yaml(Path(options["config"]))
    for key, value in pairs.items():
        if "." in key:
            _put(content, _SHORT.get(key, key), yaml.safe_load(value))
    top = check_keys(content, ("seed_everything", "model", "trainer"), "the configuration")
    check_keys(top.get("trainer"), _TRAINER_KEYS, "trainer")
    model = check_keys(top.get("model"), ("class_path", "init_args"), "model")
    if model.get("class_path", CLASS_PATHS[0]) not in CLASS_PATHS:
        raise UnknownNameError("class path", str(model["class_path"]), CLASS_PATHS)
    known = ("test_mode", "model_cfg", "dataset_cfgs", "data_load_cfgs")
    init = check_keys(model.get("init_args"), known, "model.init_args")
    check_keys(init.get("data_load_cfgs"), ("workers",), "data_load_cfgs")
    names = ("fill_memory", "fill_memory_neg", "support", "test")
    sources = check_keys(init.get("dataset_cfgs"), names, "dataset_cfgs")
    data = {n: check_keys(e, _DATA_KEYS, f"dataset_cfgs.{n}") for n, e in sources.items()}
    mode = str(init.get("test_mode", "none"))
    if mode not in STAGES:
        raise UnknownNameError("test_mode", mode, STAGES)
    return Stage(
        mode=mode,
        model=check_keys(init.get("model_cfg"), _MODEL_KEYS, "model_cfg"),
        data=data,
        options=options,
    )


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Return ``--key value`` and ``--key=value`` as a dictionary; a lone key means true."""
    found: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("-") or len(word) < 2:
            raise InputError(f'expected options such as --config FILE, got "{word}"')
        key, equals, value = word.lstrip("-").partition("=")
        following = words[index + 1] if index + 1 < len(words) else "--"
        if not equals and not following.startswith("--"):
            value = following
            index += 1
        found[key] = value if value or equals else "true"
        index += 1
    return found


def _put(content: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401
    *parents, last = key.split(".")
    at = content
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise InputError(f"--{key}: {parent} holds a value, not keys; correct the option")
    at[last] = value


class _Work:
    """A stage at work: the model, and the classes in ascending order of their ids."""

    def __init__(self, stage: Stage, progress: Progress | None) -> None:
        self.stage, self.progress = stage, progress
        name = str(stage.model.get("name", "matching_baseline_noAMG")).lower()
        if name not in MODELS:
            raise UnknownNameError("model_cfg.name", name, MODELS)
        arguments = {k: v for k, v in stage.model.items() if k != "name" and v is not None}
        unread = "sam2_amg_cfg" if MODELS[name] is Sam2MatchingBaseline_noAMG else "sam2_infer_cfgs"
        if arguments.pop(unread, None):
            log.warning("%s is not read by %s", unread, name)
        self.model = MODELS[name](**arguments)
        self.paths: list[Path] = []

    def dataset(self, name: str) -> tuple[CocoDataset, Path]:
        """Return one of ``dataset_cfgs`` with its classes, and its picture folder."""
        entry = self.stage.source(name)
        dataset = read_coco(Path(entry["json_file"]))
        chosen = entry.get("cat_names")
        if isinstance(chosen, str):
            chosen = [part.strip() for part in chosen.split(",")]
        if entry.get("class_split"):
            chosen = class_list(str(entry["class_split"]), dataset)
        if chosen:
            dataset = dataset.select_classes(chosen)
        return dataset, Path(entry.get("root") or Path(entry["json_file"]).parent)

    def classes(self, dataset: CocoDataset) -> list[BankClass]:
        """Return the classes of a data set, by ascending id."""
        wanted = self.model.memory_bank_cfg.get("category_num")
        keys = dataset.category_ids
        if wanted is not None and int(wanted) != len(keys):
            raise InputError(
                f"expected {wanted} classes (memory_bank_cfg.category_num), the data set has "
                f"{len(keys)}; choose them with class_split or cat_names"
            )
        return [BankClass(name=dataset.categories[key], category_id=key) for key in keys]

    def references(self) -> list[Reference]:
        """Return the references of ``fill_memory``, exactly ``length`` a class."""
        entry = self.stage.source("fill_memory")
        dataset, root = self.dataset("fill_memory")
        self.classes(dataset)
        if not entry.get("memory_pkl"):
            raise InputError("dataset_cfgs.fill_memory.memory_pkl must name the chosen references")
        chosen = read_chosen(Path(entry["memory_pkl"]))
        length = self.model.memory_bank_cfg.get("length", entry.get("memory_length"))
        return chosen_references(dataset, _checked(chosen, dataset, length), root)

    def load(self, dataset: CocoDataset) -> MemoryBank:
        """Read the bank of ``--ckpt_path``."""
        encoder = self.model.segmenter.encoder.signature
        bank = read_bank(self.stage.path("ckpt_path"), self.classes(dataset), encoder)
        self.model.load_memory(bank)
        return bank

    def save(self, bank: MemoryBank) -> None:
        """Write a bank to ``--out_path``."""
        path = self.stage.path("out_path")
        bank.save(path)
        self.paths.append(path)


def _checked(chosen: Chosen, dataset: CocoDataset, length: Any) -> Chosen:  # noqa: ANN401
    rows = {key: chosen.get(key, []) for key in dataset.category_ids}
    for key, items in rows.items():
        if not items or (length is not None and len(items) != int(length)):
            raise InputError(
                f'expected {length or "some"} references of "{dataset.categories[key]}", got '
                f"{len(items)}; sample them with as many shots as memory_bank_cfg.length"
            )
    return rows


def _fill(work: _Work) -> None:
    entry = work.stage.source("fill_memory")
    segmenter = work.model.segmenter
    context = float(entry.get("context_ratio", 0.2))
    segmenter.options = replace(segmenter.options, context=context)
    work.stage.path("out_path")
    work.model.fill_memory(work.references())
    assert work.model.bank is not None
    work.save(work.model.bank)


def _postprocess(work: _Work) -> None:
    name = "fill_memory" if work.stage.data.get("fill_memory") else "test"
    work.stage.path("out_path")
    work.save(calibrate(work.load(work.dataset(name)[0])))


def _fill_negatives(work: _Work) -> None:
    dataset, _ = work.dataset("fill_memory" if work.stage.data.get("fill_memory") else "test")
    bank = work.load(dataset)
    work.stage.path("out_path")
    mistakes = read_coco(work.stage.path("out_neg_json"))
    chosen = read_chosen(work.stage.path("out_neg_pkl"))
    root = Path(work.stage.source("support").get("root") or ".")
    rows = chosen_references(mistakes, {k: v for k, v in chosen.items() if v}, root)
    if not rows:
        raise InputError("the negative references are empty: the bank makes no mistakes to learn")
    filled = work.model.segmenter.with_bank(bank).fit([], rows).bank
    assert filled is not None
    work.save(filled)


def _visualize(work: _Work) -> None:
    bank = work.load(work.dataset("fill_memory")[0])
    if not work.model.n_pca_components >= 3 or work.model.kmeans_k > 8:
        raise InputError("vis_memory needs 3 PCA components or more and at most 8 centres")
    folder = Path(work.stage.options.get("output", ".")) / "results_analysis" / "memory_vis"
    segmenter = work.model.segmenter
    for reference in work.references():
        image = (
            reference.image if isinstance(reference.image, Tensor) else load_image(reference.image)
        )
        mask = reference.mask
        soft = torch.ones(image.shape[1:]) if mask is None else mask.float()
        box = reference.box or mask_box(soft)
        crop, part = reference_crop(
            image, soft, box, segmenter.encoder.size, segmenter.options.context
        )
        with torch.inference_mode():
            features = segmenter.encoder.encode(crop[None])[0]
        centres = bank.centres(reference.label, work.model.kmeans_k)
        mean, axes = bank.axes(reference.label, 3)
        maps = _maps(crop, part, features, centres, mean, axes)
        stem = reference.name.rsplit("#", 1)[0].replace("/", "_").rsplit(".", 1)[0]
        path = folder / f"{reference.label}_{stem}.png"
        write_png(path, maps)
        work.paths.append(path)


def _maps(
    crop: Tensor, mask: Tensor, features: Tensor, centres: Tensor, mean: Tensor, axes: Tensor
) -> np.ndarray:
    """Return the crop, its nearest centres and its first three axes, side by side."""
    from sightline.segmentation.pictures import class_colour

    tokens = features.flatten(1).T.cpu()
    nearest = (tokens @ centres.T).argmax(1).view(features.shape[1:]).numpy()
    colours = np.array([class_colour(i) for i in range(len(centres))], np.uint8)[nearest]
    plane = (tokens - mean) @ axes.T
    low, high = plane.quantile(0.02, 0), plane.quantile(0.98, 0)
    rgb = ((plane - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * 255
    rgb = rgb.view(*features.shape[1:], 3).byte().numpy()
    side = crop.shape[1]
    rows = (np.arange(side) * features.shape[1] // side).clip(0, features.shape[1] - 1)
    inside = mask.numpy() > 0.5
    panels = [(crop.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()]
    for small in (colours, rgb):
        panel = small[rows][:, rows].copy()
        panel[~inside] //= 4
        panels.append(panel)
    return side_by_side(side_by_side(panels[0], panels[1]), panels[2])


def _predict(work: _Work, name: str) -> tuple[CocoDataset, list[dict[str, Any]]]:
    dataset, root = work.dataset(name)
    bank = work.load(dataset)
    folder = Path(work.model.dataset_imgs_path or root)
    rows = list(dataset.images.values())
    files = [image_path(folder, image) for image in rows]
    results: list[dict[str, Any]] = []
    truth = dataset.by_image()
    output = Path(work.stage.options.get("output", ".")) / "results_analysis"
    segmenter = work.model.segmenter
    found = segmenter.iterate(list(files), progress=work.progress)
    for image, file, one in zip(rows, files, found, strict=True):
        results += encode_results(one, image.id, bank.category_ids)
        if work.model.online_vis:
            pixels = (load_image(file) * 255).byte().permute(1, 2, 0).numpy()
            want = true_instances(dataset, truth[image.id], (image.height, image.width), bank)
            drawn = side_by_side(
                draw_instances(pixels, want, bank.names),
                draw_instances(pixels, one, bank.names, float(work.model.vis_thr)),
            )
            path = output / work.model.dataset_name / f"{Path(image.file_name).stem}.png"
            write_png(path, drawn)
            work.paths.append(path)
    return dataset, results


def _test(work: _Work) -> None:
    dataset, results = _predict(work, "test")
    scores = score(dataset, results)
    for kind in ("bbox", "segm"):
        log.warning("%s AP %s, AP50 %s", kind, scores[kind]["ap"], scores[kind]["ap50"])
    target = work.stage.options.get("export_result")
    if target is not None:
        write_json(Path(target), results)
        write_json(Path(target).with_suffix(".scores.json"), scores)
        work.paths += [Path(target), Path(target).with_suffix(".scores.json")]


def _test_support(work: _Work) -> None:
    dataset, results = _predict(work, "support")
    target = work.stage.path("out_support_res")
    write_json(target, results)
    work.paths.append(target)
    if "out_neg_json" not in work.stage.options:
        return
    most = int(work.model.memory_bank_cfg.get("length_negative", 10))
    mistakes = false_positives(dataset, results, most)
    annotations, chosen = [], {}
    for category, rows in mistakes.items():
        chosen[str(category)] = []
        for row in rows:
            x, y, width, height = row["bbox"]
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": row["image_id"],
                    "category_id": category,
                    "bbox": [x, y, width + 1, height + 1],
                    "area": (width + 1) * (height + 1),
                    "iscrowd": 0,
                    "segmentation": row["segmentation"],
                }
            )
            chosen[str(category)].append({"img_id": row["image_id"], "ann_ids": [number]})
    images = [
        {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width}
        for i in dataset.images.values()
    ]
    categories = [{"id": key, "name": name} for key, name in dataset.categories.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(work.stage.path("out_neg_json"), content)
    write_json(work.stage.path("out_neg_pkl"), chosen)
    work.paths += [work.stage.path("out_neg_json"), work.stage.path("out_neg_pkl")]


_RUN: dict[str, Callable[[_Work], None]] = {
    "fill_memory": _fill,
    "postprocess_memory": _postprocess,
    "vis_memory": _visualize,
    "test": _test,
    "test_support": _test_support,
    "fill_memory_neg": _fill_negatives,
    "postprocess_memory_neg": _postprocess,
}


def run_stage(words: Sequence[str], *, progress: Progress | None = None) -> list[Path]:
    """Run the stage that ``test_mode`` names, and return what it wrote.

    Banks go to ``--out_path`` as our own small files (safetensors, whatever the suffix); ``--ckpt_path``
    takes those and the original's checkpoints.

    Raises:
        UnknownNameError: A key, option, class path or stage is unknown.
        InputError: Something needed is missing or does not fit.
    """
    stage = parse_stage(words)
    work = _Work(stage, progress)
    _RUN[stage.mode](work)
    return work.paths
