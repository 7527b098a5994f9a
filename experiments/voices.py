"""Reading a person's speech after synthetic speech: what can be made without end helps where recordings are few.

A bidirectional net reads characters off log-mel frames by CTC. It is trained on synthetic clauses in 28 voices, at
the bandwidth of a telephone, and then on some three hundred prompts that a woman recorded for a telephone exchange;
beside it the same net learns the prompts from scratch. Every prompt but those that choices are made by is tested
once: three folds by the texts' hashes, prompts with the same words on one side. The folds' nets learn side by side.
Frames are scaled by the spread over all recordings, tested ones included; of their words none is used.

    python -m experiments.voices
    python -m experiments.voices --minutes 30 --run runs/voices_30

Writes results.json, readings.csv (every prompt, and what is read), spectrogram.png (what is read, over what is heard)
and curve.png into the run folder.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as rnn
from experiments import harness, reading, training
from experiments.datasets import asterisk, espeak, sound

PER_MINUTE = 225  # Steps on synthetic speech, of two cores as the README's were.
DEVELOP = 9  # The tenth of the prompts that choices are made by: neither learnt nor tested.


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    utterances: int = 3000  # Synthetic ones.
    size: int = 96  # Hidden units of each direction of each of two layers.
    dropout: float = 0.2  # Share of each layer's outputs dropped in training.
    tokens: int = 1536  # Steps of 30 ms in a batch.
    gentle: float = 0.5  # The learning rate on people's voices, of that on synthetic ones.
    tuning: float = 0.5  # Steps on people's voices, of those on synthetic ones.
    longest: float = 8.0  # Seconds; longer recordings are left out.
    folds: int = 3  # Parts that people's voices are cut into; each is read by a net that was trained on the others.
    width: int = 8  # Readings that the prefix beams keep.
    run: str = "runs/voices"  # Run folder: results.json, readings.csv, pictures, and a run for each training.


def model(config: Config) -> rnn.SequenceLayer:
    gru = lambda: rnn.dropout(rnn.gru(config.size), config.dropout, mask="sequence")
    both = lambda: rnn.bidirectional(gru(), gru())
    return rnn.chain(both(), both(), rnn.layer(nn.Dense(reading.CLASSES)))


def loss_fn(net: rnn.SequenceLayer, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> jax.Array:
    """Nats per character, of the nets side by side: params [N, ...], batch["counts"] [B, N]: who learns what.

    Bands and moments of what they hear are hidden from them.
    """
    k_hide, k_net = jax.random.split(key)
    (xs, lengths), count = batch["xs"], batch["count"]
    xs = reading.hidden(k_hide, xs)

    def one(params: Any, counts: jax.Array) -> jax.Array:
        whole = rnn.chain(net, rnn.losses.ctc(batch["labels"], label_lengths=count))
        state, _ = rnn.unroll(whole, (params, ()), xs, lengths=lengths, key=k_net, outputs="none", scan=scan)
        return jnp.sum(counts * rnn.losses.ctc_nll(state[-1], count)) / jnp.maximum(jnp.sum(counts * count), 1.0)

    return jnp.sum(jax.vmap(one, in_axes=(0, 1))(params, batch["counts"]))


def train(config: Config, run: rnn.training.Run, net: Any, made: Any, people: Any, texts: Any, console: Any) -> Any:
    """(parameters after synthetic speech, [nets, ...] of those tuned and those from scratch, a net per fold each)."""
    scan, steps = training.scan_of(config), training.steps_of(config, PER_MINUTE)
    tuning, tokens = max(1, round(steps * config.tuning)), config.tokens
    with harness.usage():
        fresh = [net.init(jax.random.key(config.seed + f), made["xs"][0][0]) for f in range(config.folds)]
    side_by_side = lambda nets: jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    first = side_by_side(fresh[:1])
    with harness.usage():
        batches = rnn.training.Bucketed(made, tokens=tokens, bounds=reading.bounds(made), seed=config.seed)
    one = lambda scan: lambda params: loss_fn(net, scan, params, batches(0), jax.random.key(0))
    training.announce(console, config, f"{steps:,} steps on synthetic speech", one, first)
    loss = partial(loss_fn, net, scan)
    with rnn.training.Run(run.folder / "synthetic", training.about(config, "voices: synthetic", steps)) as own:
        made_of = jax.tree.map(lambda a: a[0], training.trained(config, own, loss, first, batches, steps))
    reader, develop = reading.Reader(net, people, width=config.width), np.flatnonzero(people["part"] == DEVELOP)
    error = lambda read: reading.errors([texts[i] for i in develop], [reading.greedily(read[i]) for i in develop])

    def evaluate(params: Any) -> dict[str, float]:
        params = jax.tree.map(lambda a: a[:: config.folds], params)  # the first fold's two
        logits = (reader.logits(jax.tree.map(lambda a, n=n: a[n], params)) for n in (0, 1))
        return {name: error(read)["characters"] for name, read in zip(("pretrained", "scratch"), logits, strict=True)}

    lessons = {name: people[name] for name in ("xs", "labels", "count", "counts")}
    batches = rnn.training.Bucketed(lessons, tokens=tokens, bounds=reading.bounds(people), seed=config.seed)
    console.print(f"{tuning:,} steps on a person's speech, of {2 * config.folds} nets side by side")
    rates = np.repeat(np.float32([config.gentle, 1]), config.folds)
    scaled = lambda updates, _: jax.tree.map(lambda u: u * rates.reshape(-1, *[1] * (u.ndim - 1)), updates)
    optimizer = optax.chain(rnn.training.adam(config.learning_rate, steps=tuning, clip=4.0), optax.stateless(scaled))
    both = side_by_side([made_of] * config.folds + fresh)
    with rnn.training.Run(run.folder / "people", training.about(config, "voices: people", tuning)) as own:
        tuned = training.trained(
            config, own, loss, both, batches, tuning, optimizer=optimizer, evaluate=evaluate, evaluations=6
        )
    return made_of, tuned


def report(
    config: Config, run: Any, net: Any, people: Any, texts: Any, names: Any, clauses: Any, found: Any, console: Any
) -> None:
    """Errors of characters and words over all prompts that were tested, and their spread over the folds."""
    (made_of, tuned), reader, rows = found, reading.Reader(net, people, width=config.width), []
    unlearned, develop = reader.logits(made_of), np.flatnonzero(people["part"] == DEVELOP)
    for fold in range(config.folds):
        of = lambda n: jax.tree.map(lambda a: a[n], tuned)
        logits, scratch = reader.logits(of(fold)), reader.logits(of(config.folds + fold))
        heard = [text for text, counts in zip(texts, people["counts"], strict=True) if counts[fold]]
        by_beams = partial(reader.by_beams, letters=reading.Letters(4 * heard + clauses))
        read = lambda w, f=by_beams, logits=logits: [f(logits[i], weight=w) for i in develop]
        tried = {w: reading.errors([texts[i] for i in develop], read(w))["characters"] for w in (0.2, 0.5, 0.8)}
        weight = min(tried, key=tried.get)
        for i in np.flatnonzero((people["part"] != DEVELOP) & (people["part"] % config.folds == fold)):
            read = {
                "synthetic speech alone": reading.greedily(unlearned[i]),
                "from scratch": reading.greedily(scratch[i]),
                "synthetic speech, then people's": reading.greedily(logits[i]),
                "with a model of letters": by_beams(logits[i], weight=weight),
            }
            rows.append({"name": names[i], "fold": fold, "weight": weight, "said": texts[i], **read})
    run.write("readings.csv", harness.as_csv(rows))
    results = {}
    for way in list(rows[0])[4:]:
        over = lambda rows, way=way: reading.errors([r["said"] for r in rows], [r[way] for r in rows])
        folds = [over([r for r in rows if r["fold"] == f])["characters"] for f in range(config.folds)]
        results[way] = {**over(rows), "characters by fold": folds}
    training.write_results(run, results)
    table = [
        {
            "trained on": way,
            "character errors": f"{r['characters']:.1%}",
            "word errors": f"{r['words']:.1%}",
            "characters, by fold": " ".join(f"{e:.1%}" for e in r["characters by fold"]),
        }
        for way, r in results.items()
    ]
    harness.print_table(console, f"{len(rows)} prompts, none heard in training", table, left=["trained on"])
    chosen = next((r for r in rows if 3 <= r["said"].count(" ") <= 6), rows[0])
    i = names.index(chosen["name"])
    logits = reader.logits(jax.tree.map(lambda a: a[chosen["fold"]], tuned))[i]
    harness.picture(run.folder / "spectrogram.png", partial(reading.draw, people["xs"][i], logits, texts[i]))
    harness.picture(run.folder / "curve.png", partial(draw_curves, run))


def draw_curves(run: rnn.training.Run, axes: Any) -> None:
    records = [r for r in rnn.training.read_metrics(run.folder / "people") if "scratch" in r]
    for name in ("pretrained", "scratch"):
        axes.plot([r["step"] for r in records], [r[name] for r in records], "o-", label=name)
    axes.legend()
    axes.set(xlabel="training steps on people's voices", ylabel="character errors, development part")


def main(config: Config) -> None:
    console = harness.console()
    training.at_least(config, width=1, tokens=1, gentle=0, tuning=0)
    if not 2 <= config.folds <= 5:
        raise harness.UsageError(f"--folds must be 2 to 5, got {config.folds}")
    with harness.usage():
        corpus, prompts = espeak.utterances(config.utterances, high=reading.HIGH), asterisk.recordings(config.longest)
    made = reading.examples(corpus.frames, corpus.text, corpus.frames, pause=15)
    made["counts"] = np.ones((len(corpus.text), 1), np.float32)
    frames = [sound.log_mel(p.samples, asterisk.RATE, high=reading.HIGH) for p in prompts]
    names, texts = [p.name for p in prompts], [p.text for p in prompts]
    part = np.array([asterisk.part(text) for text in texts])
    learnt = np.stack([(part != DEVELOP) & (part % config.folds != f) for f in range(config.folds)], axis=1)
    people = reading.examples(frames, texts, frames, pause=0) | {"part": part}
    people["counts"] = np.tile(learnt, 2).astype(np.float32)
    with harness.usage():
        net = model(config)
    with rnn.training.Run(config.run, training.about(config, "voices", 0)) as run:
        found = train(config, run, net, made, people, texts, console)
        report(config, run, net, people, texts, names, corpus.text, found, console)


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
