"""Whose voice says these vowels? Nine speakers, utterances of 7 to 29 frames, a bidirectional net that pools over them.

Both directions read the frames, their outputs are pooled over the utterance's own frames (mean and largest), and a
readout names the speaker. Nets of several seeds, and the vote of all (the mean of their probabilities). Beside
them the nearest neighbour (scikit-learn) by dynamic time warping, and with all stretched alike.

    python -m experiments.vowels
    python -m experiments.vowels --develop        tests on a part of the training set, for choosing among settings

Stopped, the same command goes on from the last checkpoint. The run folder has results.json, metrics.jsonl, vowels.png.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

import jaxrnn as rnn
from experiments import harness, training
from experiments.datasets import series

SPEAKERS = 9
PER_MINUTE = 10_000.0  # training steps of all nets together, in a minute of two cores


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    learning_rate: float = 1e-2  # Adam's peak rate, after a warm-up and before a cosine decay.
    minutes: float = 0.2  # Of training, on two cores as the README's were: it sets how many steps are done.
    seeds: int = 5  # Nets, each with its own first parameters, order and noise.
    size: int = 48  # Hidden units in each direction.
    batch: int = 30  # Utterances per step.
    dropout: float = 0.3  # Share of what is pooled that is dropped in training.
    noise: float = 0.3  # Standard deviation of noise on the standardized frames in training.
    shift: float = 0.3  # The same of what is added to all of an utterance's frames alike, as if recorded otherwise.
    develop: bool = False  # Test on the last six utterances of each speaker's 30: for choosing among settings.
    run: str = "runs/vowels"  # Run folder.


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Utterances -> a score for each speaker, [B, 9]."""

    size: int
    dropout: float
    noise: float
    shift: float
    scan: Any

    @property
    def layer(self) -> rnn.SequenceLayer:
        return rnn.bidirectional(rnn.gru(self.size), rnn.gru(self.size))

    def init(self, key: Any) -> Any:
        k_net, k_readout = jax.random.split(key)
        net = self.layer.init(k_net, jax.ShapeDtypeStruct((12,), jnp.float32))
        return {"net": net, "readout": nn.Dense(SPEAKERS).init(k_readout, jnp.zeros(4 * self.size))}

    def __call__(self, params: Any, frames: Any, lengths: Any, key: Any = None) -> jax.Array:
        if key is not None:
            key, k_noise, k_shift = jax.random.split(key, 3)
            shift = jnp.broadcast_to(jax.random.normal(k_shift, frames.shape[1:]), frames.shape)
            frames = frames + self.noise * jax.random.normal(k_noise, frames.shape) + self.shift * shift
        _, ys = rnn.unroll(self.layer, params["net"], frames, lengths=lengths, scan=self.scan)
        features = jnp.concatenate([rnn.sequence.pooled(ys, how, lengths=lengths) for how in ("mean", "max")], axis=-1)
        if key is not None:
            keep = jax.random.bernoulli(key, 1 - self.dropout, features.shape)
            features = jnp.where(keep, features / (1 - self.dropout), 0.0)
        return nn.Dense(SPEAKERS).apply(params["readout"], features)


def loss_fn(net: Classifier, params: Any, batch: Any, key: Any) -> jax.Array:
    return rnn.cross_entropy(net(params, *batch["frames"], key)[None], batch["speaker"][None])


def distances(ones: Any, others: Any) -> np.ndarray:
    """Dynamic time warping: the least sum of frames' distances along a way through both utterances, of all pairs."""
    (x, n), (y, m) = rnn.sequence.pad(ones), rnn.sequence.pad(others)
    cost = np.sqrt(np.maximum(((x[:, None, :, None] - y[None, :, None]) ** 2).sum(-1), 0))  # [S, T, N, M]
    best = np.full((len(x) + 1, len(y) + 1, len(n), len(m)), np.inf, np.float32)
    best[0, 0] = 0
    for s in range(len(x)):
        for t in range(len(y)):
            best[s + 1, t + 1] = cost[s, t] + np.minimum(np.minimum(best[s, t], best[s, t + 1]), best[s + 1, t])
    i, j = np.arange(len(n))[:, None], np.arange(len(m))
    return best[n[:, None], m[None], i, j]


def neighbours(train: series.Utterances, test: series.Utterances) -> dict[str, float]:
    """The share right of the nearest utterance's speaker."""
    nearest = KNeighborsClassifier(1, metric="precomputed").fit(distances(train.frames, train.frames), train.speaker)
    warped = np.concatenate([distances(test.frames[n : n + 40], train.frames) for n in range(0, len(test.frames), 40)])
    plain = KNeighborsClassifier(1).fit([stretched(f) for f in train.frames], train.speaker)
    return {
        "nearest, dynamic time warping": float(np.mean(nearest.predict(warped) == test.speaker)),
        "nearest, stretched to 12 frames": float(plain.score([stretched(f) for f in test.frames], test.speaker)),
    }


