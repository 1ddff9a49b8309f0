"""Training by several processes, on one machine or many: one batch shared out, gradients summed by torch.distributed.

``torchrun`` starts the processes and starts them again when one dies. Each computes the gradients of its part of the
batch; a :class:`Reducer` sums them in one flat buffer while the backward pass still runs. PyTorch is imported only
where torchrun's environment variables are set.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from typing import Any

import numpy as np

import fastrnn
from fastrnn.arrays import on_device, place_of
from fastrnn.backend import get_backend
from fastrnn.checks import Arguments

__all__ = ["ProcessLost", "Processes", "Reducer"]

BUCKET_BYTES = 2**20
TIMEOUT = 300.0

# What torchrun sets for each process, and any other launcher must.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLost(RuntimeError):
    """Another process has ended, or cannot be reached, so that nothing can be summed any more."""


class Processes:
    """The processes that train one model together; this is one of them.

    Everything but the attributes is collective: all processes must call the same methods in the same order.

    Parameters
    ----------
    rank, world : int
        Number of this process, from 0, and how many there are.
    local_rank : int
        Number of this process among those of its machine; on GPUs, the number of its GPU.
    store : object
        What torch.distributed knows the processes by.

    Attributes
    ----------
    rank, world, local_rank : int
        As above. Process 0 is the one that writes files and draws the progress bar.
    """

    def __init__(self, rank: int, world: int, local_rank: int, store: Any) -> None:
        self.rank = rank
        self.world = world
        self.local_rank = local_rank
        self._distributed: Any = import_module("torch.distributed")
        self._store = store
        # At the end of the interpreter its threads must be gone, or they end it with an abort.
        atexit.register(self.close)

    @classmethod
    def from_environment(cls, timeout: float = TIMEOUT) -> Processes | None:
        """The processes that torchrun started, once all have met; None where this is no process of torchrun's.

        The kernels of each process get its share of the machine's CPUs, unless ``FASTRNN_NUM_THREADS`` says how many
        threads. With backend ``cuda`` each process takes the GPU of its local rank.

        Parameters
        ----------
        timeout : float
            Seconds to wait for a process that neither answers nor has ended: a machine without power, a cable pulled.
            A process that ends is noticed at once. It must be longer than what process 0 does while the others wait.

        Raises
        ------
        ValueError
            Some of the variables are set, but not all, or to what is no number.
        ImportError
            They are set, but PyTorch is not installed.
        ProcessLost
            The processes did not meet in time.
        """
        if not {"RANK", "WORLD_SIZE"} & os.environ.keys():
            return None
        rank, world, local_rank, local_world = _place_among_processes()
        try:
            torch = import_module("torch")
        except ImportError as error:
            raise ImportError(
                "Processes.from_environment: several processes need PyTorch, which is not installed: "
                "pip install 'fastrnn[torch]'"
            ) from error
        _end_with_the_parent()
        # Threads of PyTorch's own would spin on the cores that the kernels need; here it computes nothing but sums,
        # and those in the threads of its transport.
        torch.set_num_threads(1)
        if not os.environ.get("FASTRNN_NUM_THREADS"):
            fastrnn.set_num_threads(max(1, fastrnn.get_num_threads() // local_world))
        on_gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
        if on_gpus and get_backend() == "cuda":
            torch.cuda.set_device(local_rank)
            import_module("cupy").cuda.Device(local_rank).use()
        limit = timedelta(seconds=timeout)
        try:
            store, *_ = next(torch.distributed.rendezvous("env://", rank, world, timeout=limit))
            store = torch.distributed.PrefixStore(_meet(store, rank, world, timeout), store)
            torch.distributed.init_process_group(
                # Arrays decide: those in the computer's memory go by gloo, those on a GPU by NCCL.
                "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=limit,
            )
        except RuntimeError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise ProcessLost(
                f"Processes.from_environment: process {rank} of {world} did not meet the others at {where} "
                f"({_first_sentence(error)}); see that all run and reach that address. Where a machine has several "
                "networks, GLOO_SOCKET_IFNAME names the interface"
            ) from error
        return cls(rank, world, local_rank, store)

    # ---- collective operations -------------------------------------------------------------------------------------

    def reducer(self, params: Mapping[str, Any], bucket_bytes: int = BUCKET_BYTES) -> Reducer:
        """What sums gradients of `params` over the processes; see :class:`Reducer`."""
        return Reducer(self, params, bucket_bytes)

    def total(self, values: Any) -> np.ndarray:
        """Sums over the processes, in float64.

        Each call costs a round trip through the network, whatever the number of values: sum together what can be.

        Parameters
        ----------
        values : array_like
            Numbers, the same shape in all processes.

        Returns
        -------
        float64 array of that shape
            The same bits in all processes.
        """
        summed = np.array(values, dtype=np.float64)
        with self._reaching_others():
            self._distributed.all_reduce(_tensor(summed))
        return summed

    def agree(self, flag: bool) -> bool:
        """Whether any process says yes: a signal that one has caught stops all of them at the same step."""
        return bool(self.total(flag) > 0)

    def same(self, text: str) -> bool:
        """Whether all processes say the same `text`."""
        texts: list[Any] = [None] * self.world
        with self._reaching_others():
            self._distributed.all_gather_object(texts, text)
        return len(set(texts)) == 1

    def broadcast(self, params: Mapping[str, Any]) -> None:
        """Overwrite the arrays of `params` with those of process 0, in place.

        Raises
        ------
        ValueError
            Parameters of the processes differ in name, shape or dtype.
        """
        self._check_same_parameters("Processes.broadcast", params)
        with self._reaching_others():
            for value in params.values():
                with _on_stream_of(value):
                    contiguous = value if value.flags.c_contiguous else value.copy()
                    self._distributed.broadcast(_tensor(contiguous), src=0)
                    if contiguous is not value:
                        value[...] = contiguous

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.total(0)

    def _check_same_parameters(self, function: str, params: Mapping[str, Any]) -> None:
        if not self.same(repr([(name, value.shape, str(value.dtype)) for name, value in params.items()])):
            raise ValueError(
                f"{function}: argument 'params' must have the same names, shapes and dtypes in all processes, got "
                "others in some; run the same command with the same files everywhere"
            )

    @contextmanager
    def _reaching_others(self) -> Iterator[None]:
        """What torch.distributed says when others do not answer, in one line."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(
                f"process {self.rank} of {self.world} lost the others ({_first_sentence(error)}); "
                "torchrun --max-restarts begins again, training then from its last checkpoint"
            ) from error

    # ---- the end ---------------------------------------------------------------------------------------------------

    def first_to_fail(self) -> bool:
        """Whether no other process has said before that it failed; not collective.

        A failure of one ends all: the first says why, and those that fail because it did can be silent.
        """
        try:
            return int(self._store.add("failures", 1)) == 1
        except RuntimeError:  # the process or torchrun that kept the count is gone: better twice than not at all
            return True

    def close(self) -> None:
        """Leave. The other processes are not waited for."""
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class Reducer:
    """Sums gradients over the processes while the backward pass still runs.

    Gradients are copied into one flat buffer in the order in which they come, each times this process's weight. As soon
    as at least `bucket_bytes` of them are together, their sum over all processes begins, in threads of
    torch.distributed and in place (Li et al. 2020, "PyTorch Distributed"). The order must be the same in all processes
    and steps. On GPUs the sums run on a stream of NCCL's, which CuPy's current stream is made to wait for.

    Parameters
    ----------
    processes : Processes
        Who takes part.
    params : mapping
        The parameters, for the names, shapes and dtypes of their gradients. Where dtypes differ, all is summed in the
        widest.
    bucket_bytes : int
        Size from which a bucket is sent.

    Attributes
    ----------
    bytes : int
        Size of the flat buffer.
    waited : float
        Seconds that `finish` has waited so far: the part of the sums that the backward pass did not hide. On GPUs the
        stream waits instead, and this says nothing.

    Raises
    ------
    ValueError
        Parameters of the processes differ in name, shape or dtype.
    """

    def __init__(self, processes: Processes, params: Mapping[str, Any], bucket_bytes: int = BUCKET_BYTES) -> None:
        args = Arguments("Reducer")
        if not params:
            raise args.fail(ValueError, "params", "have at least one parameter", "none")
        processes._check_same_parameters("Reducer", params)
        self._processes = processes
        self._wanted = {name: (value.shape, value.dtype) for name, value in params.items()}
        values = list(params.values())
        place = place_of(values[0])
        dtype = np.result_type(*(value.dtype for value in values))
        # Owned for good by this object, and so not from the pool of buffers that kernels share.
        self._flat = place.xp.empty(sum(value.size for value in values), dtype=dtype)
        self._tensor = _tensor(self._flat)
        self.bytes = int(self._flat.nbytes)
        self._bucket = max(1, bucket_bytes // dtype.itemsize)
        self._order: list[str] | None = None
        self.waited = 0.0
        self._begin()

    def _begin(self) -> None:
        self._views: dict[str, Any] = {}
        self._filled = self._complete = self._sent = 0
        self._pending: list[Any] = []

    def ready(self, name: str, gradient: Any, weight: float) -> None:
        """Take one gradient of this step; its sum may begin.

        Parameters
        ----------
        name : str
            Parameter that it belongs to.
        gradient : floating array
            The gradient of this process's part of the batch. It is copied, and may be changed afterwards.
        weight : float
            Factor of this process, the same for all gradients of a step: the captions of its part over those of the
            batch, where gradients are averages over captions.

        Raises
        ------
        ValueError
            There is no such parameter, it is not the one whose turn it is, or its gradient has another shape.
        ProcessLost
            Another process has ended.
        """
        args = Arguments("Reducer.ready")
        if name not in self._wanted:
            raise args.fail(ValueError, "name", f"be one of {', '.join(self._wanted)}", repr(name))
        if name in self._views:
            raise args.fail(ValueError, "name", "come once in a step", f"{name!r} a second time")
        if self._order and name != self._order[len(self._views)]:
            raise args.fail(
                ValueError, "name", f"come in the order of the first step, {', '.join(self._order)}", f"{name!r} before"
            )
        shape, _ = self._wanted[name]
        if gradient.shape != shape:
            raise args.fail(ValueError, "gradient", f"have shape {shape}, as {name} has", f"shape {gradient.shape}")
        begin, self._filled = self._filled, self._filled + gradient.size
        view = self._flat[begin : self._filled].reshape(shape)
        place_of(view).xp.multiply(gradient, view.dtype.type(weight), out=view)
        self._views[name] = view
        if self._order:
            self._count(view)

    def _count(self, view: Any) -> None:
        """One more gradient is in the buffer: send the bucket that it completes."""
        self._complete += view.size
        if self._complete - self._sent >= self._bucket or self._complete == self._flat.size:
            piece = self._tensor[self._sent : self._complete]
            self._sent = self._complete
            processes = self._processes
            with processes._reaching_others(), _on_stream_of(self._flat):
                self._pending.append(processes._distributed.all_reduce(piece, async_op=True))

    def finish(self) -> dict[str, Any]:
        """Wait for the sums of this step, and begin a new one.

        Returns
        -------
        dict
            The summed gradient of each parameter, in the order of the parameters, with their shapes and dtypes: views
            of the flat buffer, which the next step overwrites. The bits are the same in all processes.

        Raises
        ------
        ValueError
            A gradient has not come in this step; in the first, they came in another order than in another process.
        ProcessLost
            Another process has ended.
        """
        missing = [name for name in self._wanted if name not in self._views]
        if missing:
            raise ValueError(f"Reducer.finish: each parameter needs its gradient, got none of {', '.join(missing)}")
        if self._order is None:
            # Other orders would add one parameter's gradients to another's. Known to be one, it is sent as it comes;
            # the buckets of the first step are the same, since a sum of three or more depends on them in its rounding.
            order = list(self._views)
            if not self._processes.same(repr(order)):
                raise ValueError(
                    "Reducer.finish: gradients must come in the same order in all processes, got others than "
                    f"{', '.join(order)}; run the same version of fastrnn everywhere"
                )
            for view in self._views.values():
                self._count(view)
            self._order = order
        begin = time.perf_counter()
        with self._processes._reaching_others(), _on_stream_of(self._flat):
            for work in self._pending:
                work.wait()
        self.waited += time.perf_counter() - begin
        views = {name: self._views[name].astype(dtype, copy=False) for name, (_, dtype) in self._wanted.items()}
        self._begin()
        return views


# ---- torch ---------------------------------------------------------------------------------------------------------


def _tensor(array: Any) -> Any:
    """The tensor that shares the memory of a NumPy or CuPy array."""
    torch = import_module("torch")
    return torch.from_dlpack(array) if on_device(array) else torch.from_numpy(array)


def _on_stream_of(array: Any) -> AbstractContextManager[Any]:
    """Makes CuPy's current stream PyTorch's: NCCL begins after what is on it, and it goes on after NCCL."""
    if not on_device(array):
        return nullcontext()
    cuda = import_module("torch").cuda
    stream = cuda.ExternalStream(import_module("cupy").cuda.get_current_stream().ptr)
    return cuda.stream(stream)


def _first_sentence(error: Exception) -> str:
    """What gloo says, without the place in its source before it and the advice behind it."""
    first, *_ = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[\S*/\S*\] ", "", first).split(". ")[0].strip().rstrip(".")


def _place_among_processes() -> tuple[int, int, int, int]:
    """Rank, world, local rank and local world of the environment."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"Processes.from_environment: environment variables {', '.join(_VARIABLES)} must all be set, "
            f"got no {', '.join(missing)}; start with torchrun, or unset RANK and WORLD_SIZE to train by one process"
        )
    numbers = []
    for name in _VARIABLES[:4]:
        text = os.environ[name]
        if not text.isdigit():
            raise ValueError(
                f"Processes.from_environment: environment variable {name} must be a whole number, got {text!r}; "
                "start with torchrun"
            )
        numbers.append(int(text))
    rank, world, local_rank, local_world = numbers
    if rank >= world or local_rank >= local_world:
        raise ValueError(
            "Processes.from_environment: environment variables RANK and LOCAL_RANK must be below WORLD_SIZE and "
            f"LOCAL_WORLD_SIZE, got {rank} of {world} and {local_rank} of {local_world}; start with torchrun"
        )
    return rank, world, local_rank, local_world


def _meet(store: Any, rank: int, world: int, seconds: float) -> str:
    """Wait for all processes; a name for this start of theirs, the same in all.

    torchrun keeps its store when it starts processes again. What those before wrote into it, addresses at which nobody
    listens any more, must not be taken for what these write: hence the name. Process 0 chooses it, and the others
    believe it only once process 0 has repeated what they drew themselves.
    """
    drawn, end = uuid.uuid4().hex, time.monotonic() + seconds
    others = range(1, world)
    answered = ""
    if rank == 0:
        store.set("fastrnn/name", drawn)
    while True:  # in Python, so that a signal is heeded
        if rank == 0:
            missing = [other for other in others if not store.check([f"{drawn}/{other}"])]
            if not missing:
                store.set(f"{drawn}/all", b" ".join(store.get(f"{drawn}/{other}") for other in others))
                return drawn
            waiting_for = f"nothing came from {', '.join(map(str, missing))} in {seconds:g} seconds"
        else:
            waiting_for = f"nothing came from 0 in {seconds:g} seconds"
            if store.check(["fastrnn/name"]):
                name = store.get("fastrnn/name").decode()
                if name != answered:
                    store.set(f"{name}/{rank}", drawn)
                    answered = name
                if store.check([f"{name}/all"]) and drawn in store.get(f"{name}/all").decode().split():
                    return str(name)
        if time.monotonic() > end:
            raise RuntimeError(waiting_for)
        time.sleep(0.01)


def _end_with_the_parent() -> None:
    """Have this process told to end when torchrun is killed: it would train on beside the one that takes its place."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
