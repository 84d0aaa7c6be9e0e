"""Encryption of secrets, under keys that never live in the database.

A secret is sealed with AES-256-GCM and a fresh nonce. Its place (the setting's key, the row's
version and incarnation, its type) is authenticated with it, so that a ciphertext moved to another
row, or kept from an earlier version, does not open.

Error reporters show the variables of every frame. So plaintexts and keys travel in a `Secret`,
which never prints its value, and are unwrapped only in expressions that no variable refers to.

The keys come from the environment: `METASTORE_SECRET_KEYS` holds them, the newest first, or
`METASTORE_SECRET_KEY_FILE` names a file that does, readable by its owner only. The newest key
seals, all of them open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from metastore.errors import SecretKeyUnavailable, SecretRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import SupportsIndex

__all__ = ["KEYS_VARIABLE", "KEY_FILE_VARIABLE", "Keyring", "Secret", "generate_key", "keyring"]

Value = TypeVar("Value")

KEYS_VARIABLE = "METASTORE_SECRET_KEYS"
KEY_FILE_VARIABLE = "METASTORE_SECRET_KEY_FILE"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_KEY_FILE = 1 << 16


class Secret(Generic[Value]):
    """A value that cannot be printed, formatted, pickled or copied.

    `reveal` returns it. Use the result in place: a variable would appear in the next traceback.
    """

    __slots__ = ("_value",)

    def __init__(self, value: Value) -> None:
        self._value = value

    def reveal(self) -> Value:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return "<Secret>"

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied")


class Keyring:
    """The keys, the newest first. They appear in neither its repr nor a pickle."""

    __slots__ = ("_keys", "newest")

    def __init__(self, keys: Iterable[Secret[bytes]]) -> None:
        self._keys = {_fingerprint(key): key for key in keys}
        self.newest = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(self._keys)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def seal(self, plaintext: Secret[str], place: Iterable[str]) -> str:
        """Encrypt `plaintext` for `place` under the newest key.

        Raises:
            SecretKeyUnavailable: `cryptography` is not installed.
        """
        nonce = os.urandom(_NONCE_BYTES)
        aes = _cipher(self._keys[self.newest])
        sealed = aes.encrypt(nonce, plaintext.reveal().encode(), _associated(place))
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, key_id: str, place: Iterable[str]) -> Secret[str]:
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
            # Outside the handler, so that no cause holds the ciphertext.
            raise SecretRejected(key_id)
        return plaintext


def keyring(environment: Mapping[str, str] | None = None) -> Keyring:
    """Return the keys from the environment, by default that of this process.

    Raises:
        SecretKeyUnavailable: there is none, one is malformed, or others may read the file.
    """
    keys, path = _settings(os.environ if environment is None else environment)
    del environment
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


def _settings(environment: Mapping[str, str]) -> list[Secret[str] | None]:
    """Return the keys, and the path of a key file, which may itself be a key set by mistake."""
    found = [environment.get(name) for name in (KEYS_VARIABLE, KEY_FILE_VARIABLE)]
    return [Secret(text) if text else None for text in found]


def generate_key() -> str:
    """Return a new key in the format of the environment variable."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


def _parsed(text: Secret[str], source: str) -> Keyring:
    keys = _keys(text)
    if not keys:
        raise SecretKeyUnavailable(
            f"{source} must hold keys of {_KEY_BYTES} bytes in base64 or hex, the newest first"
        )
    return Keyring(keys)


def _keys(text: Secret[str]) -> list[Secret[bytes]]:
    """Parse the keys; an empty list if one of them is malformed."""
    words = re.sub(r"(?m)^\s*#.*$", "", text.reveal()).replace(",", " ").split()
    keys = [_key(word) for word in words]
    return [] if None in keys else [Secret(key) for key in keys if key is not None]


def _key(text: str) -> bytes | None:
    try:
        if re.fullmatch(r"[0-9a-fA-F]{64}", text):
            return bytes.fromhex(text)
        padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        key = base64.b64decode(padded.translate({45: "+", 95: "/"}), validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == _KEY_BYTES else None


def _read_key_file(path: Secret[str]) -> Secret[str]:
    # No message names the path: it may be a key set by mistake.
    descriptor, reason = _opened(path)
    if descriptor is None:
        raise SecretKeyUnavailable(f"the file that {KEY_FILE_VARIABLE} names: {reason}")
    try:
        # Of the open file, so that it cannot be swapped in between.
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise SecretKeyUnavailable(f"{KEY_FILE_VARIABLE} does not name a regular file")
        if mode & ~0o600:
            raise SecretKeyUnavailable(
                f"the file that {KEY_FILE_VARIABLE} names has mode {mode:04o}, so others can "
                "read the keys: run chmod 600"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise SecretKeyUnavailable(
                f"the file that {KEY_FILE_VARIABLE} names belongs to another user"
            )
        return Secret(os.read(descriptor, _MAX_KEY_FILE).decode("ascii", "replace"))
    finally:
        os.close(descriptor)


def _opened(path: Secret[str]) -> tuple[int | None, str]:
    """Return a descriptor of a file, or why it cannot be opened: the error would name the path."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(path.reveal(), flags), ""
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except ValueError:
        reason = "it has a malformed name"
    if _keys(path):
        reason = f"it is a key, not a path; set {KEYS_VARIABLE} to it"
    return None, reason


def _fingerprint(key: Secret[bytes]) -> str:
    return hashlib.sha256(b"metastore secret key\0" + key.reveal()).hexdigest()[:16]


def _associated(place: Iterable[str]) -> bytes:
    # With lengths, so that no two places read the same.
    return b"".join(b"%d:%s," % (len(part), part) for part in map(str.encode, place))


def _decrypt(key: Secret[bytes], sealed: str, associated: bytes) -> Secret[str] | None:
    aes = _cipher(key)
    from cryptography.exceptions import InvalidTag

    try:
        raw = base64.b64decode(sealed, validate=True)
        return Secret(aes.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], associated).decode())
    except (InvalidTag, ValueError):
        return None


if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def _cipher(key: Secret[bytes]) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SecretKeyUnavailable(
            "secrets need the package cryptography: pip install 'metastore[secrets]'"
        ) from None
    return AESGCM(key.reveal())
