"""The Job documents: valid for Kubernetes, right where its schema is silent, and as they were."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from geosam_stac.errors import UsageError
from geosam_stac.scale.kubernetes import GRACE_S, JobSpec, documents, to_yaml

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "kubernetes"
STATIC = ROOT / "docker" / "kubernetes"
DIGEST = "ghcr.io/example/geosam-stac@sha256:" + "0" * 64
ITEMS = "s3://BUCKET/features/runs/DIGEST.ndjson"
OPTIONS = ("--items", ITEMS, "--model", "sam2.1-hiera-base-plus", "--out", "s3://BUCKET/features")
PLAIN = {
    "name": "geosam-stac",
    "image": DIGEST,
    "shards": 64,
    "encode_args": ("encode", *OPTIONS, "--device", "cuda", "--shard", "64"),
    "finalize_args": (
        "finalize",
        *OPTIONS,
        "--device",
        "cuda",
        "--shards",
        "64",
        "--wait",
        "86400",
    ),
}
SPECS = {
    "plain": PLAIN,
    "full": PLAIN
    | {
        "parallelism": 8,
        "namespace": "imagery",
        "queue": "gpu-queue",
        "identity": {"eks.amazonaws.com/role-arn": "arn:aws:iam::000000000000:role/features"},
        "secret": "source-api",
        "weights": "weights",
    },
    "cpu": PLAIN | {"gpu": None, "weights": "image", "shards": 3},
}


def _jobs(name: str) -> tuple[dict, dict]:
    encode, finalize = documents(JobSpec(**SPECS[name]))[-2:]
    return encode, finalize


@pytest.mark.parametrize("version", ["1.34", "1.35", "1.37"])
@pytest.mark.parametrize("name", SPECS)
def test_documents_are_valid(name, version):
    for document in documents(JobSpec(**SPECS[name])):
        kubernetes_validate.validate(document, version, strict=True)


def test_validation_is_strict():
    broken = _jobs("plain")[0]
    broken["spec"]["backoffLimitPerIndx"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.34", strict=True)


@pytest.mark.parametrize("name", SPECS)
def test_golden_files(name):
    """Render anew with: python -m tests.scale.test_kubernetes"""
    assert to_yaml(JobSpec(**SPECS[name])) == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", SPECS)
def test_what_the_schema_does_not_say(name):
    encode, finalize = _jobs(name)
    spec = encode["spec"]
    # The API server refuses backoffLimitPerIndex without Indexed, and with another restartPolicy;
    # and a podFailurePolicy with another restartPolicy or podReplacementPolicy.
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] == 3
    assert 1 <= spec["maxFailedIndexes"] <= max(1, spec["completions"] // 10)
    assert spec["parallelism"] <= spec["completions"]
    for job in (encode, finalize):
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        assert job["spec"]["podReplacementPolicy"] == "Failed"
        assert pod["terminationGracePeriodSeconds"] == GRACE_S > 10
        assert job["spec"]["activeDeadlineSeconds"] > 0
        names = [container["name"] for container in pod["containers"]]
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            assert rule["action"] in ("Ignore", "FailIndex", "FailJob", "Count")
            if "onExitCodes" in rule:
                codes = rule["onExitCodes"]["values"]
                assert rule["onExitCodes"]["containerName"] in names
                assert 0 not in codes and codes == sorted(set(codes))
    # FailIndex is refused where the Job has no backoffLimitPerIndex.
    rules = finalize["spec"]["podFailurePolicy"]["rules"]
    assert "backoffLimitPerIndex" not in finalize["spec"]
    assert all(rule["action"] != "FailIndex" for rule in rules)
    assert finalize["spec"]["activeDeadlineSeconds"] > spec["activeDeadlineSeconds"]


def test_failure_policy_stands_in_order():
    rules = _jobs("plain")[0]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailIndex"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"]["values"] == [2, 78]
    assert rules[2]["onExitCodes"]["values"] == [65]


@pytest.mark.parametrize("name", SPECS)
def test_pods_have_no_rights_that_they_do_not_need(name):
    for job in _jobs(name):
        pod = job["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "@sha256:" in container["image"]
        # The root is read-only: where the program writes there must be a volume.
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/dev/shm"} <= mounted
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
        # Keys are not written into a document that many can read.
        assert not [
            env for env in container["env"] if "KEY" in env["name"] or "TOKEN" in env["name"]
        ]


def test_resources():
    encode, finalize = (job["spec"]["template"]["spec"] for job in _jobs("plain"))
    resources = encode["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"])
    assert encode["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in finalize["containers"][0]["resources"]["limits"]
    (shm,) = [volume for volume in encode["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    for job in _jobs("cpu"):
        assert "nvidia.com/gpu" not in yaml.safe_dump(job)


def test_weights():
    full = _jobs("full")[0]["spec"]["template"]["spec"]
    (cache,) = [volume for volume in full["volumes"] if volume["name"] == "cache"]
    assert cache["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    baked = _jobs("cpu")[0]["spec"]["template"]["spec"]
    assert "GEOSAM_STAC_CACHE" not in yaml.safe_dump(baked)


def test_queue_and_secret():
    encode, finalize = _jobs("full")
    for job in (encode, finalize):
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "source-api"}}]
    account = documents(JobSpec(**SPECS["full"]))[0]
    assert account["kind"] == "ServiceAccount"
    assert account["metadata"]["annotations"] == SPECS["full"]["identity"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "ghcr.io/example/geosam-stac:1.0"}, "by digest"),
        ({"name": "Geosam"}, "--name"),
        ({"name": "x" * 60}, "--name"),
        ({"queue": "a b"}, "--queue"),
        ({"secret": "a..b"}, "--secret"),
        ({"secret": ".a"}, "--secret"),
        ({"secret": "a" * 254}, "--secret"),
        ({"namespace": "a.b"}, "--namespace"),
        ({"name": "a.b"}, "--name"),
        ({"memory": "16 GB"}, "--memory"),
        ({"memory": "500m"}, "--memory"),
        ({"cpu": "4Gi"}, "--cpu"),
        ({"tmp": "0"}, "--tmp"),
        ({"model_cache": "8gi"}, "--model-cache"),
        ({"shared_memory": "1024 Mi"}, "--shared-memory"),
        ({"tmp": "16Gi"}, "--tmp and --model-cache do not fit in --ephemeral-storage"),
        ({"tmp": "21G", "weights": "image", "ephemeral_storage": "20G"}, "--tmp do not fit"),
        ({"shared_memory": "17179869185"}, "--shared-memory do not fit in --memory"),
        ({"ephemeral_storage": "lots"}, "--ephemeral-storage"),
        ({"shards": 0}, "--shards"),
        ({"shards": 100_001}, "--shards"),
        ({"parallelism": 0}, "--parallelism"),
        ({"deadline_s": 0}, "--deadline"),
    ],
)
def test_refused(change, said):
    with pytest.raises(UsageError, match=said):
        JobSpec(**(PLAIN | change))


def test_names_may_be_dns_subdomains():
    names = {"secret": "tokens.source-api.v1", "service_account": "a.b", "weights": "sam.weights"}
    (container,) = documents(JobSpec(**PLAIN, **names))[0]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "tokens.source-api.v1"}}]


def test_the_finalizer_keeps_its_wait():
    """Its pods have the Job's name for it; its deadline covers the wait that `Clock` may take."""
    encode, finalize = _jobs("plain")
    (container,) = finalize["spec"]["template"]["spec"]["containers"]
    (attempt,) = [env for env in container["env"] if env["name"] == "GEOSAM_STAC_ATTEMPT"]
    field = "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert attempt["valueFrom"] == {"fieldRef": {"fieldPath": field}}
    wait_s = int(container["args"][container["args"].index("--wait") + 1])
    assert finalize["spec"]["activeDeadlineSeconds"] > 2 * wait_s
    assert wait_s >= encode["spec"]["activeDeadlineSeconds"]


