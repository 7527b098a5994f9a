"""What a program sends between devices: collectives by kind, bytes and how often, read from the compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """One collective operation of a compiled program."""

    kind: str  # all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute, ...
    nbytes: int  # per device and time: of its operands or of its results, whichever is more
    times: int  # how often it runs: the product of the trip counts of the loops around it
    arrays: int  # how many arrays it takes at once
    known: bool  # whether every loop around it says how often it runs; one that does not counts once


class Collectives(tuple[Collective, ...]):
    """The collectives of a program, those that move most first; `str` gives a table."""

    @property
    def times(self) -> int:
        """How many collectives run in all."""
        return sum(each.times for each in self)

    @property
    def nbytes(self) -> int:
        """Bytes that they take in all, per device."""
        return sum(each.nbytes * each.times for each in self)

    def of(self, kind: str) -> Collectives:
        """Those of one kind."""
        return Collectives(each for each in self if each.kind == kind)

    def __str__(self) -> str:
        if not self:
            return "no collectives"
        rows = [("collective", "arrays", "bytes", "times", "bytes in all")]
        rows += [
            (c.kind, str(c.arrays), f"{c.nbytes:,}", f"{c.times:,}" + "+" * (not c.known), f"{c.nbytes * c.times:,}")
            for c in self
        ]
        rows.append(("in all", "", "", f"{self.times:,}", f"{self.nbytes:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )


def collectives(fn: Callable[..., Any], *args: Any) -> Collectives:
    """What fn(*args) sends between devices: kind, bytes, and how often, of every collective that is left when compiled.

        times = the product of the trip counts of the loops around it,    bytes in all = sum of bytes * times

    fn may be jitted (with its shardings), or compiled already (then there are no args); args are arrays on their
    devices, or ShapeDtypeStructs with a `sharding`. XLA joins collectives that it can do at once; such a one counts
    once, and says of how many arrays. Of a conditional's branches the one that moves most is counted; a loop whose
    trips the program does not say counts once (`known` is False, in the table a "+").
    Cost: compiles fn, does not run it. Raises: what fn raises; RuntimeError where the backend shows no program.
    """
    program = fn if hasattr(fn, "as_text") else (fn if hasattr(fn, "lower") else jax.jit(fn)).lower(*args).compile()
    text = program.as_text()
    if text is None:
        raise RuntimeError(f"collectives: the backend {jax.default_backend()!r} does not show its compiled programs")
    return collectives_in(text)


def collectives_in(text: str) -> Collectives:
    """The same of a compiled program's text, as `compiled.as_text()` gives it."""
    computations, entry = _computations(text)
    found = _sent(computations, entry, 1, True)
    return Collectives(sorted(found, key=lambda c: -c.nbytes * c.times))


class _Instruction(NamedTuple):
    name: str
    type: str
    op: str
    rest: str  # operands and attributes


_NAME = r"%?([\w.\-]+)"
_HEAD = re.compile(rf"^(ENTRY )?{_NAME} .*\{{\s*$")
_LINE = re.compile(rf"^\s+(?:ROOT )?{_NAME} = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLS = re.compile(rf"(?:calls|to_apply|body|condition|true_computation|false_computation)={_NAME}")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The program's functions by name, and which one is entered."""
    found: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            found[current] = []
            entry = current if head[1] else entry
        elif current and (instruction := _LINE.match(line)):
            found[current].append(_Instruction(*instruction.groups()))
    return found, entry


def _sent(computations: dict[str, list[_Instruction]], name: str, times: int, known: bool) -> list[Collective]:
    types = {each.name: each.type for each in computations.get(name, ())}
    found: list[Collective] = []
    for each in computations.get(name, ()):
        kind = each.op.removesuffix("-start")
        if kind in KINDS:
            found.append(_collective(each, kind, types, times, known))
            continue
        if each.op == "while":
            trips = _TRIPS.search(each.rest)
            inner = times * int(trips[1]) if trips else times, known and bool(trips)
            bodies = [_sent(computations, called, *inner) for called in _CALLS.findall(each.rest)]
            found += [c for body in bodies for c in body]
        elif each.op == "conditional":
            called = _CALLS.findall(each.rest)
            called += [n.strip().lstrip("%") for group in _BRANCHES.findall(each.rest) for n in group.split(",")]
            branches = [_sent(computations, branch, times, known) for branch in called]
            found += max(branches, key=lambda sent: Collectives(sent).nbytes, default=[])
        else:
            found += [c for called in _CALLS.findall(each.rest) for c in _sent(computations, called, times, known)]
    return found


def _collective(each: _Instruction, kind: str, types: dict[str, str], times: int, known: bool) -> Collective:
    """An operation begun apart from its end has a type of both its operands and its results."""
    operands = [types[n] for n in re.findall(_NAME, each.rest.split(")", 1)[0]) if n in types]
    taken, given = _nbytes(operands), _nbytes([each.type])
    if each.op.endswith("-start") and kind != "all-reduce":
        given -= taken
    return Collective(kind, max(taken, given), times, sum(len(_ARRAY.findall(t)) for t in operands), known)


def _nbytes(types: Iterable[str]) -> int:
    return sum(
        -(-_bits(kind) * math.prod(int(n) for n in shape.split(",") if n) // 8)
        for text in types
        for kind, shape in _ARRAY.findall(text)
    )


def _bits(kind: str) -> int:
    """Of one number: f32, bf16, s8, u4, f8e4m3fn, c64; a truth value takes a byte, a token nothing."""
    if kind in ("pred", "token"):
        return 8 * (kind == "pred")
    size = re.search(r"\d+", kind)
    return int(size[0]) if size else 0
