"""Object stores on loopback: moto's S3 server and a GCS emulator, over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """Run moto's S3 server with one empty bucket; yields its endpoint URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        endpoint = f"http://{host}:{port}"
        _s3_client(endpoint).create_bucket(Bucket=bucket)
        yield endpoint
    finally:
        server.stop()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point s3fs at an S3 server through the environment, as a user would."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def s3_keys(endpoint: str, bucket: str = "bucket") -> dict[str, int]:
    """What lies in a bucket, asked without fsspec: key -> bytes."""
    contents = _s3_client(endpoint).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: entry["Size"] for entry in contents}


def s3_uploads(endpoint: str, bucket: str = "bucket") -> list[str]:
    """Keys of multipart uploads that were begun and neither completed nor aborted."""
    uploads = _s3_client(endpoint).list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [upload["Key"] for upload in uploads]


@contextlib.contextmanager
def s3_denied(endpoint: str, bucket: str = "bucket") -> Iterator[None]:
    """Within, a bucket's policy denies writing."""
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client = _s3_client(endpoint)
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=bucket)


@contextlib.contextmanager
def gcs_server(bucket: str = "bucket") -> Iterator[str]:
    """Run a GCS emulator, in memory, with one empty bucket; yields its endpoint URL."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def use_gcs(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point gcsfs at an emulator through the environment."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    # Else gcsfs asks a gRPC service for the bucket's kind, and waits a minute for it.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def gcs_endpoint() -> Iterator[str]:
    with gcs_server() as endpoint:
        yield endpoint


def _s3_client(endpoint: str):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


#: Below the ports that the kernel gives away by itself; each worker of the tests has 200 of them.
_PORTS_FROM, _PORTS = 20_000, 200
_ports = itertools.count()


def free_port() -> int:
    """A port on loopback for a server that cannot bind port 0 and say which it got.

    Nothing else takes it in between: neither another worker, nor a connection of this machine's.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_ports, _PORTS):
        port = _PORTS_FROM + worker * _PORTS + number % _PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
