"""Entities in Japanese sentences: a bidirectional net with a CRF upon it, and what the CRF is worth.

The corpus has 500 sentences, so all is cross-validated: five folds, nets of three seeds on each, and F1 of whole
entities (by seqeval) with its spread. Beside them, on the same folds: a word's most frequent tag, the same with the
part of speech for unknown words, and a linear CRF with the usual features of five words (CRFsuite).

    python -m experiments.entities                        scattered folds: articles are split among them
    python -m experiments.entities --folds stretches      new articles, which is harder

Stopped, the same command goes on after the last net that was done. The run folder has results.json, table.csv (a row
per model, fold and seed), metrics.jsonl (with the tags found), entities.png and found.txt: sentences and their entities.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as rnn
from experiments import harness, training
from experiments.datasets import hironsan

FOLDS = 5
PER_MINUTE = 750.0  # training steps of all nets together, in a minute of one of two cores
BOUNDS = (24, 44)  # sentences are padded to one of these, or to the longest
INIT = 1.0
SIDE = {"word": 48, "character": 24, "column": 12}  # features per entry of each table
UNKNOWN, NOTHING = 0, 1  # numbers of what the training part has not, and of a character that a word has not
NETS = ("net with softmax", "net with CRF")


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    folds: Literal["scattered", "stretches"] = "scattered"  # Sentences of the whole file, or articles in a row.
    seeds: int = 3  # Nets per fold, with and without a CRF.
    size: int = 64  # Hidden units in each direction.
    tokens: int = 1560  # Words per step, padding included.
    dropout: float = 0.5  # Share of what goes into the recurrent layers and comes out, dropped in training.
    forget: float = 0.2  # Share of words and characters that are unknown in training.
    develop: bool = False  # Test on an eighth of each training part instead: for choosing among settings.
    run: str = "runs/entities"  # Run folder.


class Look(nn.Module):
    """What is known of a word, [*B, 12] numbers -> features: of itself, of two characters at each end, of its columns."""

    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        embed = lambda name, n: nn.Embed(n, SIDE[name], embedding_init=nn.initializers.normal(INIT))
        parts = [embed("word", self.sizes[0])(x[..., 0])]
        spelled = embed("character", self.sizes[1])(x[..., 1:5])
        parts.append(spelled.reshape(*x.shape[:-1], -1))
        parts += [embed("column", n)(x[..., 5 + i]) for i, n in enumerate(self.sizes[5:])]
        return jnp.concatenate(parts, axis=-1)


class Numbers:
    """Words, characters, columns and tags as numbers; the same ones for every fold, so that nets are compiled once."""

    def __init__(self, sentences: Sequence[hironsan.Sentence]) -> None:
        words = {word for s in sentences for word in s.words}
        columns = [{c[i] for s in sentences for c in s.columns} for i in range(hironsan.COLUMNS)]
        characters = {c for word in words for c in word}
        numbered = lambda values: {value: n for n, value in enumerate(sorted(values), start=2)}
        self.word, self.character, *self.columns = map(numbered, [words, characters, *columns])
        self.tags = sorted({tag for s in sentences for tag in s.tags}, key=lambda tag: (tag[1:], tag))
        self.sizes = [len(t) + 2 for t in (self.word, *[self.character] * 4, *self.columns)]

    def of(self, sentence: hironsan.Sentence, known: set[str]) -> tuple[np.ndarray, np.ndarray]:
        """[n, 12] and tags [n]; words and characters that are not known are UNKNOWN."""
        rows = []
        for word, columns in zip(sentence.words, sentence.columns, strict=True):
            ends = [*word[:2], *[None] * (2 - len(word[:2])), *[None] * (2 - len(word[-2:])), *word[-2:]]
            spelled = [NOTHING if c is None else self.character[c] if c in known else UNKNOWN for c in ends]
            row = [self.word[word] if word in known else UNKNOWN, *spelled]
            rows.append(row + [table[c] for table, c in zip(self.columns, columns, strict=True)])
        return np.array(rows, np.int32), np.array([self.tags.index(tag) for tag in sentence.tags], np.int32)


def model(config: Config, sizes: Sequence[int], tags: int) -> rnn.SequenceLayer:
    """Sentences as numbers [T, *B, 12] -> a score for each tag of each word, [T, *B, K]."""
    drop = partial(rnn.dropout, rate=config.dropout, mask="sequence")
    both = rnn.bidirectional(rnn.lstm(config.size), rnn.lstm(config.size))
    thin = drop(rnn.lift(lambda y: y))
    return rnn.chain(drop(rnn.layer(Look(tuple(sizes)))), both, thin, rnn.layer(nn.Dense(tags)))


def loss_fn(net: Any, crf: bool, scan: rnn.Scan, forget: float, params: Any, batch: Any, key: Any) -> jax.Array:
    """Mean nats per word: of the whole sentence's tags under the CRF, or without one of each word's tag."""
    (numbers, lengths), tags = batch["numbers"], batch["tags"].xs
    k_forget, k_net = jax.random.split(key)
    forgotten = jax.random.bernoulli(k_forget, forget, numbers[..., :5].shape) & (numbers[..., :5] != NOTHING)
    numbers = jnp.asarray(numbers).at[..., :5].set(jnp.where(forgotten, UNKNOWN, numbers[..., :5]))
    _, scores = rnn.unroll(net, params["net"], numbers, lengths=lengths, key=k_net, scan=scan)
    if not crf:
        return rnn.cross_entropy(scores, tags, lengths=lengths)
    nats = rnn.losses.crf_loss(params["crf"], scores, tags, lengths=lengths, scan=scan)
    return jnp.sum(nats) / jnp.sum(lengths).astype(nats.dtype)


def tagged(net: Any, crf: bool, params: Any, batch: Any) -> jax.Array:
    """The best tags, [T, B]: of the sentence, or of each word alone."""
    numbers, lengths = batch["numbers"]
    _, scores = rnn.unroll(net, params["net"], numbers, lengths=lengths)
    return rnn.losses.viterbi(params["crf"], scores, lengths=lengths)[0] if crf else jnp.argmax(scores, axis=-1)


class Nets:
    """Trains nets on a part of the sentences; one compiled train step and one tagger serve all folds and seeds."""

    def __init__(self, config: Config, sentences: Sequence[hironsan.Sentence], console: Any) -> None:
        self.config, self.sentences, self.numbers = config, sentences, Numbers(sentences)
        longest = max(len(s.words) for s in sentences)
        self.options = {"tokens": config.tokens, "bounds": [b for b in BOUNDS if b < longest] + [longest]}
        nets = 2 * FOLDS * config.seeds
        self.steps = max(1, training.steps_of(config, PER_MINUTE) // (1 if config.steps else nets))
        with harness.usage():
            adam = rnn.training.adam(config.learning_rate, steps=self.steps, warmup=self.steps // 10)
            self.net = model(config, self.numbers.sizes, len(self.numbers.tags))
            self.optimizer = rnn.training.averaging(adam, decay=0.98)
        self.crf = rnn.losses.crf(len(self.numbers.tags))
        self.loss, self.tag = {}, {}
        scan = training.scan_of(config)
        for crf in (False, True):
            self.loss[crf] = partial(loss_fn, self.net, crf, scan, config.forget)
            self.tag[crf] = jax.jit(partial(tagged, self.net, crf))
        params, batch = self.params(0), self.batches(range(len(sentences)), set(), 0)(0)
        loss = lambda scan: lambda p: loss_fn(self.net, True, scan, config.forget, p, batch, jax.random.key(0))
        words = sum(len(s.words) for s in sentences)
        what = f"{len(sentences)} sentences of {words:,} words, {FOLDS} folds; {nets} nets of {self.steps} steps"
        training.announce(console, config, what, loss, params)

    def params(self, seed: int) -> Any:
        x = jax.ShapeDtypeStruct((5 + hironsan.COLUMNS,), jnp.int32)
        return {"net": self.net.init(jax.random.key(seed), x), "crf": self.crf.init(jax.random.key(0), None)}

    def batches(self, members: Any, known: set[str], seed: int) -> rnn.training.Bucketed:
        numbers, tags = zip(*(self.numbers.of(self.sentences[i], known) for i in members), strict=True)
        return rnn.training.Bucketed({"numbers": numbers, "tags": tags}, **self.options, seed=seed)

    def __call__(self, train: Any, test: Any, *, crf: bool, seed: int) -> list[list[str]]:
        """The tags found in the sentences `test` by a net of this seed, trained on the sentences `train`."""
        words = {word for i in train for word in self.sentences[i].words}
        known = words | {c for word in words for c in word}
        batches = self.batches(train, known, seed)
        key = jax.random.key(self.config.seed + seed)
        final = rnn.training.fit(
            self.loss[crf],
            self.params(self.config.seed + seed),
            batches,
            steps=self.steps,
            optimizer=self.optimizer,
            key=key,
            progress=False,
        )
        params, found = rnn.training.averaged(final), {}
        for members, batch in self.batches(test, known, 0).once():
            tags = np.asarray(self.tag[crf](params, batch))
            for b, i in enumerate(members):
                found[i] = [self.numbers.tags[k] for k in tags[: len(self.sentences[test[i]].tags), b]]
        return [found[i] for i in range(len(test))]


def most_frequent(train: Sequence[Any], test: Sequence[Any], keys: Sequence[Any]) -> list[list[str]]:
    """The tag that a word's first known key has most often in the training sentences, or O."""
    counts: list[dict[Any, Counter[str]]] = [{} for _ in keys]
    for sentence in train:
        for word, columns, tag in zip(*sentence, strict=True):
            for key, count in zip(keys, counts, strict=True):
                count.setdefault(key(word, columns), Counter())[tag] += 1
    known = lambda *w: next((c[k(*w)] for k, c in zip(keys, counts, strict=True) if k(*w) in c), Counter("O"))
    return [[known(*w).most_common(1)[0][0] for w in zip(s.words, s.columns, strict=True)] for s in test]


