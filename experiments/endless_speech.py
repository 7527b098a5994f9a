"""CTC without end, on speech: a net learns to hear phonemes in a stream, through windows shorter than its utterances.

Synthetic speech of 24 voices, clauses end to end with a pause between, 16 streams side by side. A net of two GRUs
learns it online, by windows of reach/emit/lookahead frames of 30 ms: its state and the open utterance's forward
variables go on from window to window, and of each window the frames in the middle send errors. Beside it the same
net, trained by whole utterances on the same data, as many times. Then both hear unseen sentences: the first as one
stream, decoded as it comes, greedily and by prefix beams, with the time from a phoneme's end until it is written down.

    python -m experiments.endless_speech
    python -m experiments.endless_speech --minutes 30 --run runs/endless_speech_30

Writes results.json, stream.png (a stretch of the stream: when phonemes were spoken, and when they were written down),
delays.png and curve.png into the run folder.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as rnn
from experiments import harness, streaming, training
from experiments.datasets import espeak, sound
from experiments.endless_ctc import sizes_of

PASSES = 2.0  # How often both nets go through the training data in a minute of two cores as the README's were.


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    window: str = "12/16/12"  # reach/emit/lookahead, in steps of 30 ms.
    partial: Literal["prefixes", "truncated", "progress"] = "progress"
    """What becomes of an utterance that is open at a window's end; see online_ctc."""
    utterances: int = 3000  # To be made; 2,092 of 3,000 are for training.
    pause: float = 0.24  # Seconds of silence after each utterance.
    size: int = 192  # Hidden units of each of two GRUs.
    early: float = 0.2  # Share of the training in which open utterances teach nothing: they would teach silence.
    streams: int = 16  # Streams side by side.
    tokens: int = 1024  # Steps in a batch of whole utterances, all in all.
    width: int = 8  # Labellings that the prefix beams keep.
    lag: int = 8  # Steps of 30 ms after which what the best labelling reads is settled.
    run: str = "runs/endless_speech"  # Run folder: results.json, pictures, and a run in each of whole/ and stream/.


def model(config: Config, classes: int) -> rnn.Cell:
    return rnn.stack(rnn.gru(config.size), rnn.gru(config.size), rnn.layer(nn.Dense(classes)))


