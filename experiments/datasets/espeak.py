"""Synthetic speech with its phonemes to the sample: any number of clauses, read by the voices of eSpeak NG.

The library and its voices are those of PyPI's `espeakng-loader` 0.2.4 (eSpeak NG 1.52, GPL 3), called through ctypes:
its data is the same on all platforms, the library is known by its digest on Linux x86-64, macOS and Windows. The text
is the World English Bible, public domain, of `bible`.

The sound is not the same to the last sample everywhere, nor when it is made twice: what is pinned is the text, the
voices, and which utterance belongs to what part.

    utterance i:  clause i of 67,984 distinct ones, in a fixed random order, read by voice i mod 28
    "voices":     all of the four voices UNSEEN, none of which is heard in training: sentences unseen too
    of the others, in blocks of 28 utterances (24 that remain):
    "sentences":  every eighth; known voices, unseen sentences
    "develop":    every sixteenth, for choices that are made in training
    "train":      the rest: of 3,000 utterances 428, 312, 168 and 2,092

A made corpus is kept in the cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from rich.progress import track

from experiments.datasets import bible, sound
from experiments.datasets.packages import Missing, Package, cache, fetched

LIBRARIES = {
    ("Linux", "x86_64"): ("libespeak-ng.so", "b15ce0803b26254e8a0d088c6b9281a2637b2b02613147cc320cfdefaf2c3ccf"),
    ("Darwin", "x86_64"): ("libespeak-ng.dylib", "d6a7203a3d84c384c5932c468a4d2645b2e7c42613af4e25a621336ab4c1f02a"),
    ("Darwin", "arm64"): ("libespeak-ng.dylib", "bb635eee1ee9c456f4a5cf06fb6cb352ecdd4d61e1951743b423ef22bb57f470"),
    ("Windows", "AMD64"): ("espeak-ng.dll", "646d387acbc7ac2aa45e3625aa00a6835ae5d446ff8b0748298c3900b4dde258"),
    ("Windows", "ARM64"): ("espeak-ng.dll", "ebb4694f93506e5019197d7bf0e0f9225c4fcad90a0661870a55112de02e8ae3"),
}
VERSION = "0.2.4"  # of espeakng-loader
MAKING = 1  # to be raised when what is made of the same text and voices changes: a corpus in the cache is of one making
VOICE_DATA = "72d0f78f4165cb03c72c2f63e829ee7d44304a7763876dd8ae9293bb11342dfc"
VOICES = (  # variants of American English, of different pitches and throats
    *("f1", "m1", "Alex", "f2", "m2", "Andrea", "f3", "m3", "Andy", "f4", "m4", "Annie", "f5", "m5", "Denis", "m6"),
    *("Jacky", "m7", "Lee", "m8", "Mario", "Michael", "Reed", "adam", "anika", "linda", "steph", "zac"),
)
UNSEEN = ("f3", "m6", "Andy", "anika")
PAUSE = "_"


class Corpus(NamedTuple):
    """N utterances. Labels are numbers: `labels[k]` is eSpeak's name of phoneme k without its stress, 0 a pause."""

    frames: list[np.ndarray]  # [n_i, bands] float32: log-mel energies, see `sound.log_mel`
    phonemes: list[np.ndarray]  # [L_i] int32: what is said, without pauses
    alignment: list[np.ndarray]  # [n_i] int32: the phoneme in the middle of each frame
    voice: np.ndarray  # [N] int32: which of `voices`
    text: list[str]
    labels: tuple[str, ...]
    voices: tuple[str, ...]

    def of(self, members: np.ndarray) -> Corpus:
        """These utterances alone."""
        chosen = ([field[i] for i in members] for field in (self.frames, self.phonemes, self.alignment, self.text))
        frames, phonemes, alignment, text = chosen
        return self._replace(
            frames=frames, phonemes=phonemes, alignment=alignment, text=text, voice=self.voice[members]
        )


