"""Mark objects a few times, find their like everywhere: no training, no weights.

Usage: `python examples/06_segment_few_shot.py [COCO_FOLDER]`
"""

import sys
import tempfile
from pathlib import Path

from sightline.segmentation import FewShotSegmenter
from sightline.segmentation.encoder import create_encoder
from sightline.segmentation.references import read_references
from sightline.segmentation.synthetic import write_dataset

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
else:
    folder = write_dataset(Path(tempfile.mkdtemp()) / "shapes", pictures=6)

# "colour" compares histograms; with weights, name a vision model: "dinov2_vitl14", FILE.
segmenter = FewShotSegmenter(create_encoder("colour")).fit(read_references(folder, shots=2))
assert segmenter.bank is not None
print("classes:", [entry.name for entry in segmenter.bank.classes])

picture = max((folder / "images").iterdir())
found = next(iter(segmenter.predict([picture])))
for label, score, mask in zip(
    found.labels.tolist(), found.scores.tolist(), found.masks, strict=True
):
    name = segmenter.bank.classes[label].name
    print(f"{name:10} score {score:.2f}, {int(mask.sum())} pixels")
segmenter.bank.save(folder / "bank.safetensors")
print(f"the bank: {(folder / 'bank.safetensors').stat().st_size / 1e6:.2f} MB")
