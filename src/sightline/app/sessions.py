"""Who is who: users are told apart by keys that the server signs, and remembers nothing of.

A key is the user's id with its signature. Browsers hold it in a cookie, programs send it in a
header. The secret lies below the root folder, so that keys outlive the server.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from sightline.io.atomic import atomic_write_bytes

KEY_COOKIE, TOKEN_COOKIE = "sightline_key", "sightline_token"
KEY_HEADER, TOKEN_HEADER = "x-sightline-key", "x-sightline-token"
_KEY = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{64})")


class Sessions:
    """Makes and reads keys."""

    def __init__(self, folder: Path) -> None:
        """Read the secret in a folder, or make one."""
        self._secret = _private(folder / "secret")
        self.home = _private(folder / "owner")[:16].hex()
        """The user who starts the server: the same one every time."""

    def new_key(self) -> str:
        """Return the key of a new user."""
        return self.key_of(secrets.token_hex(16))

    def key_of(self, owner: str) -> str:
        """Return the key of a user."""
        signature = hmac.new(self._secret, owner.encode(), hashlib.sha256).hexdigest()
        return f"{owner}.{signature}"

    def owner_of(self, key: str | None) -> str | None:
        """Return whose key it is, or None if the server has not signed it."""
        match = _KEY.fullmatch(key or "")
        if match is None:
            return None
        return match[1] if hmac.compare_digest(self.key_of(match[1]), match[0]) else None


def _private(file: Path) -> bytes:
    """Return 32 random bytes that are kept in a file for its owner's eyes only."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        content = b""
    if len(content) != 32:
        content = secrets.token_bytes(32)
        atomic_write_bytes(file, content)
        file.chmod(0o600)
    return content


def same(given: str | None, wanted: str) -> bool:
    """Compare a secret in a time that does not tell how much of it was right."""
    return hmac.compare_digest((given or "").encode(errors="replace"), wanted.encode())
