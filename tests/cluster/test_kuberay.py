"""The manifests against the fields of KubeRay 1.7.0's API, and what must hold among them."""

import copy
import datetime as dt
from typing import Any

import pytest

from tests.cluster.files import config_of, documents, only, pods, rayjob_spec, read

SPEC = set(
    "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata "
    "clusterSelector submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId "
    "submissionMode entrypointResources entrypointNumCpus entrypointNumGpus "
    "ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes suspend".split()
)
CLUSTER_SPEC = set(
    "upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy "
    "tlsOptions headGroupSpec rayVersion workerGroupSpecs".split()
)
HEAD = set(
    "template headService enableIngress ingressOptions resources labels rayStartParams "
    "serviceType".split()
)
GROUP = set(
    "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources "
    "labels rayStartParams template scaleStrategy numOfHosts".split()
)
AUTOSCALER = set(
    "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts command args".split()
)
BYTES = {"Gi": 2**30, "Mi": 2**20}


def size(quantity: str) -> int:
    return int(quantity[:-2]) * BYTES[quantity[-2:]]


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_rayjob_has_only_fields_that_kuberay_knows() -> None:
    job = only("kuberay/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= SPEC
    assert set(cluster) <= CLUSTER_SPEC
    assert set(cluster["headGroupSpec"]) <= HEAD
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams"} <= set(group) <= GROUP
    assert set(spec["submitterConfig"]) == {"backoffLimit"}


def test_cluster_ends_with_the_job_and_is_tried_again() -> None:
    spec = rayjob_spec()
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_gpus_are_as_many_as_the_config_trains_on() -> None:
    config = config_of(rayjob_spec()["entrypoint"])
    (group,) = rayjob_spec()["rayClusterSpec"]["workerGroupSpecs"]
    assert config.train.min_workers == group["minReplicas"] <= group["replicas"]
    assert config.train.num_workers == group["maxReplicas"]
    assert config.model.trainable == "all"
    assert rayjob_spec()["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    limits = container(group["template"])["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    tolerated = [rule["key"] for rule in group["template"]["spec"]["tolerations"]]
    assert tolerated == ["nvidia.com/gpu"]


def test_nothing_but_the_driver_runs_on_the_head() -> None:
    spec = rayjob_spec()
    parameters = spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert (parameters["num-cpus"], parameters["num-gpus"]) == ("0", "0")
    # With any of these the driver would be placed by them, which is on a worker.
    assert not {name for name in spec if name.startswith("entrypointN")} | (
        {"entrypointResources"} & set(spec)
    )
    limits = container(pods(spec)["head"])["resources"]["limits"]
    assert "nvidia.com/gpu" not in limits


@pytest.mark.parametrize("node", ["head", "gpu"])
def test_object_store_fits_in_shm_and_shm_in_memory(node: str) -> None:
    cluster = rayjob_spec()["rayClusterSpec"]
    group = cluster["headGroupSpec"] if node == "head" else cluster["workerGroupSpecs"][0]
    template = group["template"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in template["spec"]["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in container(template)["volumeMounts"]}
    shm = volumes[mounts["/dev/shm"]]
    assert shm["medium"] == "Memory"
    store = int(group["rayStartParams"]["object-store-memory"])
    memory = size(container(template)["resources"]["limits"]["memory"])
    assert store < size(shm["sizeLimit"]) < memory / 2


@pytest.mark.parametrize("node", ["head", "gpu"])
def test_scratch_is_bounded_and_tmp_ray_is_left_to_kuberay(node: str) -> None:
    """The autoscaler container mounts what KubeRay adds there, unless the place is taken."""
    template = pods(rayjob_spec())[node]
    mounts = {m["mountPath"]: m["name"] for m in container(template)["volumeMounts"]}
    assert set(mounts) == {"/dev/shm", "/tmp"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in template["spec"]["volumes"]}
    assert size(volumes[mounts["/tmp"]]["sizeLimit"]) > 0
    assert "ray-logs" not in volumes


@pytest.mark.parametrize("pod", ["head", "gpu", "submitter"])
def test_pods_are_what_a_restricted_namespace_admits(pod: str) -> None:
    template = pods(rayjob_spec())[pod]
    whole, one = template["spec"]["securityContext"], container(template)["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == 1000
    assert one["allowPrivilegeEscalation"] is False
    assert one["capabilities"] == {"drop": ["ALL"]}
    assert one["seccompProfile"] == {"type": "RuntimeDefault"}
    resources = container(template)["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert {"cpu", "memory"} <= set(resources["limits"])
    if pod != "head":  # where the autoscaler asks for pods
        assert template["spec"]["automountServiceAccountToken"] is False
    (namespace,) = (d for d in documents("kuberay/access.yaml") if d["kind"] == "Namespace")
    label = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert label == "restricted"


def test_autoscaler_is_as_restricted_as_the_pods() -> None:
    cluster = rayjob_spec()["rayClusterSpec"]
    assert (
        cluster["autoscalerOptions"]["securityContext"]
        == (container(pods(rayjob_spec())["head"])["securityContext"])
    )


def test_every_try_of_a_night_is_within_one_utc_day() -> None:
    cron, spec = only("kuberay/cronjob.yaml")["spec"], rayjob_spec()
    assert cron["timeZone"] == "Etc/UTC"
    minute, hour, *rest = cron["schedule"].split()
    assert rest == ["*", "*", "*"]
    last_start_s = int(hour) * 3600 + int(minute) * 60 + cron["startingDeadlineSeconds"]
    day_s = dt.timedelta(days=1).total_seconds()
    tries_s = (1 + spec["backoffLimit"]) * spec["activeDeadlineSeconds"]
    assert tries_s < cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert last_start_s + cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] < day_s


def test_cronjob_forbids_overlap_and_gets_the_manifest() -> None:
    cron = only("kuberay/cronjob.yaml")
    assert (cron["apiVersion"], cron["kind"]) == ("batch/v1", "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    template = cron["spec"]["jobTemplate"]["spec"]["template"]
    assert template["spec"]["restartPolicy"] == "Never"
    one = container(template)
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    folder = one["volumeMounts"][0]["mountPath"]
    assert one["command"][0] == "python"
    assert one["command"][-1] == f"{folder}/rayjob.yaml"
    config_map = template["spec"]["volumes"][0]["configMap"]["name"]
    made = f"kubectl create configmap {config_map} -n crossrec"
    assert made in read("README.md")
    assert made in read("kuberay/cronjob.yaml")


def test_cronjob_may_create_and_read_rayjobs_and_nothing_else() -> None:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for document in documents("kuberay/access.yaml"):
        by_kind.setdefault(document["kind"], []).append(document)
    (role,), (binding,) = by_kind["Role"], by_kind["RoleBinding"]
    assert "ClusterRole" not in by_kind
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    account = only("kuberay/cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "serviceAccountName"
    ]
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    accounts = {found["metadata"]["name"] for found in by_kind["ServiceAccount"]}
    used = {template["spec"].get("serviceAccountName") for template in pods(rayjob_spec()).values()}
    assert accounts == {account} | used - {None}


def test_network_policy_admits_the_pods_and_the_operator() -> None:
    (policy,) = (d for d in documents("kuberay/access.yaml") if d["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"] == {}
    among, operator, _ = policy["spec"]["ingress"]
    labels = among["from"][0]["podSelector"]["matchLabels"]
    for template in pods(rayjob_spec()).values():
        assert labels.items() <= template["metadata"]["labels"].items()
    ports = {
        port["name"]: port["containerPort"]
        for port in container(pods(rayjob_spec())["head"])["ports"]
    }
    assert [port["port"] for port in operator["ports"]] == [ports["dashboard"]]


def test_raycronjob_is_the_rayjob_without_its_date() -> None:
    cron = only("kuberay/raycronjob.yaml")
    assert (cron["apiVersion"], cron["kind"]) == ("ray.io/v1", "RayCronJob")
    assert set(cron["spec"]) <= {"jobTemplate", "schedule", "timeZone", "suspend"}
    expected = copy.deepcopy(rayjob_spec())
    expected["entrypoint"] = expected["entrypoint"].replace("run_id=RUN_ID ", "")
    assert cron["spec"]["jobTemplate"] == expected
    assert "RUN_ID" not in expected["entrypoint"]
    nightly = only("kuberay/cronjob.yaml")["spec"]
    assert (cron["spec"]["schedule"], cron["spec"]["timeZone"]) == (
        nightly["schedule"],
        nightly["timeZone"],
    )
