"""One case: everybody's result is checked, then they are timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minquant.bench.job import checked
from minquant.bench.limits import Probe, dot_probe, read_probe
from minquant.bench.operation import Case, Peer, Work
from minquant.bench.threads import limited
from minquant.bench.timing import Runner, in_turn, paired
from minquant.kernels.isa import chosen

__all__ = ["DOTS", "Bench"]

TELLING = 1_000_000
"""Operations from which a case tells how long a larger one would take."""

DOTS, READING = "dot products", "reading"

Calls = dict[str, Callable[[], object]]
Pair = tuple[str, Peer | None]
"""One of minquant's variants, and a peer that it is compared with."""


class Bench:
    """Runs cases one by one.

    Args:
        peers: those that are installed.
        seconds: of timing, for each case. A peer is left out where a single call would take half of it, as
            smaller cases have shown.

    Attributes:
        left_out: peers that were not timed, in which case and why.
    """

    def __init__(self, peers: Sequence[Peer], seconds: float) -> None:
        self.peers, self.seconds = peers, seconds
        self.left_out: list[dict[str, Any]] = []
        self._pace: dict[tuple[str, int], float] = {}

    def run(self, case: Case) -> list[dict[str, Any]]:
        """One row for each peer that was timed and each of minquant's variants that it is compared with; a variant
        without peers has a row too.

        Raises:
            WrongResultError: minquant's own result is wrong.
        """
        with limited(case.threads):
            calls, peers = self._prepare(case)
            probes = _probes(case.work)
            calls |= {name: probe.call for name, probe in probes.items() if probe}
            always = {*map(_ours, case.operation.variants), *probes} & set(calls)
            runners = in_turn(calls, self.seconds, always)
        self._learn(case, peers, runners)
        return [_row(case, runners, probes, *pair) for pair in _pairs(case, peers)]

    def _prepare(self, case: Case) -> tuple[Calls, list[Peer]]:
        """The calls to time, minquant's first, and the peers among them; all have been checked."""
        data = case.operation.draw(case.shape)
        calls: Calls = {}
        for variant in case.operation.variants:
            job = case.operation.ours(data, variant)
            checked(f"minquant's {case.name}, {variant}", job)
            calls[_ours(variant)] = job.call
        timed = []
        for peer in self.peers:
            if peer not in case.operation.peers or not self._in_time(peer, case):
                continue
            try:
                job = peer.prepare(data, case.threads)
                checked(peer.name, job)
            except Exception as error:  # a peer that fails must not hide the others
                self._leave_out(peer, case, f"{type(error).__name__}: {error}")
                continue
            calls[peer.name] = job.call
            timed.append(peer)
        return calls, timed

    def _in_time(self, peer: Peer, case: Case) -> bool:
        operations = case.work.operations if case.work else 0
        expected = self._pace.get((peer.name, case.threads), 0.0) * operations
        if expected > self.seconds / 2:
            self._leave_out(peer, case, f"a call would take some {expected:.1f} s")
        return expected <= self.seconds / 2

    def _leave_out(self, peer: Peer, case: Case, why: str) -> None:
        entry = {"peer": peer.name, "op": case.operation.name, "shape": list(case.shape), "threads": case.threads}
        self.left_out.append({**entry, "why": why})

    def _learn(self, case: Case, peers: Sequence[Peer], runners: Mapping[str, Runner]) -> None:
        """Seconds for an operation, at each peer's best."""
        if case.work is None or case.work.operations < TELLING:
            return
        for peer in peers:
            key, pace = (peer.name, case.threads), runners[peer.name].duration / case.work.operations
            self._pace[key] = min(self._pace.get(key, pace), pace)


def _ours(variant: str) -> str:
    return f"minquant, {variant}"


def _probes(work: Work | None) -> dict[str, Probe | None]:
    """The processor's limits for that much work, to be measured beside it."""
    return {DOTS: dot_probe(chosen()), READING: read_probe(work.moved)} if work else {}


def _pairs(case: Case, peers: Sequence[Peer]) -> list[Pair]:
    pairs: list[Pair] = []
    for variant in case.operation.variants:
        rivals = [peer for peer in peers if peer.variant in (None, variant)]
        pairs += [(variant, peer) for peer in rivals] or [(variant, None)]
    return pairs


def _row(
    case: Case, runners: Mapping[str, Runner], probes: Mapping[str, Probe | None], variant: str, peer: Peer | None
) -> dict[str, Any]:
    mine = runners[_ours(variant)]
    seconds, theirs, speedup, rounds = paired(mine, runners[peer.name] if peer else mine)
    return {
        "op": case.operation.name,
        "shape": list(case.shape),
        "threads": case.threads,
        "seconds": seconds,
        "peer": peer.name if peer else None,
        "peer_seconds": theirs if peer else None,
        "speedup": speedup if peer else None,
        "group": case.group,
        "variant": variant,
        "family": peer.family if peer else None,
        "integers": peer.integers if peer else None,
        "rounds": rounds,
        **_limit(case.work, mine, runners, probes),
    }


def _limit(
    work: Work | None, mine: Runner, runners: Mapping[str, Runner], probes: Mapping[str, Probe | None]
) -> dict[str, Any]:
    """What the work comes to, how fast minquant does it, and the share of the limit that this is, and which limit;
    None where there is none.
    """
    if work is None:
        return dict.fromkeys(("operations", "moved", "gops", "share", "limit"))
    seconds = paired(mine, mine)[0]
    done = {"operations": work.operations, "moved": work.moved, "gops": work.operations / seconds / 1e9}
    amounts = {DOTS: work.operations, READING: work.moved}
    if any(probes[name] is None for name in amounts):
        return {**done, "share": None, "limit": None}
    shares = {
        name: paired(mine, runners[name])[2] * amounts[name] / probe.amount for name, probe in probes.items() if probe
    }
    limit = max(shares, key=lambda name: shares[name])
    return {**done, "share": shares[limit], "limit": limit}
