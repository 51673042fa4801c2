"""Weights of strangers: what a file is, read without running anything in it, loaded strictly.

Usage: `python examples/08_checkpoints.py [FILE]`
"""

import sys
import tempfile
from pathlib import Path

from sightline import models
from sightline.checkpoints import save_weights
from sightline.models.check import check_file

if len(sys.argv) > 1:
    file = Path(sys.argv[1])
else:
    network = models.load("dinov3_vits16", False)  # untrained, in its official shape
    file = Path(tempfile.mkdtemp()) / "mine.safetensors"
    save_weights(network, file)

check = check_file(file)
print(check.verdict)
print("strict:", check.strict)
if check.strict:
    again = models.load(file)  # the family and the size come from the file
    print(f"{type(again).__name__} with {sum(p.numel() for p in again.parameters()):,} parameters")
