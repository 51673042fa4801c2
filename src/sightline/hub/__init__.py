"""Published weights: a catalogue, a cache, and downloads that resume.

Nothing here imports torch; what a file holds is the business of `sightline.checkpoints`.
"""

from sightline.hub.catalogue import CATALOGUE, Entry
from sightline.hub.fetch import Record, cached, record_of, resolve
from sightline.hub.transfer import TransferError, fetch_url, hash_file

__all__ = [
    "CATALOGUE",
    "Entry",
    "Record",
    "TransferError",
    "cached",
    "fetch_url",
    "hash_file",
    "record_of",
    "resolve",
]
