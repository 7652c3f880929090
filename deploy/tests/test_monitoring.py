"""Alerts and dashboard ask only for metrics, labels and values that a running Outrigger shows."""

import json
import re
import unittest

import promql_parser as promql
import yaml

import prometheusrule
from support import K8S, MONITORING, ROOT, Proxy, Upstream, run

# What Prometheus and its operator put on every sample.
SCRAPE = {"namespace", "job", "pod", "container", "instance"}
# What Grafana puts into queries. Variables in matchers are quoted, and so need nothing.
GRAFANA = {"$__rate_interval": "5m"}
CONFIGURATION = """
version: 1
listeners: {{proxy: 127.0.0.1:7171, admin: 127.0.0.1:7172, probes: "[::]:7173"}}
upstreams:
  up:
    hosts: [up.test]
    to: ["http://127.0.0.1:{port}", "https://127.0.0.1:{port}"]
    tls: {{ca_file: /etc/ssl/certs/ca-certificates.crt}}
    rate_limit: {{requests: 1000, per: 1s}}
    concurrency: {{max_in_flight: 100}}
    routes: [{{name: own, match: {{path: /own}}, circuit_breaker: {{consecutive_failures: 3}}}}]
"""

SHOWN = {}


def setUpModule():
    """Metrics with their labels and the values seen, after some traffic."""
    upstream = Upstream.start()
    with Proxy(CONFIGURATION.format(port=upstream.server_port)) as proxy:
        for status in (200, 404, 429, 503):
            proxy.through(f"http://up.test/{status}", {"X-Stainless-Retry-Count": "1"})
        text = proxy.get("probes", "/metrics")
    upstream.shutdown()
    upstream.server_close()
    for name in re.findall(r"^# TYPE (\S+)", text, re.M):
        SHOWN[name] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        seen = SHOWN.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels):
            seen.setdefault(label, set()).add(value)


def expressions():
    """Every expression with where it stands and how its results are named."""
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            named = " ".join(rule["annotations"].values())
            yield rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", named))
    board = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"], set()
    for variable in board["templating"]["list"]:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
        if found:
            yield variable["label"], f"sum by ({found[2]}) ({found[1]})", {found[2]}


def parse(expression):
    for name, value in GRAFANA.items():
        expression = expression.replace(name, value)
    return promql.parse(expression)


def walk(node):
    """Every node, the outer ones first."""
    yield node
    for child in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, child, None)
        if isinstance(inner, (promql.Expr, promql.VectorSelector)):
            yield from walk(inner)
    for argument in getattr(node, "args", None) or []:
        yield from walk(argument)


def selectors(node):
    return [one for one in walk(node) if isinstance(one, promql.VectorSelector)]


class Queries(unittest.TestCase):
    def test_every_metric_label_and_value_is_there(self):
        asked = set()
        for place, expression, named in expressions():
            with self.subTest(place):
                found = selectors(parse(expression))
                self.assertTrue(found)
                for selector in found:
                    self.assertIn(selector.name, sorted(SHOWN))
                    asked.add(selector.name)
                    labels = SHOWN[selector.name]
                    for matcher in selector.matchers.matchers:
                        self.assertIn(matcher.name, SCRAPE | set(labels), selector.name)
                        if matcher.op == promql.MatchOp.Equal and matcher.name not in SCRAPE:
                            self.assertIn(matcher.value, labels[matcher.name], selector.name)
        self.assertGreater(len(asked), 25)

    def test_results_are_grouped_and_named_by_labels_that_are_there(self):
        for place, expression, named in expressions():
            with self.subTest(place):
                tree = parse(expression)
                known = SCRAPE.union(*(SHOWN[selector.name] for selector in selectors(tree)))
                groups = [set(one.modifier.labels) for one in walk(tree)
                          if isinstance(one, promql.AggregateExpr) and one.modifier]
                for group in groups:
                    self.assertLessEqual(group, known)
                self.assertLessEqual(named, set().union(*groups))


class Rules(unittest.TestCase):
    def test_promtool_accepts_them_and_their_tests_pass(self):
        run("promtool", "check", "rules", MONITORING / "rules.yaml")
        run("promtool", "test", "rules", MONITORING / "rules.test.yaml")

    def test_every_alert_has_a_test(self):
        rules = (MONITORING / "rules.yaml").read_text()
        tested = (MONITORING / "rules.test.yaml").read_text()
        for alert in re.findall(r"- alert: (\w+)", rules):
            self.assertRegex(tested, rf"- alertname: {alert}\n.*\n +exp_alerts:")

    def test_the_operator_gets_the_same_rules(self):
        self.assertEqual(prometheusrule.path().read_text(), prometheusrule.wanted(), "run `deploy/test --write`")

    def test_every_alert_leads_to_a_section_that_exists(self):
        page = ROOT / "docs" / "on-call.md"
        if not page.exists():
            self.skipTest("docs/on-call.md is not there")
        anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
                   for title in re.findall(r"^#+ (.*)$", page.read_text(), re.M)}
        for runbook in re.findall(r"runbook: (\S+)", (MONITORING / "rules.yaml").read_text()):
            path, _, anchor = runbook.partition("#")
            self.assertEqual(path, "docs/on-call.md")
            self.assertIn(anchor, anchors)


class Dashboard(unittest.TestCase):
    def test_panels_have_numbers_of_their_own_and_do_not_overlap(self):
        panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                     for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(taken & cells, panel["title"])
            taken |= cells

    def test_every_query_names_the_chosen_data_source(self):
        board = json.loads((MONITORING / "dashboard.json").read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                self.assertEqual(target["datasource"]["uid"], "${datasource}", panel["title"])
                self.assertIn('namespace=~"$namespace"', target["expr"], panel["title"])

    def test_the_config_map_is_small_enough_for_a_cluster(self):
        # An annotation that `kubectl apply` writes holds the whole object, and annotations end at 256 KiB.
        self.assertLess((MONITORING / "dashboard.json").stat().st_size, 200 * 1024)


if __name__ == "__main__":
    unittest.main()
