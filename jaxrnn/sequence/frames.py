"""Layers that look at neighbouring steps at once: a pyramid's `every`, and Flax's `convolution` over time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.sequence.layers import Given, LayerDefinition, live, zero_where_not
from jaxrnn.types import Key, Params, SequenceLayer, State, Tree


@dataclass(frozen=True)
class Frames(LayerDefinition):
    """A layer without state whose outputs each read several steps, and of whose steps every `stride`-th has one."""

    stride: int
    name: ClassVar[str]

    @abstractmethod
    def over(self, params: Params, x: jax.Array) -> jax.Array:
        """[T, *B, D] -> [ceil(T / stride), *B, ...]"""

    def run(self, params: Params, xs: Tree, given: Given) -> tuple[State, Tree]:
        steps = checks.steps(self.name, xs)
        if given.resets is not None:
            raise ValueError(
                f"{self.name}: resets cannot be kept, for an output reads steps of what lies on both sides of one; "
                "pad the sequences and pass lengths, or put this layer's work in front of the packing"
            )
        if given.lengths is None:
            return (), jax.tree.map(lambda leaf: self.over(params, leaf), xs)
        lengths = checks.lengths(self.name, given.lengths, steps)
        for path, leaf in jax.tree_util.tree_leaves_with_path(xs):
            if leaf.ndim < 2 + lengths.ndim or leaf.shape[1 : 1 + lengths.ndim] != lengths.shape:
                raise ValueError(
                    f"{self.name}: {checks.leaf_name('xs', path)} should be features [T, *B, D] with *B = "
                    f"{lengths.shape} as in lengths, got {checks.describe(leaf)}; embed symbols first"
                )
        ys = jax.tree.map(lambda leaf: self.over(params, leaf), zero_where_not(live(steps, lengths), xs))
        shorter = self.shortened(lengths)
        return (), jax.tree.map(lambda leaf: zero_where_not(live(leaf.shape[0], shorter), leaf), ys)

    def shortened(self, lengths: jax.Array) -> jax.Array:
        return -(-jnp.asarray(lengths) // self.stride)


def every(n: int) -> SequenceLayer:
    """n neighbouring steps side by side as one, the layer between the storeys of a pyramid.

        y_t = (x_{nt}, x_{nt+1}, ..., x_{nt+n-1})            x is 0 from its sequence's end on

    Shapes: every leaf of xs [T, *B, D] becomes [ceil(T / n), *B, n D]; lengths become ceil(length / n), as
    `every(n).shortened(lengths)` says. So the loop after it takes n times fewer steps.
    Cost: a copy of xs. Raises: ValueError for n below 1, or for resets: a row of packed sequences has none that
    begin at multiples of n.
    Chan et al. 2016, "Listen, attend and spell".

    >>> import numpy as np
    >>> state, ys = every(2).apply((), jnp.arange(5.0)[:, None])
    >>> np.asarray(ys).tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]]
    """
    return Every(checks.positive_int("every", "n", n)).layer


@dataclass(frozen=True)
class Every(Frames):
    name = "every"

    def init(self, key: Key, x: Tree) -> Params:
        del key, x
        return ()

    def over(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        if x.ndim < 2:
            raise ValueError(f"every: xs must be features [T, *B, D], got {checks.describe(x)}; embed symbols first")
        groups = -(-x.shape[0] // self.stride)
        x = jnp.pad(x, [(0, groups * self.stride - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        x = jnp.moveaxis(x.reshape(groups, self.stride, *x.shape[1:]), 1, -2)
        return x.reshape(*x.shape[:-2], self.stride * x.shape[-1])


def convolution(features: int, kernel: int, *, stride: int = 1, causal: bool = False, **options: Any) -> SequenceLayer:
    """Flax's `nn.Conv` over time.

        y_t = b + sum over k < kernel of  x_{stride t + k - before} W_k          x is 0 outside of its sequence

    before = (kernel - 1) // 2, so that a window stands around its step; with `causal` kernel - 1, so that it ends
    there. `options` are those of `nn.Conv` (use_bias, kernel_init, dtype, feature_group_count, ...).
    Shapes: xs [T, *B, D], ys [ceil(T / stride), *B, features]; lengths become ceil(length / stride). A padded
    sequence gives what it gives alone, which `nn.Conv`'s own "SAME" padding does not where stride > 1.
    Cost: kernel D features multiplications per output, in one operation over all steps.
    Raises: ValueError for sizes below 1 and for resets (neighbours in a packed row would see each other).
    """
    sizes = {"stride": stride, "features": features, "kernel": kernel}
    known = {name: checks.positive_int("convolution", name, size) for name, size in sizes.items()}
    return Convolution(**known, causal=causal, options=tuple(options.items())).layer


@dataclass(frozen=True)
class Convolution(Frames):
    features: int
    kernel: int
    causal: bool
    options: tuple[tuple[str, Any], ...]
    name = "convolution"

    @property
    def module(self) -> nn.Conv:
        before = self.kernel - 1 if self.causal else (self.kernel - 1) // 2
        sides = ((before, self.kernel - 1 - before),)
        return nn.Conv(self.features, (self.kernel,), strides=(self.stride,), padding=sides, **dict(self.options))

    def init(self, key: Key, x: Tree) -> Params:
        one = jnp.zeros((1, *x.shape[-1:]), x.dtype)  # one step of one sequence
        return self.module.init(key, one)["params"]

    def over(self, params: Params, x: jax.Array) -> jax.Array:
        groups = dict(self.options).get("feature_group_count", 1)
        checks.features(self.name, x, params["kernel"].shape[1] * groups)
        # Flax has time before the features.
        return jnp.moveaxis(self.module.apply({"params": params}, jnp.moveaxis(x, 0, -2)), -2, 0)
