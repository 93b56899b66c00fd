"""A run of shards as Kubernetes documents: an Indexed Job that encodes, a Job that finalizes.

Pure: options in, plain data out; nothing is read and no cluster is asked. What the fields do is
said at https://kubernetes.io/docs/concepts/workloads/controllers/job/ (backoff per index and pod
replacement policy are stable since 1.33 and 1.34).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from geosam_stac.errors import EXIT_PARTIAL, ConfigurationError, DataError, UsageError

NAME = "geosam-stac"
# The user of docker/Dockerfile.
USER_ID = 10001
CACHE = "/cache"
ATTEMPT = "GEOSAM_STAC_ATTEMPT"
# A run flushes within 10 s of SIGTERM; the rest is for the container runtime.
GRACE_S = 30
BACKOFF_LIMIT_PER_INDEX = 3
MAX_FAILED_FRACTION = 0.1
# The Job controller names pods <job>-<index>-<five characters>, and a name has 63.
NAME_LENGTH = 63 - len("-finalize") - len("-99999-abcde")

QUANTITIES = ("cpu", "memory", "ephemeral_storage", "tmp", "model_cache", "shared_memory")

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names: most objects' names are
# DNS subdomains; a Job's pods take its name for their host's, which is one label.
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LABEL_IN_WORDS = "at most {} of a-z, 0-9 and -, no - at the ends"
_SUBDOMAIN_IN_WORDS = "at most {} of a-z, 0-9, - and ., no - or . at the ends"
_BY_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMGTP]|[KMGTP]i)?")
_CPUS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m)?")
_FACTORS = {"": 1.0, "m": 1e-3} | {
    unit: base**power
    for base, units in (
        (1000.0, ("k", "M", "G", "T", "P")),
        (1024.0, ("Ki", "Mi", "Gi", "Ti", "Pi")),
    )
    for power, unit in enumerate(units, start=1)
}


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is run, and on what machines. Checked on creation: UsageError names the option.

    `image` is a reference by digest. `encode_args` and `finalize_args` are the container's
    arguments. `cpu`, `memory` and `ephemeral_storage` are Kubernetes' quantities, and so are the
    sizes of the folders that are part of the storage (`tmp`, `model_cache`) or of the memory
    (`shared_memory`). `gpu` is the resource of which a pod has one, None on machines without.
    `weights` is `fetch` (into an empty folder of the pod), `image` (baked in), or the name of a
    PersistentVolumeClaim that is mounted read-only. `secret` names a Secret whose keys become
    environment variables (tokens of a source's API); the output store is reached by workload
    identity: `identity` are annotations of the ServiceAccount, which is then rendered too.
    """

    name: str
    image: str
    shards: int
    encode_args: Sequence[str]
    finalize_args: Sequence[str]
    parallelism: int | None = None
    namespace: str | None = None
    queue: str | None = None
    service_account: str = NAME
    identity: Mapping[str, str] | None = None
    secret: str | None = None
    gpu: str | None = "nvidia.com/gpu"
    cpu: str = "4"
    memory: str = "16Gi"
    ephemeral_storage: str = "20Gi"
    tmp: str = "8Gi"
    model_cache: str = "8Gi"
    shared_memory: str = "1Gi"
    weights: str = "fetch"
    deadline_s: int = 24 * 3600
    ttl_s: int = 7 * 24 * 3600

    def __post_init__(self) -> None:
        self._check_names()
        if not _BY_DIGEST.fullmatch(self.image):
            raise UsageError(
                "--image is not given by digest: a tag may be another image tomorrow",
                expected="REGISTRY/NAME@sha256:<64 hex digits>",
                got=repr(self.image),
                hint="`docker buildx imagetools inspect NAME:TAG` prints it",
            )
        self._check_quantities()
        for option in ("shards", "parallelism", "deadline_s", "ttl_s"):
            value = getattr(self, option)
            if value is not None and value < (0 if option == "ttl_s" else 1):
                flag = option.removesuffix("_s").replace("_", "-")
                raise UsageError(f"--{flag} must be at least 1", got=str(value))
        if self.shards > 100_000:  # the API server's limit where parallelism is at most 10,000
            raise UsageError("--shards is more than a Job has", expected="at most 100000")

    def _check_names(self) -> None:
        for option, value, pattern, limit, expected in (
            ("--name", self.name, _DNS_LABEL, NAME_LENGTH, _LABEL_IN_WORDS),
            ("--namespace", self.namespace, _DNS_LABEL, 63, _LABEL_IN_WORDS),
            # It stands in a label's value.
            ("--queue", self.queue, _DNS_SUBDOMAIN, 63, _SUBDOMAIN_IN_WORDS),
            ("--service-account", self.service_account, _DNS_SUBDOMAIN, 253, _SUBDOMAIN_IN_WORDS),
            ("--secret", self.secret, _DNS_SUBDOMAIN, 253, _SUBDOMAIN_IN_WORDS),
            ("--weights", self.weights, _DNS_SUBDOMAIN, 253, _SUBDOMAIN_IN_WORDS),
        ):
            if value is not None and (not pattern.fullmatch(value) or len(value) > limit):
                raise UsageError(
                    f"{option} is no name in Kubernetes",
                    expected=expected.format(limit),
                    got=repr(value),
                )

    def _check_quantities(self) -> None:
        """Each is one, and what lies in the storage or the memory fits there."""
        size = {}
        for option in QUANTITIES:
            text = getattr(self, option)
            match = (_CPUS if option == "cpu" else _SIZE).fullmatch(text)
            size[option] = float(match[1]) * _FACTORS[match[2] or ""] if match else 0.0
            if not size[option]:
                raise UsageError(
                    f"{_flag(option)} is no quantity",
                    expected="more than 0, as 4 or 500m" if option == "cpu" else "as 16Gi or 500M",
                    got=repr(text),
                )
        disk = ("tmp", "model_cache") if self.weights == "fetch" else ("tmp",)
        for whole, parts in (("ephemeral_storage", disk), ("memory", ("shared_memory",))):
            if sum(size[part] for part in parts) > size[whole]:
                # The kubelet would evict the pod when the folders fill.
                raise UsageError(
                    f"{' and '.join(map(_flag, parts))} do not fit in {_flag(whole)}",
                    expected=f"at most {getattr(self, whole)} in all",
                    got=" and ".join(getattr(self, part) for part in parts),
                )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def documents(spec: JobSpec) -> list[dict[str, Any]]:
    """The documents in the order in which they are applied."""
    found = [_encode_job(spec), _finalize_job(spec)]
    if spec.identity is not None:
        found.insert(0, _service_account(spec))
    return found


