"""The app over HTTP: send photos, run a job, watch it, fetch the results.

Usage: `python examples/09_app_client.py [SERVER [PHOTO ...]]`, with `sightline app` as the server.
Only Python's own library is used; `SERVER/api/v1/openapi.json` describes everything there is.
"""

import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

folder = Path(tempfile.mkdtemp())
server, *photos = sys.argv[1:] or [""]
own = None
if not server:  # one of our own, for the time of this program
    words = ["-m", "sightline", "app", "--no-browser", "--root", str(folder / "jobs")]
    own = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    server = own.stdout.readline().partition("?")[0]  # it prints its address
if not photos:
    photos = [folder / "red.png", folder / "blue.png"]
    for photo in photos:
        Image.new("RGB", (64, 48), photo.stem).save(photo)
headers = {"content-type": "application/json"}


def ask(method: str, path: str, body: object = None) -> bytes:
    """Send one request; what is wrong is told in a sentence."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    url = urllib.parse.urljoin(server, f"/api/v1/{path}")
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {json.load(error)['error']}") from error


try:
    # A key makes us a user: what is sent and run with it is seen with it only.
    headers["x-sightline-key"] = json.loads(ask("POST", "session"))["key"]

    uploads = []
    for photo in map(Path, photos):
        query = urllib.parse.urlencode({"name": photo.name})
        uploads.append(json.loads(ask("POST", f"uploads?{query}", photo.read_bytes()))["id"])

    # Options have the names of the command line; "kind": "reconstruct" would make a scene.
    request = {"kind": "features", "inputs": uploads, "options": {"backbone": "iuvrgb"}}
    job = json.loads(ask("POST", "jobs", request))
    print(f"the same by hand: {job['command']}")

    while job["state"] in ("queued", "running"):
        print(f"{job['state']:<8} {job['progress']['fraction']:4.0%} {job['progress']['stage']}")
        newer = f"jobs/{job['id']}?version={job['version']}&wait=25"  # answers when there is news
        job = json.loads(ask("GET", newer))
    print(job["state"], job["error"] or "")

    for result in json.loads(ask("GET", f"jobs/{job['id']}/results")):
        target = folder / result["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(ask("GET", urllib.parse.quote(result["url"].removeprefix("/api/v1/"))))
        print(f"{target}: {result['size']} bytes")
finally:
    if own is not None:
        own.terminate()
        own.communicate()
