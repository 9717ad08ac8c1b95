"""Wait until the API server serves the kinds of the chart's CRDs; to ask what it serves takes no rights."""

import os
import ssl
import time
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST, PORT = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
URL = f"https://{f'[{HOST}]' if ':' in HOST else HOST}:{PORT}/apis/trainwright.dev/v1alpha1"
TRUST = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))


def served() -> bool:
    token = (ACCOUNT / "token").read_text()
    request = urllib.request.Request(URL, headers={"Authorization": f"Bearer {token}"})
    try:
        return b'"acceleratorpools"' in urllib.request.urlopen(request, context=TRUST, timeout=5).read()
    except OSError as error:
        print(f"{URL}: {error}", flush=True)
        return False


for _ in range(60):
    if served():
        raise SystemExit
    time.sleep(1)
raise SystemExit(f"{URL} is not served")
