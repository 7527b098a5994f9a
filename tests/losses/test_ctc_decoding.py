"""Decoding CTC: greedily against a plain loop, beams against the enumeration of all paths."""

import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.losses import PrefixBeams, ctc_greedy, ctc_loss, labels_read
from tests.losses.test_alignment import by_enumeration, collapsed, log_softmax, random

# --- greedy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 3])
def test_greedy_reads_the_likeliest_path(blank):
    logits, lengths = random(12, 5, 4, seed=1), np.array([12, 7, 0, 1, 9])
    _, ys = rnn.unroll(ctc_greedy(blank), (), jnp.asarray(logits), lengths=lengths)
    expected = [list(collapsed(logits[:n, b].argmax(-1).tolist(), blank)) for b, n in enumerate(lengths)]
    assert labels_read(ys, lengths) == expected


def test_greedy_streams():
    logits = random(12, 3, 4, seed=2)
    cell = ctc_greedy()

    @jax.jit
    def compute(logits):
        state, first = rnn.unroll(cell, (), logits[:5])
        return rnn.unroll(cell, (), logits)[1], first, rnn.unroll(cell, (), logits[5:], state)[1]

    whole, first, second = compute(logits)
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))
    assert labels_read(whole) == [list(collapsed(path)) for path in logits.argmax(-1).T.tolist()]


def test_greedy_on_a_net():
    cell = rnn.stack(rnn.lift(jnp.negative), ctc_greedy())
    assert cell == rnn.stack(rnn.lift(jnp.negative), ctc_greedy())
    _, ys = rnn.unroll(cell, ((), ()), jnp.array([[0.0, -1.0], [0.0, -1.0]])[:, None])
    assert ys[:, 0].tolist() == [1, -1]


# --- beams ---------------------------------------------------------------------------------------

EXACT = {"width": 10**6, "prune": None}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blank", [0, 1])
def test_wide_enough_equals_enumeration(seed, blank):
    logits = random(6, 4, seed=seed)
    table = by_enumeration(logits, blank)
    beams = PrefixBeams(blank=blank, **EXACT).feed(logits)
    scores = beams.scores()
    assert set(scores) == set(table)
    for labels, p in table.items():
        assert scores[labels] == pytest.approx(math.log(p), abs=1e-9)
    assert beams.best() == max(table, key=table.get)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_score_is_the_loss():
    logits = random(6, 4, seed=4)
    beams = PrefixBeams(**EXACT).feed(logits)
    found = list(beams.scores())[:5]
    counts = np.array([len(labels) for labels in found])
    padded = np.array([labels + (0,) * (6 - len(labels)) for labels in found])
    losses = jax.jit(lambda x: ctc_loss(x, padded, label_lengths=counts))(np.stack([logits] * 5, 1))
    for labels, loss in zip(found, losses.tolist(), strict=True):
        assert beams.scores()[labels] == pytest.approx(-loss, rel=1e-5)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_streamed_equals_whole(width):
    logits = random(30, 5, seed=5, scale=3.0)
    whole, pieces = PrefixBeams(width).feed(logits), PrefixBeams(width)
    agreed = ()
    for piece in np.array_split(logits, [1, 1, 7, 20]):
        pieces.feed(piece)
        assert pieces.stable()[: len(agreed)] == agreed  # what was stable did not change
        agreed = pieces.stable()
        assert all(labels[: len(agreed)] == agreed for labels in pieces.scores())
    assert pieces.scores() == whole.scores() and pieces.best() == whole.best()
    assert len(whole.scores()) <= width and whole.best()[: len(agreed)] == agreed and agreed


