"""One run in several processes: which part each of them takes, and how the parts are put together.

`accelerate launch` and `torchrun` start one command several times and number the processes. Each process takes a slice
of every batch; losses and gradients are summed, so that all processes keep the same parameters, those that one process
would have. In a run of one process every function here does nothing.
"""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from . import files
from .files import UserError

#: How long a process waits for another: the main process may rank a large gallery meanwhile.
PATIENCE = timedelta(hours=6)
LOST = (
    "Another process of this run has ended or does not answer; its message is above, unless the system stopped it (often "
    "for lack of memory). If an epoch has ended, the same command with --resume continues after it, in any number of "
    "processes."
)
#: The commands whose work several processes share.
SHARED = ("train", "evaluate", "embed")
#: The size of the batch that is computed now, for what depends on the whole batch; 0 outside of a step.
BATCH: ContextVar[int] = ContextVar("batch", default=0)


def count() -> int:
    """The number of processes in this run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and prints: one of them does."""
    return rank() == 0


def connect(device: str | None = None) -> torch.device:
    """Connect this process to the others, once: over NCCL between GPUs, over gloo between CPUs. Returns its device.

    device: "cuda" (a GPU for each process), "cpu", or None for GPUs if this machine has any. Raises UserError if there
    are fewer GPUs than processes, or a process cannot be reached.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if device not in (None, "cuda", "cpu"):
        raise UserError(f"{count()} processes cannot share the device {device!r}: use --device cuda or --device cpu.")
    cpu = device == "cpu" or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    if torch.distributed.is_initialized():
        cpu = PartialState().device.type == "cpu"
    elif not cpu and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on this machine need {here} GPUs, and it has {torch.cuda.device_count()}: launch fewer "
            "processes, or use --device cpu."
        )
    try:
        state = PartialState(cpu=cpu, backend="gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
        return torch.device("cpu") if cpu else state.device
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The {count()} processes of this run cannot reach each other: {error}") from error


# --- A batch ------------------------------------------------------------------------------------------------------


def share(size: int) -> slice:
    """This process's part of a batch of `size`: the parts differ by one image at most.

    Raises UserError if the batch has fewer images than there are processes.
    """
    if size < count():
        raise UserError(
            f"A batch of {size} cannot be shared by {count()} processes: launch {size} at most, or set a larger "
            "batch_size."
        )
    return slice(size * rank() // count(), size * (rank() + 1) // count())


@contextlib.contextmanager
def one_batch(size: int) -> Iterator[None]:
    """While each process computes its `share` of a batch of `size` images."""
    token = BATCH.set(size)
    try:
        yield
    finally:
        BATCH.reset(token)


def dropout(tokens: torch.Tensor, probability: float) -> torch.Tensor:
    """Dropout of tokens [B, ...]. Every process draws the mask of the whole batch and takes its own part of it, so that
    an image meets the same mask for any number of processes."""
    if count() == 1 or not BATCH.get():
        return F.dropout(tokens, probability)
    whole = tokens.new_ones(BATCH.get(), *tokens.shape[1:])
    return tokens * F.dropout(whole, probability)[share(BATCH.get())]


class _WholeBatch(torch.autograd.Function):
    """[B of this process, ...] -> [B of all, ...]; the gradient is the sum over the processes."""

    @staticmethod
    def forward(context: Any, part: torch.Tensor, size: int) -> torch.Tensor:
        context.size = size
        whole = part.new_zeros(size, *part.shape[1:])
        whole[share(size)] = part
        add_up([whole])
        return whole

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].clone()
        add_up([gradient])
        return gradient[share(context.size)], None


def whole_batch(part: torch.Tensor) -> torch.Tensor:
    """What all processes computed for the images of a batch, in order: for a loss that compares images with each other.

    [B of this process, ...] -> [B of all, ...]. The gradient passes through.
    """
    return part if count() == 1 or not BATCH.get() else _WholeBatch.apply(part, BATCH.get())


# --- All processes ------------------------------------------------------------------------------------------------


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace every tensor by its sum over all processes, in place, in one message."""
    if count() == 1:
        return
    connect()
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def own_items(size: int) -> slice:
    """Which of `size` items this process takes: every count-th, or all of them if there are fewer than processes."""
    return slice(rank(), None, count()) if size >= count() else slice(None)


def gathered(part: torch.Tensor, size: int) -> torch.Tensor:
    """Rows that each process has for its `own_items`, put at their places: [own, ...] -> [size, ...], in every process."""
    if count() == 1 or len(part) == size:
        return part
    whole = part.new_zeros(size, *part.shape[1:])
    whole[own_items(size)] = part
    add_up([whole])
    return whole


def on_main(task: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function returns in the main process, in every process. A UserError is raised in all of them."""
    if count() == 1:
        return task(*arguments, **options)
    connect()
    answer: list[Any] = [None, None]  # what it returned, and what was wrong
    if is_main():
        try:
            answer[0] = task(*arguments, **options)
        except UserError as error:
            answer[1] = str(error)
    torch.distributed.broadcast_object_list(answer)
    if answer[1]:
        raise UserError(answer[1])
    return answer[0]


@contextlib.contextmanager
def only_one(path: str | Path) -> Iterator[None]:
    """`files.only_one` for a run: its main process holds the lock for all of its processes."""
    with files.only_one(path) if is_main() else contextlib.nullcontext():
        on_main(lambda: None)  # the others wait until it is held
        yield


# --- Randomness and messages --------------------------------------------------------------------------------------


def fork_random(device: torch.device) -> contextlib.AbstractContextManager:
    """`torch.random.fork_rng` for the CPU and one GPU: without a list of devices it would use every GPU there is."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def clear_errors(setting: str) -> Iterator[None]:
    """UserErrors in place of torch's when memory runs out; `setting` is what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU's memory is not enough ({str(error).split('. ')[0]}): lower {setting}, or share the batch among "
            "more GPUs (accelerate launch), which changes no result. With the same settings, --resume continues after the "
            "last epoch."
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"A process that reads pictures was stopped ({str(error).split('. ')[0]}), often for lack of memory: use fewer "
            "--workers. If an epoch has ended, --resume continues after it."
        ) from error


@contextlib.contextmanager
def one_voice(command: str) -> Iterator[None]:
    """While a command runs: the main process prints and warns, the others only say what is wrong, with their number.

    Raises UserError for a command that several processes cannot share.
    """
    if count() == 1:
        yield
        return
    if command not in SHARED:
        raise UserError(
            f"`prosutils {command}` runs in one process: start it without a launcher (`ablate --jobs` starts processes of its "
            f"own). Several processes can share: {', '.join(SHARED)}."
        )
    name = f"Process {rank() + 1} of {count()}"
    # sent to all processes when one of them has failed
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{name}: {LOST}"))
    with contextlib.ExitStack() as stack:
        if not is_main():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        try:
            yield
        except (UserError, RuntimeError) as error:
            if not (isinstance(error, UserError) or is_lost(error)):
                raise
            message = str(error) if isinstance(error, UserError) else LOST
            raise UserError(f"{name}: {message}") from error
        finally:
            signal.signal(signal.SIGTERM, before)


def is_lost(error: RuntimeError) -> bool:
    """Whether an error comes of a process that no longer answers."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
