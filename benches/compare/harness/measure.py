"""How each kind of scenario is measured, of one proxy that runs already. What starts proxies of its own is in variants.py."""
import itertools, json, os, re, shutil, signal, socket, ssl, subprocess, threading, time, urllib.request

from .machine import Broken, cpu, memory, spawn, stop, switches, tree
from .tools import HOST, load


class Meter:
    def __init__(self, run):
        self.pid = run.pid

    def __enter__(self):
        self.t0, self.c0 = time.monotonic(), cpu(self.pid) if self.pid else (0, 0, 0)
        return self

    def __exit__(self, *_):
        self.wall = time.monotonic() - self.t0
        c = cpu(self.pid) if self.pid else (0, 0, 0)
        self.cpu, self.user, self.sys = (b - a for a, b in zip(self.c0, c))
        if self.user + self.sys > self.cpu * 1.1 + 0.05:  # threads that ended took their precise counters along
            self.cpu = self.user + self.sys

    def per(self, n):
        return None if not self.pid or not n else self.cpu / n * 1e6


def failed(r):
    bad = sum(n for s, n in r["status"].items() if not s.startswith("2"))
    return bad + sum(n for k, n in r["errors"].items() if k != "stale")


def open_idle(port, n, uri="/bytes/1024"):
    """n keep-alive connections, one request on each, left open."""
    socks, req = [], f"GET {uri} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for i in range(n):
        s = socket.create_connection(("127.0.0.1", port), 5)
        s.sendall(req)
        got = 0
        while got < 1024:
            b = s.recv(65536)
            if not b:
                raise Broken(f"connection {i} closed by the proxy")
            got += len(b)
        socks.append(s)
    return socks


def percentiles(r, *names):
    lat = r["latency_us"]
    if not lat:
        raise Broken(f"no request was answered: {r['errors']}")
    return {k + "_us": lat[k] for k in names}


def share(m):
    return m.sys / (m.user + m.sys) if m.user + m.sys else None


def both_loads(run, sc, origin, a):
    """As fast as it goes, and then at a fixed rate."""
    with Meter(run) as m:
        r = load(run.port, sc, origin, a.pin_load, a.seconds, a.warmup)
    out = dict(rps=r["rps"], cpu_us=m.per(r["total_sent"]), sat_p50_us=percentiles(r, "p50")["p50_us"], failed=failed(r),
               sys_share=share(m), cores=m.cpu / m.wall if run.pid else None,
               errors={**r["errors"], **{s: n for s, n in r["status"].items() if s != "200"}})
    sent = r["total_sent"]
    with Meter(run) as m:
        r = load(run.port, sc, origin, a.pin_load, a.seconds, a.warmup, rate=sc["rate"])
    return dict(**out, sent=sent + r["total_sent"], rate_rps=r["rps"], rate_cpu_us=m.per(r["total_sent"]), **percentiles(r, "p50", "p90", "p99", "p999"))


