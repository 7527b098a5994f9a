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
