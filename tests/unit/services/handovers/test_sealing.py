"""Encryption of what claims hand over: what opens it, and what does not."""

import os
from uuid import UUID

import pytest

from app.errors import InvalidRequest
from app.services.handovers.sealing import Sealer, Unreadable

OLD, NEW = os.urandom(32), os.urandom(32)
CLAIM, OTHER = UUID(int=1), UUID(int=2)
DATA = b'{"token": "correct-horse"}'


def test_what_was_sealed_is_opened_for_the_same_claim_alone():
    sealed = Sealer([NEW]).seal(DATA, CLAIM)
    assert b"correct" not in sealed
    assert Sealer([NEW]).open(sealed, CLAIM) == DATA
    with pytest.raises(Unreadable, match="not what was written for this claim"):
        Sealer([NEW]).open(sealed, OTHER)


def test_the_same_data_is_never_sealed_to_the_same_bytes():
    sealer = Sealer([NEW])
    assert sealer.seal(DATA, CLAIM) != sealer.seal(DATA, CLAIM)


def test_a_former_key_opens_and_the_first_one_seals():
    before = Sealer([OLD]).seal(DATA, CLAIM)
    both = Sealer([NEW, OLD])
    assert both.open(before, CLAIM) == DATA
    assert Sealer([NEW]).open(both.seal(DATA, CLAIM), CLAIM) == DATA
    with pytest.raises(Unreadable, match="keep former keys"):
        Sealer([NEW]).open(before, CLAIM)


@pytest.mark.parametrize("place", [0, 5, 25, -1])
def test_a_byte_that_was_changed_makes_it_unreadable(place):
    sealed = bytearray(Sealer([NEW]).seal(DATA, CLAIM))
    sealed[place] ^= 1
    with pytest.raises(Unreadable):
        Sealer([NEW]).open(bytes(sealed), CLAIM)


def test_without_a_key_nothing_is_sealed():
    with pytest.raises(InvalidRequest, match="EMBERPOOL_HANDOVER_KEY"):
        Sealer([]).seal(DATA, CLAIM)
