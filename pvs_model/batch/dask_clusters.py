"""Starts or connects to the Dask cluster of a run: workers of this machine, an existing scheduler, or Slurm jobs.

Dask is an optional dependency (requirements-cluster.txt) and imported when it is needed.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import pvs_model
from pvs_model.errors import PVSError, one_line

log = logging.getLogger(__name__)

#: Cores and memory of a local worker by default, at least. A case of 1 mm takes 1.4 GiB.
CORES_PER_WORKER = 4
MEMORY_PER_WORKER = 4 * 2**30
#: Seconds to wait for an existing scheduler, and for the first local worker.
CONNECT_TIMEOUT_S = 30.0
START_TIMEOUT_S = 120.0
#: Short names of parameters of ``SLURMCluster`` that may be given several times.
_SLURM_LISTS = {"directive": "job_extra_directives", "prologue": "job_script_prologue"}
#: Loggers of Dask and of the libraries that it uses.
_DASK_LOGGERS = ("distributed", "dask_jobqueue", "tornado", "tornado.application", "asyncio", "py.warnings")


@contextmanager
def local(cases: int, workers: int | None = None, threads: int | None = None, gpus: bool = False) -> Iterator[Any]:
    """Starts worker processes on this machine. Their scheduler listens on 127.0.0.1 only.

    Args:
        cases: Number of cases, which limits that of workers.
        workers: Number of workers; None for one per GPU, or by ``CORES_PER_WORKER`` and ``MEMORY_PER_WORKER``.
        threads: PyTorch threads per worker; None for an equal share of the cores.
        gpus: Whether each worker is assigned one GPU, in turn.

    Yields:
        A ``distributed.Client``.
    """
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster, Nanny
    from distributed.system import MEMORY_LIMIT

    devices = visible_gpus() if gpus else []
    default = max(1, min(CPU_COUNT // CORES_PER_WORKER, MEMORY_LIMIT // MEMORY_PER_WORKER))
    workers = max(1, min(workers or len(devices) or default, cases))
    threads = threads or max(1, CPU_COUNT // workers)
    log.info("workers: %d with %d threads each%s", workers, threads, f", GPUs {', '.join(devices)}" * bool(devices))
    with ExitStack() as stack:
        stack.enter_context(_environment_restored())
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pvs-model-", ignore_cleanup_errors=True))
        # Near a memory limit of its own Dask would pause a worker; the limit of the operating system applies.
        cluster = LocalCluster(
            n_workers=0, threads_per_worker=threads, host="127.0.0.1", dashboard_address=None, memory_limit=0,
            local_directory=scratch, silence_logs=logging.CRITICAL, preload=["pvs_model.batch.worker"],
        )  # fmt: skip
        stack.enter_context(cluster)
        for number in range(workers):
            env = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
            cluster.worker_spec[number] = {"cls": Nanny, "options": {**cluster.new_spec["options"], "env": env}}
        _keep(cluster, workers)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        try:
            client.wait_for_workers(1, START_TIMEOUT_S)
        except TimeoutError as error:
            raise PVSError(f"this machine: expected a worker within {START_TIMEOUT_S:g} s, got none") from error
        yield client


@contextmanager
def existing(cases: int, address: str) -> Iterator[Any]:
    """Connects to the scheduler at an address such as ``tcp://node1:8786``, and yields a ``distributed.Client``.

    Raises:
        PVSError: The scheduler does not answer.
    """
    del cases
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise PVSError(f"--scheduler {address}: expected a Dask scheduler that answers, got: {_text(error)}") from error
    with client:
        yield client


@contextmanager
def slurm(cases: int, words: Sequence[str]) -> Iterator[Any]:
    """Submits Slurm jobs with one worker each, and yields a ``distributed.Client``. The scheduler runs here.

    Args:
        cases: Number of cases, which limits that of jobs.
        words: Words of ``--slurm``, see ``slurm_cluster``.

    Raises:
        PVSError: Slurm is not available, or dask-jobqueue rejects a parameter.
    """
    from distributed import Client

    if shutil.which("sbatch") is None:
        raise PVSError("--slurm: expected Slurm's sbatch on this machine, got none")
    cluster, jobs = slurm_cluster(words)
    jobs = min(jobs, cases)
    with _environment_restored(), cluster, Client(cluster, set_as_default=False) as client:
        _keep(cluster, jobs)
        log.info("Slurm jobs: %d requested; the scheduler is %s", jobs, cluster.scheduler_address)
        yield client


def slurm_cluster(words: Sequence[str]) -> tuple[Any, int]:
    """Returns a ``dask_jobqueue.SLURMCluster`` without jobs, and the number of jobs.

    Args:
        words: ``KEY=VALUE`` words: ``jobs=N``, and parameters of ``SLURMCluster``; ``directive`` and ``prologue`` may
            be repeated.

    Raises:
        PVSError: dask-jobqueue is not installed, or rejects a parameter.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise missing_dependency(error) from error

    parameters: dict[str, Any] = {"log_directory": "slurm-logs", "job_script_prologue": _export_python_path()}
    try:
        for word in words:
            key, value = word.split("=", 1)
            if key in _SLURM_LISTS:
                parameters.setdefault(_SLURM_LISTS[key], []).append(value)
            else:
                parameters[key] = int(value) if key in ("jobs", "cores") else value
        jobs = parameters.pop("jobs", 1)
        # Slurm's own limit of memory applies, see ``local``.
        options = {"dashboard_address": None, "dashboard": False}
        return SLURMCluster(
            processes=1, worker_extra_args=["--memory-limit", "0"], scheduler_options=options,
            silence_logs=logging.CRITICAL, **parameters,
        ), jobs  # fmt: skip
    except (ValueError, TypeError, OSError) as error:
        raise PVSError(
            f"--slurm {' '.join(words)}: expected jobs=N and parameters of dask_jobqueue.SLURMCluster as KEY=VALUE, "
            f"got: {_text(error)}"
        ) from error


