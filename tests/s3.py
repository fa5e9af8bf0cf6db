"""An S3-compatible store on a free port: moto's server, in memory."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.support import answers, free_port, wait_until

# Only the MLflow server has them, in its environment.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a-key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
BUCKET = "phi3"


class S3:
    """A running store with one bucket."""

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.artifacts = f"s3://{BUCKET}/artifacts"
        # What an MLflow server needs to know, in its environment.
        region = {"AWS_DEFAULT_REGION": "us-east-1"}
        self.environment = CREDENTIALS | region | {"MLFLOW_S3_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        import boto3

        keys = {key.lower(): value for key, value in CREDENTIALS.items()}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def objects(self) -> list[str]:
        """Return the names of the objects."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextlib.contextmanager
def running() -> Iterator[S3]:
    """Run the store until the end of the block."""
    port = free_port()
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        store = S3(port)
        wait_until(lambda: process.poll() is not None or answers(f"{store.endpoint}/moto-api/"), seconds=60)
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        process.terminate()
        process.wait()
