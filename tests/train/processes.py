"""Runs a function in several processes, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from minquant.train.parallel import Processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "tests.train.runs"])  # imported once for all
SECONDS = 60.0


def start(world_size: int, job: Callable[..., Any], *args: Any) -> list[tuple[Any, Any]]:
    """(process, connection) by rank; each runs ``job(processes, *args)``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in range(world_size):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(theirs, rank, world_size, port, job, args), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def finish(started: list[tuple[Any, Any]]) -> list[Any]:
    """What each returned, the exception that it raised, or None of one that was killed."""
    return [_result(process, connection) for process, connection in started]


def _result(process: Any, connection: Any) -> Any:
    try:
        return connection.recv() if connection.poll(SECONDS) else TimeoutError("still running")
    except EOFError:
        return None
    finally:
        process.join(SECONDS)


def run(world_size: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``job(processes, *args)`` returned, by rank; where there is one process, `processes` is None."""
    results = finish(start(world_size, job, *args))
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _run(connection: Any, rank: int, world_size: int, port: int, job: Callable[..., Any], args: Any) -> None:
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"RANK": str(rank), **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["MINQUANT_BACKEND"] = "numpy"  # the same bits, without half a second for numba in each process
    try:
        if world_size == 1:
            result = job(None, *args)
        else:
            with Processes() as processes:
                result = job(processes, *args)
        connection.send(result)
    except Exception as error:
        connection.send(error)
