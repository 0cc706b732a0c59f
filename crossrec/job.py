"""What every command of jobs/ does around its stage: config, lease, Ray, summaries, exit code.

    if __name__ == "__main__":
        run_job(__doc__, "crossrec.score.pipeline:score")

The heavy imports happen after the arguments are read, so that --help and a misspelt key answer at
once.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from crossrec.config import Config
from crossrec.configfile import load_config
from crossrec.errors import ALERT, UserError
from crossrec.runlog import log, name_run, print_summary, start_logging, to_plain, watching

if TYPE_CHECKING:
    from crossrec.runsummary import Ending, RunSummary

LOGICAL_CPUS = 4
"""At least so many on one machine: Ray Data streams beside workers that hold CPUs, and needs some
of its own."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Of a Ray that a job starts for itself: buckets pass through, nothing stays."""


WORKER_ENVIRONMENT = {
    # Threads that wait for work sleep; on a busy machine spinning ones made a training step five
    # times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # One actor lists a few files in 1 s, the default 32 in 6 s (Ray 2.60).
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Asks the dashboard, which a Ray of our own does not have, every second, and complains.
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set in this process and in all of its workers, where the user has not set them."""

OWN_RAY_ENVIRONMENT = {
    # Nobody but this process talks to it; a token would be left behind in the home folder.
    "RAY_AUTH_MODE": "disabled",
    # An actor (5 s of CPU to start) that looks whether nodes are about to be taken away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How often Ray Train takes note of what its workers report, 2 s by default: an epoch of small
    # data is shorter, and would wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""Set, too, where a job starts a Ray of its own."""


def run_job(
    doc: str | None, function: str, check: str | None = None, is_of_run: bool = True
) -> NoReturn:
    """Run a stage, print its JSON summary as the last line of stdout, and exit 0 to 3.

    Args:
        doc: what --help says.
        function: "module:function" that takes (config, store) and returns the summary.
        check: "module:function" that takes the config and raises what is wrong with it, before
            anything is started or written.
        is_of_run: whether what it does belongs into the run's summary.json and to its webhook.
    """
    arguments = parse_arguments(doc)
    record, status = None, 0
    try:
        start_logging()
        config = load_config(arguments.config, arguments.overrides)
        name_run(config.run_id)
        if check is not None:
            _find(check)(config)
        record = _start_record(config)
        summary = _run(config, function, record, is_of_run)
        print_summary(summary)
        status = ALERT if summary.get("alert") else 0
    except (KeyboardInterrupt, Exception) as error:
        ending = _describe(error)
        status = ending[2]
        is_told = status == 2 or isinstance(error, KeyboardInterrupt)
        log.error(
            "%s%s",
            ending[1],
            "" if status == 2 else "; the same command continues",
            exc_info=None if is_told else error,
            extra={"stage": record.said.get("failed_stage") if record else None},
        )
        if record is not None:
            record.end(*ending)
    if record is not None and is_of_run:
        _tell(config, record)
    sys.exit(status)


def parse_arguments(doc: str | None) -> argparse.Namespace:
    """Return `config` and `overrides` as they were typed."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="for example jobs/configs/demo.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that win over the file, as score.top_k=50",
    )
    return parser.parse_args()


def _start_record(config: Config) -> "RunSummary":
    from crossrec.runsummary import RunSummary

    return RunSummary(config, Path(sys.argv[0]).stem)


def _run(config: Config, function: str, record: "RunSummary", is_of_run: bool) -> dict[str, Any]:
    from crossrec.lease import hold
    from crossrec.storage import Store

    store = Store(config.storage.root, config.storage.options)
    store.check_writable()
    signal.signal(signal.SIGTERM, _interrupt)
    kept = record.kept(store, _describe) if is_of_run else contextlib.nullcontext()
    # Around Ray, so that nothing of this job is at work any more once another may begin. How it
    # ended is written before Ray ends, for which a job that is being stopped may have no time.
    with hold(store, config.run_id, on_lost=_stop), contextlib.ExitStack() as ray_ends, kept:
        ray_ends.enter_context(_ray())
        from crossrec.data.source import resolve_input
        from crossrec.runmetrics import RunMetrics
        from crossrec.runsummary import published_at

        metrics = RunMetrics(published_at(store))
        if is_of_run:
            ray_ends.callback(metrics.on_end, record.said)
        with watching(record.on_stage), watching(metrics.on_stage):
            summary = _find(function)(resolve_input(config, store), store)
    return {"storage_root": store.root, "run_id": config.run_id, **summary}


def _tell(config: Config, record: "RunSummary") -> None:
    from crossrec.notify import find_webhook, notify

    url = find_webhook(config)
    if url is not None:
        notify(url, to_plain(record.said))


def _find(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start a Ray of one's own and stop it at the end."""
    os.environ.update(
        {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    )
    if "RAY_ADDRESS" not in os.environ:
        os.environ.update(
            {name: os.environ.get(name, value) for name, value in OWN_RAY_ENVIRONMENT.items()}
        )
    import ray

    if "RAY_ADDRESS" in os.environ:
        variables = {name: os.environ[name] for name in WORKER_ENVIRONMENT}
        ray.init(
            runtime_env={"env_vars": variables},
            # What crossrec says, the driver says; what workers print besides is Ray's own, and
            # stays in the files of its session. Their errors are raised here.
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    else:
        ray.init(
            address="local",
            num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    # Again, because ray.init puts a handler of its own there.
    signal.signal(signal.SIGTERM, _interrupt)
    _quieten_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _quieten_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Finite retries of actors go through an argument that Ray 2.64 will replace.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Warns that there are no progress bars where one has just turned them off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _stop() -> None:
    """Interrupt the main thread, from another one."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _describe(error: BaseException) -> "Ending":
    """Return how a job ended that this error ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted", 1
    mistake = _find_mistake(error)
    if mistake is not None:
        return "failed", str(mistake), 2
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0], 1


def _find_mistake(error: BaseException) -> UserError | None:
    """Return the user's mistake that an error carries, however many layers of Ray are around it."""
    waiting: list[BaseException] = [error]
    looked_at: set[int] = set()
    while waiting:
        current = waiting.pop()
        looked_at.add(id(current))
        # What Ray raises is of the cause's class too, but says a whole traceback.
        if isinstance(current, UserError) and not hasattr(current, "traceback_str"):
            return current
        inner = [getattr(current, "cause", None), current.__cause__, current.__context__]
        inner += list(getattr(current, "worker_failures", {}).values())
        waiting += [
            found
            for found in inner
            if isinstance(found, BaseException) and id(found) not in looked_at
        ]
    return None