def split(corpus: Corpus) -> dict[str, Corpus]:
    """ "train", "develop", "sentences" and "voices", as written above. Raises: ValueError where one has nothing."""
    number = np.arange(len(corpus.text))
    block = number // len(corpus.voices)
    unseen = np.isin(corpus.voice, [corpus.voices.index(name) for name in UNSEEN])
    sentences, develop = block % 8 == 7, block % 16 == 3
    parts = {"train": ~sentences & ~develop, "develop": develop, "sentences": sentences}
    parts = {name: part & ~unseen for name, part in parts.items()} | {"voices": unseen}
    if empty := [name for name, part in parts.items() if not part.any()]:
        raise ValueError(f"{len(number)} utterances leave nothing for {' and '.join(empty)}; make at least 225")
    return {name: corpus.of(np.flatnonzero(part)) for name, part in parts.items()}


def utterances(
    count: int = 3000,
    *,
    bands: int = 40,
    high: float = 8000.0,
    hop: float = sound.HOP,
    window: float = sound.WINDOW,
) -> Corpus:
    """The first `count` utterances, some 1.4 s each; in 15 seconds for 3,000 where they are not in the cache.

    bands, high, hop, window: see `sound.log_mel`. A larger corpus begins with a smaller one's clauses and voices, but
    numbers its labels by itself. Raises: Missing; ValueError for more than there are clauses.
    """
    made_of = (VERSION, VOICE_DATA, VOICES, MAKING, count, bands, high, hop, window)
    kept = cache() / f"espeak-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.npz"
    if (found := _kept(kept)) is None:
        texts = clauses(count)
        frames, spans = [], []
        for i in track(range(count), f"{count:,} utterances are made", transient=True):
            samples, rate, said = speak(texts[i], VOICES[i % len(VOICES)])
            frames.append(sound.log_mel(samples, rate, bands=bands, high=high, hop=hop, window=window))
            spans.append([(start / rate, name) for start, name in said])
        _keep(kept, _labelled(texts, frames, spans, hop, window))
        found = _kept(kept)
    return found


@functools.cache
def every_clause() -> list[str]:
    """Distinct clauses of two to seven words, in a fixed random order, in small letters."""
    text = " ".join(bible.read(bible.ENGLISH).values()).replace("’", "'")
    found: dict[str, None] = {}  # in order, each once
    for piece in re.split(r"[^A-Za-z' ]+", text):
        words = [word.strip("'") for word in piece.lower().split()]
        if 2 <= len(words) <= 7:
            found[" ".join(words)] = None
    clauses = list(found)
    return [clauses[i] for i in np.random.default_rng(0).permutation(len(clauses))]


def clauses(count: int) -> list[str]:
    """The first `count` of them. Raises: Missing, and ValueError where there are fewer."""
    if count > len(every_clause()):
        raise ValueError(f"clauses: there are {len(every_clause()):,}, got count={count}")
    return every_clause()[:count]


