"""Windows of long sequences, read in parallel streams."""

import numpy as np
import pytest

import jaxrnn as rnn


def test_streams_read_consecutive_windows():
    streams = rnn.training.Streams({"x": np.arange(25), "y": np.arange(50).reshape(25, 2)}, batch=2, window=5)
    assert streams.windows == 2
    first, begins = streams(0)
    assert first["x"].T.tolist() == [[0, 1, 2, 3, 4], [12, 13, 14, 15, 16]] and first["y"].shape == (5, 2, 2)
    assert begins.tolist() == [[True, True]] + [[False, False]] * 4
    second, begins = streams(1)
    assert second["x"].T.tolist() == [[5, 6, 7, 8, 9], [17, 18, 19, 20, 21]] and not begins.any()
    assert streams(2)[0]["x"].tolist() == first["x"].tolist() and streams(2)[1][0].all()
    with pytest.raises(
        ValueError, match=r"25 steps are too few for 6 streams with windows of 5; at least 30 are needed"
    ):
        rnn.training.Streams(np.arange(25), batch=6, window=5)
    with pytest.raises(ValueError, match=r"sequence\['b'\] has 3 time steps but sequence\['a'\] has 4"):
        rnn.training.Streams({"a": np.zeros(4), "b": np.zeros(3)}, batch=1, window=1)


def windows_one_by_one(streams, steps):
    """Each stream's steps as one list per window, and where the booleans are true."""
    for step in range(steps):
        windows, begins = streams(step)
        yield windows.T.tolist(), begins.T.tolist()


def test_context_is_read_from_the_neighbouring_windows():
    streams = rnn.training.Streams(np.arange(26), batch=2, window=4, before=3, after=2)
    rows = [list(range(12)), list(range(13, 25))]  # 26 // 2 = 13 steps, of which three windows are read
    for step, (windows, begins) in enumerate(windows_one_by_one(streams, 7)):
        for row, window, begin in zip(rows, windows, begins, strict=True):
            wanted = [t % 12 for t in range(4 * step - 3, 4 * step + 6)]
            assert window == [row[t] for t in wanted] and begin == [t == 0 for t in wanted]


def test_a_net_with_resets_sees_nothing_beyond_a_stream_s_begin():
    """The state after each step, from windows with context as from the whole stream."""
    sequence = np.cos(np.arange(24.0)).astype("f4")
    cell = rnn.lift(lambda x: x)._replace(
        initial_state=lambda p, batch: np.zeros(batch, "f4"), step=lambda p, s, x, key=None: (0.5 * s + x, 0.5 * s + x)
    )
    whole = rnn.unroll(cell, (), sequence.reshape(2, 12).T, scan=rnn.python_loop())[1]
    xs, begins = rnn.training.Streams(sequence, batch=2, window=4, before=5)(0)
    _, ys = rnn.unroll(cell, (), xs, resets=begins, scan=rnn.python_loop())
    np.testing.assert_allclose(ys[5:], whole[:4], rtol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 3)])
def test_documents_begin_where_they_do(before, after):
    lengths = [5, 0, 8, 2, 9]
    given = {"batch": 2, "window": 5, "before": before, "after": after, "lengths": lengths}
    streams = rnn.training.Streams({"t": np.arange(24), "document": np.repeat(np.arange(5), lengths)}, **given)
    assert streams.windows == 2
    for step in range(5):
        windows, begins = streams(step)
        assert begins.tolist() == np.isin(windows["t"], [0, 5, 12, 13, 15]).tolist()  # 12 is where stream 1 begins
        follows = np.diff(windows["t"], axis=0) == 1
        same = np.diff(windows["document"], axis=0) == 0
        assert (begins[1:] | (follows & same)).all()


def test_streams_of_whole_documents_cut_none_and_leave_none_out():
    lengths = [5, 2, 7, 3, 1, 4, 6]
    ends = np.cumsum(lengths)
    documents = [list(range(end - n, end)) for n, end in zip(lengths, ends, strict=True)]
    streams = rnn.training.Streams(np.arange(28), batch=3, window=4, lengths=lengths, whole=True)
    # By hand: the shortest stream takes the next document: 5 | 2 | 7, then 3 to the second, and so on.
    assigned = [[0, 4, 6], [1, 3, 5], [2]]
    rows = [[t for d in stream for t in documents[d]] for stream in assigned]
    assert streams.windows == len(streams) == 3  # twelve steps, the longest stream, by fours
    for step, (windows, begins) in enumerate(windows_one_by_one(streams, 9)):
        for row, window, begin in zip(rows, windows, begins, strict=True):
            assert window == [row[t % len(row)] for t in range(4 * step, 4 * step + 4)]
            assert begin == [t in ends - lengths for t in window]
    read = {t for windows, _ in windows_one_by_one(streams, streams.windows) for row in windows for t in row}
    assert read == set(range(28))


def test_windows_are_items_of_an_epoch():
    streams = rnn.training.Streams(np.arange(26), batch=2, window=4)
    assert [windows.tolist() for windows, _ in streams] == [streams(step)[0].tolist() for step in range(3)]
    assert streams[-1][0].tolist() == streams(2)[0].tolist() == streams[np.int64(2)][0].tolist()
    with pytest.raises(IndexError, match=r"an epoch has 3 windows, from 0, got 3"):
        streams[3]


def test_only_the_window_is_read_of_a_memory_map(tmp_path):
    path = tmp_path / "long.npy"
    np.save(path, np.arange(1000, dtype=np.int32))
    windows, _ = rnn.training.Streams(np.load(path, mmap_mode="r"), batch=2, window=3, before=1)(2)
    assert type(windows) is np.ndarray and windows.T.tolist() == [[5, 6, 7, 8], [505, 506, 507, 508]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"before": -1}, r"Streams: before must be a whole number of at least 0, got -1"),
        ({"after": 1.5}, r"Streams: after must be a whole number of at least 0, got 1.5"),
        ({"whole": True}, r"whole=True needs to know the documents; give their lengths"),
        ({"lengths": [4, 5]}, r"lengths must add up to the 10 steps of the sequence, got 9; give one length per"),
        ({"lengths": [11, -1]}, r"lengths must be whole numbers of at least 0, one per document, got \[11, -1\]"),
        ({"lengths": [10, 0], "whole": True}, r"1 documents are too few for 2 streams of whole ones; take a smaller"),
    ],
)
def test_bad_streams_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        rnn.training.Streams(np.arange(10), batch=2, window=2, **options)
