"""What every command of jobs/ does around its stage: config, lease, Ray, summary, exit code.

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
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from crossrec.config import Config
from crossrec.configfile import load_config
from crossrec.errors import UserError
from crossrec.runlog import log, print_summary, start_logging

ALERT = 3
"""Exit status of a job that is done, but not as it should be: its summary says `alert`."""

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


def run_job(doc: str | None, function: str, check: str | None = None) -> NoReturn:
    """Run a stage, print its JSON summary as the last line of stdout, and exit 0 to 3.

    Args:
        doc: what --help says.
        function: "module:function" that takes (config, store) and returns the summary.
        check: "module:function" that takes the config and raises what is wrong with it, before
            anything is started or written.
    """
    arguments = _parse(doc)
    start_logging()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if check is not None:
            _find(check)(config)
        summary = _run(config, function)
        print_summary(summary)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", 1)
    except Exception as error:
        mistake = _find_mistake(error)
        if mistake is not None:
            _fail(str(mistake), 2)
        traceback.print_exc()
        _fail(
            f"{type(error).__name__}: {error}".splitlines()[0] + "; the same command continues", 1
        )
    sys.exit(ALERT if summary.get("alert") else 0)


def _parse(doc: str | None) -> argparse.Namespace:
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


def _run(config: Config, function: str) -> dict[str, Any]:
    from crossrec.lease import hold
    from crossrec.storage import Store

    store = Store(config.storage.root, config.storage.options)
    store.check_writable()
    signal.signal(signal.SIGTERM, _interrupt)
    # Around Ray, so that nothing of this job is at work any more once another may begin.
    with hold(store, config.run_id, on_lost=_stop), _ray():
        from crossrec.data.source import resolve_input

        summary = _find(function)(resolve_input(config, store), store)
    return {"storage_root": store.root, "run_id": config.run_id, **summary}


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


def _fail(message: str, status: int) -> NoReturn:
    log.error("%s", message)
    sys.exit(status)
