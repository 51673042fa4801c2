"""What the environment says about downloads, read when it is needed."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from sightline.errors import InputError

HUGGINGFACE = "https://huggingface.co"
_YES = {"1", "true", "yes", "on"}


def offline() -> str | None:
    """Return the variable that switches the network off, or None."""
    for name in ("SIGHTLINE_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").lower() in _YES:
            return name
    return None


def cache_folder() -> Path:
    """Return where files from plain URLs are kept: ``SIGHTLINE_CACHE``, or the system's place."""
    given = os.environ.get("SIGHTLINE_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sightline"


def hub_cache() -> Path | None:
    """Return the cache of huggingface_hub where the environment names one, None for its own."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return None


def endpoint() -> str:
    """Return the hub's address: ``HF_ENDPOINT``, or Hugging Face."""
    return check_address(os.environ.get("HF_ENDPOINT") or HUGGINGFACE).rstrip("/")


def mirrors() -> list[str]:
    """Return the addresses of ``SIGHTLINE_MIRRORS`` (separated by commas or spaces), in order."""
    words = os.environ.get("SIGHTLINE_MIRRORS", "").replace(",", " ").split()
    return [check_address(word).rstrip("/") for word in words]


def check_address(url: str) -> str:
    """Return an address that may be fetched from: https, or http on this very machine.

    Raises:
        InputError: It is any other.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    local = host in {"localhost", "127.0.0.1", "::1"}
    if host and (parts.scheme == "https" or (parts.scheme == "http" and local)):
        return url
    msg = f"expected an https address, got {url[:200]!r}"
    raise InputError(msg)
