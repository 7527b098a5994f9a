"""From one sequence of symbols to another: an encoder that reads from both ends, a decoder that looks at what it read.

Shared by `g2p` (letters to phonemes) and `translation` (Spanish to English). Symbols are numbers from 1 on; 0 is the
end of a target, and what the decoder reads first. Bahdanau et al. 2015, with the scores of Luong et al. 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

import jaxrnn as rnn
from experiments import harness

END = 0
Batch = dict[str, Any]  # "source" and "target": padded, with lengths


@dataclasses.dataclass(frozen=True)
class Translator:
    """The net, with its loss and its search; parameters {"encoder": ..., "decoder": ...}."""

    cell: str
    size: int  # hidden units of the encoder, in each direction; the decoder has twice as many
    embedding: int
    readout: int  # units between the decoder and its softmax
    sources: int  # symbols, 0 included
    targets: int
    dropout: float = 0.0  # of the encoder's outputs, and of what the softmax sees
    smoothing: float = 0.0  # share of the target that is spread over all symbols (label smoothing)

    @property
    def encoder(self) -> rnn.SequenceLayer:
        """sources [S, B] -> [S, B, 2 size]; its last state is the decoder's first."""
        cell = lambda: harness.CELLS[self.cell](self.size)
        embed = nn.Embed(self.sources, self.embedding, embedding_init=nn.initializers.normal(1.0))
        return rnn.chain(rnn.layer(embed), rnn.bidirectional(cell(), cell()), self.thinned())

    def decoder(self, memory: jax.Array, lengths: jax.Array | None) -> rnn.Cell:
        """The symbol before [*B] -> logits of the next [*B, targets]."""
        readout = (
            rnn.layer(nn.Dense(self.readout)),
            rnn.lift(jnp.tanh),
            self.thinned(),
            rnn.layer(nn.Dense(self.targets)),
        )
        return rnn.stack(*self.looking(memory, lengths), *readout)

    def looking(self, memory: jax.Array, lengths: jax.Array | None, **how: Any) -> tuple[rnn.Cell, rnn.Cell]:
        embed = nn.Embed(self.targets, self.embedding, embedding_init=nn.initializers.normal(1.0))
        return rnn.layer(embed), rnn.attending(harness.CELLS[self.cell](2 * self.size), memory, lengths, **how)

    def thinned(self) -> rnn.Cell:
        return rnn.dropout(rnn.lift(lambda y: y), self.dropout)

    def init(self, key: jax.Array) -> Any:
        k_encoder, k_decoder = jax.random.split(key)
        symbol, memory = jax.ShapeDtypeStruct((), jnp.int32), jnp.zeros((1, 2 * self.size))
        return {
            "encoder": self.encoder.init(k_encoder, symbol),
            "decoder": self.decoder(memory, None).init(k_decoder, symbol),
        }

    def read(self, params: Any, source: Any, **how: Any) -> tuple[rnn.Cell, Any, jax.Array]:
        """The decoder of these sources with its first state, and what the encoder makes of each symbol."""
        (_, ends, _), memory = rnn.unroll(self.encoder, params["encoder"], source.xs, lengths=source.lengths, **how)
        cell = self.decoder(memory, source.lengths)
        embed, looking, *rest = cell.initial_state(params["decoder"], source.lengths.shape)
        both = jax.tree.map(lambda forward, backward: jnp.concatenate([forward, backward], axis=-1), *ends)
        return cell, (embed, looking._replace(cell=both), *rest), memory

    def nats(
        self, params: Any, batch: Batch, key: Any = None, scan: rnn.Scan = rnn.scan, smoothing: float = 0.0
    ) -> Any:
        """Each target's negative log-likelihood [B], its end included; more of it with smoothing."""
        k_read, k_write = (None, None) if key is None else jax.random.split(key)
        cell, state, _ = self.read(params, batch["source"], key=k_read, scan=scan)
        target = batch["target"]

        def loss(logits: jax.Array, symbol: jax.Array) -> jax.Array:
            chosen = jnp.take_along_axis(logits, symbol[..., None], axis=-1)[..., 0]
            return jax.nn.logsumexp(logits, axis=-1) - (1 - smoothing) * chosen - smoothing * jnp.mean(logits, axis=-1)

        steps, told = (
            (rnn.sequence.shifted(target.xs, END), target.xs),
            {"lengths": target.lengths, "key": k_write, "scan": scan},
        )
        graded = rnn.with_loss(cell, loss)
        return rnn.unroll(graded, params["decoder"], steps, state, outputs="sum", **told)[1]

    def loss(self, scan: rnn.Scan, params: Any, batch: Batch, key: Any) -> jax.Array:
        """Mean nats per symbol of a batch, for `fit`."""
        nats = self.nats(params, batch, key if self.dropout else None, scan, self.smoothing)
        return jnp.sum(nats) / jnp.sum(batch["target"].lengths)

    def search(self, params: Any, source: Any, steps: int, width: int, penalty: float) -> tuple[jax.Array, jax.Array]:
        """The likeliest target of each source [steps, B] and its length [B]."""
        cell, state, _ = self.read(params, source)
        first = jnp.full(source.lengths.shape, END, jnp.int32)
        found = rnn.beam_search(
            cell, params["decoder"], state, first, steps, width=width, end=END, length_penalty=penalty
        )
        return found.tokens[..., 0], found.lengths[..., 0]

    def attention(self, params: Any, source: np.ndarray, target: np.ndarray) -> jax.Array:
        """Where the decoder looks in one source [S] as it writes its target [T], [T, S]; sums to one over S."""
        length = jnp.array([len(source)])
        _, state, memory = self.read(params, rnn.training.Padded(jnp.asarray(source)[:, None], length))
        looking, told = rnn.stack(*self.looking(memory, None, weights=True)), rnn.sequence.shifted(target[:, None], END)
        _, (_, weights) = rnn.unroll(looking, params["decoder"][:2], told, state[:2])
        return weights[:, 0]


