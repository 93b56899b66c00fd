"""`geosam-stac jobs`: a run over many machines, as documents for the engine that runs it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.inputs import Inputs, gather, takes_inputs
from geosam_stac.cli.options import InForce, takes_config
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, UsageError
from geosam_stac.hrefs import is_local, unsigned

if TYPE_CHECKING:
    import pystac

    from geosam_stac.scale.worklist import WorkList
    from geosam_stac.sources.itemfiles import Found

app = typer.Typer(help="Runs over many machines: documents for Kubernetes.", no_args_is_help=True)

# An argument of a process has 128 KiB at most (Linux, MAX_ARG_STRLEN), and etcd 1.5 MiB an object.
GEOMETRY_BYTES = 100_000
PANEL = "Job"


@app.callback()
def _jobs() -> None: ...


def _job(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, show_default=True, rich_help_panel=PANEL
    )


@app.command(
    "kubernetes",
    epilog="Example: geosam-stac jobs kubernetes --items items.ndjson --out s3://bucket/features "
    "--image registry/geosam-stac@sha256:... --shards 64 --model sam2.1-hiera-base-plus "
    "| kubectl apply -f -",
)
@takes_config
@takes_inputs
def kubernetes(
    *,
    ctx: typer.Context,
    inputs: Inputs,
    image: Annotated[str, _job("--image", help="The container's image, by digest.", metavar="REF")],
    shards: Annotated[int, _job("--shards", help="Pods that the work is cut for.", metavar="N")],
    parallelism: Annotated[
        int | None,
        _job("--parallelism", help="Pods at a time; default: all shards.", metavar="N"),
    ] = None,
    name: Annotated[
        str | None, _job("--name", help="Of the Job; default: after the work.", metavar="NAME")
    ] = None,
    namespace: Annotated[str | None, _job("--namespace", help="Namespace.", metavar="NAME")] = None,
    queue: Annotated[
        str | None, _job("--queue", help="Kueue's LocalQueue to wait in.", metavar="NAME")
    ] = None,
    service_account: Annotated[
        str,
        _job("--service-account", help="ServiceAccount with workload identity.", metavar="NAME"),
    ] = "geosam-stac",
    identity: Annotated[
        list[str] | None,
        _job(
            "--identity",
            help="Annotation of the ServiceAccount, which is then made too, as "
            "eks.amazonaws.com/role-arn=ARN or iam.gke.io/gcp-service-account=EMAIL. Repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    secret: Annotated[
        str | None,
        _job(
            "--secret",
            help="Secret whose keys become environment variables: tokens of the source's API.",
            metavar="NAME",
        ),
    ] = None,
    weights: Annotated[
        str,
        _job(
            "--weights",
            help="fetch: each pod fetches them; image: baked in; or a PersistentVolumeClaim.",
            metavar="fetch|image|CLAIM",
        ),
    ] = "fetch",
    gpu: Annotated[
        str, _job("--gpu", help="Resource of which a pod has one, or none.", metavar="NAME")
    ] = "nvidia.com/gpu",
    cpu: Annotated[str, _job("--cpu", help="CPUs a pod.", metavar="N")] = "4",
    memory: Annotated[str, _job("--memory", help="Memory a pod.", metavar="SIZE")] = "16Gi",
    ephemeral_storage: Annotated[
        str, _job("--ephemeral-storage", help="Disk a pod, all in all.", metavar="SIZE")
    ] = "20Gi",
    tmp: Annotated[str, _job("--tmp", help="Of the disk, at most: /tmp.", metavar="SIZE")] = "8Gi",
    model_cache: Annotated[
        str,
        _job("--model-cache", help="Of the disk, at most: fetched weights.", metavar="SIZE"),
    ] = "8Gi",
    shared_memory: Annotated[
        str,
        _job("--shared-memory", help="Of the memory, at most: /dev/shm.", metavar="SIZE"),
    ] = "1Gi",
    deadline: Annotated[
        float, _job("--deadline", help="Hours until the run is ended.", metavar="H")
    ] = 24.0,
    keep: Annotated[
        float, _job("--keep", help="Hours that a finished Job is kept.", metavar="H")
    ] = 168.0,
    in_force: InForce,
) -> None:
    """Print an Indexed Job and its finalizer as YAML, for `kubectl apply -f -`.

    The Items are frozen on the output store first, so that every pod sees the same. No cluster
    is asked, and no key is written: pods reach the store by their ServiceAccount's identity.
    """
    config = _checked(in_force.config)
    spec = _spec(
        values={
            "image": image,
            "shards": shards,
            "parallelism": parallelism,
            "namespace": namespace,
            "queue": queue,
            "service_account": service_account,
            "identity": _annotations(identity),
            "secret": secret,
            "weights": weights,
            "gpu": None if gpu == "none" else gpu,
            "cpu": cpu,
            "memory": memory,
            "ephemeral_storage": ephemeral_storage,
            "tmp": tmp,
            "model_cache": model_cache,
            "shared_memory": shared_memory,
            "deadline_s": round(deadline * 3600),
            "ttl_s": round(keep * 3600),
        },
        name=name,
        given=in_force.sources,
        config=config,
        inputs=inputs,
    )
    from geosam_stac.scale.kubernetes import to_yaml

    console.result(to_yaml(spec).rstrip("\n"))


def _checked(config: EncodeConfig) -> EncodeConfig:
    from geosam_stac.sources import as_geojson

    if config.out is None or is_local(config.out):
        raise UsageError(
            "--out must be a place that every pod can write to",
            expected="an s3:// or gs:// URL",
            got=config.out or "none",
        )
    if config.overwrite:
        raise UsageError(
            "--overwrite is not for a fleet: a pod that starts again would undo what it has done",
            hint="Give another --out, or delete the old output",
        )
    if config.geometry is not None:
        text = as_geojson(config.geometry)
        if len(text) > GEOMETRY_BYTES:
            raise UsageError(
                "--geometry is too detailed to hand to a pod",
                expected=f"at most {GEOMETRY_BYTES:,} bytes of GeoJSON",
                got=f"{len(text):,}",
                hint="Simplify it",
            )
        config = config.replace({"geometry": text})
    return config


def _spec(
    *,
    values: dict[str, Any],
    name: str | None,
    given: dict[str, str],
    config: EncodeConfig,
    inputs: Inputs,
) -> Any:
    from geosam_stac.scale.kubernetes import JobSpec
    from geosam_stac.storage import Store

    # What is wrong with the options is said before anything is searched or written.
    JobSpec(**values, name=name or "x", encode_args=(), finalize_args=())
    assert config.out is not None
    hosts = inputs.hosts(inputs.profile(), allow_private=config.allow_private_hosts)
    found = gather(inputs, config, environ=os.environ, hosts=hosts)
    work = _freeze(found, Store(config.out))
    console.note(f"{work.items:,} Items are frozen in {work.href}")
    options = _options(config, given, inputs, gpu=values["gpu"] is not None)
    common = ["--items", work.href, *options]
    digest = hashlib.sha256("\0".join([work.sha256, str(values["shards"]), *options]).encode())
    return JobSpec(
        **values,
        name=name or f"geosam-stac-{digest.hexdigest()[:8]}",
        # The Job controller sets JOB_COMPLETION_INDEX, which says which shard of these it is.
        encode_args=("encode", *common, "--shard", str(values["shards"])),
        finalize_args=(
            "finalize",
            *common,
            "--shards",
            str(values["shards"]),
            "--wait",
            str(values["deadline_s"]),
        ),
    )


def _freeze(found: Iterator[Found], store: Any) -> WorkList:
    from geosam_stac.scale.worklist import freeze

    def items() -> Iterator[pystac.Item]:
        for one in found:
            if one.error is not None:
                raise one.error
            assert one.item is not None
            _check_reachable(one.item)
            yield one.item

    return freeze(items(), store)


def _check_reachable(item: pystac.Item) -> None:
    for asset in item.assets.values():
        href = asset.get_absolute_href() or asset.href
        if is_local(href):
            raise DataError(
                "the Item names a local file, which no pod can read",
                item=item.id,
                href=href,
                hint="Copy the files to object storage, and name them there",
            )


def _options(
    config: EncodeConfig, given: dict[str, str], inputs: Inputs, *, gpu: bool
) -> tuple[str, ...]:
    """The options that were given, as a pod's arguments; a GPU that is asked for must be there."""
    words: list[str] = []
    for name, value in (("--catalog", inputs.catalog), ("--signer", inputs.signer)):
        words += [name, value] if value is not None else []
    words += ["--anonymous-source"] if inputs.anonymous_source else []
    values = dataclasses.asdict(config)
    if gpu and config.device == "auto":
        values, given = values | {"device": "cuda"}, given | {"device": "default"}
    for name in sorted({*given, "out"}, key=list(values).index):
        value, flag = values[name], "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            # One word: a value that starts with a minus would be taken for an option.
            words.append(
                f"{flag}={','.join(f'{v:.17g}' if isinstance(v, float) else v for v in value)}"
            )
        elif value is not None:
            text = unsigned(value) if isinstance(value, str) else f"{value}"
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return tuple(words)


def _annotations(texts: list[str] | None) -> dict[str, str] | None:
    if not texts:
        return None
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, value) in zip(texts, pairs, strict=True):
        if not (key and equals and value):
            raise UsageError("--identity is no annotation", expected="KEY=VALUE", got=repr(text))
    return {key: value for key, _, value in pairs}
