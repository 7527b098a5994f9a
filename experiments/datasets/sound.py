"""Frames of log-mel energies from samples: what a recurrent net hears of any sound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW, HOP = 0.025, 0.010  # seconds


def log_mel(
    samples: np.ndarray,
    rate: int,
    *,
    bands: int = 40,
    low: float = 60.0,
    high: float = 8000.0,
    hop: float = HOP,
    window: float = WINDOW,
) -> np.ndarray:
    """[n, bands] float32: the logs of the energies in bands of equal widths in mel.

        x_t  = samples [s_t, s_t + w),   s_t = round(t hop rate),   w = round(window rate)
        P_t  = |FFT(hann x_t)|^2 / (rate sum hann^2)           power per hertz: the same at any rate of samples
        y_t  = log(1e-12 + P_t F),   F [frequencies, bands] of `mel_filters`

    samples [N]: int16, or floating-point within -1..1. n is the number of windows that lie within them, at least
    one (shorter sounds are filled up with silence). Cost: n FFTs of the power of two from 2 w on.
    Raises: ValueError for `high` above half the rate, which has no such frequencies.
    """
    if not 0 <= low < high <= rate / 2:
        raise ValueError(
            f"log_mel: bands from {low:g} to {high:g} Hz do not fit a rate of {rate}; its half is the most"
        )
    width = round(window * rate)
    size = 2 ** int(np.ceil(np.log2(2 * width)))
    scale = 2.0**15 if samples.dtype == np.int16 else 1.0
    sound = np.pad(samples / scale, (0, max(0, width - len(samples))))
    starts = np.round(np.arange((len(sound) - width) / (hop * rate) + 1) * hop * rate).astype(int)
    starts = starts[starts + width <= len(sound)]
    hann = np.hanning(width)
    power = np.abs(np.fft.rfft(sound[starts[:, None] + np.arange(width)] * hann, size)) ** 2 / (rate * np.sum(hann**2))
    return np.log(1e-12 + power @ mel_filters(bands, low, high, rate, size)).astype(np.float32)


def mel_filters(bands: int, low: float, high: float, rate: int, size: int) -> np.ndarray:
    """F [size // 2 + 1, bands]: triangles over the frequencies of an FFT of `size`, each with the mean as its sum.

    mel(f) = 2595 log10(1 + f / 700);   m_0 .. m_bands+1 equally far apart from mel(low) to mel(high)
    F[f, b] ~ max(0, 1 - |mel(f) - m_b+1| / (m_1 - m_0)),   scaled to sum over f to 1
    """
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    edges = np.linspace(mel(low), mel(high), bands + 2)
    found = mel(np.arange(size // 2 + 1) * rate / size)
    triangles = np.maximum(0, 1 - np.abs(found[:, None] - edges[1:-1]) / (edges[1] - edges[0]))
    return triangles / np.maximum(triangles.sum(axis=0), 1e-9)


def centres(count: int, *, hop: float = HOP, window: float = WINDOW) -> np.ndarray:
    """[count]: the time in the middle of each frame's window, in seconds."""
    return np.arange(count) * hop + window / 2


def spread(frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each band over all frames: [bands] each."""
    everything = np.concatenate(frames)
    return everything.mean(axis=0), everything.std(axis=0) + 1e-6
