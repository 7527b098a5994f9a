"""Real-time recurrent learning, exact and with less remembered: `rtrl`, `snap`, `layerwise`, `eprop`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxrnn import checks
from jaxrnn.engine.influence import Kept
from jaxrnn.engine.jacobian import Jacobian
from jaxrnn.online import blocks, remembering
from jaxrnn.online.learner import Found, Method, Window
from jaxrnn.online.step import OnlineStep
from jaxrnn.types import State


@dataclasses.dataclass(frozen=True)
class Remembering(Method):
    """What all methods have in common that keep rows of the influence."""

    def kept(self, step: OnlineStep) -> list[Kept]:
        return step.structure.kept()

    def memory(self, step: OnlineStep) -> list[jax.Array]:
        return remembering.nothing(step.structure.core, self.kept(step), step.dtype)

    def one(self, step: OnlineStep, state: State, memory: list[jax.Array], now: Window) -> Found:
        moment = step.moment(now.params, now.begin, state, now.given)
        kept, core = self.kept(step), step.structure.core
        past = remembering.read(core, kept, memory, moment.by_state)
        J = Jacobian(step.structure, moment.env, step.dtype)
        grown = remembering.grown(core, kept, memory, moment.env, J)
        return moment.state, grown, moment.loss, step.with_past(now.params, now.begin, moment.grads, past)


@dataclasses.dataclass(frozen=True)
class rtrl(Remembering):
    """Real-time recurrent learning: the exact gradient of all the past, in memory that does not grow with time.

        M_t = A_t M_tm1 + B_t a_t                        ds_t / dtheta, kept for every tap z = a V of the step
        g_t = dL_t / dtheta + (dL_t / ds_tm1) M_tm1      so the g of any windows add up to BPTT's gradient

    as long as the parameters stay; while they change, M is of earlier ones (as in Williams and Zipser 1989). Kept are
    the rows of the state that a weight can reach, read off the step's equations: all N for a dense cell, one for a cell
    whose units do not meet (`ind_rnn`, gated linear recurrences), for which it is as cheap as the forward step.

    Windows of K > 1 steps are done at once where the rows are dense (Schmidhuber 1992): N backward passes through the
    window give ds_K / ds_0 and ds_K / dz, and M is multiplied once. `block` says so (True), or step by step (False).
    Memory: N numbers per weight and example, or as many as there are rows; and for a block what BPTT keeps of K steps.
    Cost per step, in forward steps: N^2 step by step; 3 to 4 N in blocks of K = N; about 7 for one row. Exact,
    biased only by changing parameters. Where that is too much: `snap`, `layerwise`, `kf_rtrl`, `tbptt`.
    Williams and Zipser 1989, "A learning algorithm for continually running fully recurrent neural networks".
    """

    block: bool | None = None

    def __post_init__(self) -> None:
        checks.one_of("rtrl", "block", self.block, (None, True, False))

    def over(self, step: OnlineStep, state: State, memory: list[jax.Array], window: Window) -> Found:
        if self.block or (self.block is None and blocks.pays(step, self.kept(step), window)):
            return blocks.over(step, self.kept(step), state, memory, window)
        return super().over(step, state, memory, window)


@dataclasses.dataclass(frozen=True)
class snap(Remembering):
    """The sparse n-step approximation: of the influence those rows that a weight reaches within n steps.

        M_t = (A_t M_tm1 + B_t a_t)    where a weight reaches the state within `order` steps, else 0

    `snap(1)` keeps of a GRU one row per weight, of an LSTM two (h and c). Not the loss of h_t is differentiated but
    that of the step from h_tm1, by which one more product is exact than in the paper.
    Memory: the rows kept, times the weights. Cost per step: about 8 forward steps for one row, 13 for two, whatever the
    size; for `order` > 1 of a dense cell soon as much as `rtrl`. Biased: what came by longer ways is left out. In a
    stack a lower layer's weights reach all rows of the upper ones within a step: `layerwise` drops these.
    Raises: ValueError for an order that is no whole number of at least 1.
    Menick et al. 2021, "Practical real time recurrent learning with a sparse approximation" (arXiv 2006.07232).
    """

    order: int

    def __post_init__(self) -> None:
        checks.positive_int("snap", "order", self.order)

    def kept(self, step: OnlineStep) -> list[Kept]:
        return step.structure.kept(self.order)


@dataclasses.dataclass(frozen=True)
class layerwise(Remembering):
    """Each layer remembers its own weights' influence on itself alone.

        M_t as under `rtrl`, but for rows that a weight reaches only by a product of another layer

    Exact within each layer; errors reach a lower layer through the upper ones' present step, not through their past.
    For stacks of cells whose units do not meet: one row per weight, where `rtrl` keeps the rows of all layers above.
    Memory and cost: those of `rtrl` of each layer by itself. Biased for more than one layer.
    Zucchet et al. 2023, "Online learning of long-range dependencies" (arXiv 2305.15947).
    """

    def kept(self, step: OnlineStep) -> list[Kept]:
        return step.structure.kept(layerwise=True)


@dataclasses.dataclass(frozen=True)
class eprop(layerwise):
    """Eligibility traces: `layerwise` of the step in which no layer's derivative passes through its own products.

        z_t = x_t U + stop_gradient(h_tm1) W         where a layer feeds itself; then as `layerwise`

    What a unit remembers within itself (an LSTM's c, a membrane's voltage, leaky units as in RFLO) keeps its credit;
    what goes around by the recurrent weights has none. The derivative of spikes is the cell's own `jax.custom_jvp`. Cut
    are products of rows with a matrix of weights; a recurrence by a convolution, by heads (`slstm`) or by a matrix that
    is not learned is left whole.
    Memory: one row per weight for most cells. Cost per step: about 7 forward steps, whatever the size. Biased; it
    equals BPTT of the cut net, which a test holds it to.
    Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking neurons"; Murray 2019,
    "Local online learning in recurrent networks with random feedback" (RFLO).
    """

    is_cut: ClassVar[bool] = True
