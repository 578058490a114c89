"""Where the cases of a study are run: worker processes of this machine, an existing Dask scheduler, or Slurm jobs.

Dask starts the processes, watches them and carries orders and outcomes. It is an extra: imported when it is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pvs_model
from pvs_model.errors import PVSError

log = logging.getLogger(__name__)

#: Cores and memory that a local worker is given by default, at least. A case of 1 mm takes 1.4 GiB.
CORES_PER_WORKER = 4
MEMORY_PER_WORKER = 4 * 2**30
#: Local workers that do not come within so many seconds will not come any more.
LOCAL_PATIENCE_S = 120.0
#: How long to try an existing scheduler.
CONNECT_S = 30.0

#: Keys of ``--slurm`` -> the parameter of dask-jobqueue's SLURMCluster.
SLURM_KEYS: Mapping[str, str] = {
    "queue": "queue",
    "account": "account",
    "cores": "cores",
    "memory": "memory",
    "walltime": "walltime",
    "interface": "interface",
    "log_directory": "log_directory",
    "local_directory": "local_directory",
    "python": "python",
    "directive": "job_extra_directives",
    "prologue": "job_script_prologue",
}
#: These may be given several times.
SEVERAL = frozenset({"directive", "prologue"})


@dataclass(frozen=True)
class Link:
    """A running engine.

    Attributes:
        client: of Dask.
        name: of the engine, for messages.
        renew: asks for the workers that were lost, where the engine starts them itself. It never asks for fewer:
            Dask would end some that are at work.
        patience_s: how long to wait while there is no worker; None for ever.
    """

    client: Any
    name: str
    renew: Callable[[], None] = lambda: None
    patience_s: float | None = None


class Engine(Protocol):
    """Something that runs cases."""

    def open(self, cases: int) -> contextlib.AbstractContextManager[Link]:
        """Start it for so many cases; it ends with the context.

        Raises:
            PVSError: it cannot be started.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Worker processes of this machine; their scheduler listens on 127.0.0.1 alone.

    Attributes:
        workers: how many; None for one per GPU, or as many as have ``CORES_PER_WORKER`` and ``MEMORY_PER_WORKER``.
        threads: of torch in each; None for an equal share of the cores.
        gpus: give each worker one GPU, in turn.
    """

    workers: int | None = None
    threads: int | None = None
    gpus: bool = False

    @contextlib.contextmanager
    def open(self, cases: int) -> Iterator[Link]:
        from dask.system import CPU_COUNT
        from distributed import Client, LocalCluster, Nanny
        from distributed.system import MEMORY_LIMIT

        devices = visible_gpus() if self.gpus else []
        fitting = max(1, min(CPU_COUNT // CORES_PER_WORKER, MEMORY_LIMIT // MEMORY_PER_WORKER))
        workers = max(1, min(self.workers or len(devices) or fitting, cases))
        threads = self.threads or max(1, CPU_COUNT // workers)
        with (
            _environment_kept(),
            tempfile.TemporaryDirectory(prefix="pvs-model-", ignore_cleanup_errors=True) as scratch,
            LocalCluster(
                n_workers=0, threads_per_worker=threads, host="127.0.0.1", dashboard_address=None,
                scheduler_kwargs={"allowed_failures": 0},  # what follows a death is ours to say
                # No limit of Dask's own: near it a worker would be paused for good. The system says what is too much.
                memory_limit=0, local_directory=scratch, silence_logs=logging.CRITICAL,
                preload=["pvs_model.cohort.worker"],
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):  # fmt: skip
            for number in range(workers):
                env = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
                cluster.worker_spec[number] = {"cls": Nanny, "options": {**cluster.new_spec["options"], "env": env}}
            cluster.scale(workers)
            log.info("%d worker%s, %d thread%s each%s", workers, _s(workers), threads, _s(threads),
                     f", GPUs {', '.join(devices)}" if devices else "")  # fmt: skip
            yield Link(client, "this machine", lambda: cluster.scale(workers), LOCAL_PATIENCE_S)


@dataclass(frozen=True)
class Existing:
    """The workers of a Dask scheduler that somebody has started; each takes one case at a time, whatever its threads.

    Attributes:
        address: such as ``tcp://node1:8786``.
    """

    address: str

    @contextlib.contextmanager
    def open(self, cases: int) -> Iterator[Link]:
        del cases
        from distributed import Client

        try:
            client = Client(self.address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise PVSError(
                f"--scheduler {self.address}: expected a Dask scheduler that answers, found: {_line(error)}"
            ) from error
        with client:
            yield Link(client, f"the scheduler at {self.address}")


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster, one worker each, by dask-jobqueue. The scheduler runs in this process.

    Attributes:
        jobs: how many at a time.
        values: parameters of ``dask_jobqueue.SLURMCluster``.
    """

    jobs: int = 1
    values: Mapping[str, Any] = field(default_factory=dict)

    def cluster(self) -> Any:
        """The cluster, without a job yet.

        Raises:
            PVSError: a parameter that Slurm or Dask do not take.
        """
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError as error:
            raise missing(error) from error

        values = {"log_directory": "slurm-logs", **self.values}
        values["job_script_prologue"] = [*_python_path(), *values.get("job_script_prologue", ())]
        try:
            return SLURMCluster(
                processes=1,
                worker_extra_args=["--memory-limit", "0"],  # Slurm's own limit counts, see Local
                scheduler_options={"allowed_failures": 0, "dashboard_address": None, "dashboard": False},
                silence_logs=logging.CRITICAL,
                **values,
            )
        except (ValueError, TypeError, OSError) as error:
            raise PVSError(f"--slurm: expected parameters of a Slurm job, found: {_line(error)}") from error

    @contextlib.contextmanager
    def open(self, cases: int) -> Iterator[Link]:
        from distributed import Client

        if shutil.which("sbatch") is None:
            raise PVSError("--slurm: expected Slurm's sbatch on this machine, found none")
        jobs = min(self.jobs, cases)
        with _environment_kept(), self.cluster() as cluster, Client(cluster, set_as_default=False) as client:
            cluster.scale(jobs)
            log.info("%d Slurm job%s asked for; the scheduler is %s", jobs, _s(jobs), cluster.scheduler_address)
            yield Link(client, "Slurm", lambda: cluster.scale(jobs))


