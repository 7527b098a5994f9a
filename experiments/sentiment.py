"""Sentiment of film reviews: does a net judge a sentence better than a count of its words?

A bidirectional GRU reads 7,395 rated snippets, and other rated sentences and words beside them; what it makes of the
words is pooled over time (the largest and the mean) into one number, whose sign is the judgement. A word is the sum of
its own features and of those of its beginning and its end, so that rare words are not strange. It is trained on how
people rated, not only on the sign. Three nets, each stopped by the development part, beside naive Bayes and logistic
regression on words and pairs of words, and the lexicon VADER with its rules.

    python -m experiments.sentiment
    python -m experiments.sentiment --others --run runs/films_only

Writes results.json, judgements.csv, accuracy.png and words.png (which words moved the judgement) into the run folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from scipy.stats import binomtest

import jaxrnn as rnn
from experiments import drawings, harness, training
from experiments.datasets.snippets import Rated, Snippets, snippets
from experiments.judge import BOUNDS, Judge, words
from experiments.word_counts import without_nets

PER_MINUTE = 1300  # training steps of all nets, on two cores


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    size: int = 96  # Units per direction.
    embedding: int = 96  # Features per word.
    dropout: float = 0.35  # Share of features dropped in training, of the words and of what is pooled.
    skip: float = 0.1  # Share of words that are blanked in training.
    batch: int = 64  # Sentences per training step.
    nets: int = 3  # Nets, each from a seed of its own.
    others: tuple[Literal["products", "newspapers", "tweets", "words"], ...] = (
        "products",
        "newspapers",
        "tweets",
        "words",
    )
    """What else is trained on; nothing for film reviews alone."""
    slope: float = 1.5  # The net is to say sigmoid(slope * rating) is how likely a positive judgement is.
    run: str = "runs/sentiment"


def main(config: Config) -> None:
    console, scan = harness.console(), training.scan_of(config)
    if config.nets < 1:
        raise harness.UsageError(f"--nets must be at least 1, got {config.nets}")
    steps = max(1, training.steps_of(config, PER_MINUTE) // config.nets)
    with console.status("reading the sentences"):
        data = snippets()
    read = [data.train, *(data.others[name] for name in config.others)]
    texts, ratings = [text for part in read for text in part.texts], np.concatenate([part.ratings for part in read])
    with harness.usage():
        sizes = {name: getattr(config, name) for name in ("size", "embedding", "dropout", "skip", "slope")}
        judge = Judge(texts, **sizes)
        fields = {"text": judge.encoded(texts), "rating": ratings}
        batches = rnn.training.Bucketed(fields, size=config.batch, bounds=BOUNDS, seed=config.seed)
        first = judge.init(config.seed)
    with rnn.training.Run(config.run, training.about(config, "sentiment", steps)) as run:
        about = f"{len(data.train.texts)} snippets and {len(texts) - len(data.train.texts)} other texts to train on"
        loss = lambda scan: lambda params: judge.loss(scan, params, batches(0), jax.random.key(0))
        training.announce(console, config, f"{about}; {len(judge.numbers)} words and parts", loss, first)
        nets = []
        for n in range(config.nets):
            console.print(f"net {n + 1} of {config.nets}")
            own = dataclasses.replace(config, seed=config.seed + n, run=f"{config.run}/net-{n + 1}")
            nets.append(trained(own, judge, scan, batches, data.development, steps))
        with console.status("the others"):
            results, judgements = compared(judge, nets, data)
        report(run, results, judgements, judge, nets[0], data, console)


def trained(config: Config, judge: Judge, scan: rnn.Scan, batches: Any, development: Rated, steps: int) -> Any:
    """One net: the average of its parameters, where that was best on the development part; in a folder of its own."""
    likely = 1 / (1 + np.exp(-config.slope * development.ratings))

    def evaluate(params: Any) -> dict[str, float]:
        found = judge.of(params, development.texts)
        nats = float(np.mean(np.logaddexp(0, found) - likely * found))
        return {"nats": nats, "accuracy": accuracy(found, development)}

    optimizer = rnn.training.averaging(rnn.training.adam(config.learning_rate, steps=steps), 0.99)
    options = {"evaluate": evaluate, "evaluations": 8, "best": rnn.training.Best("nats"), "optimizer": optimizer}
    first, loss = judge.init(config.seed), partial(judge.loss, scan)
    with rnn.training.Run(config.run, training.about(config, "sentiment, one net", steps)) as run:
        return training.trained(config, run, loss, first, batches, steps, **options)


def accuracy(judged: np.ndarray, rated: Rated) -> float:
    return float(np.mean((judged > 0) == (rated.ratings > 0)))


def compared(judge: Judge, nets: Sequence[Any], data: Snippets) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracies on the test part, and the judgements [N] that they are of."""
    singles = {f"net {n + 1}": judge.of(params, data.test.texts) for n, params in enumerate(nets)}
    judgements = without_nets(data) | singles | {"all nets": np.mean(list(singles.values()), axis=0)}
    shares = {name: accuracy(judged, data.test) for name, judged in judgements.items()}
    own = [shares[name] for name in singles]
    net, bayes = ((judgements[name] > 0) == (data.test.ratings > 0) for name in ("all nets", "naive Bayes"))
    better, worse = int(np.sum(net & ~bayes)), int(np.sum(bayes & ~net))
    chance = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    against = {"only all nets right": better, "only naive Bayes right": worse, "by luck": chance}
    mean = {
        "mean of the nets": float(np.mean(own)),
        "their spread": float(np.std(own, ddof=1)) if len(own) > 1 else 0.0,
    }
    return {"accuracy": shares, **mean, "all nets against naive Bayes": against}, judgements


def report(run: Any, results: Any, judgements: Any, judge: Judge, params: Any, data: Snippets, console: Any) -> None:
    training.write_results(run, results)
    columns = {"text": data.test.texts, "rating": data.test.ratings, **judgements}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    run.write("judgements.csv", harness.as_csv(rows))
    shares, against = list(results["accuracy"].items()), results["all nets against naive Bayes"]
    harness.print_table(console, f"{len(rows)} unseen snippets", training.shares(shares, "judged right"), left=("",))
    console.print(
        f"the nets: {results['mean of the nets']:.1%}, their spread {results['their spread']:.1%}; "
        f"one standard error of a share is {drawings.error(len(rows)):.1%}\n"
        f"all nets right and naive Bayes wrong: {against['only all nets right']}, "
        f"the other way: {against['only naive Bayes right']}; p = {against['by luck']:.2g}",
        highlight=False,
    )
    draw = partial(drawings.accuracy, results["accuracy"], judgements["all nets"], data.test.ratings)
    harness.picture(run.folder / "accuracy.png", draw, columns=2)
    draw = partial(drawings.moved, data.test, words, partial(judge.of, params), partial(judge.moves, params))
    harness.picture(run.folder / "words.png", draw, columns=2)
    console.print(f"written: {run.folder / 'results.json'}, judgements.csv, accuracy.png and words.png beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
