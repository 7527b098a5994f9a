"""A telephone exchange's prompts, with what is said in them: one American woman, 8,000 samples a second.

The English core sounds of Asterisk out of the Debian packages `asterisk-core-sounds-en-wav` (the recordings) and
`asterisk-core-sounds-en` (the list of what they say). Recorded by Allison Smith, with the support of Digium; their
copyright file puts them under CC-BY-SA 3.0, so what is made from them and passed on stays under it, with her name.

Of 568 recordings, 1,529 s, these are left out: tones, silence and monkeys, whose texts are remarks in brackets; those
of which the list does not tell how their numbers are read ("dial 500", "H.323"); those over `longest` seconds.
Texts are written in a to z, apostrophes and blanks: digits and signs as they are read, letters of an abbreviation
apart, remarks and punctuation dropped, four slips of the list's pen mended.

The split: `part` puts a text into one of ten by its sha256, so prompts of the same words are never on two sides.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.datasets.packages import Package, fetched

RATE = 8000
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
RECORDINGS = Package(
    "Debian",
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    {SOUNDS: "e3295e2053fa3ad8bf167b0d6c12bbeed89569a9289a134d38b8fd50ee9a55c5"},
)
TRANSCRIPTS = Package(
    "Debian",
    "asterisk-core-sounds-en",
    "1.6.1-1",
    {TEXTS: "436538195b7c7361bd227036686f1a4039f694648c76573bdaca956655d34450"},
)
SYMBOLS = " 'abcdefghijklmnopqrstuvwxyz"
DIGITS = "zero one two three four five six seven eight nine".split()
READ_AS = {"*": " star ", "#": " pound ", "www.asterisk.org": "w w w dot asterisk dot org"}
SPELT = ("PBX", "IVR", "IP", "IAX", "MGCP", "USB")  # the others, SIP say, are read as words
SLIPS = {
    "umute": "unmute",
    "represenatives": "representatives",
    "un-indentified": "unidentified",
    "witheld": "withheld",
}


class Recording(NamedTuple):
    name: str  # its path among the sounds
    text: str  # what is said, in SYMBOLS; no blank at the ends, nor two in a row
    samples: np.ndarray  # [n] float32 between -1 and 1


def recordings(longest: float = 16.0) -> list[Recording]:
    """All that are speech of known words and last no longer than that many seconds, by name. Raises: Missing."""
    sounds, texts = fetched(RECORDINGS) / SOUNDS, fetched(TRANSCRIPTS) / TEXTS
    found = []
    for line in gzip.decompress(texts.read_bytes()).decode().splitlines():
        name, colon, told = line.partition(":")
        path = sounds / f"{name}.wav"
        said = spoken(told)
        if colon and said and path.exists():
            samples = read(path)
            if len(samples) <= longest * RATE:
                found.append(Recording(name, said, samples))
    return sorted(found)


def spoken(told: str) -> str:
    """What is said, by the list; nothing where that is no speech, or not known.

    >>> spoken("  To enter H.323... "), spoken("[simple tone]"), spoken("3D audio (or USB): press *, A.M.")
    ('', '', 'three d audio press star a m')
    """
    told = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", told)
    if re.search(r"\d[\d.]*\d", told):
        return ""
    for written, read_as in READ_AS.items():
        told = told.replace(written, read_as)
    for letters in SPELT:
        told = re.sub(rf"\b{letters}\b", " ".join(letters), told)
    told = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", told).lower()
    for slip, meant in SLIPS.items():
        told = re.sub(rf"\b{slip}\b", meant, told)
    told = re.sub(r"\b([ap])\.m\.", r"\1 m", told)
    return " ".join(re.sub(r"[^a-z' ]", " ", told).split())


def part(text: str) -> int:
    """Which tenth of the texts one belongs to: 0 to 9."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def read(path: Path) -> np.ndarray:
    """The samples of a recording of one channel and 16 bits, [n] float32 between -1 and 1."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
