"""Entities in Japanese sentences: a bidirectional net with a CRF upon it, and what the CRF is worth.

The corpus has 500 sentences, so all is cross-validated: five folds, nets of three seeds on each, and F1 of whole
entities (by seqeval) with its spread. Beside them, on the same folds: a word's most frequent tag, the same with the
part of speech for unknown words, and a linear CRF with the usual features of five words (CRFsuite).

    python -m experiments.entities                        scattered folds: articles are split among them
    python -m experiments.entities --folds stretches      new articles, which is harder

Stopped, the same command goes on after the last net that was done. The run folder has results.json, table.csv (a row
per model, fold and seed), metrics.jsonl (with the tags), entities.png and found.txt: sentences and their entities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

import jaxrnn as rnn
from experiments import harness, taggers, training
from experiments.datasets import hironsan

FOLDS = 5
PER_MINUTE = 3000.0  # training steps of all nets together, in a minute of one of two cores
BOUNDS = (24, 44)  # sentences are padded to one of these, or to the longest
SIDE = {"word": 48, "character": 24, "column": 12}  # features per entry of each table
NETS = ("net with softmax", "net with CRF")


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    minutes: float = 3.4  # Of training, on two cores as the README's were: it sets how many steps are done.
    learning_rate: float = 1e-2  # Adam's peak rate, after a warm-up and before a cosine decay.
    folds: Literal["scattered", "stretches"] = "scattered"  # Sentences of the whole file, or articles in a row.
    seeds: int = 3  # Nets per fold, with and without a CRF.
    size: int = 64  # Hidden units in each direction.
    tokens: int = 1560  # Words per step, padding included.
    dropout: float = 0.5  # Share of what goes into the recurrent layers and comes out, dropped in training.
    forget: float = 0.2  # Share of words and characters that are unknown in training.
    develop: bool = False  # Test on an eighth of each training part instead: for choosing among settings.
    run: str = "runs/entities"  # Run folder.


class Look(nn.Module):
    """What is known of a word, [*B, 12] numbers -> features: of itself, its two ends' characters, its columns."""

    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        embed = lambda name, n: nn.Embed(n, SIDE[name], embedding_init=nn.initializers.normal(1.0))
        parts = [embed("word", self.sizes[0])(x[..., 0])]
        spelled = embed("character", self.sizes[1])(x[..., 1:5])
        parts.append(spelled.reshape(*x.shape[:-1], -1))
        parts += [embed("column", n)(x[..., 5 + i]) for i, n in enumerate(self.sizes[5:])]
        return jnp.concatenate(parts, axis=-1)


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
    forgotten = jax.random.bernoulli(k_forget, forget, numbers[..., :5].shape) & (numbers[..., :5] != hironsan.NOTHING)
    numbers = jnp.asarray(numbers).at[..., :5].set(jnp.where(forgotten, hironsan.UNKNOWN, numbers[..., :5]))
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
        self.config, self.sentences, self.numbers = config, sentences, hironsan.Numbers(sentences)
        longest = max(len(s.words) for s in sentences)
        self.options = {"tokens": config.tokens, "bounds": [b for b in BOUNDS if b < longest] + [longest]}
        nets = 2 * FOLDS * config.seeds
        self.steps = max(1, training.steps_of(config, PER_MINUTE) // (1 if config.steps else nets))
        with harness.usage():
            adam = rnn.training.adam(config.learning_rate, steps=self.steps, warmup=self.steps // 10)
            self.net = model(config, self.numbers.sizes, len(self.numbers.tags))
            self.optimizer = rnn.training.averaging(adam, decay=0.98)
        self.crf = rnn.losses.crf(len(self.numbers.tags))
        scan, ways = training.scan_of(config), (False, True)
        self.loss = {crf: partial(loss_fn, self.net, crf, scan, config.forget) for crf in ways}
        self.tag = {crf: jax.jit(partial(tagged, self.net, crf)) for crf in ways}
        params, batch = self.params(0), self.batches(range(len(sentences)), set(), 0)(0)
        loss = lambda scan: lambda p: loss_fn(self.net, True, scan, config.forget, p, batch, jax.random.key(0))
        words = sum(len(s.words) for s in sentences)
        what = f"{len(sentences)} sentences of {words:,} words, {FOLDS} folds; {nets} nets of {self.steps} steps"
        training.announce(console, config, what, loss, params)

    def params(self, seed: int) -> Any:
        x = jax.ShapeDtypeStruct((5 + hironsan.COLUMNS,), jnp.int32)
        return {"net": self.net.init(jax.random.key(seed), x), "crf": self.crf.init(jax.random.key(0), None)}

    def batches(self, members: Any, known: set[str], seed: int) -> rnn.training.Bucketed:
        numbers, tags = zip(*self.numbers.of([self.sentences[i] for i in members], known), strict=True)
        return rnn.training.Bucketed({"numbers": numbers, "tags": tags}, **self.options, seed=seed)

    def __call__(self, train: Any, test: Any, *, crf: bool, seed: int) -> list[list[str]]:
        """The tags found in the sentences `test` by a net of this seed, trained on the sentences `train`."""
        known, seed = {word for i in train for word in self.sentences[i].words}, self.config.seed + seed
        options = {"steps": self.steps, "optimizer": self.optimizer, "key": jax.random.key(seed), "progress": False}
        final = rnn.training.fit(self.loss[crf], self.params(seed), self.batches(train, known, seed), **options)
        params = rnn.training.averaged(final)
        tags = self.batches(test, known, 0).per_example(lambda batch: np.asarray(self.tag[crf](params, batch)).T)
        counts = [len(self.sentences[i].tags) for i in test]
        return [[self.numbers.tags[k] for k in each[:n]] for each, n in zip(tags, counts, strict=True)]


def main(config: Config) -> None:
    if config.seeds < 1 or not 0 <= config.forget < 1:
        raise harness.UsageError("--seeds must be at least 1, and --forget a share from 0 up to but not 1")
    console, sentences = harness.console(), hironsan.sentences()
    parts = hironsan.folds(len(sentences), FOLDS, scattered=config.folds == "scattered")
    work = [{"model": name, "fold": k, "seed": 0} for name in taggers.NAMES for k in range(FOLDS)]
    work += [{"model": n, "fold": k, "seed": s} for n in NETS for s in range(config.seeds) for k in range(FOLDS)]
    about = training.about(config, "entities", training.steps_of(config, PER_MINUTE))
    with rnn.training.Run(config.run, about) as run:
        nets = Nets(config, sentences, console)

        def measure(model: str, fold: int, seed: int) -> dict[str, Any]:
            train, test = np.setdiff1d(np.arange(len(sentences)), parts[fold]), parts[fold]
            if config.develop:
                test, train = train[fold::8], np.setdiff1d(train, train[fold::8])
            if model in NETS:
                found = nets(train, test, crf=model == NETS[1], seed=seed)
            else:
                found = taggers.tagged(model, [sentences[i] for i in train], [sentences[i] for i in test])
            true = [list(sentences[i].tags) for i in test]
            figures = precision_recall_fscore_support(true, found, average="micro", zero_division=0)
            named = dict(zip(("precision", "recall", "f1"), map(float, figures), strict=False))
            return named | {"found": {int(i): " ".join(tags) for i, tags in zip(test, found, strict=True)}}

        rows = harness.records(run, work, measure, console)
        report(run, sentences, rows, console)


def report(run: rnn.training.Run, sentences: Any, rows: Sequence[dict[str, Any]], console: Any) -> None:
    run.write("table.csv", harness.as_csv(rows, ["model", "fold", "seed", "precision", "recall", "f1"]))
    results, shown = {}, []
    for name in dict.fromkeys(r["model"] for r in rows):
        seeds = max(r["seed"] for r in rows if r["model"] == name) + 1
        f1 = np.array([r["f1"] for r in rows if r["model"] == name]).reshape(seeds, FOLDS)
        spread = lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        results[name] = {"f1": float(f1.mean()), "over folds": spread(f1.mean(0)), "over seeds": spread(f1.mean(1))}
        shown.append({"": name} | {k: f"{v:.3f}" for k, v in results[name].items()})
    training.write_results(run, results)
    best = {int(i): t.split() for r in rows if (r["model"], r["seed"]) == (NETS[1], 0) for i, t in r["found"].items()}
    counted = taggers.confusions([sentences[i].tags for i in best], best.values())
    harness.picture(run.folder / "entities.png", partial(taggers.draw, rows, *counted), columns=2)
    seen = lambda i, tags: taggers.marked(sentences[i].words, tags)
    pairs = [(seen(i, sentences[i].tags), seen(i, best[i])) for i in sorted(best)]
    run.write("found.txt", "".join(f"is    {one}\nfound {other}\n\n" for one, other in pairs))
    harness.print_table(console, "F1 of whole entities, with standard deviations", shown, left=[""])
    for one, other in pairs[:2]:
        console.print(f"is    {one}\nfound {other}", markup=False, highlight=False)
    console.print(f"written: {run.folder / 'entities.png'}, table.csv and found.txt beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
