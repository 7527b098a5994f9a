"""Spanish to English: a bidirectional encoder, a decoder that looks at what it read, and a beam search.

Learns from 27,632 verses of the Bible, in pieces of words, and translates verses of Matthew, Mark and Luke, of which
it has read none. Beside it stand, on the same verses, the English of the most similar Spanish verse that it learned
from, and a word-for-word translation by a dictionary of what occurs together.

    python -m experiments.translation                                                    five minutes
    python -m experiments.translation --minutes 60 --size 192 --embedding 192 --dropout 0.2 --run runs/translation_60

Writes results.json, translations.csv, curve.png and attention.png. Stopped by Ctrl-C or kill -9, the same command goes
on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import sacrebleu
import sentencepiece
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, training
from experiments.datasets import bible
from experiments.lookups import most_similar, word_for_word
from experiments.seq2seq import END, Translator, draw_attention, likelihood, written

PER_MINUTE = 500  # training steps of 1,024 symbols, of a net of size 128
BOUNDS = (32, 48, 72)  # verses are padded to one of these numbers of pieces


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    cell: harness.CellName = "gru"  # Recurrent cell of the encoder and the decoder.
    size: int = 128  # Hidden units of the encoder, in each direction; the decoder has twice as many.
    embedding: int = 128  # Features per piece of a word.
    pieces: int = 2000  # Pieces of words, in each language.
    dropout: float = 0.0  # Share dropped in training, of the encoder's outputs and before the softmax.
    smoothing: float = 0.1  # Share of the target that is spread over all pieces.
    tokens: int = 1024  # Pieces per training step.
    width: int = 4  # Translations followed by the beam search.
    test: int = 500  # Verses to translate, drawn from the 2,899.
    run: str = "runs/translation"


class Pieces:
    """Words in pieces, as numbers from 1 on; 0 is the end. Learned from a text by `sentencepiece`."""

    def __init__(self, text: Sequence[str], size: int) -> None:
        model, ends = io.BytesIO(), {"pad_id": END, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        options = {"model_type": "bpe", "character_coverage": 1.0, "minloglevel": 2, **ends}
        train = sentencepiece.SentencePieceTrainer.train
        try:
            train(sentence_iterator=iter(text), model_writer=model, vocab_size=size, **options)
        except RuntimeError as error:
            raise harness.UsageError(
                f"--pieces: words cannot be put together from {size} pieces; take fewer"
            ) from error
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def write(self, text: str, *end: int) -> np.ndarray:
        return np.array([*self.model.encode(text), *end], np.int32)

    def read(self, numbers: Sequence[int]) -> str:
        return self.model.decode(list(map(int, numbers)))

    def names(self, numbers: Any) -> list[str]:
        return [self.model.id_to_piece(int(n)).replace("\u2581", "_") if n else "end" for n in numbers]


def main(config: Config) -> None:
    training.at_least(config, width=1, test=1)
    if not 0 <= config.smoothing < 1:
        raise harness.UsageError("--smoothing must be a share from 0 up to but not 1")
    console = harness.console()
    with console.status("reading both Bibles"):
        verses, development, test = bible.split()
        test = [test[i] for i in sorted(np.random.default_rng(0).permutation(len(test))[: config.test])]
    with console.status("words in pieces"), harness.usage():
        spanish = Pieces([verse.spanish for verse in verses], config.pieces)
        english = Pieces([verse.english for verse in verses], config.pieces)
    numbered = partial(in_pieces, spanish, english)
    with harness.usage():
        batches = numbered(verses, most=BOUNDS[-1], tokens=config.tokens, bounds=BOUNDS, seed=config.seed)
        net = Translator(
            cell=config.cell,
            size=config.size,
            embedding=config.embedding,
            readout=config.size,
            sources=config.pieces,
            targets=config.pieces,
            dropout=config.dropout,
            smoothing=config.smoothing,
        )
        params = net.init(jax.random.key(config.seed))
    steps = training.steps_of(config, PER_MINUTE * (128 / config.size) ** 2 * 1024 / config.tokens)
    with rnn.training.Run(config.run, training.about(config, "translation", steps)) as run:
        about = f"{len(batches.longest):,} verses in pieces, {len(test):,} to translate; {config.cell}"
        loss = lambda scan: partial(net.loss, scan, batch=batches(0), key=jax.random.key(0))
        training.announce(console, config, about, loss, params)
        evaluate = evaluation(
            net, numbered(development, size=min(128, len(development)), bounds=1), english, development
        )
        best = rnn.training.Best("nats")
        loss_fn = partial(net.loss, training.scan_of(config))
        params = training.trained(
            config, run, loss_fn, params, batches, steps, evaluate=evaluate, evaluations=8, best=best
        )
        sources = numbered(test, size=min(128, len(test)), bounds=3)
        write = written(net, sources, width=config.width, steps=longest, penalty=1.0)
        said = [english.read(found) for found in write(params, console)]
        report(config, run, console, verses, test, said)
        shown = sorted(range(len(test)), key=lambda i: abs(len(test[i].spanish) - 70))[:3]
        pairs = [(spanish.write(test[i].spanish), english.write(said[i], END)) for i in shown]
        looks = [(spanish.names(s), english.names(t), net.attention(params, s, t)) for s, t in pairs]
        harness.picture(run.folder / "attention.png", partial(draw_attention, looks), columns=len(looks))


def longest(bound: int) -> int:
    """How many pieces a translation may have."""
    return bound + bound // 4


def in_pieces(
    spanish: Pieces, english: Pieces, verses: Sequence[bible.Verse], *, most: float = np.inf, **how: Any
) -> rnn.training.Bucketed:
    """Batches of verses, those of more than `most` pieces in either language left out."""
    pairs = [(spanish.write(verse.spanish), english.write(verse.english, END)) for verse in verses]
    kept = [pair for pair in pairs if max(map(len, pair)) <= most]
    return rnn.training.Bucketed({"source": [s for s, _ in kept], "target": [t for _, t in kept]}, **how)


def evaluation(
    net: Translator, batches: rnn.training.Bucketed, english: Pieces, verses: Sequence[bible.Verse]
) -> Callable[[Any], dict[str, float]]:
    """Nats per piece of verses, and the BLEU of what is likeliest piece by piece."""
    nats, write = likelihood(net, batches), written(net, batches, width=1, steps=longest)

    def evaluate(params: Any) -> dict[str, float]:
        said = [english.read(found) for found in write(params)]
        return {"nats": nats(params), "bleu": scores(said, verses)["BLEU"]}

    return evaluate


def scores(said: Sequence[str], verses: Sequence[bible.Verse]) -> dict[str, float]:
    right = [[verse.english for verse in verses]]
    return {
        "BLEU": sacrebleu.corpus_bleu(said, right, force=True).score,
        "chrF": sacrebleu.corpus_chrf(said, right).score,
    }


def report(
    config: Config,
    run: rnn.training.Run,
    console: Console,
    known: Sequence[bible.Verse],
    test: Sequence[bible.Verse],
    said: list[str],
) -> None:
    """The table of scores, in results.json too; every translation; the curve."""
    with console.status("the most similar verses, and word for word"):
        found = {
            "most similar verse": most_similar(known, test),
            "word for word": word_for_word(known, test),
            f"{config.cell} {config.size}, beam of {config.width}": said,
        }
    results = {name: scores(texts, test) for name, texts in found.items()}
    training.write_results(run, results)
    rows = [{"": name, **{k: f"{v:.1f}" for k, v in each.items()}} for name, each in results.items()]
    harness.print_table(console, f"{len(test):,} verses of Matthew, Mark and Luke", rows, left=[""])
    columns = ["verse", "Spanish", "English", *found]
    texts = zip(test, *found.values(), strict=True)
    lines = [(f"{v.book} {v.chapter}:{v.verse}", v.spanish, v.english, *others) for v, *others in texts]
    run.write("translations.csv", harness.as_csv([dict(zip(columns, line, strict=True)) for line in lines]))
    for line in lines[: 2 * len(lines) : max(1, len(lines) // 3)]:
        console.print(*(f"{name}: {text}" for name, text in zip(columns, line, strict=True)), sep="\n", markup=False)
    others = {f"{name}, test": each["BLEU"] for name, each in results.items()}
    curve = partial(training.draw_curve, run, "bleu", others)
    harness.picture(run.folder / "curve.png", curve)


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
