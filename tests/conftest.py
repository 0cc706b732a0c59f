"""What tests share: a store on disk and one on S3, one Ray for the session, a tiny backbone."""

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before ray and transformers are imported, which read them once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

from crossrec.bench.backbone import make_backbone
from crossrec.storage import Store

if TYPE_CHECKING:
    from tests.guarded import GuardedJob
    from tests.nights import Night
    from tests.proxy import FaultyStore

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Every test starts from one seed of torch: dropout leaves out the same in every run."""
    if "torch" in sys.modules:  # a test that needs no torch shall not wait for its import
        sys.modules["torch"].manual_seed(17)


@pytest.fixture(scope="session")
def s3_store_options() -> Iterator[dict[str, Any]]:
    """Options of a Store on the test server; the AWS variables say the same, so `{}` works too.

    The server is CROSSREC_TEST_S3_ENDPOINT, with the credentials of the AWS variables, or else a
    moto server of this session.
    """
    endpoint = os.environ.get("CROSSREC_TEST_S3_ENDPOINT")
    server = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if not endpoint:
            from moto.server import ThreadedMotoServer

            logging.getLogger("werkzeug").setLevel(logging.WARNING)
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            host, port = server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            patch.setenv("AWS_ACCESS_KEY_ID", "test-access-key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.delenv("AWS_SESSION_TOKEN", raising=False)
            patch.delenv("AWS_PROFILE", raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield {
            "endpoint_url": endpoint,
            "key": os.environ["AWS_ACCESS_KEY_ID"],
            "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        if server:
            server.stop()


@pytest.fixture(scope="session")
def s3_bucket(s3_store_options: dict[str, Any]) -> Iterator[str]:
    """The URI of a bucket made for this session."""
    from crossrec.s3 import open_s3

    name = f"crossrec-test-{uuid.uuid4().hex[:12]}"
    filesystem = open_s3(s3_store_options)
    filesystem.call_s3("create_bucket", Bucket=name)
    yield f"s3://{name}"
    if os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        left = filesystem.find(name)
        if left:
            filesystem.rm(left)
        filesystem.call_s3("delete_bucket", Bucket=name)


@pytest.fixture
def s3_root(s3_bucket: str) -> str:
    """A root on S3 that no other test uses."""
    return f"{s3_bucket}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, once on disk and once on S3."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    return Store(request.getfixturevalue("s3_root"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For a Ray of the test's own: the paths of its sockets may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(s3_store_options: dict[str, Any]) -> Iterator[None]:
    """A Ray of this session's own, whose workers reach the tree and the S3 server."""
    import ray

    # Short: the paths of Ray's sockets may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def joined(ray_cluster: None) -> dict[str, str]:
    """The variable with which a job joins the Ray of this session."""
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def night(ray_cluster: None, tiny_backbone: str) -> "Night":
    """The published night that tests share; they write under run_ids of their own."""
    from tests.nights import published_night

    return published_night(tiny_backbone)


@pytest.fixture(scope="session")
def faulty_store() -> "FaultyStore":
    """What goes wrong with one request in twenty of the night on S3."""
    from tests.proxy import FaultyStore

    return FaultyStore()


@pytest.fixture(scope="session")
def odd_job(s3_store_options: dict[str, Any]) -> Iterator["GuardedJob"]:
    """The job of the night on S3: it has a Ray, a temporary folder and secrets of its own."""
    from tests.guarded import guarded_job
    from tests.webhook import webhook

    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with webhook() as server:
        yield guarded_job(folder, s3_store_options, server)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def odd_night(
    odd_job: "GuardedJob",
    tiny_backbone: str,
    s3_bucket: str,
    s3_store_options: dict[str, Any],
    faulty_store: "FaultyStore",
) -> Iterator["Night"]:
    """A night of one domain, items without text, and one huge history, on S3 that is faulty."""
    from tests.nights import published_odd_night
    from tests.proxy import proxy_to

    with proxy_to(s3_store_options["endpoint_url"], faulty_store) as address:
        # The limit for a reply that does not come is 60 s by default.
        patient = {"config_kwargs": {"read_timeout": 2}}
        options = {**s3_store_options, **odd_job.options, "endpoint_url": address, **patient}
        store = Store(f"{s3_bucket}/odd-night", options)
        yield published_odd_night(tiny_backbone, store, odd_job.run)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a BERT with random weights, 32 wide, that splits words into letters.

    The published night lies beside it. CROSSREC_TEST_FOLDER, a folder of one's own, keeps both for
    another run of the tests.
    """
    kept = os.environ.get("CROSSREC_TEST_FOLDER")
    folder = f"{kept}/backbone" if kept else str(tmp_path_factory.mktemp("backbone"))
    return make_backbone(Path(folder))