def stretched(frames: np.ndarray, steps: int = 12) -> np.ndarray:
    at = np.linspace(0, len(frames) - 1, steps)
    return np.stack([np.interp(at, np.arange(len(frames)), channel) for channel in frames.T]).ravel()


def chosen(found: series.Utterances, members: Any) -> series.Utterances:
    return series.Utterances([found.frames[i] for i in members], found.speaker[np.asarray(members)])


def batches(found: series.Utterances, size: int, seed: int) -> rnn.training.Bucketed:
    longest = max(map(len, found.frames))
    fields = {"frames": found.frames, "speaker": found.speaker}
    return rnn.training.Bucketed(fields, size=size, bounds=sorted({min(16, longest), max(29, longest)}), seed=seed)


def probabilities(net: Any, params: Any, found: series.Utterances) -> np.ndarray:
    of_batch = lambda batch: np.asarray(jax.nn.softmax(net(params, *batch["frames"])), np.float64)
    return np.stack(batches(found, min(64, len(found.frames)), 0).per_example(of_batch))


def train(config: Config, console: Any, run: rnn.training.Run, learn: Any, held: Any) -> list[np.ndarray]:
    """Every net's probabilities for the held-out part."""
    with harness.usage():
        net = Classifier(config.size, config.dropout, config.noise, config.shift, training.scan_of(config))
        steps = max(1, training.steps_of(config, PER_MINUTE) // (1 if config.steps else config.seeds))
        optimizer = rnn.training.adam(config.learning_rate, steps=steps)
        batch, first = batches(learn, config.batch, 0)(0), net.init(jax.random.key(config.seed))
    again = lambda scan: partial(loss_fn, dataclasses.replace(net, scan=scan), batch=batch, key=jax.random.key(0))
    about = f"{len(learn.frames)} utterances to train on, {len(held.frames)} to test"
    training.announce(console, config, f"{about}; {config.seeds} nets of {steps} steps", again, first)
    of_net, apply, found = partial(loss_fn, net), jax.jit(net), []
    for seed in range(config.seed, config.seed + config.seeds):
        here, start = dataclasses.replace(config, seed=seed), net.init(jax.random.key(seed))
        with rnn.training.Run(run.folder / f"seed-{seed}") as own:
            params = training.trained(
                here, own, of_net, start, batches(learn, config.batch, seed), steps, optimizer=optimizer
            )
        found.append(probabilities(apply, params, held))
    return found


def draw(matrix: np.ndarray, axes: Any) -> None:
    axes.imshow(np.log1p(matrix), cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            axes.text(column, row, count, ha="center", va="center", color="w" if row == column else "0.1")
    names = [str(n + 1) for n in range(SPEAKERS)]
    axes.set(xlabel="speaker found", ylabel="speaker", title="utterances of the test, by the vote of all nets")
    axes.set(xticks=range(SPEAKERS), yticks=range(SPEAKERS), xticklabels=names, yticklabels=names)


def main(config: Config) -> None:
    if min(config.seeds, config.batch) < 1:
        raise harness.UsageError("--seeds and --batch must be at least 1")
    console, (learn, held) = harness.console(), series.vowels()
    if config.develop:
        late = np.arange(len(learn.frames)) % 30 >= 24
        learn, held = chosen(learn, np.flatnonzero(~late)), chosen(learn, np.flatnonzero(late))
    frames = np.concatenate(learn.frames)
    same = lambda u: u._replace(frames=[(f - frames.mean(0)) / frames.std(0) for f in u.frames])
    with rnn.training.Run(config.run, training.about(config, "vowels", training.steps_of(config, PER_MINUTE))) as run:
        found = train(config, console, run, same(learn), same(held))
        with console.status("the nearest neighbours"):
            rows = neighbours(same(learn), same(held))
        right = [float(np.mean(p.argmax(-1) == held.speaker)) for p in found]
        vote = np.mean(found, axis=0).argmax(-1)
        spread = float(np.std(right, ddof=1)) if len(right) > 1 else 0.0
        rows |= {"one net": float(np.mean(right)), f"the vote of {len(found)}": float(np.mean(vote == held.speaker))}
        training.write_results(run, rows | {"seeds": right, "spread": spread, "test": len(held.frames)})
        harness.picture(
            run.folder / "vowels.png", partial(draw, confusion_matrix(held.speaker, vote, labels=range(SPEAKERS)))
        )
        harness.print_table(
            console, "utterances whose speaker is found", training.shares([*rows.items()], "right"), left=[""]
        )
        each = " ".join(f"{r:.1%}" for r in right)
        console.print(f"by seed: {each} (standard deviation {spread:.1%}); confusions in {run.folder / 'vowels.png'}")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
