"""The rules of force-egress, in a network of their own: what Outrigger's user may, the app's may not."""

import os
import shutil
import subprocess
import sys
import unittest

from support import K8S, run

RULES = K8S / "components" / "force-egress" / "egress.nft"
POD, WORLD = f"outrigger-pod-{os.getpid()}", f"outrigger-world-{os.getpid()}"
# Documentation addresses, which nobody has.
PUBLIC, PRIVATE, PUBLIC6 = "203.0.113.1", "10.77.0.1", "2001:db8:77::1"
SERVER = """
import socket, sys
for family, at in ((socket.AF_INET, ("0.0.0.0", 443)), (socket.AF_INET6, ("::", 443))):
    server = socket.socket(family)
    if family == socket.AF_INET6: server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(at); server.listen()
    globals()[f"kept{family}"] = server
print("listening", flush=True)
sys.stdin.read()
"""
# All is imported before the user changes: the other one may not be allowed to read it.
CLIENT = """
import encodings.idna, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try: socket.create_connection((sys.argv[1], 443), timeout=5); print("connected")
except OSError as error: print(type(error).__name__)
"""


def networks_can_be_made():
    if os.getuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "nft")):
        return False
    probe = f"outrigger-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return made


@unittest.skipUnless(networks_can_be_made(), "network namespaces can't be made here")
class Egress(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in (POD, WORLD):
            run("ip", "netns", "add", name)
            cls.addClassCleanup(run, "ip", "netns", "delete", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", POD, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", WORLD)
        for name, host in ((POD, 2), (WORLD, 1)):
            run("ip", "-n", name, "addr", "add", f"203.0.113.{host}/24", "dev", "eth0")
            run("ip", "-n", name, "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
            run("ip", "-n", name, "addr", "add", f"2001:db8:77::{host}/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        for name in (POD, WORLD):
            server = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", SERVER], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
            cls.addClassCleanup(cls.end, server)
            assert server.stdout.readline() == "listening\n"
        run("ip", "netns", "exec", POD, "nft", "--file", RULES)

    @staticmethod
    def end(server):
        server.communicate("")

    def dial(self, user, address, place=POD):
        return run("ip", "netns", "exec", place, sys.executable, "-c", CLIENT, address, str(user)).strip()

    def test_outrigger_gets_out(self):
        self.assertEqual(self.dial(65532, PUBLIC), "connected")
        self.assertEqual(self.dial(65532, PUBLIC6), "connected")

    def test_the_app_is_refused_at_once(self):
        self.assertEqual(self.dial(65534, PUBLIC), "ConnectionRefusedError")
        self.assertEqual(self.dial(65534, PUBLIC6), "ConnectionRefusedError")

    def test_the_app_reaches_outrigger_and_the_cluster(self):
        self.assertEqual(self.dial(65534, "127.0.0.1"), "connected")
        self.assertEqual(self.dial(65534, PRIVATE), "connected")

    def test_what_comes_in_is_answered(self):
        self.assertEqual(self.dial(65534, "203.0.113.2", WORLD), "connected")


if __name__ == "__main__":
    unittest.main()
