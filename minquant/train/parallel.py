"""Data-parallel training: several processes train one model, each on its part of every batch.

N processes compute what one would. For a batch of n rows, of which process r has n_r,

==================  ==============================================  ==============================================
gradient            ``Σ (n_r / n) · g_r``                           of one process up to the rounding of float32
observed range      smallest of the smallest, largest of the        that of one process to the last bit, since it is
                    largest, *before* any average is taken          shared before `MovingAverage` makes use of it
learned scale       as every parameter                              likewise, and the same on all processes
grid of a weight    nothing: every process has the whole weight     the same
grid of a token     nothing: every process has the whole token      the same
==================  ==============================================  ==============================================

Averaging the processes' *ranges* instead is the usual mistake: with an outlier in one part, the average of two largest
values is not the largest value.

N processes equal, bit for bit and for the whole run, one process that goes through the same parts one after the other
and adds their gradients in float64 (two processes always; with more the order of a float64 sum shows once in about 2²⁹
gradients). A plain process adds the rows' gradients in float32, in an order of its own: a difference in the last bit,
which in float stays one. Rounding the weights makes a whole step of it now and then, and losses part in the third or
fourth decimal, as they do when one process is given the rows of its batches in another order.

Arrays travel through torch.distributed: gloo between CPUs; gradients by nccl where every process has a GPU of its own.
Source: Li et al. 2020 (arXiv:2006.15704), section 3, for gradients; torch.nn.parallel.DistributedDataParallel, which
copies the first process's buffers to the others before each forward pass: what their observers saw is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from traceback import clear_frames
from typing import Any, NamedTuple

import numpy as np

from minquant.nn import Module
from minquant.quant.grid import range_of
from minquant.quant.spec import Granularity
from minquant.tensor import Tensor
from minquant.train.presence import Presence, ProcessLostError
from minquant.train.shared import (
    disagreements,
    flat,
    layout,
    observers_of_activations,
    refuse_what_needs_the_whole_batch,
)

__all__ = ["Processes", "ProcessLostError", "Shard"]

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Shard(NamedTuple):
    """A process's part of a batch.

    A batch with fewer rows than processes leaves some without. They compute with its first row, which weighs nothing:
    every process takes part in every joint operation, and the row is in the batch, so that no range changes.
    """

    rows: slice
    weight: float
    """The share of the batch's rows, n_r / n."""


