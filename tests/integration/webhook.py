"""An admission webhook that refuses, or does not answer: what a cluster's own policies look like from inside."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cluster.kube import Kube
from cluster.pki import Authority

NAME = "budget.example.com"


@contextmanager
def refusing(kube: Kube, namespace: str, resource: str, words: str | None, folder: Path) -> Iterator[None]:
    """Refuse every new ``group/resource`` of the namespace in these words; with None, hang up on who asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if words is None:
                return
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            denied = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": words}}
            body = json.dumps({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": denied})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Silent."""

    authority = Authority.create(folder)
    authority.issue_server("webhook")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "webhook.crt", folder / "webhook.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = _configuration(namespace, resource, server.server_port, (folder / "ca.crt").read_bytes())
    kube.create(configuration)
    try:
        yield
    finally:
        kube.delete(
            "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", configuration["metadata"]["name"], None
        )
        server.shutdown()
        server.server_close()


def _configuration(namespace: str, resource: str, port: int, authority: bytes) -> dict[str, Any]:
    group, _, plural = resource.rpartition("/")
    created = {"apiGroups": [group], "apiVersions": ["*"], "operations": ["CREATE"], "resources": [plural]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"{namespace}-{plural}"},
        "webhooks": [
            {
                "name": NAME,
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/",
                    "caBundle": base64.b64encode(authority).decode(),
                },
                "rules": [created],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 5,
            }
        ],
    }
