"""What the checks share: rendering, the binary, and a proxy that runs."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
MONITORING = K8S / "components" / "monitoring"
OUTRIGGER = os.environ["OUTRIGGER"]
# Tools that pip installed lie beside the interpreter.
TOOLS = pathlib.Path(sys.executable).parent


def run(*command, **more):
    """Runs a command and gives its output; what it printed is in the error when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **more)
    if done.returncode != 0:
        raise AssertionError(f"{command[0]} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def render(directory):
    """The documents that kustomize makes of a directory."""
    return [document for document in yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", directory)) if document]


def compose(resources, components):
    """As `render`, of a kustomization that a user would write: these resources with these components."""
    with tempfile.TemporaryDirectory() as directory:
        up = lambda names: [os.path.relpath(K8S / name, directory) for name in names]
        text = {"resources": up(resources), "components": up(components)}
        (pathlib.Path(directory) / "kustomization.yaml").write_text(json.dumps(text))
        return render(directory)


class Proxy:
    """An Outrigger that runs for as long as the block, on free ports."""

    def __init__(self, text, environment=None):
        for port in ("127.0.0.1:7171", "127.0.0.1:7172", "[::]:7173"):
            assert port in text, f"the configuration should name {port}"
            text = text.replace(port, "127.0.0.1:0")
        # Not into this machine's.
        self.directory = tempfile.TemporaryDirectory()
        self.text, self.environment = text.replace("/var/run/outrigger/", self.directory.name + "/"), environment or {}

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        self.file.write(self.text)
        self.file.flush()
        self.process = subprocess.Popen([OUTRIGGER, "run", "--config", self.file.name], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environment})
        said = []
        for line in self.process.stdout:
            said.append(line)
            if '"message":"ready"' in line:
                self.ready = json.loads(line)
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return self
        raise AssertionError("".join(said))

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.file.close()
        self.directory.cleanup()

    def get(self, listener, path):
        """The body that a listener of Outrigger's own answers with."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return direct.open(f"http://{self.ready[listener]}{path}", timeout=10).read().decode()

    def through(self, url, headers=None):
        """The status of a request of the app's."""
        proxied = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{self.ready['proxy']}"}))
        try:
            return proxied.open(urllib.request.Request(url, headers=headers or {}), timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers what the path says: /503 is a 503."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/") or 200))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

    @classmethod
    def start(cls):
        """A server on a free port."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), cls)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def eventually(what, holds):
    """Waits until it holds."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)
