"""Signatures on checkpoints, with a key that is replaced each time.

A signature is Ed25519 over the digest and the public key of the next signature. The next private
key is derived from this one, which is then destroyed: an attacker who gets the key file can sign
later checkpoints, but no earlier ones. Verification needs only the first public key.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from metastore.audit.links import encode
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Signature", "Signer", "generate", "is_signed"]


class Signature(NamedTuple):
    """The signature of a checkpoint and the public key of the next one, in hexadecimal."""

    next_key: str
    signature: str


class Signer:
    """Signs digests with the key of a file, which only this user can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"<Signer with the key of {self._path}>"

    def sign(self, digest: str) -> Signature:
        """Sign a digest. The key stays until `advance`.

        Raises:
            InvalidValue: the file holds no key, or others may read it; the package cryptography
                is not installed.
        """
        seed = self._read()
        next_key = _public(_key(_next(seed)))
        return Signature(next_key, _key(seed).sign(_message(digest, next_key)).hex())

    def advance(self, signed: Signature) -> None:
        """Replace the key with the one that a signature names, and destroy it.

        A crash before leaves the old key: the next checkpoint repeats this before it signs.
        """
        following = _next(self._read())
        if _public(_key(following)) == signed.next_key:
            _write(self._path, following)

    def _read(self) -> bytes:
        if self._path.stat().st_mode & 0o077:
            raise InvalidValue(
                None, "signing key", f"may be read by others: chmod 600 {self._path}"
            )
        with contextlib.suppress(ValueError):
            seed = bytes.fromhex(self._path.read_text("ascii").strip())
            if len(seed) == 32:
                return seed
        # The message leaves out the content: it may be a secret anyway.
        raise InvalidValue(None, "signing key", f"{self._path} holds none")


def generate(path: Path) -> str:
    """Write a new signing key to a new file, and return its public key.

    Raises:
        FileExistsError: there is a file already.
        InvalidValue: the package cryptography is not installed.
    """
    seed = os.urandom(32)
    public = _public(_key(seed))
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(seed.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return public


def is_signed(public_key: str, digest: str, next_key: str, signature: str) -> bool:
    """Return whether a signature is by the private key of `public_key`.

    Raises:
        InvalidValue: the package cryptography is not installed.
    """
    _require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), _message(digest, next_key))
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(digest: str, next_key: str) -> bytes:
    return encode("metastore signature 1", digest, next_key)


def _key(seed: bytes) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_derived(seed, "metastore signing key"))


def _next(seed: bytes) -> bytes:
    return _derived(seed, "metastore next seed")


def _derived(seed: bytes, purpose: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(seed)


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InvalidValue(
            None,
            "signing key",
            "needs the package cryptography: pip install 'metastore[secrets]'",
        ) from None


def _write(path: Path, seed: bytes) -> None:
    """Replace the key file, and overwrite the old content as far as the disk allows."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with path.open("r+b") as old:
        size = os.fstat(old.fileno()).st_size
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(seed.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        old.write(b"0" * size)
        old.flush()
        os.fsync(old.fileno())