def likelihood(net: Translator, batches: rnn.training.Bucketed) -> Callable[[Any], float]:
    """Mean nats per symbol of all examples, as a function of the parameters."""
    run = jax.jit(net.nats)

    def nats(params: Any) -> float:
        found = [(float(jnp.sum(run(params, batch))), batch["target"].lengths.sum()) for _, batch in batches.once()]
        return sum(total for total, _ in found) / sum(symbols for _, symbols in found)

    return nats


def written(
    net: Translator,
    batches: rnn.training.Bucketed,
    *,
    width: int,
    steps: Callable[[int], int],
    penalty: float = 0.0,
) -> Callable[..., list[list[int]]]:
    """The targets that a beam search finds for all sources, in their order, as a function of the parameters.

    `steps`: how long a target may become, from the number of steps that the sources are padded to.
    """
    run = jax.jit(net.search, static_argnums=(2, 3, 4))

    def write(params: Any, console: Console | None = None) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        with Progress(console=console, transient=True, disable=console is None) as progress:
            task = progress.add_task("beam search", total=len(batches.longest))
            for members, batch in batches.once():
                source = batch["source"]
                symbols, lengths = map(np.asarray, run(params, source, steps(len(source.xs)), width, penalty))
                found |= {int(i): symbols[: lengths[b], b].tolist() for b, i in enumerate(members)}
                progress.advance(task, len(members))
        return [found[i] for i in range(len(found))]

    return write


def draw_attention(looks: Sequence[tuple[Sequence[str], Sequence[str], Any]], panels: Any) -> None:
    """A panel for each (what was read, what was written, attention [T, S]): the darker, the more it was looked at."""
    for axes, (source, target, weights) in zip(np.ravel(panels), looks, strict=True):
        axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=90 if max(map(len, source)) > 1 else 0)
        axes.set_yticks(range(len(target)), target)
