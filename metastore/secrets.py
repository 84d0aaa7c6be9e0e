"""Encryption of secrets, under keys that never live in the database.

A secret is sealed with AES-256-GCM and a fresh nonce. What identifies its place (the key it is
stored under, the row's version, its type) is authenticated with it, so that a ciphertext that
is moved to another row, or kept from an earlier version, does not open.

The keys come from the environment: `METASTORE_SECRET_KEYS` holds them, the newest first, or
`METASTORE_SECRET_KEY_FILE` names a file that does, readable by its owner alone. The newest key
seals, each of them opens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, NoReturn

from metastore.errors import SecretKeyUnavailable, SecretRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["KEYS_VARIABLE", "KEY_FILE_VARIABLE", "Keyring", "generate_key", "keyring"]

KEYS_VARIABLE = "METASTORE_SECRET_KEYS"
KEY_FILE_VARIABLE = "METASTORE_SECRET_KEY_FILE"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_KEY_FILE = 1 << 16


class Keyring:
    """The keys, the newest first. Neither its repr nor its pickle gives them away."""

    __slots__ = ("_keys", "newest")

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = {_fingerprint(key): key for key in keys}
        self.newest = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(self._keys)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")

    def seal(self, plaintext: str, place: Iterable[str]) -> str:
        """Encrypt `plaintext` for `place` under the newest key.

        Raises:
            SecretKeyUnavailable: `cryptography` is not installed.
        """
        nonce = os.urandom(_NONCE_BYTES)
        aes = _cipher(self._keys[self.newest])
        sealed = aes.encrypt(nonce, plaintext.encode(), _associated(place))
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, key_id: str, place: Iterable[str]) -> str:
        """Decrypt what was sealed for `place` under the key `key_id`.

        Raises:
            SecretKeyUnavailable: the key is not among these, or `cryptography` is not installed.
            SecretRejected: it was not sealed for this place under this key, or was altered.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise SecretKeyUnavailable(
                f"a secret is encrypted under key {key_id}, which is not among the keys given",
                key_id=key_id,
            )
        plaintext = _decrypt(key, sealed, _associated(place))
        if plaintext is None:
            # Outside of the handler, so that no cause holds what was to be decrypted.
            raise SecretRejected(key_id)
        return plaintext.decode()


def keyring(environment: Mapping[str, str] = os.environ) -> Keyring:
    """Return the keys that the environment gives.

    Raises:
        SecretKeyUnavailable: it gives none, or one that is malformed, or a file that others may
            read.
    """
    keys, path = environment.get(KEYS_VARIABLE), environment.get(KEY_FILE_VARIABLE)
    if keys and path:
        raise SecretKeyUnavailable(f"both {KEYS_VARIABLE} and {KEY_FILE_VARIABLE} are set")
    if path:
        return _parsed(_read_key_file(path), KEY_FILE_VARIABLE)
    if keys:
        return _parsed(keys, KEYS_VARIABLE)
    raise SecretKeyUnavailable(
        f"secrets need a key: set {KEYS_VARIABLE}, or {KEY_FILE_VARIABLE} to a file of mode 0600; "
        "`metastore config generate-key` makes one"
    )


def generate_key() -> str:
    """Return a fresh key as the environment takes it."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


def _parsed(text: str, source: str) -> Keyring:
    words = re.sub(r"(?m)^\s*#.*$", "", text).replace(",", " ").split()
    keys = [_key(word) for word in words]
    found = [key for key in keys if key is not None]
    if not found or len(found) != len(keys):
        raise SecretKeyUnavailable(
            f"{source} must hold keys of {_KEY_BYTES} bytes in base64 or hex, the newest first"
        )
    return Keyring(found)


def _key(text: str) -> bytes | None:
    try:
        if re.fullmatch(r"[0-9a-fA-F]{64}", text):
            return bytes.fromhex(text)
        padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        key = base64.b64decode(padded.translate({45: "+", 95: "/"}), validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == _KEY_BYTES else None


def _read_key_file(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretKeyUnavailable(f"{KEY_FILE_VARIABLE}: {path}: {error.strerror}") from None
    try:
        # Of the open file, so that nothing can be put in its place in between.
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise SecretKeyUnavailable(f"{KEY_FILE_VARIABLE}: {path} is no file")
        if mode & ~0o600:
            raise SecretKeyUnavailable(
                f"{KEY_FILE_VARIABLE}: {path} has mode {mode:04o}, others may get at the keys: "
                "run chmod 600"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise SecretKeyUnavailable(f"{KEY_FILE_VARIABLE}: {path} belongs to another user")
        return os.read(descriptor, _MAX_KEY_FILE).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"metastore secret key\0" + key).hexdigest()[:16]


def _associated(place: Iterable[str]) -> bytes:
    # With lengths, so that no two places read the same.
    return b"".join(b"%d:%s," % (len(part), part) for part in map(str.encode, place))


def _decrypt(key: bytes, sealed: str, associated: bytes) -> bytes | None:
    aes = _cipher(key)
    from cryptography.exceptions import InvalidTag

    try:
        raw = base64.b64decode(sealed, validate=True)
        return aes.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        return None


if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SecretKeyUnavailable(
            "secrets need the package cryptography: pip install 'metastore[secrets]'"
        ) from None
    return AESGCM(key)
