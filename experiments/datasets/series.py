"""Series to forecast, and short ones to classify.

    carbon_dioxide()    weekly CO2 above Mauna Loa in ppm, March 1958 to December 2001: 2,284 weeks
    sunspots()          their yearly number, 1700 to 2008: 309 years
    stocks()            daily closing prices of four companies in dollars, adjusted for splits and dividends,
                        August 2004 (Google's first day) to March 2013
    vowels()            270 utterances to train on and 370 to test: 12 LPC cepstra per frame, 7 to 29 frames, 9 speakers

CO2 and sunspots are files of PyPI `statsmodels` 0.15.0 (BSD; public-domain data), the stocks one of `bokeh-
sampledata` 2026.1 (BSD; the prices are a vendor's), the vowels those of `aeon` 1.6.0 (BSD; UCI "Japanese Vowels", CC
BY 4.0). Only these files are read. The 59 weeks without a CO2 value, the last of them in 1985, are on the line
between their neighbours. Facebook is left out: it was not traded before the test begins.

The split of a series: the first four fifths are to train on, their last sixth for development; the last fifth is the
test. Of the vowels it is the set's own; for development the last six of each speaker's 30 utterances are held out.
"""

from __future__ import annotations

import csv
import gzip
from datetime import date, datetime
from typing import NamedTuple

import numpy as np

from experiments.datasets.packages import Package, fetched

CO2, SUNSPOTS = "statsmodels/datasets/co2/co2.csv", "statsmodels/datasets/sunspots/sunspots.csv"
STATSMODELS = Package(
    "PyPI",
    "statsmodels",
    "0.15.0",
    {
        CO2: "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f",
        SUNSPOTS: "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b",
    },
)
STOCKS = "bokeh_sampledata/_data/stocks.csv.gz"
BOKEH = Package(
    "PyPI", "bokeh-sampledata", "2026.1", {STOCKS: "5abadf99b2d394f920120a27de6f0df129859d71d4cfb0bf661bcc99446ab1fd"}
)
COMPANIES = ("AAPL", "GOOG", "IBM", "MSFT")
VOWELS = "aeon/datasets/data/JapaneseVowels"
AEON = Package("PyPI", "aeon", "1.6.0", {VOWELS: "ab4f5571aba15cc383875aeafd45f48aad84d40234d6c97aa42af152efbbe918"})


class Series(NamedTuple):
    years: np.ndarray  # [T]: when, e.g. 1958.24
    values: np.ndarray  # [T, B]

    @property
    def test(self) -> int:
        """Where the test begins."""
        return len(self.years) * 4 // 5

    @property
    def development(self) -> int:
        """Where the part of the training part begins that choices are made on."""
        return self.test * 5 // 6


def carbon_dioxide() -> Series:
    rows = list(csv.reader((fetched(STATSMODELS) / CO2).read_text("utf-8").splitlines()))[1:]
    days = [datetime.strptime(day, "%Y%m%d").date() for day, _ in rows]
    values = np.array([float(value or "nan") for _, value in rows])
    known = np.isfinite(values)
    values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    return Series(np.array([in_years(day) for day in days]), values[:, None])


def sunspots() -> Series:
    rows = list(csv.reader((fetched(STATSMODELS) / SUNSPOTS).read_text("utf-8").splitlines()))[1:]
    years, values = np.array(rows, float).T
    return Series(years, values[:, None])


def stocks() -> Series:
    with gzip.open(fetched(BOKEH) / STOCKS, "rt") as file:
        prices = {(row["Ticker"], row["Date"]): float(row["Adj Close"]) for row in csv.DictReader(file)}
    days = sorted(set.intersection(*({day for name, day in prices if name == company} for company in COMPANIES)))
    values = np.array([[prices[company, day] for company in COMPANIES] for day in days])
    return Series(np.array([in_years(date.fromisoformat(day)) for day in days]), values)


def in_years(day: date) -> float:
    return day.year + (day.timetuple().tm_yday - 1) / 365.25


class Utterances(NamedTuple):
    frames: list[np.ndarray]  # [n_i, 12] float32 each
    speaker: np.ndarray  # [N], 0 to 8


def vowels() -> tuple[Utterances, Utterances]:
    """(to train on, to test)."""
    folder = fetched(AEON) / VOWELS
    return _utterances(folder / "JapaneseVowels_TRAIN.ts"), _utterances(folder / "JapaneseVowels_TEST.ts")


def _utterances(path) -> Utterances:
    _, data = path.read_text("utf-8").split("@data\n")
    lines = [line.split(":") for line in data.split("\n") if line.strip()]
    frames = [np.array([c.split(",") for c in channels], np.float32).T for *channels, _ in lines]
    return Utterances(frames, np.array([int(speaker) - 1 for *_, speaker in lines], np.int32))
