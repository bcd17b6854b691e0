"""Digests of private data under a key, so that no one without the key can test a guess of the data.

The digest of a set of one row with a four-digit number tells the number to whoever tries all ten thousand. So digests of
sets leave this process only as HMAC-SHA256:

- In what is made to be shared (masks, adapters), under the key in the environment variable `WAGLE_DIGEST_KEY`; without the
  variable they hold none. Whoever has the key and the set can prove that they belong together.
- In checkpoints, where a resumed run compares its data, under the same key, or else under a random one that lies in the
  output folder, outside the checkpoint: `_digest_key`. Trainer uploads no file whose name begins with an underscore.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

KEY_VARIABLE = "WAGLE_DIGEST_KEY"
KEY_NAME = "_digest_key"
SHORTEST = 16  # characters; shorter keys can be guessed as the data can
_PREFIX = "hmac-sha256"


def users_key() -> bytes | None:
    """The key in `WAGLE_DIGEST_KEY`, if it is set.

    Raises:
        ValueError: it is short.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return None
    if len(key) < SHORTEST:
        raise ValueError(
            f"{KEY_VARIABLE} has {len(key)} characters and can be guessed: take at least {SHORTEST} random ones, such as "
            "what `openssl rand -hex 32` prints."
        )
    return key.encode()


def folder_key(folder: str | os.PathLike[str]) -> bytes | None:
    """The key that lies in an output folder, if there is one."""
    try:
        key = Path(folder, KEY_NAME).read_bytes().strip()
    except OSError:
        return None
    return key if len(key) >= SHORTEST else None


def make_folder_key(folder: str | os.PathLike[str]) -> bytes:
    """The key of an output folder; a random one, readable by its user alone, is made if there is none."""
    found = folder_key(folder)
    if found is not None:
        return found
    path, key = Path(folder, KEY_NAME), secrets.token_hex(32).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a damaged one
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    return key


def sealed(digest: str, key: bytes) -> str:
    """A digest under a key: "hmac-sha256:ID OF THE KEY:HEX"."""
    return f"{_PREFIX}:{_identity(key)}:{hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()}"


def shareable(digest: str | None) -> str | None:
    """A digest as masks and adapters may hold it: under the user's key, or None without one."""
    key = users_key()
    return None if key is None or digest is None else sealed(digest, key)


def is_of(recorded: str, digest: str, keys: Sequence[bytes]) -> bool | None:
    """Whether a recorded digest is the one of this data; None where none of the keys is the one that it was made with.

    Args:
        recorded: what `sealed` made, or a plain digest, as files of older versions have it.
        digest: of the data.
        keys: that may be the one.
    """
    if not recorded.startswith(f"{_PREFIX}:"):
        return recorded == digest
    key = next((key for key in keys if recorded.startswith(f"{_PREFIX}:{_identity(key)}:")), None)
    return None if key is None else hmac.compare_digest(recorded, sealed(digest, key))


def _identity(key: bytes) -> str:
    """What tells keys apart, and tells nothing about them."""
    return hmac.new(key, b"identity", hashlib.sha256).hexdigest()[:16]
