"""Pytrees as JSON and back."""

import dataclasses
import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.serving.layouts import layout, layout_from


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    second: jax.Array
    first: jax.Array


TREES = {
    "a bare array": jnp.arange(3),
    "nothing": (),
    "None": None,
    "nested": [{"b": jnp.ones(2), "a": (None, [jnp.int32(1)])}, rnn.LSTMState(jnp.zeros(1), jnp.ones(1))],
    "names that meet": {"a": {"b": jnp.zeros(1)}, "a/b": jnp.ones(2), "a/b#2": jnp.ones(3)},
    "numbers for names": {2: jnp.ones(1), 10: jnp.zeros(2)},
    "in order": OrderedDict(b=jnp.ones(1), a=jnp.zeros(2)),
    "keys": {"typed": jax.random.key(3), "more": jax.random.split(jax.random.key(1, impl="rbg"), 2)},
    "16 bits": jnp.ones((2, 2), jnp.bfloat16),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_through_json_and_by_name(name):
    tree = TREES[name]
    written = layout(tree)
    read = layout_from(json.loads(json.dumps(written.as_json)))
    assert read.structure == jax.tree.structure(tree) and read.leaves == written.leaves
    assert len({leaf.name for leaf in read.leaves}) == len(jax.tree.leaves(tree))
    packed = jax.tree.map(np.asarray, written.by_name(tree))
    assert all(type(part) is np.ndarray for part in (packed.values() if isinstance(packed, dict) else [packed]))
    back = read.tree(packed)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype and np.array_equal(*(np.asarray(rnn.trees.without_key(x)) for x in (a, b)))


def test_a_dataclass_becomes_fields_in_its_own_order():
    read = layout_from(layout(Pair(second=jnp.ones(2), first=jnp.zeros(1))).as_json)
    pair = jax.tree.unflatten(read.structure, ["second", "first"])
    assert type(pair).__name__ == "Pair" and (pair.first, pair.second) == ("first", "second")


def test_names_say_where_a_leaf_is_and_types_what_it_is():
    leaves = layout(TREES["nested"]).leaves
    assert [(leaf.name, str(leaf)) for leaf in leaves] == [
        ("0/a/1/0", "int32[]"),
        ("0/b", "float32[2]"),
        ("1/h", "float32[1]"),
        ("1/c", "float32[1]"),
    ]
