"""Spelling to sound: how an English word is spoken, by an encoder that reads it from both ends and a decoder.

Learns from 110,683 words of the dictionary of Carnegie Mellon University and says 12,756 others, phoneme by phoneme:
the decoder looks at the letters as it goes ("attention"), and a beam search follows the likeliest ways to go on.
Beside it stand a decision tree over a window of letters, trained in the same run on the same words, and what others
have published.

    python -m experiments.g2p                                                        five minutes
    python -m experiments.g2p --minutes 60 --size 192 --dropout 0.2 --run runs/g2p_60

Writes results.json, spoken.csv (every test word), curve.png and attention.png. Stopped by Ctrl-C or kill -9, the same
command goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from rapidfuzz.distance import Levenshtein
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, letter_trees, training
from experiments.datasets import cmudict
from experiments.seq2seq import END, Translator, draw_attention, written

PER_MINUTE = 1200  # training steps of 1,024 symbols, of a net of size 96
BOUNDS = (8, 11, 20)  # words are padded to one of these numbers of letters, or phonemes with their end
PUBLISHED = "attention, published (about)"  # Toshniwal and Livescu 2016; Yao and Zweig 2015 in the same range
SHOWN = ("champagne", "mechanism", "rhythm", "schedule")


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    cell: harness.CellName = "gru"  # Recurrent cell of the encoder and the decoder.
    learning_rate: float = 4e-3  # Adam's peak rate, after a warm-up and before a cosine decay.
    minutes: float = 5.0  # Of training, on two cores as the README's were: it sets how many steps are done.
    size: int = 96  # Hidden units of the encoder, in each direction; the decoder has twice as many.
    embedding: int = 64  # Features per letter and phoneme.
    dropout: float = 0.0  # Share dropped in training, of the encoder's outputs and before the softmax.
    tokens: int = 1024  # Letters per training step.
    width: int = 4  # Ways followed by the beam search.
    most: int | None = None  # Learn from and say only so many words.
    run: str = "runs/g2p"


class Alphabet:
    """Symbols as numbers from 1 on; 0 is the end."""

    def __init__(self, sequences: Sequence[Sequence[str]]) -> None:
        self.symbols = sorted({symbol for sequence in sequences for symbol in sequence})
        self.numbers = {symbol: i for i, symbol in enumerate(self.symbols, 1)}

    def __len__(self) -> int:
        return 1 + len(self.symbols)

    def write(self, sequence: Sequence[str], *end: int) -> np.ndarray:
        return np.array([*(self.numbers[symbol] for symbol in sequence), *end], np.int32)

    def read(self, numbers: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.symbols[n - 1] for n in numbers)


def main(config: Config) -> None:
    console = harness.console()
    words, development, test = (cut(part, config.most) for part in cmudict.split())
    letters = Alphabet([*words, *development, *test])
    phonemes = Alphabet([spoken for ways in words.values() for spoken in ways])
    fits = lambda word, spoken: max(len(word), len(spoken) + 1) <= BOUNDS[-1]
    ways = [(word, spoken) for word, found in words.items() for spoken in found if fits(word, spoken)]
    sources, targets = [letters.write(word) for word, _ in ways], [phonemes.write(spoken, END) for _, spoken in ways]
    training.at_least(config, width=1)
    with harness.usage():
        batches = rnn.training.Bucketed(
            {"source": sources, "target": targets}, tokens=config.tokens, bounds=BOUNDS, seed=config.seed
        )
        net = Translator(
            cell=config.cell,
            size=config.size,
            embedding=config.embedding,
            readout=config.size,
            sources=len(letters),
            targets=len(phonemes),
            dropout=config.dropout,
        )
        params = net.init(jax.random.key(config.seed))
    say = partial(spoken_by, net, letters, phonemes)
    steps = training.steps_of(config, PER_MINUTE * (96 / config.size) ** 2 * 1024 / config.tokens)
    best = rnn.training.Best("phoneme_errors")
    with rnn.training.Run(config.run, training.about(config, "g2p", steps)) as run:
        about = f"{len(ways):,} pronunciations of {len(words):,} words, {len(test):,} to say; {config.cell}"
        loss = lambda scan: partial(net.loss, scan, batch=batches(0), key=jax.random.key(0))
        training.announce(console, config, about, loss, params)
        judge, told = judged(development), say(list(development), width=1)
        params = training.trained(
            config,
            run,
            partial(net.loss, training.scan_of(config)),
            params,
            batches,
            steps,
            evaluate=lambda params: judge(told(params)),
            best=best,
        )
        said = say(list(test), width=config.width)(params, console)
        report(config, run, console, words, test, said)
        pairs = list(zip(test, said, strict=True))
        shown = [pair for pair in pairs if pair[0] in SHOWN] or pairs[: len(SHOWN)]
        looks = [
            (word, (*way, "end"), net.attention(params, letters.write(word), phonemes.write(way, END)))
            for word, way in shown
        ]
        harness.picture(run.folder / "attention.png", partial(draw_attention, looks), columns=len(looks))


def cut(words: cmudict.Words, most: int | None) -> cmudict.Words:
    return words if most is None else dict(list(words.items())[:most])


def spoken_by(
    net: Translator, letters: Alphabet, phonemes: Alphabet, words: list[str], *, width: int
) -> Callable[..., list[tuple[str, ...]]]:
    """What a net says to these words, as a function (params, console) -> a pronunciation for each."""
    longest = max(map(len, words))
    bounds = [*(bound for bound in BOUNDS if bound < longest), longest]
    sources = rnn.training.Bucketed(
        {"source": [letters.write(word) for word in words]}, size=min(256, len(words)), bounds=bounds
    )
    write = written(net, sources, width=width, steps=lambda bound: bound + 3)
    return lambda params, console=None: [phonemes.read(found) for found in write(params, console)]


def judged(words: cmudict.Words) -> Callable[..., dict[str, float]]:
    """Errors per phoneme, and the share of words that are not right, of what was said to these words.

    Of several pronunciations the nearest is the one that counts.
    """

    def errors(said: Sequence[tuple[str, ...]]) -> dict[str, float]:
        near = lambda one, ways: min((Levenshtein.distance(one, way), len(way)) for way in ways)
        found = [near(one, ways) for one, ways in zip(said, words.values(), strict=True)]
        wrong, phonemes = map(sum, zip(*found, strict=True))
        return {"phoneme_errors": wrong / phonemes, "word_errors": sum(n > 0 for n, _ in found) / len(found)}

    return errors


def report(
    config: Config,
    run: rnn.training.Run,
    console: Console,
    words: cmudict.Words,
    test: cmudict.Words,
    said: list[tuple[str, ...]],
) -> None:
    """The table of errors, in results.json too; every word as it was said; the curve."""
    with console.status("the decision tree"):
        first = [(word, ways[0]) for word, ways in words.items()]
        tree = letter_trees.speak(first, list(test))
    judge = judged(test)
    name = f"{config.cell} {config.size}"
    results = {"decision tree over letters": judge(tree), f"{name}, beam of {config.width}": judge(said)}
    training.write_results(run, results)
    rows = [{"": who, **{k.replace("_", " "): f"{v:.1%}" for k, v in found.items()}} for who, found in results.items()]
    rows.append({"": PUBLISHED, "phoneme errors": "5.5%", "word errors": "24%"})
    harness.print_table(console, f"{len(test):,} words that were not learned", rows, left=[""])
    text = lambda ways: " / ".join(" ".join(way) for way in ways)
    spoken = zip(test.items(), said, tree, strict=True)
    columns = [{"word": w, "right": text(ways), "net": text([s]), "tree": text([t])} for (w, ways), s, t in spoken]
    run.write("spoken.csv", harness.as_csv(columns))
    others = {"decision tree": results["decision tree over letters"]["phoneme_errors"], "published, about": 0.055}
    curve = partial(training.draw_curve, run, "phoneme_errors", others)
    harness.picture(run.folder / "curve.png", curve)


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