def to_yaml(spec: JobSpec) -> str:
    """The documents as YAML, for `kubectl apply -f -`."""
    return str(yaml.safe_dump_all(documents(spec), sort_keys=False, explicit_start=True, width=120))


def _encode_job(spec: JobSpec) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(spec, spec.name),
        "spec": {
            "completionMode": "Indexed",
            "completions": spec.shards,
            "parallelism": min(spec.parallelism or spec.shards, spec.shards),
            "backoffLimitPerIndex": BACKOFF_LIMIT_PER_INDEX,
            "maxFailedIndexes": max(1, int(spec.shards * MAX_FAILED_FRACTION)),
            # Two pods of one index would write the same chips side by side.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules("encode", indexed=True)},
            "ttlSecondsAfterFinished": spec.ttl_s,
            "activeDeadlineSeconds": spec.deadline_s,
            "template": _pod(spec, container=_container(spec, "encode", spec.encode_args)),
        },
    }


def _finalize_job(spec: JobSpec) -> dict[str, Any]:
    container = _container(spec, "finalize", spec.finalize_args, gpu=False)
    # The Job's identity: a pod that takes another one's place goes on with its wait.
    label = "metadata.labels['batch.kubernetes.io/controller-uid']"
    attempt = {"name": ATTEMPT, "valueFrom": {"fieldRef": {"fieldPath": label}}}
    container["env"].append(attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(spec, f"{spec.name}-finalize"),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 6,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules("finalize", indexed=False)},
            "ttlSecondsAfterFinished": spec.ttl_s,
            # It waits for a shard to begin, which a queue may hold back, then for all to end, and
            # then has its own work to do.
            "activeDeadlineSeconds": 2 * spec.deadline_s + 3600,
            "template": _pod(spec, container=container, gpu=False),
        },
    }


