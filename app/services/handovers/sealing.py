"""Encrypts what claims hand over while it is in the database: AES-256-GCM, with a key of its own for each row.

A row's key is encrypted by one of the operator's keys and kept beside the data. The claim's id is authenticated with both, so that
the data of one claim cannot be put into another's row. A sealed value is: a version (1 byte), the operator's key (8 bytes of its
SHA-256), and twice a nonce (12 bytes) with what it encrypts: the row's key (48 bytes), and the data.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.config import KEY_BYTES
from app.errors import EmberpoolError, InvalidRequest

_VERSION: Final = b"\x01"
_NAME: Final = slice(1, 9)
_NONCE: Final = 12
_WRAPPED: Final = KEY_BYTES + 16  # with its tag
_REST: Final = 9 + _NONCE + _WRAPPED


class Unreadable(EmberpoolError, code="handover-unreadable", title="What the claim hands over cannot be decrypted"): ...


class Sealer:
    """`keys`: the operator's, the one that encrypts first. Without any, nothing can be sealed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {hashlib.sha256(key).digest()[:8]: AESGCM(key) for key in keys}

    def require(self) -> None:
        """Raises InvalidRequest where there is no key."""
        if not self._keys:
            raise InvalidRequest.of_field(
                "handover.data",
                "the service has no key to keep data with: its operator has to set EMBERPOOL_HANDOVER_KEY",
            )

    def seal(self, data: bytes, claim_id: UUID) -> bytes:
        """Raises InvalidRequest where there is no key."""
        self.require()
        name, outer = next(iter(self._keys.items()))
        key, first, second = AESGCM.generate_key(8 * KEY_BYTES), os.urandom(_NONCE), os.urandom(_NONCE)
        wrapped = outer.encrypt(first, key, claim_id.bytes)
        return b"".join((_VERSION, name, first, wrapped, second, AESGCM(key).encrypt(second, data, claim_id.bytes)))

    def open(self, sealed: bytes, claim_id: UUID) -> bytes:
        """Raises Unreadable."""
        outer = self._keys.get(sealed[_NAME])
        if outer is None or sealed[:1] != _VERSION:
            raise Unreadable(
                "it was encrypted with a key that this process does not have: keep former keys in EMBERPOOL_HANDOVER_KEY until "
                "the claims that were made with them have their VMs"
            )
        try:
            key = outer.decrypt(sealed[9 : 9 + _NONCE], sealed[9 + _NONCE : _REST], claim_id.bytes)
            return AESGCM(key).decrypt(sealed[_REST : _REST + _NONCE], sealed[_REST + _NONCE :], claim_id.bytes)
        except InvalidTag as error:
            raise Unreadable("it is not what was written for this claim") from error
