"""Processes, what they cost, and free ports. Only processes that were started here are ever signalled."""
import atexit, ctypes, os, re, signal, socket, subprocess
from pathlib import Path

CLK = os.sysconf("SC_CLK_TCK")
_libc = ctypes.CDLL(None)
_children = []


class Broken(RuntimeError):
    """A measurement that could not be made, with the reason."""


def die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the harness


def spawn(argv, log, env=None, cwd=None):
    p = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=cwd,
                         env={**os.environ, **(env or {})}, start_new_session=True, preexec_fn=die_with_parent)
    _children.append(p)
    return p


def stop(p, grace=1.0, first=signal.SIGTERM):
    """Ends one process group that spawn() started."""
    if p in _children:
        _children.remove(p)
    for sig, wait in ((first, grace), (signal.SIGKILL, 3)):
        try:
            os.killpg(p.pid, sig)
        except ProcessLookupError:
            pass
        try:
            p.wait(wait)
        except subprocess.TimeoutExpired:
            continue
        break
    try:
        os.killpg(p.pid, signal.SIGKILL)  # left-over workers of the same group
    except (ProcessLookupError, PermissionError):
        pass


@atexit.register
def _cleanup():
    for p in list(_children):
        stop(p, 0.2)


def tree(pid):
    """pid and all its descendants."""
    out, todo = [], [pid]
    while todo:
        x = todo.pop()
        out.append(x)
        try:
            for t in os.listdir(f"/proc/{x}/task"):
                todo += [int(c) for c in Path(f"/proc/{x}/task/{t}/children").read_text().split()]
        except OSError:
            pass
    return out


def cpu(pid):
    """CPU seconds of the tree: precise total, and (user, system) from the coarser clock."""
    ns = u = s = 0
    for x in tree(pid):
        try:
            f = Path(f"/proc/{x}/stat").read_text().rsplit(")", 1)[1].split()
            u += int(f[11]) + int(f[13])
            s += int(f[12]) + int(f[14])
            for t in os.listdir(f"/proc/{x}/task"):
                try:
                    ns += int(Path(f"/proc/{x}/task/{t}/schedstat").read_text().split()[0])
                except OSError:
                    pass
        except (OSError, IndexError):
            pass
    return (ns / 1e9 if ns else (u + s) / CLK), u / CLK, s / CLK


def memory(pid):
    """(proportional resident MiB now, sum of per-process peak resident MiB) of the tree."""
    pss = hwm = 0
    for x in tree(pid):
        try:
            m = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{x}/smaps_rollup").read_text(), re.M)
            pss += int(m.group(1)) if m else 0
            m = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{x}/status").read_text(), re.M)
            hwm += int(m.group(1)) if m else 0
        except OSError:
            pass
    return pss / 1024, hwm / 1024


def threads(pid):
    return sum(len(os.listdir(f"/proc/{x}/task")) for x in tree(pid) if os.path.exists(f"/proc/{x}/task"))


def switches(pid):
    """Times that the threads of the tree went to sleep by themselves: an idle process without timers has none."""
    n = 0
    for x in tree(pid):
        try:
            for t in os.listdir(f"/proc/{x}/task"):
                m = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{x}/task/{t}/status").read_text(), re.M)
                n += int(m.group(1)) if m else 0
        except OSError:
            pass
    return n


# Where the search begins, so that two harnesses at the same time hardly meet.
_next = os.getpid() * 7919 % 10000


def free_port():
    """A port below the ephemeral range, so that no outgoing connection can sit on it."""
    global _next
    for _ in range(10000):
        _next = (_next + 1) % 10000
        p = 18000 + _next
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", p))
            except OSError:
                continue
        return p
    raise Broken("no free port")