def test_static_copies_are_what_is_rendered():
    """docker/kubernetes is for `kubectl apply -k`; it must not fall behind."""
    service_account, encode, finalize = documents(JobSpec(**PLAIN, identity={}))
    for name, document in (
        ("service-account", service_account),
        ("encode", encode),
        ("finalize", finalize),
    ):
        assert yaml.safe_load((STATIC / f"{name}.yaml").read_text()) == document, name
    kustomization = yaml.safe_load((STATIC / "kustomization.yaml").read_text())
    assert kustomization["resources"] == ["service-account.yaml", "encode.yaml", "finalize.yaml"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds():
    built = subprocess.run(
        ["kubectl", "kustomize", STATIC], check=False, capture_output=True, text=True, timeout=60
    )
    assert built.returncode == 0, built.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(built.stdout)]
    assert sorted(kinds) == ["Job", "Job", "ServiceAccount"]


def _render() -> None:
    for name, options in SPECS.items():
        (GOLDEN / f"{name}.yaml").write_text(to_yaml(JobSpec(**options)))
    service_account, encode, finalize = documents(JobSpec(**PLAIN, identity={}))
    for name, document in (
        ("service-account", service_account),
        ("encode", encode),
        ("finalize", finalize),
    ):
        text = yaml.safe_dump(document, sort_keys=False, width=120)
        (STATIC / f"{name}.yaml").write_text(text)


if __name__ == "__main__":
    _render()
