"""The two Bibles: their digests still fit, the split is the one written down, and no words are glued together."""

import re

import pytest

from experiments.datasets import bible
from tests.experiments.program import held


def loaded():
    return held(bible.split)


@pytest.mark.slow
def test_the_split_and_the_mended_verses():
    training, development, test = loaded()
    assert [len(part) for part in (training, development, test)] == [27632, 402, 2899]
    assert {v.book for v in test} == {"Matt", "Mark", "Luke"}
    assert not {v.book for v in training} & {v.book for v in development + test}
    verses = {v[:3]: v for v in training + development + test}
    assert verses["Gen", 1, 1].spanish == "EN el principio crió Dios los cielos y la tierra."
    assert verses["Gen", 1, 1].english == "In the beginning, God created the heavens and the earth."
    assert "ejército se llamaba Sísara" in verses["Judg", 4, 2].spanish
    assert "díjole Dios" in verses["1Kgs", 3, 5].spanish
    assert verses["Rev", 22, 21].english == "The grace of the Lord Jesus Christ be with all the saints. Amen."
    for verse in verses.values():
        for text in (verse.spanish, verse.english):
            assert not re.search(r"[<>]|[a-zà-ÿ][A-ZÀ-Þ]|\w[,.;:!?]\w|  |^ | $", text), verse