def whole_loss(net: rnn.Cell, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> jax.Array:
    """Nats per step; net and CTC are one cell."""
    del key
    cell = rnn.stack(net, rnn.losses.ctc(batch["labels"], label_lengths=batch["count"]))
    xs, lengths = batch["xs"]
    (_, read), _ = rnn.unroll(cell, (params, ()), xs, lengths=lengths, outputs="none", scan=scan)
    return jnp.sum(rnn.losses.ctc_nll(read, batch["count"])) / jnp.sum(lengths)


def stream_loss(config: Config, net: rnn.Cell, scan: rnn.Scan, params: Any, batch: Any, key: Any, states: Any) -> Any:
    """Nats per step that sends errors, and the states for the next window."""
    del key
    sizes = sizes_of(config.window, "--window")
    losses, found = rnn.losses.online_ctc(net, params, states, *batch, partial=config.partial, scan=scan, **sizes)
    return jnp.sum(losses) / (losses.size * sizes["emit"]), found.states


def windows_of(config: Config, data: streaming.Speech, passes: float) -> tuple[Any, int]:
    """The windows of endless streams, and how many: each pass through the data is in a new order."""
    sizes, rng = sizes_of(config.window, "--window"), np.random.default_rng(config.seed)
    orders = [rng.permutation(len(data.steps)) for _ in range(int(passes) + 2)]
    at, _ = data.streams([np.concatenate([o[b :: config.streams] for o in orders]) for b in range(config.streams)])

    def window(step: int) -> Any:
        chosen = at[step * sizes["emit"] :][: sum(sizes.values())]
        return jax.tree.map(lambda a: a[chosen], (data.xs, data.seen))

    return window, max(1, round(passes * len(data.xs) / (config.streams * sizes["emit"])))


def listener(config: Config, net: rnn.Cell, data: streaming.Speech) -> streaming.Test:
    return streaming.Test(
        net, data, piece=sizes_of(config.window, "--window")["emit"], width=config.width, lag=config.lag
    )


def train(config: Config, run: rnn.training.Run, data: Any, net: rnn.Cell, console: Any) -> dict[str, Any]:
    """The parameters of the net trained by whole utterances, and of that trained by windows of a stream."""
    lessons, test = data["train"], listener(config, net, data["develop"])
    with harness.usage():
        whole = rnn.training.Bucketed(lessons.whole(), tokens=config.tokens, seed=config.seed)
    steps = training.steps_of(config, PASSES * whole.per_epoch)
    with harness.usage():
        params = net.init(jax.random.key(config.seed), lessons.xs[0])
    one = lambda scan: lambda p: whole_loss(net, scan, p, whole(0), None)
    training.announce(console, config, f"{steps:,} batches of whole utterances", one, params)
    with rnn.training.Run(run.folder / "whole", training.about(config, "endless_speech: whole", steps)) as own:
        told = lambda p: {"phoneme_error": test.error(test.greedily(test.logits(p, told=True)))}
        options = {"evaluate": told, "evaluations": 8, "best": rnn.training.Best("phoneme_error")}
        by_whole = training.trained(
            config, own, partial(whole_loss, net, training.scan_of(config)), params, whole, steps, **options
        )
    windows = windows_of(config, lessons, steps / whole.per_epoch)
    return {"whole": by_whole, "stream": train_on_stream(config, run, net, params, *windows, test, console)}


def train_on_stream(
    config: Config, run: Any, net: rnn.Cell, params: Any, windows: Any, count: int, test: streaming.Test, console: Any
) -> Any:
    """First without, then with what utterances teach that are open at a window's end: early, that is silence."""
    states = rnn.losses.online_start(net, params, windows(0)[1])
    one = lambda scan: lambda p: stream_loss(config, net, scan, p, windows(0), None, states)[0]
    training.announce(console, config, f"{count:,} windows of {config.streams} streams", one, params)
    loss = lambda config: partial(stream_loss, config, net, training.scan_of(config))
    optimizer, key = rnn.training.adam(config.learning_rate, steps=count), jax.random.key(config.seed + 1)
    evaluate = lambda p: {"phoneme_error": test.error(test.greedily(test.logits(p, told=False)))}
    options = {"optimizer": optimizer, "evaluate": evaluate}
    with rnn.training.Run(run.folder / "early", training.about(config, "endless_speech: early", count)) as own:
        first, early = loss(dataclasses.replace(config, partial="truncated")), max(1, round(count * config.early))
        options |= {"evaluate_every": max(1, count // 8), "save_every": config.save_every}
        state = rnn.training.fit(first, params, windows, steps=early, key=key, carry=states, run=own, **options)
    with rnn.training.Run(run.folder / "stream", training.about(config, "endless_speech: stream", count)) as own:
        best = rnn.training.Best("phoneme_error")
        rnn.training.fit(loss(config), state, windows, steps=count, key=key, run=own, best=best, **options)
    return best.params


WAYS = {  # name: (the net, whether it is told where utterances begin, how its logits are read)
    "whole utterances, told where they begin": ("whole", True, "greedily"),
    "the same by prefix beams": ("whole", True, "by_beams"),
    "whole utterances, not told": ("whole", False, "greedily"),
    "windows of a stream": ("stream", False, "greedily"),
    "by prefix beams": ("stream", False, "by_beams"),
}


def report(config: Config, run: Any, data: Any, net: rnn.Cell, found: Any, labels: Any, console: Any) -> None:
    """Phoneme errors and delays on unseen sentences, by known voices and by unseen ones."""
    results: dict[str, Any] = {name: {} for name in WAYS}
    for part in ("sentences", "voices"):
        test = listener(config, net, data[part])
        written = {w: getattr(test, how)(test.logits(found[k], told=told)) for w, (k, told, how) in WAYS.items()}
        for way, read in written.items():
            results[way][part] = {"error": test.error(read), "delay": streaming.quantiles(test.delays(read))}
        if part == "sentences":
            heard = (test, {"greedily": written["windows of a stream"], "by beams": written["by prefix beams"]})
    whole, stream = (results[way] for way in ("whole utterances, told where they begin", "windows of a stream"))
    over = {part: stream[part]["error"] / max(whole[part]["error"], 1e-9) for part in whole}
    shorter = float(np.mean(data["train"].steps > sum(sizes_of(config.window, "--window").values())))
    training.write_results(run, {**results, "stream over whole": over, "longer than a window": shorter})
    rows = [
        {
            "trained by": way,
            "unseen sentences": f"{each['sentences']['error']:.2%}",
            "unseen voices": f"{each['voices']['error']:.2%}",
            "delay, median": f"{each['sentences']['delay'][0]:.0f} ms",
            "9 of 10 within": f"{each['sentences']['delay'][1]:.0f} ms",
        }
        for way, each in results.items()
    ]
    harness.print_table(console, "phoneme errors; from a phoneme's end until written down", rows, left=["trained by"])
    ratios = f"{over['sentences']:.2f} times, on unseen voices {over['voices']:.2f} times"
    console.print(f"a stream's errors: {ratios} the whole's; {shorter:.0%} of utterances are longer than a window")
    harness.picture(run.folder / "stream.png", partial(streaming.draw_stream, *heard, labels))
    harness.picture(run.folder / "delays.png", partial(streaming.draw_delays, *heard))
    harness.picture(run.folder / "curve.png", partial(streaming.draw_curves, run))


def main(config: Config) -> None:
    console = harness.console()
    sizes_of(config.window, "--window")
    training.at_least(config, width=1, lag=0, streams=1, pause=0)
    if not 0 < config.early < 1:
        raise harness.UsageError(f"--early must be a share between 0 and 1, got {config.early}")
    with harness.usage():
        corpus = espeak.utterances(config.utterances)
    parts = espeak.split(corpus)
    scale = sound.spread(parts["train"].frames)
    data = {name: streaming.prepared(part, config.pause, *scale) for name, part in parts.items()}
    with harness.usage():
        net = model(config, len(corpus.labels))
    with rnn.training.Run(config.run, training.about(config, "endless_speech", 0)) as run:
        report(config, run, data, net, train(config, run, data, net, console), corpus.labels, console)


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
