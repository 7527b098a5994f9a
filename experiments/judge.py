"""The net of `sentiment`: words by their parts, a bidirectional GRU, pooling over time, one number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as rnn

BOUNDS, LONGEST = (16, 28, 60), 60  # lengths that sentences are padded to; what is longer is cut
PARTS = (
    lambda word: "=" + word,
    lambda word: word[:4] + "-",
    lambda word: word[:6] + "--",
    lambda word: "-" + word[-4:],
)


class Words(nn.Module):
    """Numbers of a word and of its parts [..., parts] -> the sum of their features [..., features]."""

    known: int
    features: int
    dropout: float
    skip: float

    @nn.compact
    def __call__(self, parts: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.1)
        found = nn.Embed(self.known, self.features, embedding_init=init)(parts).sum(-2)
        if not self.has_rng("dropout"):
            return found
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.skip, found.shape[:-1])
        return nn.Dropout(self.dropout, deterministic=False)(found * keep[..., None])


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]", text.lower())[:LONGEST] or ["."]


class Judge:
    """The net and the numbers of its words; a positive number is a positive judgement."""

    def __init__(
        self, texts: Sequence[str], *, size: int, embedding: int, dropout: float, skip: float, slope: float
    ) -> None:
        counts = Counter(part(word) for text in texts for word in words(text) for part in PARTS)
        self.numbers = {name: i for i, name in enumerate((n for n in counts if counts[n] > 1), 1)}  # 0: not known
        self.size, self.embedding, self.slope = size, embedding, slope
        self.embed = rnn.layer(Words(len(self.numbers) + 1, embedding, dropout, skip))
        self.read = rnn.bidirectional(rnn.gru(size), rnn.gru(size))
        self.decide, self.drop = nn.Dense(1), nn.Dropout(dropout, deterministic=False)

    def init(self, seed: int) -> Any:
        keys, word = jax.random.split(jax.random.key(seed), 3), jnp.zeros(self.embedding)
        return {
            "words": self.embed.init(keys[0], jnp.zeros(len(PARTS), jnp.int32)),
            "read": self.read.init(keys[1], word),
            "decide": self.decide.init(keys[2], jnp.zeros(4 * self.size))["params"],
        }

    def encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        number = lambda word: [self.numbers.get(part(word), 0) for part in PARTS]
        return [np.array([number(word) for word in words(text)], np.int32) for text in texts]

    def judged(self, params: Any, text: Any, key: Any = None, scan: rnn.Scan = rnn.scan) -> jax.Array:
        """Sentences, numbers [T, B, parts] and lengths, -> [B]."""
        k_words, k_read = (None, None) if key is None else jax.random.split(key)
        _, features = rnn.unroll(self.embed, params["words"], text.xs, lengths=text.lengths, key=k_words, scan=scan)
        return self.felt(params, features, text.lengths, k_read, scan)

    def felt(self, params: Any, features: jax.Array, lengths: Any, key: Any = None, scan: rnn.Scan = rnn.scan) -> Any:
        """The same from the words' features [T, B, features]."""
        _, ys = rnn.unroll(self.read, params["read"], features, lengths=lengths, scan=scan)
        pooled = jnp.concatenate([rnn.sequence.pooled(ys, how, lengths=lengths) for how in ("max", "mean")], axis=-1)
        pooled = pooled if key is None else self.drop.apply({}, pooled, rngs={"dropout": key})
        return self.decide.apply({"params": params["decide"]}, pooled)[..., 0]

    def loss(self, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> jax.Array:
        """Cross-entropy with how likely a positive judgement is, by the rating."""
        likely = jax.nn.sigmoid(self.slope * batch["rating"])
        return jnp.mean(optax.sigmoid_binary_cross_entropy(self.judged(params, batch["text"], key, scan), likely))

    def of(self, params: Any, texts: Sequence[str]) -> np.ndarray:
        """[N]: the judgements of all texts."""
        batches = rnn.training.Bucketed({"text": self.encoded(texts)}, size=min(128, len(texts)), bounds=BOUNDS)
        return np.array(batches.per_example(lambda batch: np.asarray(self.now(params, batch["text"]))))

    @partial(jax.jit, static_argnums=0)
    def now(self, params: Any, text: Any) -> jax.Array:
        return self.judged(params, text)

    def moves(self, params: Any, text: str) -> np.ndarray:
        """[T]: how much each word moves the judgement, to first order: gradient times features."""
        padded = rnn.training.Padded(*rnn.sequence.pad(self.encoded([text]), LONGEST))
        return np.asarray(self.moving(params, padded))[: len(words(text))]

    @partial(jax.jit, static_argnums=0)
    def moving(self, params: Any, text: Any) -> jax.Array:
        _, features = rnn.unroll(self.embed, params["words"], text.xs, lengths=text.lengths)
        gradient = jax.grad(lambda features: self.felt(params, features, text.lengths)[0])(features)
        return jnp.sum(gradient * features, axis=-1)[:, 0]
