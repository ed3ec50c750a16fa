"""Latency of a model on a processor, from fitted coefficients: numpy alone, no names of models.

A model's time is a sum over its features, each with a rate; the log of a rate is a sum over the
groups that a setting belongs to (`edgekit.bench.setting`), as in a mixed model: Gelman and Hill,
"Data Analysis Using Regression and Multilevel/Hierarchical Models", 2007. On top lies a Gaussian
process over the likeness of graphs and of processors, for what the features do not see; a graph
unlike all that were measured gets nothing from it. Probe runs on the very device move all of it by
kriging, with the spreads that the groups are expected to have.

The interval's width is what is not known of the groups, times a factor by which held-out devices
and models were really missed (split conformal prediction: Lei et al., "Distribution-Free Predictive
Inference for Regression", 2018, arXiv 1604.04173).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.bench.features import PRIORS, WORK
from edgekit.bench.setting import GROUPS, Setting

__all__ = ["BASES", "Estimate", "Estimator", "Probe", "covariance", "vector_of"]

Vector = np.ndarray[Any, Any]

BASES: Final = ("measured", "probed", "same core", "extrapolated")
"""What an estimate rests on, best first."""

# By the marginal likelihood of what the fit leaves over within configs (estimate_fit.py).
_OWN = 0.8  # of a group's spread: what each feature has for itself
_PROBE_NOISE = 0.1  # log latency, of what one probe says about the others
_REACH = 0.1  # distance of graphs at which likeness fades
_LIKENESS = (0.05, 0.05, 0.06, 0.06, 0.05)
"""Spreads of the Gaussian process: for all settings, then for those that share the precision, its
family, its core, and its core and number of threads."""
_LEAST = 0.07  # log latency: two runs of one thing on one device
_MODEL = 0.16  # log latency: how far a graph unlike all others is missed
_UNFITTED = ("session", "config")
# Without these, nothing alike was measured: that core, and those kernels on cores of its kind.
_NEEDED = frozenset({"core", "core precision", "version family"})


@dataclass(frozen=True)
class Probe:
    """A latency measured on the device itself.

    Attributes:
        x: features of what was run.
        setting: how.
        ms: its median.
    """

    x: Vector
    setting: Setting
    ms: float


@dataclass(frozen=True)
class Estimate:
    """A latency in ms.

    Attributes:
        ms: the middle of the interval, in log.
        low: its lower end.
        high: its upper end.
        basis: one of `BASES`.
        rates: milliseconds of one unit of each feature, so that layers have their shares.
        spread: of log latency, before calibration.
    """

    ms: float
    low: float
    high: float
    basis: str
    rates: Vector
    spread: float


def vector_of(x: Vector) -> Vector:
    """Where a graph lies among graphs: how its work is divided, and how much there is."""
    time = x * np.exp(PRIORS)
    total = float(time.sum())
    return np.append(2 * np.sqrt(time / total), 0.15 * math.log(total))


def covariance(
    a: Vector, members: Sequence[Sequence[str]], b: Vector, others: Sequence[Sequence[str]],
    known: Mapping[str, Mapping[str, Any]],
) -> Vector:  # fmt: skip
    """Of log latencies [len(a), len(b)], by the groups that both belong to and nobody measured.

    Args:
        a, b: shares of features, one row each.
        members, others: the groups of their settings.
        known: members of groups of which something is known.
    """
    kinds = np.outer(a @ WORK, b @ WORK) + np.outer(a @ (1 - WORK), b @ (1 - WORK))
    kinds += _OWN**2 * (a @ b.T)
    total = np.zeros(kinds.shape)
    for g, (name, common, each) in enumerate(GROUPS):
        have = known.get(name, {})
        mine = np.array([m[g] if m[g] not in have else "" for m in members])
        theirs = np.array([m[g] for m in others])
        both = (mine[:, None] == theirs[None]) & (mine[:, None] != "")
        total += both * (common**2 + each**2 * kinds)
    result: Vector = total
    return result


def _likenesses(setting: Setting) -> tuple[str, ...]:
    p = setting.precision
    threads = min(2, int(math.log2(setting.threads)))
    return (p, f"{setting.kind.family} {p}", f"{setting.core} {p}", f"{setting.core} {p} {threads}")


class Estimator:
    """Fitted coefficients, ready to answer.

    Args:
        data: a document ``edgekit.estimator/1``.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.rates = np.array(data["rates"])
        self.slopes = np.array(data["slopes"])
        self.groups = {
            name: {member: np.array(row) for member, row in members.items()}
            for name, members in data["groups"].items()
        }
        likeness = data["likeness"]
        self._graphs = np.array(likeness["graphs"])
        self._cell_graph = np.array(likeness["cell_graph"], dtype=int)
        self._cells = [np.array(row) for row in likeness["cells"]]
        self._names = [{n: i for i, n in enumerate(row)} for row in likeness["names"]]
        self._alpha = np.array(likeness["alpha"])
        self.factors: Mapping[str, float] = data["interval"]["factors"]
        self.coverage: float = data["interval"]["coverage"]

    def log_rates(self, setting: Setting) -> Vector:
        """Log of milliseconds per unit of each feature."""
        out = self.rates + setting.descriptors() @ self.slopes
        for (name, _, _), member in zip(GROUPS, setting.groups(), strict=True):
            known = self.groups.get(name, {}).get(member)
            if known is not None:
                out = out + known
        result: Vector = out
        return result

    def unknown(self, setting: Setting) -> set[str]:
        """The groups of which nothing is known for this setting."""
        members = zip(GROUPS, setting.groups(), strict=True)
        return {name for (name, _, _), m in members if m not in self.groups.get(name, {})}

    def nearness(self, x: Vector) -> Vector:
        """Of each fitted graph to this one, from 0 to 1."""
        far = ((self._graphs - vector_of(x)) ** 2).sum(1)
        near: Vector = np.exp(-far / (2 * _REACH**2))
        return near

    def unseen(self, x: Vector, setting: Setting) -> float:
        """What the features don't see, in log latency."""
        weight = np.full(len(self._alpha), _LIKENESS[0] ** 2)
        rows = zip(_LIKENESS[1:], self._cells, self._names, _likenesses(setting), strict=True)
        for spread, cells, names, name in rows:
            weight += spread**2 * (cells == names.get(name, -1))
        return float((weight * self.nearness(x)[self._cell_graph]) @ self._alpha)

    def log_ms(self, x: Vector, setting: Setting) -> float:
        """Log latency in ms, without probes."""
        return math.log(float(x @ np.exp(self.log_rates(setting)))) + self.unseen(x, setting)

    def shares(self, x: Vector, setting: Setting) -> Vector:
        """Of the time, by feature."""
        time = x * np.exp(self.log_rates(setting))
        shares: Vector = time / time.sum()
        return shares

    def estimate(self, x: Vector, setting: Setting, probes: Sequence[Probe] = ()) -> Estimate:
        """Latency of the model with features ``x``.

        Args:
            x: see `edgekit.bench.features.features`.
            setting: where and how it would run.
            probes: runs on that device, at best with the same runtime, threads and precision.
        """
        middle = self.log_ms(x, setting)
        names, shares = self.unknown(setting), self.shares(x, setting)
        basis = "extrapolated" if _NEEDED & names else "same core"
        here, mine = shares[None], [setting.groups()]
        variance = float(covariance(here, mine, here, mine, self.groups)[0, 0])
        if probes:
            shift, variance = self._krige(here, mine, probes, variance)
            middle, basis = middle + shift, "probed"
        own = [p.ms for p in probes if p.setting == setting and np.array_equal(p.x, x)]
        if own:
            middle, variance, basis = math.log(own[-1]), 0.0, "measured"
        nearest = float(self.nearness(x).max(initial=0.0))
        model = 0.0 if own else _MODEL**2 * (1 - nearest**2)
        spread = math.sqrt(variance + _LEAST**2 + model)
        reach = self.factor(basis, setting.precision) * spread
        scale = math.exp(middle) / float(x @ np.exp(self.log_rates(setting)))
        rates: Vector = np.exp(self.log_rates(setting)) * scale
        ms = math.exp(middle)
        return Estimate(ms, ms * math.exp(-reach), ms * math.exp(reach), basis, rates, spread)

    def factor(self, basis: str, precision: str) -> float:
        """By what a spread is widened so that intervals cover what they say."""
        kind = "int8" if precision == "int8" else "float"
        return float(self.factors[f"{basis} {kind}"])

    def _krige(
        self,
        here: Vector,
        mine: Sequence[Sequence[str]],
        probes: Sequence[Probe],
        before: float,
    ) -> tuple[float, float]:
        """Shift of log latency by probes, and the variance that is left."""
        theirs = np.array([self.shares(p.x, p.setting) for p in probes])
        groups = [p.setting.groups() for p in probes]
        missed = np.array([math.log(p.ms) - self.log_ms(p.x, p.setting) for p in probes])
        among = covariance(theirs, groups, theirs, groups, self.groups)
        among[np.diag_indices(len(probes))] += _PROBE_NOISE**2
        to_here = covariance(here, mine, theirs, groups, self.groups)[0]
        weights = np.linalg.solve(among, to_here)
        return float(weights @ missed), max(0.0, before - float(weights @ to_here))
