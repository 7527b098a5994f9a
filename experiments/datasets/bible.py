"""The same book twice: a Spanish Bible of 1909 and an English one of today, verse by verse. Both are public domain.

    training, development, test = bible.split()
    training[0] == Verse("Gen", 1, 1, spanish="EN el principio crió Dios ...", english="In the beginning, God ...")

Out of Debian's `sword-text-sparv` (Reina Valera) and `sword-text-web` (World English Bible), read by `pysword`. Both
have text for 31,077 verses. Mended: words without a space between them (English where a footnote stood in between, in
206 verses; Spanish at words that the translators added, in 13), a glossary after the last English verse. Left out:
the seven chapters that Spanish begins a verse or more before English, 181 verses.

test:         Matthew, Mark and Luke whole, since they are parallels of one another, 2,899 verses
development:  Ruth, Philippians, James and 1 John, whole too, 402 verses
training:     all other books, 27,632 verses; John and the quotations from the prophets share some sentences with the test
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from experiments.datasets.packages import Missing, Package, fetched

SPANISH = Package(
    "Debian",
    "sword-text-sparv",
    "2.60-1",
    {"usr/share/sword": "934d5bb078c8ce96c0c23f360680830054cf7dd67cc1fa7bfd6ffdd9d435bd41"},
)
ENGLISH = Package(
    "Debian",
    "sword-text-web",
    "426.0-1",
    {"usr/share/sword": "f3c9658cd7713f4b1adeff9240d5b9f668507df5c6bcb278debecb67f3df568b"},
)
TEST = ("Matt", "Mark", "Luke")
DEVELOPMENT = ("Ruth", "Phil", "Jas", "1John")
PRONOUN = "(?:l[aeo]s?|me|te|se|nos|os)"  # stays joined to its verb: crió + le
NUMBERED_OTHERWISE = {("Num", 13), ("Num", 30), ("1Sam", 24), ("Job", 39), ("Job", 40), ("Hos", 12), ("Jonah", 2)}

Place = tuple[str, int, int]  # book, chapter, verse; books by their short names, e.g. "Gen"


class Verse(NamedTuple):
    book: str
    chapter: int
    verse: int
    spanish: str
    english: str


def split() -> tuple[list[Verse], list[Verse], list[Verse]]:
    """Training, development and test verses, in the order of the book. Takes about four seconds. Raises: Missing."""
    verses = pairs()
    held_out = (*TEST, *DEVELOPMENT)
    return (
        [v for v in verses if v.book not in held_out],
        [v for v in verses if v.book in DEVELOPMENT],
        [v for v in verses if v.book in TEST],
    )


def pairs() -> list[Verse]:
    """The verses that are there in both languages, and are the same in both."""
    spanish, english = read(SPANISH), read(ENGLISH)
    return [
        Verse(*place, spanish[place], text)
        for place, text in english.items()
        if text and spanish.get(place) and place[:2] not in NUMBERED_OTHERWISE
    ]


def read(package: Package) -> dict[Place, str]:
    """Every verse of one text. Raises: Missing."""
    try:
        from pysword.modules import SwordModules
    except ImportError as error:
        raise Missing("reading the Bible needs the package pysword; pip install 'jaxrnn[experiments]'") from error
    modules = SwordModules(str(fetched(package) / "usr/share/sword"))
    (name,) = modules.parse_modules()
    bible = modules.get_bible_from_module(name)
    # A book is compressed as a whole, and pysword opens it anew for each verse of it: three minutes instead of seconds.
    bible._decompressed_text = lru_cache(maxsize=1)(bible._decompressed_text)
    found = {}
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter in range(1, book.num_chapters + 1):
                texts = bible.get_iter(books=[book.name], chapters=[chapter], clean=False)
                for verse, text in enumerate(texts, 1):
                    found[book.osis_name, chapter, verse] = _clean(bible._cleaner, text)
    return found




def _clean(cleaner: Any, marked: str) -> str:
    """A verse without its marks, and with the spaces that they stood for."""
    text = marked.partition("<chapter eID")[0]
    text = re.sub(r"(</note>|</transChange>)(?=(<[^>]*>)*\w)", r"\1 ", text)
    text = re.sub(rf"</w>(?=<transChange[^>]*>(?!{PRONOUN}<))", "</w> ", text)
    return " ".join(cleaner.clean(text).split())
