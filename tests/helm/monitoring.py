"""Checks the alerts and the dashboard that `helm template --values tests/helm/production.yaml` renders.

usage: monitoring.py FILE PROMTOOL

- Every metric and label of an expression is in docs/metrics.md, or in OTHER_METRICS.
- Every alert has a section in docs/operations.md that its annotation runbook_url names, and every such section has an alert.
- promtool parses every expression. Every alert fires in its case of CASES, and does not in the quiet one.
- The panels of the dashboard do not overlap, and have the data source of the dashboard.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
SECTION = "## Alerts"

# Metrics of Prometheus, the kubelet, cAdvisor and kube-state-metrics.
OTHER_METRICS = {
    "up", "kube_pod_status_ready", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes",
    "container_memory_working_set_bytes", "container_cpu_usage_seconds_total", "kube_pod_container_resource_limits",
    "kube_cronjob_status_last_successful_time", "kube_cronjob_created",
}
# Labels of the scrape, and of the metrics above.
OTHER_LABELS = {"namespace", "pod", "le", "container", "resource", "condition", "cronjob", "persistentvolumeclaim"}

SELECTOR = re.compile(r"\b([a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
GROUPED = re.compile(r"\bby \(([^)]*)\)")
SHOPPERS = {"rpc": "Search"}


def series(name, values, **labels):
    labels = {"namespace": "shop", "pod": "shop-lodestone-0", **labels}
    return {"series": name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}", "values": values}


def requests(code, per_minute, **labels):
    return series("lodestone_requests_total", f"0+{per_minute}x120", code=code, **labels)


def cron_job(job, created, succeeded=None):
    labels = {"cronjob": f"shop-lodestone-{job}"}
    found = [series("kube_cronjob_created", f"{created}x120", **labels)]
    if succeeded is not None:
        found.append(series("kube_cronjob_status_last_successful_time", f"{succeeded}x120", **labels))
    return found


UP = series("up", "1x120")
CLAIM = {"persistentvolumeclaim": "data-shop-lodestone-0"}
MEMORY = {"container": "lodestone"}
# By alert: the time at which it fires, the series with which it does, and series with which it does not.
CASES = {
    "LodestoneNotReady": ("7m", [series("up", "0x120")], [UP]),
    "LodestoneErrors": ("15m", [requests("OK", 980, **SHOPPERS), requests("INTERNAL", 20, **SHOPPERS)],
                        [requests("OK", 995, **SHOPPERS), requests("INTERNAL", 5, **SHOPPERS),
                         # Mistakes of clients and failed writes.
                         requests("INVALID_ARGUMENT", 500, **SHOPPERS), requests("INTERNAL", 500, rpc="WriteEvents")]),
    "LodestoneWritesFailing": ("15m", [requests("OK", 50, rpc="WriteEvents"), requests("RESOURCE_EXHAUSTED", 50, rpc="UpsertItems")],
                               [requests("OK", 100, rpc="WriteEvents"), requests("INVALID_ARGUMENT", 50, rpc="WriteEvents"),
                                requests("INTERNAL", 50, **SHOPPERS)]),
    "LodestoneLogNotWritable": ("5m", [series("lodestone_log_writable", "0x120")], [series("lodestone_log_writable", "1x120")]),
    # The cases begin at 1970-01-01. 0 is no certificate.
    "LodestoneCertificateExpiring": ("20m", [series("lodestone_certificate_expiry_timestamp_seconds", "80000x120")],
                                     [series("lodestone_certificate_expiry_timestamp_seconds", "0x120"),
                                      series("lodestone_certificate_expiry_timestamp_seconds", "200000x120", catalog="other")]),
    "LodestoneSlow": ("25m", [series("lodestone_request_seconds_bucket", f"0+{count}x120", rpc="Search", le=le)
                              for le, count in (("0.05", 90), ("0.1", 100), ("+Inf", 100))],
                      [series("lodestone_request_seconds_bucket", f"0+{count}x120", rpc=rpc, le=le)
                       for rpc, le, count in (("Search", "0.05", 100), ("Search", "0.1", 100), ("Search", "+Inf", 100),
                                              # Imports take their time.
                                              ("ImportItems", "0.05", 0), ("ImportItems", "0.1", 0), ("ImportItems", "+Inf", 100))]),
    "LodestoneOverloaded": ("15m", [requests("OK", 900, **SHOPPERS), requests("RESOURCE_EXHAUSTED", 100, **SHOPPERS)],
                            [requests("OK", 999, **SHOPPERS), requests("RESOURCE_EXHAUSTED", 1, **SHOPPERS)]),
    "LodestoneDegraded": ("25m", [requests("OK", 100, **SHOPPERS),
                                  series("lodestone_degradations_total", "0+20x120", code="RANKER_SKIPPED")],
                          [requests("OK", 100, **SHOPPERS),
                           series("lodestone_degradations_total", "0+90x120", code="QUERY_RELAXED")]),
    # A label has no series before its first occurrence.
    "LodestoneBundleRefused": ("30m", [series("lodestone_bundle_changes_total", "_x25 1x100", outcome="refused")],
                               [series("lodestone_bundle_changes_total", "_x25 1x100", outcome="activated"),
                                series("lodestone_bundle_changes_total", "1x120", outcome="rolled_back")]),
    "LodestonePanics": ("30m", [series("lodestone_panics_total", "0x25 1x100")], [series("lodestone_panics_total", "3x120")]),
    "LodestoneQuarantined": ("5m", [series("lodestone_quarantined", "1x120")], [series("lodestone_quarantined", "0x120")]),
    "LodestoneCheckpointBehind": ("30m", [series("lodestone_log_position", "4000000x120"), series("lodestone_checkpoint_position", "0x120")],
                                  [series("lodestone_log_position", "4000000x120"), series("lodestone_checkpoint_position", "3500000x120")]),
    "LodestoneAnswersLost": ("30m", [series("lodestone_answers_total", "0+5x120", outcome="write_failed")],
                             [series("lodestone_answers_total", "0+5x120", outcome="logged")]),
    "LodestoneVolumeFilling": ("20m", [series("kubelet_volume_stats_available_bytes", "9x120", **CLAIM),
                                       series("kubelet_volume_stats_capacity_bytes", "100x120", **CLAIM)],
                               [series("kubelet_volume_stats_available_bytes", "50x120", **CLAIM),
                                series("kubelet_volume_stats_capacity_bytes", "100x120", **CLAIM)]),
    "LodestoneMemoryHigh": ("30m", [series("container_memory_working_set_bytes", "95x120", **MEMORY),
                                    series("kube_pod_container_resource_limits", "100x120", resource="memory", **MEMORY)],
                            [series("container_memory_working_set_bytes", "60x120", **MEMORY),
                             series("kube_pod_container_resource_limits", "100x120", resource="memory", **MEMORY),
                             series("kube_pod_container_resource_limits", "1x120", resource="cpu", **MEMORY)]),
    # The jobs' times are seconds since 1970 too. One that never succeeded counts from its creation.
    "LodestoneRetrainOverdue": ("90m", cron_job("retrain", 0), cron_job("retrain", 0, 3600)),
    "LodestoneBackupOverdue": ("90m", cron_job("backup", 0, 600), cron_job("backup", 0, 3600)),
}


def documented():
    """The metrics of docs/metrics.md, each with its labels."""
    rows = re.findall(r"^\| `(lodestone_\w+)` \|([^|]*)\|", (TOP / "docs/metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20, "docs/metrics.md has no table of metrics"
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def base(name, metrics):
    """The metric of a series: a histogram has three."""
    return next((name.removesuffix(suffix) for suffix in ("_bucket", "_sum", "_count")
                 if name.endswith(suffix) and name.removesuffix(suffix) in metrics), name)


def check_names(where, expression, metrics):
    """Checks the metrics and labels of an expression."""
    selectors = SELECTOR.findall(expression)
    assert selectors, f"{where}: no metric in {expression}"
    labels = set()
    for name, matchers in selectors:
        name = base(name, metrics)
        assert name in metrics or name in OTHER_METRICS, f"{where}: {name} is not in docs/metrics.md"
        known = metrics.get(name, set()) | OTHER_LABELS | {"catalog"}
        assert set(MATCHER.findall(matchers)) <= known, f"{where}: {name} has no such label: {matchers}"
        labels |= known
    for name in re.findall(r"\blodestone_\w+", expression):
        assert name in {found for found, _ in selectors}, f"{where}: {name} has no selector, so it has every release's series"
    for grouped in GROUPED.findall(expression):
        assert {label.strip() for label in grouped.split(",")} <= labels, f"{where}: no label of {grouped} in {expression}"


def check_runbooks(rules):
    """Compares the alerts with the sections of docs/operations.md."""
    text = (TOP / "docs/operations.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n{SECTION}\n")
    section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
    sections = set(re.findall(r"^### (\w+)$", section, re.MULTILINE))
    alerts = {rule["alert"] for rule in rules}
    assert alerts == sections, f"only in the chart or only in docs/operations.md: {sorted(alerts ^ sections)}"
    for rule in rules:
        anchor = rule["annotations"]["runbook_url"]
        assert anchor == f"https://wiki.example/lodestone#{rule['alert'].lower()}", anchor
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]


def promtool(program, work, kind, content):
    file = work / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["test", "rules"] if kind == "cases" else ["check", "rules"]
    ran = subprocess.run([program, *command, file.name], cwd=work, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"promtool, {kind}: {ran.stdout}{ran.stderr}"


def check_alerts(program, work, groups):
    promtool(program, work, "rules", {"groups": groups})
    names = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(CASES) == names, f"alerts without a case, or cases without an alert: {sorted(set(CASES) ^ names)}"
    tests = []
    for alert, (time, firing, quiet) in CASES.items():
        for found, expected in ((firing, [{"labels": "{}", "value": 1}]), (quiet, [])):
            expression = f'group(ALERTS{{alertname="{alert}",alertstate="firing"}})'
            tests.append({"name": f"{alert} {'fires' if expected else 'is quiet'}", "interval": "1m", "input_series": found,
                          "promql_expr_test": [{"expr": expression, "eval_time": time, "exp_samples": expected}]})
    promtool(program, work, "cases", {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})


def check_dashboard(program, work, dashboard, metrics):
    variables = {"namespace": "shop", "pod": "shop-lodestone-0", "__rate_interval": "5m"}
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert declared == {"datasource", "namespace", "pod"}
    rules, cells, titles = [], set(), set()
    for panel in dashboard["panels"]:
        position = panel["gridPos"]
        taken = {(x, y) for x in range(position["x"], position["x"] + position["w"])
                 for y in range(position["y"], position["y"] + position["h"])}
        assert not taken & cells and position["x"] + position["w"] <= 24, f"{panel['title']} overlaps another panel"
        cells |= taken
        assert panel["title"] not in titles
        titles.add(panel["title"])
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"], panel["title"]
        for target in panel["targets"]:
            expression = re.sub(r"\$(\w+)", lambda match: variables[match[1]], target["expr"])
            check_names(panel["title"], expression, metrics)
            rules.append({"record": f"panel_{panel['id']}:{target['refId'].lower()}", "expr": expression})
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    promtool(program, work, "dashboard", {"groups": [{"name": "dashboard", "rules": rules}]})
    return len(rules)


def main():
    path, program = sys.argv[1], str(pathlib.Path(sys.argv[2]).resolve())
    with open(path, encoding="utf-8") as file:
        objects = {document["kind"] + " " + document["metadata"]["name"]: document
                   for document in yaml.safe_load_all(file) if document}
    metrics = documented()
    groups = objects["PrometheusRule shop-lodestone"]["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        check_names(rule["alert"], rule["expr"], metrics)
    check_runbooks(rules)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        check_alerts(program, work, groups)
        dashboard = json.loads(objects["ConfigMap shop-lodestone-dashboard"]["data"]["lodestone.json"])
        count = check_dashboard(program, work, dashboard, metrics)
    print(f"  {len(rules)} alerts and {count} expressions of the dashboard checked")


main()
