"""Processes that train together, by torch.distributed: started here, or by ``torchrun``.

The process that calls `edgekit.compress.train.train` is rank 0: it alone scores, writes and tells
of progress. The others, started with copies of module and data, only take their part of each step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import pickletools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgekit.compress._train_types import Loss
from edgekit.errors import EdgekitError, UsageError, WorkerCrashed

__all__ = ["Team", "assemble", "objective_of"]

Member = Callable[["Team", Mapping[str, Any]], None]
"""What a process other than the first does, given what `assemble` was to hand it."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together.

    Attributes:
        rank: which one it is; 0 leads.
        size: how many there are.
        local: its place among those on this machine, which is its CUDA device.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process scores, writes and tells of progress."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def told(self, value: Any) -> Any:
        """The leader's ``value``, in every process."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


@contextlib.contextmanager
def assemble(
    processes: int, device: torch.device, member: Member, parts: Mapping[str, Any]
) -> Iterator[Team]:
    """Starts the other processes, and ends them.

    Args:
        processes: how many together; 1 is this one alone, or those that torchrun started.
        device: the kind of device that each trains on.
        member: a function of a module; what the others run.
        parts: what they are handed; each must survive pickling.

    Raises:
        UsageError: there are not as many devices, torchrun started another number, or a part cannot
            be handed over.
        WorkerCrashed: another process died.
        EdgekitError: what another process raised.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if dist.is_available() and dist.is_initialized():
        yield _present(processes)
    elif dist.is_available() and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend)
        try:
            yield _present(processes)
        finally:
            dist.destroy_process_group()
    elif processes == 1:
        yield Team()
    else:
        _check_devices(processes, device)
        with _started(processes, backend, member, parts) as team:
            yield team


class _Objective(nn.Module):
    """The loss as a module: DDP averages the gradients of what its own forward computed."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._loss(self.module, batch)


def objective_of(module: nn.Module, loss: Loss, team: Team) -> nn.Module:
    """A module that takes a batch and gives its loss, of gradients averaged over the team."""
    objective = _Objective(module, loss)
    if team.size == 1:
        return objective
    # A loss need not reach every parameter.
    return DistributedDataParallel(objective, find_unused_parameters=True)


def _present(processes: int) -> Team:
    size = dist.get_world_size()
    if processes not in (1, size):
        raise UsageError(
            f"processes is {processes}, and torchrun started {size}",
            hint="leave processes at 1 under torchrun",
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return Team(dist.get_rank(), size, local)


def _check_devices(processes: int, device: torch.device) -> None:
    if not dist.is_available():
        raise UsageError("this build of torch has no torch.distributed; processes must be 1")
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise UsageError(
            f"processes is {processes}, and there are {torch.cuda.device_count()} CUDA devices",
            hint="each process trains on a device of its own; device=cpu has no such limit",
        )


@contextlib.contextmanager
def _started(
    processes: int, backend: str, member: Member, parts: Mapping[str, Any]
) -> Iterator[Team]:
    payload = _packed(parts)
    files = _homes(payload)
    spawn = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, processes, True, wait_for_workers=False)  # type: ignore[attr-defined]
    others, pipes = [], []
    for rank in range(1, processes):
        ours, theirs = spawn.Pipe(duplex=False)
        about = (rank, processes, backend, store.port, torch.get_num_threads(), theirs)
        process = spawn.Process(target=_work, args=(about, member, files, payload), daemon=True)
        process.start()
        theirs.close()
        others.append(process)
        pipes.append(ours)
    if backend == "nccl":
        torch.cuda.set_device(0)
    try:
        dist.init_process_group(backend, store=store, rank=0, world_size=processes)
        yield Team(0, processes)
        for process in others:
            process.join(30)
    except RuntimeError as error:
        # Another process that ends shows here as a lost connection: its own reason comes first.
        raise _reason(others, pipes) or error from error
    finally:
        for process in others:
            if process.is_alive():
                process.terminate()
            process.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _reason(others: list[Any], pipes: list[Any]) -> EdgekitError | None:
    for rank, (process, pipe) in enumerate(zip(others, pipes, strict=True), start=1):
        process.join(3)
        with contextlib.suppress(EOFError, OSError):
            if pipe.poll():
                told = pipe.recv()
                if isinstance(told, EdgekitError):
                    return told
                return WorkerCrashed(f"process {rank} that trains along failed: {told}")
        if process.exitcode not in (0, None):
            return WorkerCrashed(
                f"process {rank} that trains along died (exit code {process.exitcode})",
                hint="there may be too little memory for so many; lower processes or batch",
            )
    return None


def _packed(parts: Mapping[str, Any]) -> bytes:
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{name} cannot be handed to another process: {error}",
                hint="make it of functions and classes at the top of a file, or start the script "
                "by torchrun and leave processes at 1",
            ) from error
    return pickle.dumps(dict(parts))


def _homes(payload: bytes) -> dict[str, str]:
    """The files of modules in the payload that another process cannot import by name."""
    names = {
        str(text).split(" ")[0]
        for opcode, text, _ in pickletools.genops(payload)
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "GLOBAL") and isinstance(text, str)
    }
    known = names & set(sys.modules) - {"__main__"}
    files = {name: getattr(sys.modules[name], "__file__", None) for name in known}
    return {n: str(f) for n, f in files.items() if f is not None and not _importable(n)}


def _importable(name: str) -> bool:
    """Whether the import system's own finders find it, whatever is imported already."""
    top = name.partition(".")[0]
    return any(
        finder.find_spec(top, None) is not None
        for finder in sys.meta_path
        if hasattr(finder, "find_spec")
    )


def _work(
    about: tuple[int, int, str, int, int, Any],
    member: Member,
    files: Mapping[str, str],
    payload: bytes,
) -> None:
    rank, processes, backend, port, threads, pipe = about
    torch.set_num_threads(threads)
    try:
        for name, file in files.items():
            _import_as(name, file)
        parts = pickle.loads(payload)
        store = dist.TCPStore("127.0.0.1", port, processes, False)  # type: ignore[attr-defined]
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        member(Team(rank, processes, rank), parts)
        dist.destroy_process_group()
    except EdgekitError as error:
        pipe.send(error)
        os._exit(1)
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send(traceback.format_exc().strip().rpartition("\n")[2])
        # The leader's end closes connections; nothing more is to be said of it here.
        os._exit(1)


def _import_as(name: str, file: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