def test_stable_is_all_that_the_beams_share():
    beams = PrefixBeams(8).feed(random(25, 4, seed=6, scale=4.0))
    found = list(beams.scores())
    share = 0
    while all(len(z) > share and z[share] == found[0][share] for z in found):
        share += 1
    assert beams.stable() == found[0][:share] and len(found) > 1


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_what_the_best_labelling_has_said_for_so_long_is_settled(lag):
    beams, settled, seen = PrefixBeams(8, lag=lag), (), []
    for frame in random(60, 5, seed=8, scale=2.0):
        beams.feed(frame)
        kept, best, stable = list(beams.scores()), beams.best(), beams.stable()
        seen.append({z[:n] for z in kept for n in range(len(z) + 1)})  # all that any labelling begins with
        assert stable[: len(settled)] == settled and all(z[: len(stable)] == stable for z in kept)
        old = [z for z in (best[:n] for n in range(len(best) + 1)) if all(z in s for s in seen[-lag - 1 :])]
        assert len(seen) <= lag or stable[: len(old[-1])] == old[-1]
        settled = stable
    assert len(settled) > 20 and PrefixBeams(8).feed(random(60, 5, seed=8, scale=2.0)).stable() != settled


def test_a_lag_longer_than_the_stream_changes_nothing():
    logits = random(60, 5, seed=8, scale=2.0)
    assert PrefixBeams(8, lag=60).feed(logits).scores() == PrefixBeams(8).feed(logits).scores()


def test_a_narrow_beam_of_a_sure_net_is_greedy():
    logits = random(40, 6, seed=7, scale=60.0)
    assert PrefixBeams(1).feed(logits).best() == collapsed(logits.argmax(-1).tolist())


@pytest.mark.parametrize("seed", range(3))
def test_language_model_ranks_as_enumeration_does(seed):
    logits, weight, bonus = random(6, 4, seed=seed), 0.7, 0.5
    bigram = log_softmax(random(4, 4, seed=seed + 9, scale=2.0))
    asked, table = [], by_enumeration(logits)

    def model(last, label):
        asked.append((last, label))
        return label, bigram[last, label]

    def total(z):
        said = sum(bigram[a, b] for a, b in zip((0, *z), z, strict=False))
        return math.log(table[z]) + weight * said + bonus * len(z)

    beams = PrefixBeams(language_model=model, model_state=0, weight=weight, bonus=bonus, **EXACT).feed(logits)
    assert list(beams.scores()) == sorted(table, key=total, reverse=True)
    assert len(asked) == len(table) - 1  # once for each labelling but the empty one


def test_pruned_labels_are_not_tried():
    logits = np.log(np.array([[0.5, 0.49, 0.01], [0.5, 0.49, 0.01]]))
    assert {2} & {k for z in PrefixBeams(100, prune=None).feed(logits).scores() for k in z}
    assert not {2} & {k for z in PrefixBeams(100, prune=2.0).feed(logits).scores() for k in z}


def test_endless_streams_forget_what_no_beam_reads():
    made = []

    class Mark:
        """A state of the language model: alive as long as the labelling that it belongs to."""

    def model(state, label):
        mark = Mark()
        made.append(weakref.ref(mark))
        return mark, 0.0

    beams = PrefixBeams(4, language_model=model)
    for seed in range(5):
        beams.feed(random(40, 6, seed=seed, scale=3.0))
    alive = sum(mark() is not None for mark in made)
    assert alive <= 4 * (len(beams.best()) + 5) and len(made) > 4 * alive


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: PrefixBeams(0), r"width must be a whole number of at least 1, got 0"),
        (lambda: PrefixBeams(prune=-1.0), r"prune must be a number of nats of at least 0, or None, got -1\.0"),
        (lambda: PrefixBeams(language_model=3), r"language_model must be a function or None, got 3"),
        (lambda: PrefixBeams(blank=4).feed(np.zeros((2, 4))), r"\[T, V\] with V above the blank, 4, got \(2, 4\)"),
        (lambda: PrefixBeams().feed(np.zeros((2, 1, 4))), r"logits must be \[T, V\]"),
        (lambda: ctc_greedy(-1), r"ctc_greedy: blank must be a whole number of at least 0"),
    ],
)
def test_bad_input_is_one_sentence(call, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)
