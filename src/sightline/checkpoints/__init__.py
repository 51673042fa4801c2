"""Read weights without trusting the file, load them strictly, and save official keys back.

Nothing from a file is ever run: safetensors hold no code, and torch files go through a reader of
our own that knows tensors and plain containers, and keeps everything else inert.
"""

from sightline.checkpoints.constructor import Constructor, parse_constructor
from sightline.checkpoints.match import Report, aliases, compare, load_strict, refuse_broken
from sightline.checkpoints.read import Checkpoint, State, read_checkpoint, read_weights
from sightline.checkpoints.save import save_state_dict, save_weights

__all__ = [
    "Checkpoint",
    "Constructor",
    "Report",
    "State",
    "aliases",
    "compare",
    "load_strict",
    "parse_constructor",
    "read_checkpoint",
    "read_weights",
    "refuse_broken",
    "save_state_dict",
    "save_weights",
]
