"""Captions of emoji: does a net put together names that it has only seen apart?

A small convolution makes 64 places of a picture of 32 by 32 pixels; a GRU that attends to them says the name word by
word, found by beam search. Emoji are composed (skin tones, hair, genders, professions, persons), so this asks for
composition and not for vision: "unseen combinations" are new compositions of what was seen in others, "unseen bases"
are things never seen, whose names mostly have words never read. Beside it: the caption of the nearest picture.

    python -m experiments.captions
    python -m experiments.captions --minutes 20 --run runs/captions_longer

Writes results.json, captions.csv (all that was said), captions.png, attention.png and curve.png into the run folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as rnn
from experiments import drawings, harness, training
from experiments.datasets.emoji import Split, emoji
from experiments.naming import figures, nearest, said, words

PER_MINUTE = 600  # training steps on two cores
EDGE = "."  # the symbol that begins and ends a caption
READ = 64  # pictures at a time


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    size: int = 192  # Units of the GRU that speaks.
    embedding: int = 64  # Features per word, and per place of the picture.
    dropout: float = 0.3  # Share of what the speaker hears that is dropped in training.
    shift: int = 1  # Pictures are moved by up to so many pixels in training.
    batch: int = 64  # Pictures per training step.
    width: int = 4  # Beams.
    run: str = "runs/captions"


class Eye(nn.Module):
    """Pictures [B, 32, 32, 3] -> places [64, B, features]."""

    features: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = pictures * 2 - 1
        for features, window, stride in ((24, 4, 2), (48, 3, 2), (self.features, 3, 1)):
            x = nn.relu(nn.Conv(features, (window, window), stride)(x))
        x = x.reshape(x.shape[0], -1, self.features)
        where = self.param("where", nn.initializers.normal(0.3), x.shape[1:])
        return jnp.moveaxis(nn.LayerNorm()(x) + where, 1, 0)


class Net:
    """The parts of the net, for one vocabulary."""

    def __init__(self, config: Config, vocabulary: Sequence[str]) -> None:
        self.config, self.vocabulary, self.eye = config, vocabulary, Eye(config.embedding)
        self.number = {word: i for i, word in enumerate(vocabulary)}

    def init(self, key: Any) -> Any:
        k_eye, k_speaker = jax.random.split(key)
        eye = self.eye.init(k_eye, jnp.zeros((1, 32, 32, 3)))["params"]
        places = jnp.zeros((64, self.config.embedding))
        return {"eye": eye, "speaker": self.speaker(places).init(k_speaker, jnp.zeros((), jnp.int32))}

    def listener(self, places: jax.Array, **how: Any) -> tuple[rnn.Cell, rnn.Cell]:
        """From a word to what is to be said next, looking at the places."""
        embed = nn.Embed(len(self.vocabulary), self.config.embedding, embedding_init=nn.initializers.normal(0.5))
        return rnn.layer(embed), rnn.attending(rnn.gru(self.config.size), places, **how)

    def speaker(self, places: jax.Array) -> rnn.Cell:
        """One step: word [*B] -> logits of the next [*B, V]."""
        embed, attend = self.listener(places)
        return rnn.stack(embed, rnn.dropout(attend, self.config.dropout), rnn.layer(nn.Dense(len(self.vocabulary))))

    def loss(self, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> jax.Array:
        """Mean nats per word, the end included."""
        k_shift, k_drop = jax.random.split(key)
        by = jax.random.randint(k_shift, (len(batch["picture"]), 2), -self.config.shift, self.config.shift + 1)
        pictures = jax.vmap(partial(jnp.roll, axis=(0, 1)))(batch["picture"], by)
        cell = self.speaker(self.eye.apply({"params": params["eye"]}, pictures))
        cell = rnn.with_loss(cell, optax.softmax_cross_entropy_with_integer_labels)
        targets, lengths = batch["caption"]
        xs = (rnn.sequence.shifted(targets, 0), targets)
        given = {"lengths": lengths, "key": k_drop, "outputs": "sum", "scan": scan}
        _, nats = rnn.unroll(cell, params["speaker"], xs, **given)
        return jnp.sum(nats) / jnp.sum(lengths)

    def numbers(self, name: str) -> np.ndarray:
        return np.array([*(self.number[word] for word in words(name)), 0], np.int32)

    def captions(self, params: Any, pictures: np.ndarray, steps: int) -> list[str]:
        """What the net says of pictures [N, 32, 32, 3]."""
        found = []
        for at in range(0, len(pictures), READ):
            some = np.resize(pictures[at : at + READ], (READ, *pictures.shape[1:]))  # the last ones filled up
            tokens = np.asarray(self.read(params, some, steps))
            found += [said([self.vocabulary[i] for i in one if i]) for one in tokens.T]
        return found[: len(pictures)]

    @partial(jax.jit, static_argnums=(0, 3))
    def read(self, params: Any, pictures: jax.Array, steps: int) -> jax.Array:
        """The most likely captions, [steps, B]."""
        cell = self.speaker(self.eye.apply({"params": params["eye"]}, pictures))
        state = cell.initial_state(params["speaker"], (len(pictures),))
        first = jnp.zeros(len(pictures), jnp.int32)
        beams = rnn.beam_search(
            cell, params["speaker"], state, first, steps, width=self.config.width, end=0, length_penalty=1.0
        )
        return beams.tokens[..., 0]

    def looks(self, params: Any, picture: np.ndarray, name: str) -> np.ndarray:
        """Where the net looks as it says each word of a name, [words, 8, 8]."""
        places = self.eye.apply({"params": params["eye"]}, picture[None])
        cell = rnn.stack(*self.listener(places, weights=True))
        told = rnn.sequence.shifted(self.numbers(name)[:, None], 0)
        _, (_, weights) = rnn.unroll(cell, params["speaker"][:2], told)
        return np.asarray(weights).reshape(-1, 8, 8)


def main(config: Config) -> None:
    training.at_least(config, width=1, shift=0)
    console, steps, scan = harness.console(), training.steps_of(config, PER_MINUTE), training.scan_of(config)
    with console.status("drawing the emoji"):
        data = emoji(32)
    vocabulary = [EDGE, *sorted({word for name in data.train.names for word in words(name)})]
    longest = max(len(words(name)) for name in data.train.names) + 1
    with harness.usage():
        net = Net(config, vocabulary)
        params = net.init(jax.random.key(config.seed))
        fields = {"picture": data.train.pictures, "caption": [net.numbers(name) for name in data.train.names]}
        batches = rnn.training.Bucketed(
            fields, size=config.batch, bounds=sorted({min(9, longest), longest}), seed=config.seed
        )
    evaluate = lambda params: figures(net.captions(params, data.development.pictures, longest), data.development.names)
    with rnn.training.Run(config.run, training.about(config, "captions", steps)) as run:
        about = ", ".join(f"{len(part.names)} {name}" for name, part in data._asdict().items())
        loss = lambda scan: lambda params: net.loss(scan, params, batches(0), jax.random.key(0))
        training.announce(console, config, f"emoji: {about}; {len(vocabulary)} words", loss, params)
        best = rnn.training.Best("bleu", mode="highest")
        options = {"evaluate": evaluate, "evaluations": 8, "best": best}
        params = training.trained(config, run, partial(net.loss, scan), params, batches, steps, **options)
        report(config, run, net, params, data, longest, console)


def report(config: Config, run: Any, net: Net, params: Any, data: Split, longest: int, console: Any) -> None:
    """The table, everything that was said, and the pictures."""
    results, rows, everything = {}, [], []
    for part in ("combinations", "bases"):
        own = getattr(data, part)
        methods = {"nearest picture": nearest(data.train, own.pictures)}
        methods["net"] = net.captions(params, own.pictures, longest)
        for method, captions in methods.items():
            results[f"{method}, unseen {part}"] = got = figures(captions, own.names)
            shown = {"BLEU": f"{got['bleu']:.1f}"} | {k: f"{got[k]:.1%}" for k in ("exact", "skin_tones")}
            rows.append({"unseen": part, "captions": method, **shown})
        columns = zip(own.names, methods["net"], methods["nearest picture"], strict=True)
        everything += [{"part": part, "name": a, "net": b, "nearest": c} for a, b, c in columns]
    training.write_results(run, results)
    run.write("captions.csv", harness.as_csv(everything))
    harness.print_table(
        console, f"captions of emoji, {config.width} beams", rows, left=("unseen", "captions"), section="unseen"
    )
    others = {"nearest picture, unseen combinations": results["nearest picture, unseen combinations"]["bleu"]}
    harness.picture(run.folder / "curve.png", partial(training.draw_curve, run, "bleu", others, each=config.batch))
    harness.picture(run.folder / "captions.png", partial(drawings.captions, data, everything), columns=2)
    sayable = [i for i, name in enumerate(data.combinations.names) if all(word in net.number for word in words(name))]
    right = [i for i in sayable if everything[i]["net"] == everything[i]["name"]]
    looks = partial(drawings.looks, data.combinations, right or sayable, words, partial(net.looks, params))
    harness.picture(run.folder / "attention.png", looks, columns=2)
    console.print(f"written: {run.folder / 'results.json'}, captions.csv and pictures beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
