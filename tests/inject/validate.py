"""Judges the outputs of the cases by two things that are not ours: a YAML reader and the schemas of Kubernetes."""

import copy
import os
import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml

OUTRIGGER = os.environ["OUTRIGGER"]
CASES = pathlib.Path(__file__).parent
# The first release with native sidecars on by default, and the newest that there are schemas for.
VERSIONS = ("1.29", None)
PROXY = "http://127.0.0.1:7171"
EXEMPT = "localhost,127.0.0.1,::1,169.254.0.0/16,.svc,.cluster.local,kubernetes.default,$(KUBERNETES_SERVICE_HOST)"
KINDS = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"}
APIS = {"v1", "apps/v1", "batch/v1"}


class Loader(yaml.SafeLoader):
    """Reads `=` and dates as text: Kubernetes does, and PyYAML does not."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text):
    # PyYAML allows no tabs between brackets, and YAML does.
    return list(yaml.load_all(text.replace("\t", " "), Loader=Loader))


def objects(documents):
    for document in documents:
        if isinstance(document, dict) and str(document.get("kind", "")).endswith("List"):
            yield from objects(document.get("items") or [])
        elif isinstance(document, dict) and document.get("kind") in KINDS and document["apiVersion"] in APIS:
            yield document


def without(value):
    """The value less everything that inject adds."""
    if isinstance(value, list):
        return [without(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: without(item) for key, item in value.items()}
    if not isinstance(value.get("containers"), list):
        return value
    for key in ("initContainers", "containers"):
        containers = [one for one in value.get(key) or [] if one.get("name") != "outrigger"]
        for container in containers:
            env = [one for one in container.get("env") or [] if one.get("value") not in (PROXY, EXEMPT)]
            container["env"] = env
            if not env:
                del container["env"]
        value[key] = containers
    value["volumes"] = [one for one in value.get("volumes") or [] if one.get("name") != "outrigger-config"]
    for key in ("initContainers", "volumes"):
        if not value[key]:
            del value[key]
    return value


def run(text, *options):
    done = subprocess.run([OUTRIGGER, "inject", *options], input=text, capture_output=True, check=True)
    return done.stdout.decode()


def main():
    checked = 0
    for case in sorted(path for path in CASES.iterdir() if path.is_dir()):
        outs = list(case.glob("out.*"))
        if not outs:
            continue
        source = next(case.glob("in.*"))
        text = outs[0].read_text()
        # Only where every change is an addition can the additions be taken out again.
        if not (case / "args").exists() and case.name not in ("own-proxy", "kustomize"):
            before, after = without(read(source.read_text())), without(read(text))
            assert before == after, f"{case.name}: more than the sidecar differs"
        ordinary = run(text.encode(), "--no-native", "--quiet")
        for written in (text, ordinary):
            for one in objects(read(written)):
                for version in VERSIONS:
                    name = f"{case.name}: {one['kind']}/{one['metadata'].get('name')} ({version or 'newest'})"
                    try:
                        kubernetes_validate.validate(
                            copy.deepcopy(one), version or kubernetes_validate.latest_version(), strict=True
                        )
                    except kubernetes_validate.ValidationError as error:
                        sys.exit(f"{name}: {error.message} at {list(error.path)}")
                    checked += 1
    assert checked > 50, checked
    print(f"{checked} objects are valid")


main()
