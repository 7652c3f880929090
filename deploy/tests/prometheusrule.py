"""rules.yaml as the Prometheus operator takes it. `python3 prometheusrule.py` writes it."""

import pathlib

MONITORING = pathlib.Path(__file__).resolve().parents[1] / "k8s" / "components" / "monitoring"
HEAD = """\
# Made of rules.yaml by `deploy/test --write`: change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: outrigger
  # Your Prometheus may only look at rules with a certain label: see its ruleSelector, and add the label by kustomize.
  labels: {app.kubernetes.io/name: outrigger}
spec:
"""


def wanted():
    """The text that prometheusrule.yaml should have."""
    rules = (MONITORING / "rules.yaml").read_text()
    lines = rules[rules.index("groups:"):].splitlines()
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def path():
    """Where it lies."""
    return MONITORING / "prometheusrule.yaml"


if __name__ == "__main__":
    path().write_text(wanted())
