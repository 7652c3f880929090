"""What kustomize makes of deploy/k8s is valid, keeps its promises, and its policies are accepted."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import yaml

from support import K8S, OUTRIGGER, TOOLS, Proxy, compose, render, run

CUSTOM = "monitoring.coreos.com/"
NATIVE = ["1.29", "1.37"]
# Native sidecars came with 1.29; these are for what was before, too.
OLD = ["1.25", "1.37"]
BOUNDED = ["network-policy", "force-egress", "everything", "job, bounded"]
PROXY_VARIABLES = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"]

RENDERED = {}


def setUpModule():
    for directory in sorted([K8S / "base", *(K8S / "overlays").iterdir()]):
        RENDERED[directory.name] = render(directory)
    RENDERED["everything"] = compose(
        ["base"], ["components/" + name for name in ("network-policy", "force-egress", "monitoring", "no-native-sidecar")])
    RENDERED["job, bounded"] = compose(["overlays/job"], ["components/network-policy"])


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def pod_specs(documents):
    return [document["spec"]["template"]["spec"] for document in of_kind(documents, "Deployment", "Job")]


def sidecar(pod):
    return next(one for one in pod.get("initContainers", []) + pod["containers"] if one["name"] == "outrigger")


def apps(pod):
    return [one for one in pod["containers"] if one["name"] != "outrigger"]


def policies(documents):
    return next(one for one in of_kind(documents, "ConfigMap") if one["metadata"]["name"] == "outrigger")["data"][
        "outrigger.yaml"]


def environment(container):
    return {one["name"]: one["value"] for one in container.get("env", [])}


def lacks_native(name):
    return name in ("no-native-sidecar", "everything")


class Manifests(unittest.TestCase):
    def test_every_document_is_valid_on_old_and_new_clusters(self):
        for name, documents in RENDERED.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as directory:
                file = pathlib.Path(directory) / "all.yaml"
                ours = [one for one in documents if not one["apiVersion"].startswith(CUSTOM)]
                file.write_text(yaml.safe_dump_all(ours))
                old, new = OLD if lacks_native(name) else NATIVE
                run(TOOLS / "kubernetes-validate", "--strict", "-k", old, "-k", new, file)

    def test_a_misspelt_field_would_be_found(self):
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "pod.yaml"
            file.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: x, imagee: y}]}\n")
            with self.assertRaisesRegex(AssertionError, "imagee"):
                run(TOOLS / "kubernetes-validate", "--strict", file)

    def test_the_policies_have_no_error_and_no_warning(self):
        for name, documents in RENDERED.items():
            with self.subTest(name), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(policies(documents))
                file.flush()
                run(OUTRIGGER, "check", "--strict", "--no-env", "--config", file.name)

    def test_the_sidecar_is_the_same_everywhere(self):
        base = sidecar(pod_specs(RENDERED["base"])[0])
        for name, documents in RENDERED.items():
            for pod in pod_specs(documents):
                with self.subTest(name):
                    one = dict(sidecar(pod))
                    one.pop("env", None)
                    self.assertEqual(one, {key: base[key] for key in base if key in one})
                    self.assertEqual(set(base) - set(one), {"restartPolicy"} if lacks_native(name) else set())

    def test_the_sidecar_comes_first_and_is_native_where_clusters_can(self):
        for name, documents in RENDERED.items():
            for pod in pod_specs(documents):
                with self.subTest(name):
                    if lacks_native(name):
                        self.assertEqual(pod["containers"][0]["name"], "outrigger")
                        self.assertNotIn("restartPolicy", pod["containers"][0])
                    else:
                        self.assertEqual(pod["initContainers"][0]["name"], "outrigger")
                        self.assertEqual(pod["initContainers"][0]["restartPolicy"], "Always")

    def test_every_container_is_locked_down(self):
        for name, documents in RENDERED.items():
            for pod in pod_specs(documents):
                for container in pod.get("initContainers", []) + pod["containers"]:
                    with self.subTest(name, container=container["name"]):
                        context = container["securityContext"]
                        # It loads packet filter rules and ends.
                        filters = container["name"] == "outrigger-egress"
                        self.assertEqual(context["runAsNonRoot"], not filters)
                        self.assertEqual(context["runAsUser"] > 0, not filters)
                        self.assertTrue(context["readOnlyRootFilesystem"])
                        self.assertIs(context["allowPrivilegeEscalation"], False)
                        added = {"add": ["NET_ADMIN"]} if filters else {}
                        self.assertEqual(context["capabilities"], {"drop": ["ALL"], **added})
                        self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
                        self.assertIn("memory", container["resources"]["limits"])

    def test_the_app_finds_the_proxy_whichever_case_it_reads(self):
        for name, documents in RENDERED.items():
            port = re.search(r"proxy: 127\.0\.0\.1:(\d+)", policies(documents)).group(1)
            for pod in pod_specs(documents):
                for app in apps(pod):
                    with self.subTest(name):
                        variables = environment(app)
                        for variable in PROXY_VARIABLES:
                            self.assertEqual(variables[variable], f"http://127.0.0.1:{port}")
                        self.assertEqual(variables["NO_PROXY"], variables["no_proxy"])
                        for host in (
                            "localhost",
                            "127.0.0.1",
                            "::1",
                            "169.254.0.0/16",
                            ".svc",
                            ".cluster.local",
                            "$(KUBERNETES_SERVICE_HOST)",
                        ):
                            self.assertIn(host, variables["NO_PROXY"].split(","))

    def test_probes_and_volume_fit_the_configuration(self):
        for name, documents in RENDERED.items():
            probes = int(re.search(r'probes: "\[::\]:(\d+)"', policies(documents)).group(1))
            for pod in pod_specs(documents):
                with self.subTest(name):
                    one = sidecar(pod)
                    self.assertEqual(one["ports"], [{"name": "outrigger", "containerPort": probes}])
                    for probe, path in (("startupProbe", "/readyz"), ("livenessProbe", "/livez")):
                        self.assertEqual(one[probe]["httpGet"], {"path": path, "port": "outrigger"})
                    self.assertNotIn("readinessProbe", one)
                    self.assertEqual(one["volumeMounts"], [
                        {"name": "outrigger-config", "mountPath": "/etc/outrigger", "readOnly": True}])
                    self.assertIn({"name": "outrigger-config", "configMap": {"name": "outrigger"}}, pod["volumes"])
                    self.assertEqual(one["args"], ["run", "--config", "/etc/outrigger/outrigger.yaml"])

    def test_the_running_proxy_has_what_the_overlay_promises(self):
        for name, documents in RENDERED.items():
            pod = pod_specs(documents)[0]
            with self.subTest(name), Proxy(policies(documents), environment(sidecar(pod))) as proxy:
                effective = json.loads(proxy.get("admin", "/config"))
                self.assertEqual(effective["shutdown"]["quiet"], "15s" if lacks_native(name) else "1s")
                bounded = name in BOUNDED
                self.assertEqual(effective["egress"]["unmatched"], "deny" if bounded else "forward")
                # Where it is forwarded, the name can't be found.
                self.assertIn(proxy.through("http://nobody-named-this.invalid/"), [403] if bounded else [502, 504])
                seconds = lambda text: int(text.removesuffix("s"))
                grace = seconds(effective["shutdown"]["grace"])
                self.assertLess(grace, pod["terminationGracePeriodSeconds"])
                self.assertLess(seconds(effective["shutdown"]["quiet"]), grace)

    def test_the_network_policy_selects_the_pods_and_only_bounds_what_leaves(self):
        for name in BOUNDED:
            with self.subTest(name):
                policy = of_kind(RENDERED[name], "NetworkPolicy")[0]["spec"]
                self.assertEqual(policy["policyTypes"], ["Egress"])
                chosen = policy["podSelector"]["matchExpressions"][0]
                for document in of_kind(RENDERED[name], "Deployment", "Job"):
                    self.assertIn(document["spec"]["template"]["metadata"]["labels"][chosen["key"]], chosen["values"])
                ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
                self.assertEqual(ports, {53, 443})

    def test_the_rules_let_out_the_user_that_outrigger_runs_as_and_no_other_container(self):
        rules = (K8S / "components" / "force-egress" / "egress.nft").read_text()
        user = int(re.search(r"meta skuid (\d+) accept", rules).group(1))
        pod = pod_specs(RENDERED["force-egress"])[0]
        self.assertEqual([one["name"] for one in pod["initContainers"]], ["outrigger", "outrigger-egress"])
        self.assertEqual(sidecar(pod)["securityContext"]["runAsUser"], user)
        for app in apps(pod):
            self.assertNotEqual(app["securityContext"]["runAsUser"], user)

    def test_a_component_says_so_where_there_is_no_sidecar_to_change(self):
        with self.assertRaises(AssertionError):
            compose(["base"], ["components/no-native-sidecar", "components/network-policy"])

    def test_the_pod_monitor_scrapes_the_port_of_the_sidecar(self):
        monitor = of_kind(RENDERED["monitoring"], "PodMonitor")[0]["spec"]
        port = sidecar(pod_specs(RENDERED["monitoring"])[0])["ports"][0]["name"]
        self.assertEqual([one["port"] for one in monitor["podMetricsEndpoints"]], [port])


def inject(text, *options):
    """What `outrigger inject` makes of a text."""
    done = subprocess.run([OUTRIGGER, "inject", *options], input=text, capture_output=True, text=True, timeout=60)
    if "unrecognized subcommand" in done.stderr:
        raise unittest.SkipTest("this binary has no `inject`")
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


def workloads():
    """One of each kind that has pods, without a sidecar."""
    pod = {"restartPolicy": "Always", "containers": [{"name": "x", "image": "y"}]}
    once = {**pod, "restartPolicy": "Never"}
    labels = {"app": "x"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    many = {"selector": {"matchLabels": labels}, "template": template}
    job = {"template": {"spec": once}}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "b"}, "spec": many},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "c"}, "spec": many},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "d"}, "spec": {**many, "serviceName": "d"}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "e"}, "spec": job},
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "f"},
         "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}},
    ]


class Inject(unittest.TestCase):
    def test_inject_and_base_agree(self):
        injected = yaml.safe_load(inject(yaml.safe_dump(workloads()[0])))["spec"]
        base = pod_specs(RENDERED["base"])[0]
        self.assertEqual(sidecar(injected), sidecar(base))
        self.assertEqual(environment(injected["containers"][0]), environment(apps(base)[0]))
        self.assertEqual(injected["volumes"], base["volumes"])

    def test_what_inject_writes_is_valid(self):
        plain = yaml.safe_dump_all(workloads(), sort_keys=False)
        for options, versions in (((), NATIVE), (("--no-native",), OLD)):
            with self.subTest(options), tempfile.TemporaryDirectory() as directory:
                text = inject(plain, *options)
                self.assertEqual(text.count("name: outrigger-config"), 2 * len(workloads()))
                file = pathlib.Path(directory) / "all.yaml"
                file.write_text(text)
                run(TOOLS / "kubernetes-validate", "--strict", "-k", versions[0], "-k", versions[1], file)

    def test_base_has_nothing_left_to_inject(self):
        text = yaml.safe_dump_all(RENDERED["base"])
        self.assertEqual(inject(text), text)


if __name__ == "__main__":
    unittest.main()
