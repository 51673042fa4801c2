"""Our DINOv2 and DINOv3 beside those of transformers and timm: time, memory and outputs, in turns.

    python benchmarks/encoders.py [--against transformers,timm] [--models dinov2_vits14,dinov3_vits16]
                                  [--images 1,8] [--sizes 224] [--dtypes float32] [--device cpu]
                                  [--threads 2] [--repeats 5] [--path FOLDER ...] [--json FILE]

Weights are drawn by the library, read into our network by the rules that read its files
(``sightline.models.layouts``), strictly, and are the same on both sides. Sizes are those the networks
are built for, so that nobody interpolates positions. A library that is not installed is named and
left out; ``--path`` adds folders with packages. timm wants torchvision, of which these networks use
nothing: where it is missing an empty package stands in. Times and memory as in ``networks.py``; bfloat16
is autocast.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import common
import torch
from networks import Call, Outputs, measure, stir
from torch import nn

from sightline.models.dinov2 import build_dinov2
from sightline.models.dinov3 import build_dinov3
from sightline.models.layouts import to_official

WIDTHS = {"s": (384, 6), "b": (768, 12), "l": (1024, 16)}
NAMES = {"s": "small", "b": "base", "l": "large"}


class _Empty(ModuleType):
    """A package with every name that anyone asks for."""

    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _NoTorchvision(MetaPathFinder, Loader):
    """Finds empty packages of torchvision's names."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Claim ``torchvision`` and what is below it."""
        if fullname.split(".")[0] != "torchvision":
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make an empty one."""
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


def transformers_model(name: str, size: int) -> tuple[nn.Module, Callable[[Any], Outputs]]:
    """Build transformers' network of this name, and what reads its output."""
    package: Any = importlib.import_module("transformers")
    letter = name.split("_vit")[1][0]
    width, heads = WIDTHS[letter]
    depth = 24 if letter == "l" else 12
    shared = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    if name.startswith("dinov2"):
        config = package.Dinov2Config(image_size=size, patch_size=14, mlp_ratio=4, **shared)
        model = package.Dinov2Model(config)
        special = 1
    else:
        config = package.DINOv3ViTConfig(
            image_size=size,
            patch_size=16,
            num_register_tokens=4,
            intermediate_size=4 * width,
            **shared,
        )
        model = package.DINOv3ViTModel(config)
        special = 5
    return model, lambda out: _named(out.last_hidden_state, special)


def timm_model(name: str, size: int) -> tuple[nn.Module, Callable[[Any], Outputs]]:
    """Build timm's network of this name, and what reads its output."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_NoTorchvision())
    package: Any = importlib.import_module("timm")
    family, rest = name.split("_vit")
    word = f"vit_{NAMES[rest[0]]}_patch{rest[1:]}_{family}"
    model = package.create_model(word, pretrained=False, num_classes=0, img_size=size)
    model.forward = model.forward_features
    return model, lambda out: _named(out, model.num_prefix_tokens)


LIBRARIES = {"transformers": transformers_model, "timm": timm_model}


def _named(tokens: torch.Tensor, special: int) -> Outputs:
    return {"class token": tokens[:, 0], "patch tokens": tokens[:, special:]}


def calls_of(library: str, name: str, images: torch.Tensor) -> dict[str, Call]:
    """Return one call for each side, with the same weights."""
    size, device = images.shape[-1], images.device
    theirs, read = LIBRARIES[library](name, size)
    theirs = theirs.eval()
    stir(theirs)
    build = build_dinov2 if name.startswith("dinov2") else build_dinov3
    options = {"img_size": size} if name.startswith("dinov2") else {}
    ours = build(name, False, **options).eval()
    found = to_official({k: v.detach().clone() for k, v in theirs.state_dict().items()})
    ours.load_state_dict(found.weights, strict=True)
    theirs, ours = theirs.to(device), ours.to(device)

    def run_ours() -> Outputs:
        out = ours.forward_features(images)
        return {"class token": out["x_norm_clstoken"], "patch tokens": out["x_norm_patchtokens"]}

    return {"theirs": lambda: read(theirs(images)), "ours": run_ours}


def main() -> None:
    """Compare with each library that is there, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", default="transformers,timm")
    parser.add_argument("--models", default="dinov2_vits14,dinov3_vits16")
    parser.add_argument("--images", default="1,8")
    parser.add_argument("--sizes", default="224", help="multiples of both patches: 112, 224, 448")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.no_memory = False
    torch.set_num_threads(args.threads)
    sys.path.extend(str(path) for path in args.path)
    rows, versions, missing = [], {}, []
    for library in args.against.split(","):
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed and is left out")
            missing.append(library)
            continue
        for name in args.models.split(","):
            for size in (int(s) for s in args.sizes.split(",")):
                for count in (int(n) for n in args.images.split(",")):
                    torch.manual_seed(0)
                    images = torch.randn(count, 3, size, size, device=args.device)
                    calls = calls_of(library, name, images)
                    for dtype in args.dtypes.split(","):
                        run = measure(calls, dtype, args)
                        rows.append(
                            {"library": library, "model": name, "images": count, "size": size}
                            | {k: v for k, v in run.items() if k not in ("seconds", "cpu_seconds")}
                        )
        versions[library] = sys.modules[library].__version__
    if not rows:
        raise SystemExit("nothing to compare with: pip install transformers, or timm")
    content = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": args.threads,
        "repeats": args.repeats,
        "weights": "random",
        "libraries": versions,
        "not_installed": missing,
        "rows": rows,
    }
    common.write(args.json or common.RESULTS / f"encoders_{args.device}.json", content)


if __name__ == "__main__":
    main()
