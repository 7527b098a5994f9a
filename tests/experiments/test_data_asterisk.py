"""The telephone exchange's prompts: how they are written down, and that what is fetched is what it was."""

import collections

import numpy as np
import pytest

from experiments.datasets import asterisk
from tests.experiments.program import held


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("Please press 1, or 2 to exit...", "please press one or two to exit"),
        ("[sound of monkeys screaming]", ""),
        ("<beep decending>", ""),
        ("(5 seconds of silence)", ""),
        ("dial 500 to go on", ""),
        ("H.323", ""),
        ("press * then #", "press star then pound"),
        ('IAX (note: does not say "2")', "i a x"),
        ("M I S D N", "m i s d n"),
        ("P.M.", "p m"),
        ("o'clock", "o'clock"),
        ("2 to mute or umute", "two to mute or unmute"),
        ("at [@]", "at"),
    ],
)
def test_what_is_said(told, said):
    assert asterisk.spoken(told) == said


@pytest.mark.slow
def test_the_recordings_and_their_split():
    found = held(asterisk.recordings)
    assert len(found) == 538 and len({r.text for r in found}) == 496
    assert sum(len(r.samples) for r in found) / asterisk.RATE == pytest.approx(1139.4, abs=0.1)
    assert set("".join(r.text for r in found)) == set(asterisk.SYMBOLS)
    assert all(r.text == " ".join(r.text.split()) and np.abs(r.samples).max() <= 1 for r in found)
    parts = collections.Counter(asterisk.part(r.text) for r in found)
    assert [parts[k] for k in range(10)] == [62, 53, 51, 51, 62, 48, 62, 63, 50, 36]
    assert len(asterisk.recordings(longest=8.0)) == 527
