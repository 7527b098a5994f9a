"""Emoji: what their bases are, that the split keeps its word, and that the packages are those of the day."""

import numpy as np
import pytest

from experiments.datasets import emoji
from tests.experiments.program import held

JOINER, MAN, WOMAN, PERSON, DARK, LIGHT = "\u200d", "\U0001f468", "\U0001f469", "\U0001f9d1", "\U0001f3ff", "\U0001f3fb"


def test_a_base_is_what_is_left_without_modifiers():
    cook = "\U0001f373"
    assert emoji.base(MAN + DARK + JOINER + cook) == emoji.base(WOMAN + JOINER + cook) == PERSON + cook
    assert emoji.base("\U0001f3c4" + LIGHT + JOINER + "\u2640\ufe0f") == "\U0001f3c4"
    assert emoji.base(MAN + DARK + JOINER + "\U0001f9b0") == emoji.base(WOMAN) == PERSON
    assert emoji.base("\U0001f1e8\U0001f1fe") == "\U0001f1e8\U0001f1fe" and emoji.base(LIGHT) == LIGHT


def test_the_split_keeps_bases_apart():
    codes = [
        base + tone for base in map(chr, range(0x1F466, 0x1F4A0)) for tone in ("", *map(chr, range(0x1F3FB, 0x1F400)))
    ]
    parts = emoji.parts_of(codes)
    of = {part: {emoji.base(code) for code in codes if parts[code] == part} for part in emoji.Split._fields}
    assert all(of.values()) and not of["bases"] & (of["train"] | of["combinations"] | of["development"])
    assert of["combinations"] | of["development"] <= of["train"]
    assert emoji.parts_of(codes[::-1]) == parts


@pytest.mark.slow
def test_the_packages_hold_what_they_held():
    data = held(lambda: emoji.emoji(16))
    assert [len(part.names) for part in data] == [2830, 147, 271, 387]
    assert data.train.pictures.shape == (2830, 16, 16, 3) and data.train.pictures.dtype == np.float32
    named = {code: name for part in data for code, name in zip(part.codes, part.names, strict=True)}
    assert named[WOMAN + LIGHT + JOINER + "\U0001f692"] == "woman firefighter: light skin tone"
    assert named["\U0001f1e8\U0001f1fe"] == "flag: Cyprus"
