"""Debian's docker-registry as the upstream: started, filled, stopped, and its access log counted."""

import itertools
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.clients.images import Blob, Manifest
from tests.clients.netns import HarnessError, Namespace, Process, Response

_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<target>\S+) HTTP/1\.[01]" (?P<status>\d{3}) ')


class Request(NamedTuple):
    """One request as the registry logged it."""

    method: str
    path: str
    status: int


class Registry:
    """One docker-registry at `http://127.0.0.1:<port>` inside the namespace."""

    def __init__(self, namespace: Namespace, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._namespace = namespace
        self._marks = itertools.count(1)
        self._process: Process | None = None
        directory.mkdir(parents=True)
        self._log = directory / "log"
        self._config = directory / "config.yml"
        self._config.write_text(
            json.dumps(  # which is YAML too
                {
                    "version": "0.1",
                    "log": {"level": "warn", "accesslog": {"disabled": False}},
                    "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
                    "http": {"addr": f"127.0.0.1:{port}", "secret": "of these tests"},
                }
            )
        )

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = self._namespace.start("docker-registry", ["docker-registry", "serve", self._config], self._log)
        while True:
            try:
                if self._namespace.request("GET", f"{self.url}/v2/").status == 200:
                    return
            except OSError:
                self._process.pause(0.02)

    def stop(self) -> None:
        """Stops it: from then on connections to it are refused."""
        assert self._process
        self._process.stop(signal.SIGKILL)
        self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops it for the time of a `with`."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def push(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Pushes a manifest with all it needs, under its digest and under `tag`."""
        for item in manifest.walk():
            for blob in item.blobs:
                self._push_blob(repository, blob)
            for reference in {item.digest, tag or item.digest} if item is manifest else {item.digest}:
                url = f"{self.url}/v2/{repository}/manifests/{reference}"
                self._done(self._namespace.request("PUT", url, item.data, {"Content-Type": item.media_type}))

    def pulls(self, repository: str) -> list[Request]:
        """Every GET and HEAD under a repository so far, in the order in which they were done."""
        if self._process:  # what this request's line comes after is in the log
            mark = f"/v2/?mark={next(self._marks)}"
            self._namespace.request("GET", self.url + mark)
            while f"GET {mark} " not in self._log.read_text():
                self._process.pause(0.01)
        return [
            Request(found["method"], found["target"], int(found["status"]))
            for found in _LINE.finditer(self._log.read_text())
            if found["target"].startswith(f"/v2/{repository}/") and found["method"] in {"GET", "HEAD"}
        ]

    def _push_blob(self, repository: str, blob: Blob) -> None:
        begun = self._done(self._namespace.request("POST", f"{self.url}/v2/{repository}/blobs/uploads/"))
        location = f"{begun.headers['location']}&digest={blob.digest}"
        self._done(self._namespace.request("PUT", location, blob.data, {"Content-Type": "application/octet-stream"}))

    def _done(self, response: Response) -> Response:
        if response.status not in {201, 202}:
            raise HarnessError(f"the registry took no push: {response.status} {response.body.decode()}")
        return response