def bulk(run, sc, origin, a):
    connect = sc.get("connect") and not run.peer.direct
    with Meter(run) as m:
        r = load(run.port, sc, origin, a.pin_load, a.seconds, 0.2, connect=connect)
    mib = r["bytes"] / 2**20
    out = dict(mib_s=mib / m.wall, cpu_us_mib=m.per(mib), failed=failed(r), sys_share=share(m))
    if run.pid and not connect:
        before, socks = memory(run.pid)[0], []
        for _ in range(50):  # clients that ask for 10 MiB and never read it
            s = socket.create_connection(("127.0.0.1", run.port), 5)
            s.sendall(f"GET {sc['uri']} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            socks.append(s)
        time.sleep(1.0)
        out["stalled_kib"] = (memory(run.pid)[0] - before) * 1024 / len(socks)
        for s in socks:
            s.close()
    return out


def idle(run, sc, origin, a):
    socks = open_idle(run.port, 16)
    before = memory(run.pid)[0]
    socks += open_idle(run.port, sc["n"])
    time.sleep(1.0)
    slept = switches(run.pid)
    with Meter(run) as m:
        time.sleep(max(a.seconds, 4))  # long enough for a timer of a second to show
    out = dict(wakes_s=max(0, switches(run.pid) - slept) / m.wall, idle_cpu_pct=m.cpu / m.wall * 100)
    out.update(kib_per_conn=(memory(run.pid)[0] - before) * 1024 / sc["n"], rss_mib=memory(run.pid)[0])
    for s in socks:
        s.close()
    return out


def burst(run, sc, origin, a):
    load(run.port, sc, origin, a.pin_load, 0.2, 0, uri="/bytes/1024", conns=1)
    before = memory(run.pid)[0]
    r = load(run.port, sc, origin, a.pin_load, a.seconds, 0)
    time.sleep(2)
    return dict(kept_mib=memory(run.pid)[0] - before, burst_mib=memory(run.pid)[1] - before, failed=failed(r))


def flaky(run, sc, origin, a):
    s0 = origin.stats()
    with Meter(run) as m:
        r = load(run.port, sc, origin, a.pin_load, a.seconds * 2, 0, rate=sc["rate"])
    s1, n = origin.stats(), r["total_sent"]
    return dict(success_pct=100 * r["status"].get("200", 0) / max(1, r["requests"] + sum(r["errors"].values())),
                amplification=(s1["requests"] - s0["requests"]) / n, cpu_us=m.per(n), **percentiles(r, "p50", "p90", "p99"))


def down(run, sc, origin, a):
    with Meter(run) as m:
        r = load(run.port, sc, origin, a.pin_load, a.seconds, 0.5, rate=sc["rate"])
    return dict(cpu_us=m.per(r["total_sent"]), errors={**r["errors"], **r["status"]}, **percentiles(r, "p50", "p90", "p99", "max"))


def syscalls(run, sc, origin, a):
    """strace -c over a fixed number of requests; tracing slows the proxy but does not change what it calls."""
    if not shutil.which("strace"):
        raise Broken("strace is not installed")
    f = run.dir / "strace"
    load(run.port, sc, origin, a.pin_load, 5, 0, count=200)  # warm: pools filled
    tr = spawn(["strace", "-f", "-c", "-o", str(f), *sum((["-p", str(x)] for x in tree(run.pid)), [])], subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        n = load(run.port, sc, origin, a.pin_load, 10, 0, count=2000)["total_sent"]
    finally:
        os.kill(tr.pid, signal.SIGINT)
        tr.wait(5)
        stop(tr)
    calls = {}
    for line in f.read_text().splitlines():
        w = line.split()
        if len(w) >= 5 and w[0].replace(".", "").isdigit() and w[-1] != "total":
            calls[w[-1]] = int(w[3]) / n
    top = sorted(((v, k) for k, v in calls.items() if v > 0.01), reverse=True)
    return dict(syscalls=sum(calls.values()), breakdown=", ".join(f"{k} {v:.2f}" for v, k in top[:8]))


def intercept(run, sc, origin, a):
    """HTTPS through CONNECT, accepting the proxy's own certificate: keep-alive, then one tunnel each."""
    seconds, rate = a.seconds, sc["rate"]
    ctx = ssl.create_default_context()
    ctx.check_hostname, ctx.verify_mode = False, ssl.CERT_NONE
    # By name where the descriptor says so: then SNI and CONNECT name the same host, as those of an app do.
    target = f"{HOST if run.peer.connect == 'name' else '127.0.0.1'}:{origin.tls1}"

    def tunnel():
        s = socket.create_connection(("127.0.0.1", run.port), 5)
        s.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        b = b""
        while b"\r\n\r\n" not in b:
            b += s.recv(4096) or (_ for _ in ()).throw(OSError("closed"))
        if b" 200" not in b.split(b"\r\n")[0]:
            raise OSError(b.split(b"\r\n")[0].decode())
        return ctx.wrap_socket(s, server_hostname=HOST)

    def get(s):
        s.sendall(f"GET /bytes/1024 HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        b = b""
        while True:
            b += s.recv(65536) or (_ for _ in ()).throw(OSError("closed"))
            h, sep, body = b.partition(b"\r\n\r\n")
            if sep and not h.startswith(b"HTTP/1.1 200"):
                raise Broken("inside of the tunnel: " + h.split(b"\r\n")[0].decode())
            if sep and len(body) >= 1024:
                return

    out, n, lat, s = {}, int(rate * seconds), [], tunnel()
    issuer_own = s.getpeercert(True) != ssl.PEM_cert_to_DER_cert((origin.dir / "leaf.pem").read_text())
    get(s)
    with Meter(run) as m:
        t0 = time.monotonic()
        for i in range(n):
            time.sleep(max(0, t0 + i / rate - time.monotonic()))
            t = time.monotonic()
            get(s)
            lat.append((time.monotonic() - t) * 1e6)
    s.close()
    lat.sort()
    out.update(intercepted=issuer_own, cpu_us=m.per(n), p50_us=lat[n // 2], p99_us=lat[int(n * .99)])
    k = max(10, n // 4)
    with Meter(run) as m:
        for _ in range(k):
            s = tunnel()
            get(s)
            s.close()
    out["cpu_us_tunnel"] = m.per(k)
    return out


def reload(run, sc, origin, a):
    """A reload by `POST /reload`, which answers when the new file is in effect: of one changed upstream, and of all of them."""
    stamp = [0]

    def another(which):
        stamp[0] += 1
        return run.text(**{which: 5 + stamp[0]})

    def once(text):
        run.write(text)
        order = urllib.request.Request(f"http://127.0.0.1:{run.admin}/reload", data=b"", method="POST")
        t = time.monotonic()
        with urllib.request.urlopen(order, timeout=10) as answer:
            took = (time.monotonic() - t) * 1e3
            said = json.load(answer)
        if said["result"] != "success":
            raise Broken(f"the reload was refused: {said['problems']}")
        return took

    once(another("stamp"))
    out = {}
    for which, key in (("stamp", "one"), ("stamp_all", "all")):
        took, n = [], 5
        with Meter(run) as m:
            took = sorted(once(another(which)) for _ in range(n))
        out.update({f"{key}_ms": took[n // 2], f"{key}_max_ms": took[-1], f"{key}_cpu_ms": m.cpu / n * 1e3})
    r = load(run.port, sc, origin, a.pin_load, a.seconds, a.warmup, rate=sc["rate"])
    out.update(**percentiles(r, "p50", "p99", "max"))
    busy, ended, wrong = [], threading.Event(), []
    # Made before: it takes this program a core for as long as a quarter of a reload.
    texts = itertools.cycle([another("stamp"), another("stamp")])

    def again():
        try:
            while not ended.wait(0.5):
                busy.append(once(next(texts)))
        except (OSError, Broken) as e:
            wrong.append(e)

    t = threading.Thread(target=again)
    t.start()
    try:
        r = load(run.port, sc, origin, a.pin_load, a.seconds, a.warmup, rate=sc["rate"])
    finally:
        ended.set()
        t.join()
    if wrong:
        raise Broken(f"a reload under load: {wrong[0]}")
    lat = percentiles(r, "p50", "p99", "max")
    return dict(**out, busy_ms=sorted(busy)[len(busy) // 2] if busy else None, reloads=len(busy), with_p50_us=lat["p50_us"],
                with_p99_us=lat["p99_us"], with_max_us=lat["max_us"], failed=failed(r))


def steady(run, sc, origin, a):
    """One load over all of the time; memory is looked at where a quarter ends."""
    length, box, marks = a.minutes * 60, {}, []

    def drive():
        try:
            box["r"] = load(run.port, sc, origin, a.pin_load, length, a.warmup, rate=sc["rate"], parts=4)
        except (OSError, RuntimeError, subprocess.SubprocessError) as e:
            box["e"] = e

    t = threading.Thread(target=drive, daemon=True)
    with Meter(run) as m:
        t0 = time.monotonic()
        t.start()
        for quarter in range(1, 5):
            # A little before its end, while the load still runs.
            while t.is_alive() and time.monotonic() - t0 < a.warmup + length * quarter / 4 - 0.1:
                time.sleep(0.05)
            marks.append(memory(run.pid)[0] if run.pid else 0)
        t.join()
    if "e" in box:
        raise Broken(str(box["e"]))
    r, parts = box["r"], box["r"]["parts_us"]
    if not all(parts):
        raise Broken(f"a quarter without an answer: {r['errors']} {r['status']}")
    in_order = lambda values, form: " · ".join(form.format(v) for v in values)
    return dict(rss_by_quarter=in_order(marks, "{:.1f}"), p50_by_quarter=in_order((x["p50"] for x in parts), "{:,.0f}"),
                p99_by_quarter=in_order((x["p99"] for x in parts), "{:,.0f}"), rss_growth=marks[3] / marks[0] if marks[0] else None,
                p50_growth=parts[3]["p50"] / parts[0]["p50"], p99_growth=parts[3]["p99"] / parts[0]["p99"],
                cpu_us=m.per(r["total_sent"]), failed=failed(r))


KINDS = {"load": both_loads, "bulk": bulk, "idle": idle, "burst": burst, "flaky": flaky, "down": down, "syscalls": syscalls,
         "intercept": intercept, "reload": reload, "steady": steady}


def measure(run, sc, origin, a):
    out = {}
    if run.pid:
        time.sleep(0.2)
        out.update(idle_rss_mib=memory(run.pid)[0], startup_ms=run.startup * 1e3)
    out.update(KINDS[sc["kind"]](run, sc, origin, a))
    if run.pid:
        out["peak_rss_mib"] = memory(run.pid)[1]
    return out