def features(sentence: hironsan.Sentence) -> list[list[str]]:
    """For the linear CRF: of the five words around each, the word, its ends, script and part of speech; two pairs."""
    found = []
    for t in range(len(sentence.words)):
        row = ["bias"]
        for d in range(-2, 3):
            if not 0 <= t + d < len(sentence.words):
                row.append(f"{d} none")
                continue
            word, (script, *speech) = sentence.words[t + d], sentence.columns[t + d]
            row += [f"{d} word {word}", f"{d} script {script}", f"{d} first {word[0]}", f"{d} last {word[-1]}"]
            row += [f"{d} speech {n} {'-'.join(speech[:n])}" for n in (1, 2, 4)]
        for d in (-1, 0):
            pair = sentence.columns[max(t + d, 0) : t + d + 2]
            row.append(f"{d} pair {'|'.join('-'.join(columns[1:3]) for columns in pair)}")
        found.append(row)
    return found


def linear_crf(train: Sequence[Any], test: Sequence[Any], folder: Path) -> list[list[str]]:
    """By CRFsuite, with both penalties at 0.1, as its tutorial has them."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False, params={"c1": 0.1, "c2": 0.1, "max_iterations": 100})
    trainer.set("feature.possible_transitions", True)
    for sentence in train:
        trainer.append(features(sentence), sentence.tags)
    trainer.train(str(folder / "linear.crfsuite"))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(folder / "linear.crfsuite"))
    return [tagger.tag(features(sentence)) for sentence in test]
