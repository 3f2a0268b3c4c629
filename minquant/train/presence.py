"""Who among the processes of a run is still there, and why the run ends.

A process that is killed says nothing. So every process keeps a door: a listening socket, at which the operating system
answers however busy the process is, and which it closes when the process dies. Whoever notices that a joint operation
failed knocks at all doors and writes into the store that all share whose is closed; the first to write is believed,
and so all stop with the same reason.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

__all__ = ["Presence", "ProcessLostError"]

PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0)  # seconds before each look: connections may break a little before the door closes
KNOCK_SECONDS = 2.0  # for which a knock waits, where a whole machine is gone
LINGER = 2.0  # seconds in which the others find this door open, where they cannot read why it closes
REASON = "minquant/end"


class ProcessLostError(RuntimeError):
    """Another process of the run has stopped: the message says which, in which step, and why if it could still tell."""


class Presence:
    """The door of this process, the addresses of the others', and the one reason why the run ends.

    Args:
        store: what all processes write to and read from, a torch.distributed.Store.
        one_machine: whether all processes run on this one, so that nobody else need reach the door.
    """

    def __init__(self, store: Any, one_machine: bool) -> None:
        self.store = store
        self.door = socket.create_server(("127.0.0.1" if one_machine else "", 0))
        host = "127.0.0.1" if one_machine else socket.gethostname()
        self.card = f"{host} {self.door.getsockname()[1]} {os.getpid()}"
        self.cards: list[str] = []
        self.store_is_gone = False  # with process 0, unless torchrun keeps it

    def meet(self, cards: list[str]) -> None:
        """Takes the cards of all processes, by rank."""
        self.cards = cards

    def why(self, step: str) -> str:
        """Why the run ends; "" if every process still answers and none gave a reason. Takes seconds at most."""
        for pause in PAUSES:
            time.sleep(pause)
            if reason := self._read():
                return reason
            gone = [f"rank {rank} ({_at(card)})" for rank, card in enumerate(self.cards) if not _answers(card)]
            if gone:
                return self.tell(f"{' and '.join(gone)} died{step}")
        return ""

    def tell(self, reason: str) -> str:
        """Writes down why the run ends, unless another process did before; returns what stands there then."""
        try:
            return self.store.compare_set(REASON, "", reason).decode()
        except RuntimeError:
            self.store_is_gone = True
            return reason

    def _read(self) -> str:
        try:
            return self.store.get(REASON).decode() if self.store.check([REASON]) else ""
        except RuntimeError:
            return ""

    def close(self) -> None:
        """Closes the door: this process leaves. (After the others could notice that joint operations fail.)"""
        if self.store_is_gone:
            time.sleep(LINGER)
        self.door.close()


def _answers(card: str) -> bool:
    host, port, _ = card.split()
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _at(card: str) -> str:
    host, _, pid = card.split()
    return f"process {pid}" if host == "127.0.0.1" else f"process {pid} on {host}"
