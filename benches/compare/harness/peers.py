"""A peer is a descriptor, `peers/NAME.json`, and usually a template of its configuration beside it."""
import importlib.util, json, os, re, shutil, signal, subprocess, tempfile
from pathlib import Path

from .machine import Broken, free_port, spawn, stop
from .template import COUNTS, fill, render
from .tools import BUILD, HERE, HOST, wait_connect, wait_http

ROOT = HERE.parent.parent  # of the checkout that this lies in


class Peer:
    def __init__(self, path):
        d = json.loads(path.read_text())
        self.dir, self.name = path.parent, d["name"]
        self.about, self.install = d.get("about", ""), d.get("install", "")
        self.command, self.env = d.get("command", []), d.get("env", {})
        self.config, self.modes = d.get("config"), d.get("modes", [])
        self.mode_args = d.get("mode_args", {})
        self.version_cmd, self.version_re = d.get("version"), d.get("version_re", r"\d+\.\d+\.\d+")
        self.ready = d.get("ready_s", 15)
        self.skip, self.prepare = d.get("skip", {}), d.get("prepare", {})
        self.direct, self.connect = d.get("direct", False), d.get("connect", "address")
        self.bin = self.find(d.get("binary", []))
        self.fast_stop, self.stop_signal = d.get("kill_grace_s", 1.0), signal.Signals["SIG" + d.get("stop_signal", "TERM")]

    def find(self, names):
        variable = "BENCH_" + re.sub(r"\W", "_", self.name.upper())
        if override := os.environ.get(variable):
            if not (found := shutil.which(override)):
                raise Broken(f"{variable}: {override} is no program")
            return str(Path(found).resolve())
        for n in names:
            n = n.replace("{tools}", str(BUILD / "release")).replace("{root}", str(ROOT))
            if n.startswith("python:"):  # python:package:path inside that installed package
                _, pkg, rel = n.split(":")
                spec = importlib.util.find_spec(pkg)
                cand = [Path(p) / rel for p in (spec.submodule_search_locations or [])] if spec else []
                n = next((str(c) for c in cand if c.exists()), "")
            w = shutil.which(n) if n else None
            if w:
                return w
        return None

    def available(self):
        return self.direct or bool(self.bin)

    def version(self):
        if self.direct or not self.version_cmd:
            return ""
        try:
            r = subprocess.run([a.replace("{bin}", self.bin) for a in self.version_cmd], capture_output=True, text=True, timeout=10)
            m = re.search(self.version_re, r.stdout + r.stderr)
            return m.group(m.lastindex or 0) if m else ""
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def skips(self, scenario, mode):
        """Why this peer is not in the scenario; None where it is."""
        if scenario in self.skip:
            return self.skip[scenario]
        return None if self.direct or mode in self.modes else "not supported"

    def values(self, mode, ports, files, dir, workers, counts):
        """What {name} stands for. `ports`: of the origin by mode, and `listen` and `admin`; `files`: where the certificates are."""
        up = ports.get(mode, ports["http"])
        return dict(listen=f"127.0.0.1:{ports['listen']}", listen_port=ports["listen"], origin=f"127.0.0.1:{up}", origin_port=up,
                    admin=f"127.0.0.1:{ports['admin']}", admin_port=ports["admin"], host=HOST, ca=files / "ca.pem", ca_key=files / "ca.key",
                    ca_both=files / "ca-both.pem", dir=dir, workers=workers, bin=self.bin, tools=BUILD / "release", mode=mode,
                    prefix=Path(self.bin or "/usr/bin/x").parent.parent, run_id=f"b{os.getpid()}x{ports['listen']}",
                    scheme="https" if mode in ("tls1", "tls2", "intercept") else "http", **{**COUNTS, **counts})

    def text(self, vals):
        """The configuration as this peer reads it."""
        try:
            return render((self.dir / self.config).read_text(), vals, vals["mode"])
        except Broken as e:
            raise Broken(f"{self.config}: {e}") from None


class Running:
    """One started proxy."""
    grace = None  # seconds to end by itself, where the peer's own are too few

    def __init__(self, peer, mode, origin, base, a, pin=None, ready=None, counts={}, ask=True):
        """`ready`: seconds until it must answer. `ask=False`: an open port is enough, no request is sent."""
        self.peer, self.dir = peer, Path(tempfile.mkdtemp(prefix=peer.name + "-", dir=base))
        os.chmod(self.dir, 0o777)
        if peer.direct:
            self.port, self.pid, self.startup, self.p = origin.http, None, None, None
            return
        self.port, self.admin = free_port(), free_port()
        self.vals = peer.values(mode, {**origin.ports(), "listen": self.port, "admin": self.admin}, base, self.dir, a.workers, counts)
        if peer.config:
            self.config = self.dir / ("config" + Path(peer.config).suffix)
            self.write(self.text())
            self.vals["config"] = self.config
        sub = lambda text: fill(text, self.vals)
        argv = [sub(x) for x in peer.command + peer.mode_args.get(mode, [])]
        for cmd in peer.prepare.get(mode, []):
            subprocess.run([sub(x) for x in cmd], check=True, capture_output=True, timeout=20)
        self.log = open(self.dir / "log", "wb")
        self.p = spawn((a.pin_proxy if pin is None else pin) + argv, self.log, {k: sub(v) for k, v in peer.env.items()}, cwd=self.dir)
        # Here the program has just begun: what it takes to fork from Python is not its own.
        self.pid = self.p.pid
        asked = mode in ("forward", "intercept")
        uri = f"http://127.0.0.1:{origin.http}/bytes/1" if asked else "/bytes/1"
        host = f"127.0.0.1:{origin.http}" if asked else HOST
        want = (lambda s: s >= 500) if mode == "dead" else (lambda s: s == 200)
        limit, alive = ready or peer.ready, lambda: self.p.poll() is None
        try:
            self.startup = wait_http(self.port, uri, host, limit, want, alive) if ask else wait_connect(self.port, limit, alive)
        except Broken as e:
            rc = self.p.poll()
            self.stop(keep=True)
            said = (self.dir / "log").read_bytes()[-1500:].decode(errors="replace").strip()
            what = str(e) if rc is None else f"it ended by itself with exit status {rc}"
            raise Broken(f"{what}; the end of its log: {' | '.join(said.splitlines()[-8:]) or 'empty'}") from None

    def text(self, **counts):
        """The configuration with these counts."""
        self.vals.update(counts)
        return self.peer.text(self.vals)

    def write(self, text):
        """Another configuration, whole at once, as a reload wants it."""
        new = self.config.with_name("new")
        new.write_text(text)
        new.replace(self.config)

    def stop(self, keep=False):
        if self.p:
            stop(self.p, self.grace or self.peer.fast_stop, self.peer.stop_signal)
            self.log.close()
        if not keep:
            shutil.rmtree(self.dir, ignore_errors=True)
