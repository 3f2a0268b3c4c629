"""One case: everybody's result is checked, then they are timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minquant.bench.limits import Probe, dot_probe, read_probe
from minquant.bench.operands import Job, Operands, WrongResultError, checked, ends, operands
from minquant.bench.peers import Peer
from minquant.bench.shapes import PACKED, Case
from minquant.bench.threads import limited
from minquant.bench.timing import Runner, in_turn, paired
from minquant.kernels import cpu, int8_matmul
from minquant.kernels.isa import chosen

__all__ = ["Bench", "saturating"]

TELLING = 1_000_000
"""Operations from which a case tells how long a larger one would take."""

DOTS, READING = "dot products", "reading"
OURS = {left: f"minquant, {left}" for left in ("uint8", "int8")}


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
        """One row for each peer that was timed, or one without a peer.

        Raises:
            WrongResultError: minquant's own product is wrong.
        """
        with limited(case.threads):
            calls, peers = self._prepare(case)
            probes = {DOTS: dot_probe(chosen()), READING: read_probe(case.moved)}
            calls |= {name: probe.call for name, probe in probes.items() if probe}
            always = {*OURS.values(), *probes} & set(calls)
            runners = in_turn(calls, self.seconds, always)
        self._learn(case, peers, runners)
        timed: Sequence[Peer | None] = peers or [None]
        return [_row(case, runners, probes, peer) for peer in timed]

    def _prepare(self, case: Case) -> tuple[dict[str, Callable[[], object]], list[Peer]]:
        """The calls to time, minquant's first, and the peers among them; all have been checked."""
        peers = [peer for peer in self.peers if (case.op == PACKED or not peer.keeps) and self._in_time(peer, case)]
        calls: dict[str, Callable[[], object]] = {}
        for left in dict.fromkeys(["uint8", *(peer.left for peer in peers)]):
            job = _ours(case.op, operands(case.shape, left))
            checked(f"minquant's {case.name}", job)
            calls[OURS[left]] = job.call
        timed = []
        for peer in peers:
            try:
                job = peer.prepare(operands(case.shape, peer.left), case.threads)
                checked(peer.name, job)
            except Exception as error:  # a peer that fails must not hide the others
                self._leave_out(peer, case, f"{type(error).__name__}: {error}")
                continue
            calls[peer.name] = job.call
            timed.append(peer)
        return calls, timed

    def _in_time(self, peer: Peer, case: Case) -> bool:
        expected = self._pace.get((peer.name, case.threads), 0.0) * case.operations
        if expected > self.seconds / 2:
            self._leave_out(peer, case, f"a call would take some {expected:.1f} s")
        return expected <= self.seconds / 2

    def _leave_out(self, peer: Peer, case: Case, why: str) -> None:
        entry = {"peer": peer.name, "op": case.op, "shape": list(case.shape), "threads": case.threads, "why": why}
        self.left_out.append(entry)

    def _learn(self, case: Case, peers: Sequence[Peer], runners: Mapping[str, Runner]) -> None:
        """Seconds for an operation, at each peer's best."""
        if case.operations < TELLING:
            return
        for peer in peers:
            key, pace = (peer.name, case.threads), runners[peer.name].duration / case.operations
            self._pace[key] = min(self._pace.get(key, pace), pace)


def _ours(op: str, given: Operands) -> Job:
    if op == PACKED:
        packed = cpu.pack_weight(given.b)
        return Job(lambda: cpu.matmul(given.a, packed), _same, given.product)
    return Job(lambda: int8_matmul(given.a, given.b, "numba"), _same, given.product)


def _same(result: Any) -> Any:
    return result


def _row(
    case: Case, runners: Mapping[str, Runner], probes: Mapping[str, Probe | None], peer: Peer | None
) -> dict[str, Any]:
    left = peer.left if peer else "uint8"
    mine = runners[OURS[left]]
    seconds, theirs, speedup, rounds = paired(mine, runners[peer.name] if peer else mine)
    return {
        "op": case.op,
        "shape": list(case.shape),
        "threads": case.threads,
        "seconds": seconds,
        "peer": peer.name if peer else None,
        "peer_seconds": theirs if peer else None,
        "speedup": speedup if peer else None,
        "group": case.group,
        "family": peer.family if peer else None,
        "integers": peer.integers if peer else None,
        "left": left,
        "rounds": rounds,
        "gops": case.operations / seconds / 1e9,
        **_limit(case, mine, runners, probes),
    }


def _limit(
    case: Case, mine: Runner, runners: Mapping[str, Runner], probes: Mapping[str, Probe | None]
) -> dict[str, Any]:
    """The share of the limit that minquant reaches, and which limit it is; None where there is no instruction."""
    amounts = {DOTS: case.operations, READING: case.moved}
    if any(probes[name] is None for name in amounts):
        return {"share": None, "limit": None}
    shares = {
        name: paired(mine, runners[name])[2] * amounts[name] / probe.amount for name, probe in probes.items() if probe
    }
    limit = max(shares, key=lambda name: shares[name])
    return {"share": shares[limit], "limit": limit}


def saturating(peers: Sequence[Peer]) -> list[str]:
    """Peers that add products in pairs in int16 on this processor, so that with larger weights they would be wrong."""
    found = []
    with limited(1):
        for peer in peers:
            if not peer.integers:
                continue
            try:
                checked(peer.name, peer.prepare(ends(peer.left), 1))
            except WrongResultError:
                found.append(peer.name)
            except Exception:  # whatever it is, it is reported of every case
                continue
    return found