def missing_dependency(error: ImportError) -> PVSError:
    """Returns the error for an optional dependency that is not installed."""
    return PVSError(
        f"expected the packages that a cluster needs, got no {error.name}: "
        "pip install -r requirements-cluster.txt (or 'pvs-model[cluster]')"
    )


def visible_gpus() -> list[str]:
    """Returns the GPUs available to this process, as ``CUDA_VISIBLE_DEVICES`` names them.

    Raises:
        PVSError: There is none.
    """
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    if not count:
        raise PVSError("--gpus: expected a CUDA device, got none that this PyTorch build and driver can use")
    return named[:count] if len(named) >= count else [str(number) for number in range(count)]


@contextmanager
def dask_logs_redirected(file: Path | None, *others: logging.Logger) -> Iterator[None]:
    """Keeps messages and warnings of Dask from the terminal, and writes them to a file where one is given.

    Args:
        file: Log file, which also receives the messages of this package.
        others: Loggers of this package that write to the file only.

    Raises:
        PVSError: Dask is not installed, or the file cannot be written.
    """
    try:
        import distributed  # noqa: F401 - configures its logging when it is first imported

        target: logging.Handler = logging.NullHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
    except ImportError as error:
        raise missing_dependency(error) from error
    except OSError as error:
        raise PVSError(f"{file}: expected a log file that can be written, got: {error.strerror}") from error
    target.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    handler = MemoryHandler(1, target=target)  # Dask would silence a FileHandler, which it takes for a terminal
    loggers = [*map(logging.getLogger, _DASK_LOGGERS), *others]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    package = logging.getLogger("pvs_model")
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        for logger in others:
            logger.setLevel(logging.DEBUG)
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            logging.captureWarnings(False)
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()
            target.close()


def _keep(cluster: Any, workers: int) -> None:
    """Starts workers, and replaces those that are lost later, such as jobs that reach their time limit."""
    cluster.scale(workers)
    cluster.adapt(minimum=workers, maximum=workers, interval="10s")


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Dask sets OMP_NUM_THREADS and similar variables of its workers in the environment of this process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _export_python_path() -> list[str]:
    """Returns the line of a job script that makes this package importable from a checkout; none if it is installed."""
    root = Path(pvs_model.__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(root.parts):
        return []
    return [f'export PYTHONPATH={shlex.quote(str(root))}"${{PYTHONPATH:+:$PYTHONPATH}}"']


def _text(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