class Processes:
    """This process among those of a run that torchrun started: ``torchrun --nproc-per-node 2 …``.

        with Processes() as processes:
            processes.synchronise(model)
            for x, y in batches:  # the same on every process
                shard = processes.shard(len(x))
                loss(model(x[shard.rows]), y[shard.rows]).backward()
                processes.average_gradients(model.parameters(), shard.weight)
                optimizer.step()

    The loss must be a mean over rows that count alike. When the block ends in an error, or a process is killed, the
    others stop with a `ProcessLostError` that names it.

    Args:
        timeout: how long a process may keep the others waiting, for example while it evaluates.

    Attributes:
        rank: the number of this process, from 0; only process 0 should write files.
        world_size: how many there are.
        step: the step that is being computed, if the loop sets it, for messages.

    Raises:
        ImportError: torch is not installed.
        ValueError: not started by torchrun.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._torch = import_torch()
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(
                f"Processes: {', '.join(missing)} not set, by which torchrun tells a process its rank; start with "
                "torchrun --nproc-per-node 2 -m minquant …"
            )
        dist = self._torch.distributed
        store, self.rank, self.world_size = next(dist.rendezvous("env://", timeout=timeout))
        backend, self._device = choose_backend(self._torch)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)
        self.step: int | None = None
        self._store, self._exchanges = store, 0
        self._presence = Presence(store, os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"])
        self._presence.meet(self._exchange(self._presence.card))

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        return self  # a copy of a model shares its ranges with the same processes

    def __repr__(self) -> str:
        return f"Processes(rank={self.rank}, world_size={self.world_size})"

    # ---- beginning and end -------------------------------------------------------------------------------------------

    def __enter__(self) -> Processes:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:  # torchrun ends the others so when one has died, and what they know must be said
            self._old_handler = signal.signal(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            if error is None:
                self.barrier()  # whoever is ready first does not look as if it were gone
            elif not isinstance(error, ProcessLostError):
                self._presence.tell(f"rank {self.rank} stopped{self._when}: {kind.__name__}: {error}")
        finally:
            with suppress(RuntimeError):
                self._torch.distributed.destroy_process_group()  # the others' operations fail now, and they look why
            self._presence.close()
            if self._in_main_thread:
                signal.signal(signal.SIGTERM, self._old_handler)

    def _terminated(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        reason = self._presence.why(self._when)
        raise (ProcessLostError(self._message(reason)) if reason else SystemExit(128 + number)) from None

    # ---- joint operations --------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Waits until every process is here."""
        self._gather(np.zeros(1, np.float32))

    def _gather(self, array: np.ndarray) -> np.ndarray:
        """(…) of each process -> (world_size, …) by rank."""
        own = self._torch.from_numpy(np.asarray(array, order="C"))
        parts = [self._torch.empty_like(own) for _ in range(self.world_size)]
        with self._together():
            self._torch.distributed.all_gather(parts, own)
        return np.stack([part.numpy() for part in parts])

    def _sum(self, array: np.ndarray) -> np.ndarray:
        total = self._torch.from_numpy(array).to(self._device)
        with self._together():
            self._torch.distributed.all_reduce(total)
            return total.cpu().numpy()

    def _broadcast(self, array: np.ndarray) -> np.ndarray:
        """That of process 0, of this array's shape and dtype."""
        values = self._torch.from_numpy(array.copy())
        with self._together():
            self._torch.distributed.broadcast(values, src=0)
        return values.numpy()

    def _exchange(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        self._exchanges += 1
        keys = [f"minquant/{self._exchanges}/{rank}" for rank in range(self.world_size)]
        with self._together():
            self._store.set(keys[self.rank], text)
            self.barrier()  # which notices a dead process, for whose text the store would wait
            texts = [self._store.get(key).decode() for key in keys]
            self.barrier()  # process 0 may keep the store, and must not leave before all have read
        return texts

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around a joint operation: where it fails, says which process is gone in the place of what its socket said."""
        try:
            yield
        except ProcessLostError:
            raise
        except RuntimeError as error:
            clear_frames(error.__traceback__)  # which would keep connections open that this process is to break off
            reason = self._presence.why(self._when)
            raise ProcessLostError(self._message(reason or f"every process answers, and yet: {error}")) from None

    @property
    def _when(self) -> str:
        return "" if self.step is None else f" in step {self.step}"

    def _message(self, reason: str) -> str:
        return (
            f"rank {self.rank} stops, since {reason}. Mend the cause and start the same command again: a run with "
            "checkpoints goes on from the last one"
        )

    # ---- what a training loop calls ----------------------------------------------------------------------------------

    def shard(self, rows: int) -> Shard:
        """This process's part of a batch: rows ``n·r // N`` up to ``n·(r + 1) // N``.

        Args:
            rows: n, the rows of the whole batch.

        Raises:
            ValueError: an empty batch.
        """
        if rows < 1:
            raise ValueError(f"Processes.shard: a batch must have rows to share, got {rows}")
        start, end = (rows * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return Shard(slice(start, end), (end - start) / rows) if start < end else Shard(slice(0, 1), 0.0)

    def average(self, value: float, weight: float) -> float:
        """``Σ weight · value`` over the processes, in float64: the whole batch's loss from its parts'."""
        return float(self._sum(np.array([weight * value if weight else 0.0]))[0])

    def average_gradients(self, parameters: Iterable[Tensor], weight: float) -> None:
        """Replaces each gradient g by ``f(Σ weight · g)``, summed in float64 in one pass and rounded once.

        A gradient that this process lacks counts as 0; one that all lack stays None.

        Args:
            parameters: the same on every process, in the same order.
            weight: `Shard.weight`.
        """
        learned = [p for p in parameters if p.requires_grad]
        present = np.array([p.grad is not None for p in learned], np.float64)
        totals = self._sum(np.concatenate([present, *(_weighted(p, weight) for p in learned)]))
        ends = np.cumsum([present.size, *(p.data.size for p in learned)])
        for p, anywhere, start, end in zip(learned, totals, ends[:-1], ends[1:], strict=False):
            p.grad = Tensor(totals[start:end].reshape(p.shape).astype(p.dtype)) if anywhere else None

    def synchronise(self, model: Module) -> None:
        """Makes the processes' models one: the values of process 0, and ranges that are the whole batch's.

        Call it once, when the model is prepared and before it trains; a checkpoint may be loaded before.

        Raises:
            ValueError: models that differ in a layer, a setting or a shape (every difference says which rank's); what
                cannot be had from parts of a batch: batch norm that takes the batch's statistics, Dropout, observers
                of more than a smallest and largest value, one grid for a whole batch chosen anew each time.
        """
        refuse_what_needs_the_whole_batch(model)
        self.check_same("model", layout(model))
        model.load_state_dict({name: self._broadcast(tensor.data) for name, tensor in model.state_dict().items()})
        for observer in observers_of_activations(model):
            observer.share_range = self.share_range

    def share_range(self, values: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, np.ndarray] | None:
        """The range of a batch of which `values` are this process's part, None if no process has a value.

        Every process must call this equally often: observers do, since all see every batch.
        """
        shape = granularity.qparams_shape(values.shape)
        nothing = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
        ranges = self._gather(np.stack(range_of(values, granularity) if values.size else nothing))  # (N, 2, …)
        low, high = ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0)
        return None if np.any(low > high) else (low, high)

    def check_same(self, what: str, own: Mapping[str, Any]) -> None:
        """Refuses processes that disagree.

        Args:
            what: what `own` describes, for the message.
            own: what each process should have alike, by name; dictionaries in it by their own names.

        Raises:
            ValueError: the message says which rank has what, and what process 0 has.
        """
        tables = [json.loads(text) for text in self._exchange(json.dumps(dict(flat(own))))]
        if lines := disagreements(tables):
            raise ValueError(f"the processes disagree on the {what}:\n  " + "\n  ".join(lines))

    def check_in_step(self, model: Module) -> None:
        """Refuses models whose parameters and buffers have drifted apart; a checkpoint of one would not be all's.

        Raises:
            ValueError: as `check_same`, by tensor.
        """
        digests = {name: hashlib.sha256(t.data.tobytes()).hexdigest()[:12] for name, t in model.state_dict().items()}
        self.check_same(f"state of the model{self._when}", digests)


def _weighted(parameter: Tensor, weight: float) -> np.ndarray:
    """Its gradient times the weight, flat and in float64."""
    if parameter.grad is None or not weight:
        return np.zeros(parameter.data.size)
    return weight * parameter.grad.data.ravel().astype(np.float64)


def choose_backend(torch: Any) -> tuple[str, str]:
    """What carries arrays between processes, and the device on which gradients are summed."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if torch.cuda.is_available() and local <= torch.cuda.device_count():  # nccl wants a GPU for each process
        return "cpu:gloo,cuda:nccl", f"cuda:{os.environ.get('LOCAL_RANK') or os.environ['RANK']}"
    return "gloo", "cpu"


def import_torch() -> Any:
    """PyTorch with torch.distributed, with the way to get it where it is missing."""
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise ImportError("training in several processes needs torch: pip install 'minquant[torch]'") from error
    return torch
