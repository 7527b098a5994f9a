"""Emoji and what they are called: 3,635 glyphs of Noto Color Emoji with their names in the Unicode CLDR.

The glyphs are under OFL, the names under the Unicode licence.

Most are compositions: five skin tones, hair, genders, professions, couples and families of several persons, flags. So
what can be asked is whether a net composes what it has seen apart; it is no test of vision.

The *base* of an emoji is its code points without skin tones, hair and signs of gender, with "person" for man and woman,
and "child" for boy and girl. The split, by sha256 as a number from 0 to 1:
    unseen bases          all emoji of a base whose hash is below 0.1
    unseen combinations   of the other bases' emoji, those whose own hash is below 0.15
    development           from there to 0.22
    training              the rest; and always one of each base, the one with the highest hash
"""

from __future__ import annotations

import hashlib
import io
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.datasets.packages import Package, fetched

FONT, FOLDER = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "usr/share/unicode/cldr/common"
GLYPHS = Package(
    "Debian",
    "fonts-noto-color-emoji",
    "2.042-0+deb12u1",
    {FONT: "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"},
)
NAMES = Package(
    "Debian",
    "unicode-cldr-core",
    "41-0.1",
    {
        f"{FOLDER}/annotations/en.xml": "170a989b9aff71fd06b9f7bbd70aa3b4a3d228e15fa734692d4fc80206e536e1",
        f"{FOLDER}/annotationsDerived/en.xml": "0fab943b22dd1197b6d6fe6ce6aec7968e925d547283484bddcf96b14daf657f",
    },
)
JOINER, VARIANT = "\u200d", "\ufe0f"
LEFT_OUT = {JOINER, VARIANT, "\u2640", "\u2642", *map(chr, range(0x1F3FB, 0x1F400)), *map(chr, range(0x1F9B0, 0x1F9B4))}
ONE_FOR_ALL = {
    "\U0001f468": "\U0001f9d1",
    "\U0001f469": "\U0001f9d1",
    "\U0001f466": "\U0001f9d2",
    "\U0001f467": "\U0001f9d2",
}


class Emoji(NamedTuple):
    codes: list[str]  # code points
    names: list[str]
    pictures: np.ndarray  # [N, size, size, 3] float32, 0..1, on grey


class Split(NamedTuple):
    train: Emoji
    development: Emoji
    combinations: Emoji
    bases: Emoji


def emoji(size: int = 32) -> Split:
    """All of them, as pictures of so many pixels. Raises: packages.Missing."""
    names = _names()
    glyphs = _glyphs(list(names))
    codes = sorted(glyphs)
    pictures = np.stack([_picture(glyphs[code], size) for code in codes])
    parts = parts_of(codes)
    chosen = ([i for i, code in enumerate(codes) if parts[code] == part] for part in Split._fields)
    return Split(*(Emoji([codes[i] for i in part], [names[codes[i]] for i in part], pictures[part]) for part in chosen))


def base(code: str) -> str:
    """What an emoji is without what it may be combined with."""
    return "".join(ONE_FOR_ALL.get(c, c) for c in code if c not in LEFT_OUT) or code


def parts_of(codes: Sequence[str]) -> dict[str, str]:
    """Which part of the split each emoji is in."""
    members = defaultdict(list)
    for code in codes:
        members[base(code)].append(code)
    found = {}
    for one, all_of in members.items():
        for code in all_of:
            place = _hash(code)
            within = "combinations" if place < 0.15 else "development" if place < 0.22 else "train"
            found[code] = "bases" if _hash(one) < 0.1 else within
        if _hash(one) >= 0.1:
            found[max(all_of, key=_hash)] = "train"
    return found


def _hash(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def _names() -> dict[str, str]:
    """Code points -> name, as it is to be read aloud."""
    folder = fetched(NAMES)
    notes = [note for path in NAMES.digests for note in ElementTree.parse(folder / path).iter("annotation")]
    return {note.attrib["cp"]: note.text or "" for note in notes if note.get("type") == "tts"}


def _glyphs(codes: Sequence[str]) -> dict[str, bytes]:
    """Code points -> PNG, of those that the font has one glyph for: its own, or what its code points are joined to."""
    from fontTools.ttLib import TTFont

    with TTFont(fetched(GLYPHS) / FONT, lazy=True) as font:
        tables = [table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable]
        starts = [start for table in tables if hasattr(table, "ligatures") for start in table.ligatures.items()]
        joined = {(first, *rest.Component): rest.LigGlyph for first, ligatures in starts for rest in ligatures}
        single, bitmaps = font.getBestCmap(), {}
        for strike in font["CBDT"].strikeData:
            bitmaps |= strike
        found = {}
        for code in codes:
            parts = tuple(single.get(ord(c)) for c in code if c != VARIANT)
            glyph = parts[0] if len(parts) == 1 else joined.get(parts)
            if glyph in bitmaps:
                found[code] = bitmaps[glyph].imageData
        return found


def _picture(png: bytes, size: int) -> np.ndarray:
    """[size, size, 3]"""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
    small = Image.alpha_composite(ground, picture).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255
