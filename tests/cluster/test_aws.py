import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray

from crossrec.errors import CrossrecError
from crossrec.storage import Store
from tests.cluster.files import config_of, only, read, readme_commands

PROVIDER = Path(ray.__file__).parent / "autoscaler/_private/aws/node_provider.py"

# --------------------------------------------------------------------------------------------------
# The launcher


def test_launcher_fulfils_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    config = only("aws/launcher.yaml")
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 3}, schema)


def test_gpu_workers_are_spot_and_as_many_as_the_config_trains_on() -> None:
    launcher = only("aws/launcher.yaml")
    (submit,) = (command for command in readme_commands() if "/app/jobs/nightly.py" in command)
    config = config_of(submit)
    gpu = launcher["available_node_types"]["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["resources"]["GPU"] == 1
    assert gpu["min_workers"] == config.train.min_workers
    assert gpu["max_workers"] == config.train.num_workers == launcher["max_workers"]


def test_head_runs_the_driver_alone_and_is_not_taken_away() -> None:
    launcher = only("aws/launcher.yaml")
    head = launcher["available_node_types"][launcher["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    start = launcher["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in start.split()
    assert "--dashboard-host=127.0.0.1" in start.split()


def test_nodes_have_authentication_on_and_nothing_open_but_ssh() -> None:
    launcher = only("aws/launcher.yaml")
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert list(launcher["file_mounts"]) == ["/home/crossrec/.ray/auth_token"]
    (rule,) = launcher["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert "0.0.0.0/0" not in json.dumps(rule)
    for kind in launcher["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_nothing_is_installed_on_a_node() -> None:
    launcher = only("aws/launcher.yaml")
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert launcher[name] == []


def test_head_may_do_what_ray_s_autoscaler_asks_of_ec2() -> None:
    source = PROVIDER.read_text()
    asked = {
        ".create_instances(": "ec2:RunInstances",
        ".create_tags": "ec2:CreateTags",
        ".terminate_instances": "ec2:TerminateInstances",
        ".instances.filter(": "ec2:DescribeInstances",
    }
    assert all(call in source for call in asked)
    allowed = actions("aws/head-policy.json")
    # PassRole and GetParameters: for the profile and the image that its RunInstances names.
    assert allowed == {*asked.values(), "iam:PassRole", "ssm:GetParameters"}


# --------------------------------------------------------------------------------------------------
# What a night asks of S3

LAKE, RESULTS = "example-lake", "example-recs/nightly"


def actions(name: str) -> set[str]:
    statements = json.loads(read(name))["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return {action for statement in statements for action in statement["Action"]}


class Guarded:
    """An S3 server that enforces policies, with a user who has what `allow` says."""

    def __init__(self, url: str) -> None:
        self.url = url
        keys: dict[str, Any] = {"endpoint_url": url, "region_name": "us-east-1"}
        root = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        self.iam = boto3.client("iam", **keys, **root)
        s3 = boto3.client("s3", **keys, **root)
        for bucket in ("example-lake", "example-recs"):
            s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=LAKE, Key="events/1.parquet", Body=b"events")
        self.iam.create_user(UserName="night")
        made = self.iam.create_access_key(UserName="night")["AccessKey"]
        self.options = {
            "endpoint_url": url,
            "key": made["AccessKeyId"],
            "secret": made["SecretAccessKey"],
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def allow(self, policy: dict[str, Any]) -> None:
        self._enforce_after("inf")
        self.iam.put_user_policy(
            UserName="night", PolicyName="all", PolicyDocument=json.dumps(policy)
        )
        self._enforce_after("0")

    def _enforce_after(self, requests: str) -> None:
        # Without a type moto reads it as a form, and finds nothing.
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", requests.encode(), headers, method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def store(self, place: str) -> Store:
        return Store(f"s3://{place}", self.options)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A process of its own: moto enforces policies for all of its servers or for none."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "INITIAL_NO_AUTH_ACTION_COUNT": "inf",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield Guarded(url)
    finally:
        server.kill()
        server.wait()


def list_and_read_input(guarded: Guarded, _: Path) -> None:
    lake = guarded.store(LAKE)
    assert lake.list("events") == ["1.parquet"]
    assert lake.read_bytes("events/1.parquet") == b"events"


def write_and_read_results(guarded: Guarded, _: Path) -> None:
    store = guarded.store(RESULTS)
    store.check_writable()
    assert store.knows_conditions
    store.write_json("runs/1/plan.json", {"a": 1})
    assert store.read_json("runs/1/plan.json") == {"a": 1}
    assert store.exists("runs/1/plan.json")
    assert not store.exists("runs/1/manifest.json")
    assert store.list("runs/1") == ["plan.json"]
    store.delete("runs/1")


def swap_results(guarded: Guarded, _: Path) -> None:
    store = guarded.store(RESULTS)
    assert store.swap_bytes("current.json", None, b"1")
    assert store.swap_bytes("current.json", b"1", b"2")
    assert not store.swap_bytes("current.json", b"1", b"3")
    assert store.create_bytes("runs/1/lock/1.json", b"mine")
    assert not store.create_bytes("runs/1/lock/1.json", b"theirs")
    store.delete("current.json")
    store.delete("runs/1")


def write_in_parts(guarded: Guarded, folder: Path) -> None:
    """More than the 50 MiB that s3fs sends in one PUT."""
    (folder / "matrix").write_bytes(bytes(101 * 2**20))
    store = guarded.store(RESULTS)
    store.put_file(folder / "matrix", "runs/1/items/matrix")
    assert len(store.list("runs/1/items")) == 1
    store.delete("runs/1")


EVERYTHING: list[Callable[[Guarded, Path], None]] = [
    list_and_read_input,
    write_and_read_results,
    swap_results,
    write_in_parts,
]


@pytest.mark.parametrize("work", EVERYTHING)
def test_policy_lets_the_store_do_all_of_its_work(
    guarded: Guarded, tmp_path: Path, work: Callable[[Guarded, Path], None]
) -> None:
    guarded.allow(json.loads(read("aws/s3-policy.json")))
    work(guarded, tmp_path)


@pytest.mark.parametrize(
    ("place", "action", "work"),
    [
        ("NamesOfWhatIsThere", "s3:ListBucket", list_and_read_input),
        ("NamesOfWhatIsThere", "s3:ListBucket", write_and_read_results),
        ("ReadInput", "s3:GetObject", list_and_read_input),
        ("ReadAndWriteResults", "s3:GetObject", write_and_read_results),
        ("ReadAndWriteResults", "s3:PutObject", write_and_read_results),
        ("ReadAndWriteResults", "s3:DeleteObject", write_and_read_results),
    ],
)
def test_no_action_of_the_policy_can_be_left_out(
    guarded: Guarded,
    tmp_path: Path,
    place: str,
    action: str,
    work: Callable[[Guarded, Path], None],
) -> None:
    policy = json.loads(read("aws/s3-policy.json"))
    (statement,) = (found for found in policy["Statement"] if found["Sid"] == place)
    statement["Action"].remove(action)
    policy["Statement"] = [found for found in policy["Statement"] if found["Action"]]
    guarded.allow(policy)
    with pytest.raises((CrossrecError, AssertionError)):
        work(guarded, tmp_path)


def test_policy_keeps_the_night_from_the_rest(guarded: Guarded) -> None:
    guarded.allow(json.loads(read("aws/s3-policy.json")))
    for place in (LAKE, "example-recs/other"):
        with pytest.raises(CrossrecError):
            guarded.store(place).write_bytes("x", b"x")


def test_every_action_is_in_the_readme_s_table() -> None:
    rows = [line for line in read("README.md").splitlines() if line.startswith("| `s3:")]
    assert {row.split("`")[1] for row in rows} == actions("aws/s3-policy.json")