def _failure_rules(container: str, *, indexed: bool) -> list[dict[str, Any]]:
    """In order: what is not the pod's fault, what every pod would meet, what no retry mends."""

    def exits(action: str, *codes: int) -> dict[str, Any]:
        condition = {"containerName": container, "operator": "In", "values": sorted(codes)}
        return {"action": action, "onExitCodes": condition}

    everyone = (UsageError.exit_code, ConfigurationError.exit_code)
    ignored = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    if not indexed:
        # Partly done is done, as far as another try goes: failed.ndjson names the rest.
        return [ignored, exits("FailJob", *everyone, EXIT_PARTIAL, DataError.exit_code)]
    return [ignored, exits("FailJob", *everyone), exits("FailIndex", DataError.exit_code)]


def _service_account(spec: JobSpec) -> dict[str, Any]:
    metadata = _metadata(spec, spec.service_account)
    metadata["labels"] = {"app.kubernetes.io/name": NAME}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata | {"annotations": dict(spec.identity or {})},
        "automountServiceAccountToken": False,
    }


def _metadata(spec: JobSpec, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": spec.name}
    if spec.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = spec.queue
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if spec.namespace is not None:
        metadata["namespace"] = spec.namespace
    return metadata


def _pod(spec: JobSpec, *, container: dict[str, Any], gpu: bool = True) -> dict[str, Any]:
    volumes = [
        {"name": "tmp", "emptyDir": {"sizeLimit": spec.tmp}},
        # PyTorch hands tensors between threads and processes in /dev/shm: 64 MiB without this.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.shared_memory}},
    ]
    if gpu and spec.weights == "fetch":
        volumes.append({"name": "cache", "emptyDir": {"sizeLimit": spec.model_cache}})
    elif gpu and spec.weights != "image":
        claim = {"claimName": spec.weights, "readOnly": True}
        volumes.append({"name": "cache", "persistentVolumeClaim": claim})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "serviceAccountName": spec.service_account,
        # Workload identity brings a token of its own; the API's is not needed.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if gpu and spec.gpu is not None:
        # GPU nodes are tainted with the resource's name by most clusters.
        pod["tolerations"] = [{"key": spec.gpu, "operator": "Exists", "effect": "NoSchedule"}]
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": spec.name}
    return {"metadata": {"labels": labels}, "spec": pod}


def _container(
    spec: JobSpec, name: str, args: Sequence[str], *, gpu: bool = True
) -> dict[str, Any]:
    requests = {
        "cpu": spec.cpu if gpu else "1",
        "memory": spec.memory if gpu else "4Gi",
        "ephemeral-storage": spec.ephemeral_storage if gpu else spec.tmp,
    }
    # No limit on the CPU: throttling would make the GPU wait. The memory's is its request.
    limits = {key: requests[key] for key in ("memory", "ephemeral-storage")}
    if gpu and spec.gpu is not None:
        limits[spec.gpu] = "1"
    # The root is read-only: what Python's libraries keep goes where they may write.
    environment = {"HOME": "/tmp", "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp/cache"}
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if gpu and spec.weights != "image":
        environment["GEOSAM_STAC_CACHE"] = CACHE
        read_only = {"readOnly": True} if spec.weights != "fetch" else {}
        mounts.append({"name": "cache", "mountPath": CACHE, **read_only})
    container: dict[str, Any] = {
        "name": name,
        "image": spec.image,
        "args": list(args),
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
        # The last lines of stderr hold the error: `kubectl describe pod` shows them.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": spec.secret}}]
    return container
