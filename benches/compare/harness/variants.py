"""Scenarios that start proxies of their own: the same one in several configurations, or under valgrind."""
import re, shutil, time

from .machine import Broken, memory, threads
from .measure import Meter, both_loads, failed
from .peers import Running
from .tools import http_get, load

CALLGRIND = ["valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null"]


def counted(peer, mode, sc, origin, base, a, counts={}, before=200, **over):
    """Two callgrind runs that differ only in the number of requests: the difference is what one of 1,000 costs."""
    if not shutil.which("valgrind"):
        raise Broken("valgrind is not installed")
    total = []
    for n in (before, before + 1000):
        run = Running(peer, mode, origin, base, a, pin=CALLGRIND, ready=60, counts=counts)
        run.grace = 20
        try:
            # It ends with the last request; the time only bounds it.
            r = load(run.port, sc, origin, [], 600, 0, count=n, conns=1, **over)
        finally:
            run.stop(keep=True)
        if failed(r) or r["total_sent"] != n:
            raise Broken(f"{r['total_sent']} of {n} requests were sent under valgrind, {failed(r)} failed")
        got = re.findall(r"Collected : (\d+)", (run.dir / "log").read_text(errors="replace"))
        if not got:
            raise Broken("no count from valgrind")
        total.append(sum(map(int, got)))
        shutil.rmtree(run.dir, ignore_errors=True)
    return (total[1] - total[0]) / 1000


def instructions(peer, sc, origin, base, a, first):
    # The same in every round.
    return dict(instructions=counted(peer, sc["mode"], sc, origin, base, a)) if first else None


def access_log(peer, sc, origin, base, a, first):
    out = {}
    for mode, key in (("policy", "off"), ("access-log", "on")):
        run = Running(peer, mode, origin, base, a)
        try:
            r = both_loads(run, sc, origin, a)
            out.update({f"{key}_cpu_us": r["cpu_us"], f"{key}_rate_cpu_us": r["rate_cpu_us"], f"{key}_rps": r["rps"],
                        f"{key}_p99_us": r["p99_us"], "failed": out.get("failed", 0) + r["failed"]})
        finally:
            run.stop(keep=True)
        if key == "on":
            # What it writes late or never would else count as cheap.
            files = [run.dir / "log", run.dir / "access.log"]
            lines = sum(f.read_bytes().count(b"/bytes/1024") for f in files if f.exists())
            out["lines_pct"] = 100 * lines / r["sent"]
        shutil.rmtree(run.dir, ignore_errors=True)
    out.update(cpu_ratio=out["on_cpu_us"] / out["off_cpu_us"], rate_cpu_ratio=out["on_rate_cpu_us"] / out["off_rate_cpu_us"])
    return out


def rest(peer, sc, origin, base, a, first):
    run = Running(peer, sc["mode"], origin, base, a, counts=dict(upstreams=sc["upstreams"] - 1), ask=False)
    try:
        time.sleep(2)
        out = dict(rest_mib=memory(run.pid)[0], threads=threads(run.pid))
        for host in ["api.test"] + [f"up{n}.test" for n in range(1, sc["upstreams"])]:
            status = http_get(run.port, "/bytes/1024", host)[0]
            if status != 200:
                raise Broken(f"{host} answered {status}")
        time.sleep(0.5)
        now, peak = memory(run.pid)
        return dict(**out, used_mib=now, peak_rss_mib=peak)
    finally:
        run.stop()


# name: what the configuration has more of, and what the load adds
GROWN = {
    "one": (dict(), dict()),
    "upstreams": (dict(upstreams=999), dict()),
    "routes": (dict(routes=99), dict()),
    "key": (dict(keyed=1), dict(key="X-Key", values=1)),
    "keys": (dict(keyed=1), dict(key="X-Key", values=10000)),
}


def growth(peer, sc, origin, base, a, first):
    """Each of several against one; the bucket of one key is what those of 10,000 are compared with."""
    got = {}
    for name, (counts, more) in GROWN.items():
        run = Running(peer, sc["mode"], origin, base, a, counts=counts)
        try:
            time.sleep(0.2)
            mib = memory(run.pid)[0]
            if more:  # every key is there before anything is measured
                load(run.port, sc, origin, a.pin_load, 20, 0, count=more["values"], **more)
            with Meter(run) as m:
                r = load(run.port, sc, origin, a.pin_load, a.seconds, a.warmup, **more)
            if failed(r):
                raise Broken(f"{name}: requests failed: {r['errors']} {r['status']}")
            got[name] = dict(cpu=m.per(r["total_sent"]), rest=mib, mib=memory(run.pid)[0])
        finally:
            run.stop()
        if first:
            before = max(200, more.get("values", 0))
            got[name]["instr"] = counted(peer, sc["mode"], sc, origin, base, a, counts, before, **more)
    out = dict(cpu_us=got["one"]["cpu"], instructions=got["one"].get("instr"),
               upstream_kib=(got["upstreams"]["rest"] - got["one"]["rest"]) * 1024 / 999,
               key_bytes=(got["keys"]["mib"] - got["key"]["mib"]) * 2**20 / 9999)
    for name, to in (("upstreams", "one"), ("routes", "one"), ("keys", "key")):
        out[f"{name}_cpu"] = got[name]["cpu"] / got[to]["cpu"]
        out[f"{name}_instr"] = got[name]["instr"] / got[to]["instr"] if first else None
    return out


KINDS = {"instructions": instructions, "access-log": access_log, "rest": rest, "growth": growth}