def slurm(words: Sequence[str]) -> Slurm:
    """``KEY=VALUE`` words of the command line.

    Raises:
        PVSError: an unknown key, one that is missing, or a number that is none.
    """
    values: dict[str, Any] = {}
    jobs = 1
    for word in words:
        key, found, value = word.partition("=")
        if not found or not value or key not in {"jobs", *SLURM_KEYS}:
            known = ", ".join(("jobs", *SLURM_KEYS))
            raise PVSError(f"--slurm {word}: expected KEY=VALUE with one of the keys {known}")
        if key in ("jobs", "cores") and not (value.isdecimal() and int(value)):
            raise PVSError(f"--slurm {word}: expected a number from 1 on")
        if key == "jobs":
            jobs = int(value)
        elif key in SEVERAL:
            values.setdefault(SLURM_KEYS[key], []).append(value)
        else:
            values[SLURM_KEYS[key]] = int(value) if key == "cores" else value
    lacking = [key for key in ("cores", "memory") if key not in values]
    if lacking:
        raise PVSError(f"--slurm: expected {' and '.join(f'{key}=...' for key in lacking)}, found none")
    return Slurm(jobs, values)


def missing(error: ImportError) -> PVSError:
    """The sentence for an extra that is not installed."""
    return PVSError(
        f"expected the packages that a cluster needs, found no {error.name}: "
        "pip install -r requirements-cluster.txt (or 'pvs-model[cluster]')"
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Raises:
        PVSError: there is none.
    """
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    if not count:
        raise PVSError("--gpus: expected a CUDA device, found none that this PyTorch build and driver can use")
    return named[:count] if len(named) >= count else [str(number) for number in range(count)]


@contextlib.contextmanager
def quiet(file: Path | None, *others: logging.Logger) -> Iterator[None]:
    """Keep what Dask says, warnings too, from the terminal, and in a file where there is one.

    Args:
        file: also keeps what this package says.
        others: loggers of ours that are for the file alone.

    Raises:
        PVSError: the extra is not installed, or the file cannot be written.
    """
    try:
        import distributed  # noqa: F401 - sets up its logging when it is first imported
    except ImportError as error:
        raise missing(error) from error
    try:
        inner: logging.Handler = logging.NullHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise PVSError(f"{file}: expected a log file that can be written, found: {error.strerror}") from error
    for one in others:
        one.setLevel(logging.DEBUG)
    inner.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    handler = _Through(inner)
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "tornado.application", "asyncio")]
    loggers += [logging.getLogger(name) for name in ("dask_jobqueue", "py.warnings")]
    loggers += others
    before = [(one, one.handlers, one.propagate) for one in loggers]
    package = logging.getLogger("pvs_model")
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        for one in loggers:
            one.handlers, one.propagate = [handler], False
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            logging.captureWarnings(False)
            for one, handlers, propagate in before:
                one.handlers, one.propagate = handlers, propagate
            inner.close()


class _Through(logging.Handler):
    """Hands records on. Dask silences what it takes for a handler of the terminal, and a file's looks like one."""

    def __init__(self, inner: logging.Handler) -> None:
        super().__init__()
        self.inner = inner

    def emit(self, record: logging.LogRecord) -> None:
        self.inner.handle(record)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Dask sets OMP_NUM_THREADS and the like for its workers, in the environment of this process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _python_path() -> list[str]:
    """A line for a job script that finds this package, where it is not installed but lies in a checkout."""
    root = Path(pvs_model.__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(root.parts):
        return []
    return [f'export PYTHONPATH={shlex.quote(str(root))}"${{PYTHONPATH:+:$PYTHONPATH}}"']


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _s(count: int) -> str:
    return "" if count == 1 else "s"