def speak(text: str, voice: str) -> tuple[np.ndarray, int, list[tuple[int, str]]]:
    """(samples int16 [n], their rate, (first sample, phoneme) of all that is said, in order).

    The pause after it is cut off. Stress is no part of a phoneme's name, and all pauses are one.
    """
    samples, rate, events = _library()(text, f"en-us+{voice}")
    said = [(start, PAUSE if name.startswith(PAUSE) else name.lstrip("',%=")) for start, name in events]
    end = len(samples)
    while said and said[-1][1] == PAUSE:
        end, _ = said.pop()
        samples = samples[: end + rate // 20]
    return samples, rate, [*said, (end, PAUSE)]


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of eSpeak's speak_lib.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("type", "unique", "text", "length", "milliseconds", "sample")]
    _fields_ += [("user", ctypes.c_void_p), ("id", _Id)]


@functools.cache
def _library():
    """(text, voice) -> (samples, rate, [(sample, phoneme)]). One per process: eSpeak's state is the library's own."""
    known = LIBRARIES.get((platform.system(), platform.machine()))
    if known is None:
        raise Missing(f"eSpeak's library is not known for {platform.system()} on {platform.machine()}")
    name, digest = known
    files = {f"espeakng_loader/{name}": digest, "espeakng_loader/espeak-ng-data": VOICE_DATA}
    folder = fetched(Package("PyPI", "espeakng-loader", VERSION, files)) / "espeakng_loader"
    try:
        library = ctypes.CDLL(str(folder / name))
    except OSError as error:
        raise Missing(f"eSpeak's library cannot be loaded: {error}") from error
    pieces: list[np.ndarray] = []
    events: list[tuple[int, str]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    def collect(samples, count, event):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for at in _until_terminated(event):
            if at.type == 7:  # espeakEVENT_PHONEME
                events.append((at.sample, at.id.string.decode()))
        return 0

    synchronous, with_phonemes, no_exit, utf8 = 2, 1, 1 << 15, 1  # as speak_lib.h numbers them
    rate = library.espeak_Initialize(synchronous, 0, os.fsencode(folder / "espeak-ng-data"), with_phonemes | no_exit)
    if rate <= 0:
        raise Missing(f"eSpeak does not start on its data in {folder}")
    library.espeak_SetSynthCallback(collect)

    def say(text: str, voice: str, kept: object = collect) -> tuple[np.ndarray, int, list[tuple[int, str]]]:
        del kept  # what C calls must stay alive as long as this
        pieces.clear()
        events.clear()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"speak: eSpeak knows no voice {voice!r}")
        said = text.encode()
        library.espeak_Synth(said, ctypes.c_size_t(len(said) + 1), 0, 1, 0, utf8, None, None)
        return np.concatenate(pieces), rate, list(events)

    return say


def _until_terminated(event) -> Iterator[_Event]:
    i = 0
    while event[i].type != 0:
        yield event[i]
        i += 1


def _labelled(texts: list[str], frames: list[np.ndarray], spans: list, hop: float, window: float) -> Corpus:
    """Phonemes as numbers, and the one in the middle of each frame."""
    names = (PAUSE, *sorted({name for said in spans for _, name in said} - {PAUSE}))
    number = {name: k for k, name in enumerate(names)}
    phonemes, alignment = [], []
    for xs, said in zip(frames, spans, strict=True):
        starts, ks = [start for start, _ in said], np.array([number[name] for _, name in said], np.int32)
        phonemes.append(ks[ks != 0])
        at = np.searchsorted(starts, sound.centres(len(xs), hop=hop, window=window), side="right") - 1
        alignment.append(ks[np.maximum(at, 0)])
    voice = np.arange(len(texts), dtype=np.int32) % len(VOICES)
    return Corpus(frames, phonemes, alignment, voice, texts, names, VOICES)


def _keep(path: Path, corpus: Corpus) -> None:
    """Written whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(corpus, name) for name in ("frames", "phonemes", "alignment")}
    arrays = {name: np.concatenate(field) for name, field in fields.items()}
    arrays |= {f"{name}_lengths": np.array([len(a) for a in field]) for name, field in fields.items()}
    with draft.open("wb") as file:
        np.savez(file, voice=corpus.voice, text=corpus.text, labels=corpus.labels, voices=corpus.voices, **arrays)
    draft.replace(path)


def _kept(path: Path) -> Corpus | None:
    """The corpus in a file; None where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read(opened: BinaryIO) -> Corpus:
    with np.load(opened) as file:
        cut = lambda name: np.split(file[name], np.cumsum(file[f"{name}_lengths"])[:-1])
        lists = {name: cut(name) for name in ("frames", "phonemes", "alignment")}
        words = {name: file[name].tolist() for name in ("text", "labels", "voices")}
        return Corpus(
            **lists,
            voice=file["voice"],
            text=words["text"],
            labels=tuple(words["labels"]),
            voices=tuple(words["voices"]),
        )
