"""The tools: built once, the origin with its certificates, and the load generator."""
import hashlib, json, os, re, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path

from .machine import Broken, die_with_parent, free_port, spawn

HERE = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BENCH_BUILD", Path(tempfile.gettempdir()) / "outrigger-bench"))
HOST = "api.test"


def tool(name):
    return str(BUILD / "release" / name)


def digest(d):
    """What the sources are, whatever their dates."""
    h = hashlib.sha256()
    for f in sorted(f for f in d.rglob("*") if f.suffix in (".rs", ".toml", ".lock") and "target" not in f.parts):
        h.update(f"{f.relative_to(d)}\0".encode() + f.read_bytes() + b"\0")
    return h.hexdigest()


TOOLS = {"tools": ["origin", "load", "floor-hyper", "floor-hyper-conn", "floor-l4"], "tools-pingora": ["floor-pingora"]}


def build(d="tools"):
    """Builds one of the two packages, unless its programs are there and of these sources."""
    stamp, now = BUILD / f"{d}.built-from", digest(HERE / d)
    if all(os.path.exists(tool(b)) for b in TOOLS[d]) and stamp.exists() and stamp.read_text() == now:
        return
    print(f"building {d}, some minutes ...", file=sys.stderr, flush=True)
    # The sources are copied out so that nothing is written beside them.
    src = BUILD / "src" / d
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(HERE / d, src, ignore=shutil.ignore_patterns("target"))
    env = {**os.environ, "CARGO_TARGET_DIR": str(BUILD)}
    if subprocess.run(["cargo", "build", "--release", "--locked"], cwd=src, env=env).returncode:
        raise Broken(f"{d} could not be built")
    stamp.write_text(now)


def certificates(d):
    """A throw-away CA and a leaf for the origin."""
    ca, leaf = d / "ca.pem", d / "leaf.pem"
    if leaf.exists():
        return
    run = lambda *a: subprocess.run(a, check=True, capture_output=True, cwd=d)
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run("openssl", "req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=bench CA",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run("openssl", "req", *ec, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", f"/CN={HOST}")
    (d / "ext").write_text(f"subjectAltName=DNS:{HOST},DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    run("openssl", "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "leaf.pem", "-days", "30", "-extfile", "ext")
    os.chmod(d / "ca.key", 0o600)
    (d / "ca-both.pem").write_text((d / "ca.key").read_text() + ca.read_text())


class Origin:
    def __init__(self, d, pin):
        certificates(d)
        self.http, self.tls1, self.tls2, self.dead = (free_port() for _ in range(4))
        argv = [tool("origin"), "--http", f"127.0.0.1:{self.http}", "--https1", f"127.0.0.1:{self.tls1}",
                "--https2", f"127.0.0.1:{self.tls2}", "--cert", str(d / "leaf.pem"), "--key", str(d / "leaf.key")]
        self.dir, self.p = d, spawn(pin + argv, subprocess.DEVNULL)
        wait_http(self.http, "/bytes/1", HOST, 5)

    def ports(self):
        return dict(http=self.http, tls1=self.tls1, tls2=self.tls2, dead=self.dead, intercept=self.tls1)

    def stats(self):
        return json.loads(http_get(self.http, "/__stats", HOST)[1])


def http_get(port, uri, host, timeout=2.0):
    """One GET on a new connection: (status, body)."""
    with socket.create_connection(("127.0.0.1", port), timeout) as s:
        s.settimeout(timeout)
        s.sendall(f"GET {uri} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        b = b""
        while True:
            c = s.recv(65536)
            if not c:
                break
            b += c
            h, sep, body = b.partition(b"\r\n\r\n")
            m = sep and re.search(rb"(?i)\r\ncontent-length:\s*(\d+)", h)
            if m and len(body) >= int(m.group(1)):
                break
    h, _, body = b.partition(b"\r\n\r\n")
    m = re.match(rb"HTTP/1\.\d (\d+)", h)
    return (int(m.group(1)) if m else 0), body


def wait_connect(port, limit, alive=lambda: True):
    """Until the port is open, without a request."""
    t0 = time.monotonic()
    while time.monotonic() - t0 < limit and alive():
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return time.monotonic() - t0
        except OSError:
            time.sleep(0.002)
    raise Broken(f"nothing listens within {limit} s")


def wait_http(port, uri, host, limit, want=lambda s: s == 200, alive=lambda: True):
    t0 = time.monotonic()
    last = None
    while time.monotonic() - t0 < limit and alive():
        try:
            last = http_get(port, uri, host, 1.0)[0]
            if want(last):
                return time.monotonic() - t0
        except OSError as e:
            last = e
        time.sleep(0.0005)
    raise Broken(f"not ready within {limit} s (last answer: {last})")


def load(port, sc, origin, pin, duration, warmup, rate=0, **over):
    """Runs the load generator to its end: what it printed. `over` replaces fields of the scenario."""
    sc = {**sc, **over}
    sub = f"127.0.0.1:{origin.http}"
    argv = [tool("load"), "--target", f"127.0.0.1:{port}", "--uri", sc["uri"].replace("{origin}", sub),
            "--host", sub if "{origin}" in sc["uri"] or sc.get("connect") else HOST, "--conns", str(sc["conns"]),
            "--duration", str(duration), "--warmup", str(warmup), "--timeout", "5"]
    if sc.get("method"):
        argv += ["--method", sc["method"]]
    if sc.get("body"):
        argv += ["--body", str(sc["body"])]
    if sc.get("close"):
        argv += ["--close"]
    if sc.get("connect"):
        argv += ["--connect", sub]
    if rate:
        argv += ["--rate", str(rate)]
    if sc.get("count"):
        argv += ["--count", str(sc["count"])]
    if sc.get("values"):
        argv += ["--values", sc["key"], str(sc["values"])]
    if sc.get("parts"):
        argv += ["--parts", str(sc["parts"])]
    r = subprocess.run(pin + argv, capture_output=True, text=True, timeout=duration + warmup + 20, preexec_fn=die_with_parent)
    if r.returncode:
        raise Broken("load generator failed: " + r.stderr[-300:])
    return json.loads(r.stdout.replace("NaN", "null"))
