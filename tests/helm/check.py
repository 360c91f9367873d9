"""Checks rendered objects against the Kubernetes schemas and against the contract of the chart.

usage: check.py CASE FILE

CASE is default, changed, claim, retrain, texts, catalogs or production; FILE holds the output of `helm template`. Fails with the first violated
assertion.
"""
import sys
import tomllib

import kubernetes_validate
import yaml


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping, which YAML's own loader and Helm accept."""


def unique_mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"{node.start_mark}: a key occurs twice in {sorted(map(str, keys))}"
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique_mapping)

KUBERNETES_VERSIONS = ("1.32", "1.37")


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def check_restricted(pod):
    """Checks the "restricted" level of the pod security standards, resources, and the kinds of volumes."""
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0 and context["runAsGroup"] > 0 and context["fsGroup"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}, volume
    for container in containers(pod):
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }, (container["name"], context)
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]


def check_probes(server, port):
    """Checks what the probes ask, and that the startup may last at least a minute."""
    ports = {entry["name"] for entry in server["ports"]}
    for probe, path, service in (("startupProbe", "/readyz", ""), ("readinessProbe", "/readyz", ""),
                                 ("livenessProbe", "/livez", "liveness")):
        # Without the port of the metrics, only gRPC is left, which must not have TLS.
        if "metrics" in ports:
            assert server[probe]["httpGet"] == {"path": path, "port": "metrics"}, (probe, server[probe])
        else:
            assert server[probe]["grpc"] == {"port": port, "service": service}, (probe, server[probe])
            assert "--tls-cert" not in server["args"]
    startup_seconds_max = server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"]
    assert startup_seconds_max >= 60, "a replay of a long log takes time"


def check_wiring(objects, port, has_retrain, more):
    """Checks names, ports and selectors that must agree between objects, and that there are no other objects than those of
    every release, of the values that its arguments show, and `more`. Returns the spec of the stateful set."""
    stateful_set = objects["StatefulSet", next(name for kind, name in objects if kind == "StatefulSet")]
    name, spec = stateful_set["metadata"]["name"], stateful_set["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["replicas"] == 1, "the event log has one writer"
    assert spec["serviceName"] == f"{name}-headless"
    service, headless = objects["Service", name], objects["Service", f"{name}-headless"]
    assert headless["spec"]["clusterIP"] == "None"
    has_serving = ("ConfigMap", f"{name}-serving") in objects
    has_catalogs = ("ConfigMap", f"{name}-catalogs") in objects
    has_settings = ("ConfigMap", f"{name}-settings") in objects
    expected = {("StatefulSet", name), ("Service", name), ("Service", f"{name}-headless")} | more
    expected |= {("CronJob", f"{name}-retrain")} if has_retrain else set()
    expected |= {("ConfigMap", f"{name}-serving")} if has_serving else set()
    expected |= {("ConfigMap", f"{name}-catalogs")} if has_catalogs else set()
    assert set(objects) == expected, set(objects) ^ expected
    for selector in (spec["selector"]["matchLabels"], service["spec"]["selector"], headless["spec"]["selector"]):
        assert selector.items() <= labels.items(), (selector, labels)
    assert service["spec"]["ports"][0]["port"] == port
    server = spec["template"]["spec"]["containers"][0]
    ports = {entry["name"]: entry["containerPort"] for entry in server["ports"]}
    assert ports.pop("grpc") == port
    annotations = spec["template"]["metadata"].get("annotations", {})
    if ports:
        assert f"0.0.0.0:{ports['metrics']}" == server["args"][server["args"].index("--metrics-listen") + 1]
        # A service monitor replaces the annotations.
        assert annotations.get("prometheus.io/port") == (None if more else str(ports["metrics"]))
        assert {"name": "metrics", "port": ports["metrics"], "targetPort": "metrics", "protocol": "TCP"} in headless["spec"]["ports"]
    else:
        assert "--metrics-listen" not in server["args"] and "prometheus.io/port" not in annotations
    store = "/data/store" if more else "s3://bundles/shop"
    source = ["--store", store] if has_retrain else ["--bundle", "/bundle"]
    assert server["args"][:7] == ["serve", *source, "--data", "/data", "--listen", f"0.0.0.0:{port}"]
    assert ("--insecure" in server["args"]) != ("--tls-cert" in server["args"])
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    has_keys = "--api-keys" in server["args"]
    of_files = {"/config": has_serving, "/catalogs": has_catalogs, "/keys": has_keys, "/settings": has_settings,
                "/tls": "--tls-cert" in server["args"], "/client-ca": "--tls-client-ca" in server["args"]}
    of_files = {path for path, is_set in of_files.items() if is_set}
    assert set(mounts) == {"/data", "/bundle", "/tmp"} | of_files
    assert mounts["/bundle"]["readOnly"] is True
    known = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    known |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    for container in containers(spec["template"]["spec"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= known
    return spec


def check_default(spec, service):
    pod = spec["template"]["spec"]
    server = pod["containers"][0]
    assert server["image"] == "lodestone:0.1.0"
    assert [container["name"] for container in pod["initContainers"]] == ["bundle"]
    assert pod["initContainers"][0]["command"][-1] == "/bundle"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "20Gi" and "storageClassName" not in claim
    assert service["spec"]["type"] == "ClusterIP"


def check_changed(spec, service):
    pod = spec["template"]["spec"]
    server = pod["containers"][0]
    assert service["metadata"]["name"] == "shop-ranking"
    assert service["metadata"]["annotations"] == {"example.com/internal": "true"}
    assert service["spec"]["type"] == "LoadBalancer"
    assert server["image"] == "lodestone@sha256:" + "0" * 64
    assert server["args"][7:] == ["--insecure", "--api-keys", "/keys/keys.toml", "--serving", "/config/serving.toml",
                                  "--onnxruntime", "/opt/other/libonnxruntime.so"]
    assert {"name": "keys", "secret": {"secretName": "shop-keys", "defaultMode": 0o440}} in pod["volumes"]
    assert {"name": "serving", "configMap": {"name": "shop-ranking-serving"}} in pod["volumes"]
    assert server["env"] == [{"name": "RUST_LOG", "value": "debug"}]
    bundle, seed = pod["initContainers"]
    assert bundle["image"] == seed["image"] == "registry.example/bundles/shop:2"
    assert bundle["command"][-1] == "/models/shop" and seed["command"][-1] == "/data"
    assert pod["securityContext"]["runAsUser"] == 20002
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {"disk": "ssd"} and pod["priorityClassName"] == "high"
    assert pod["tolerations"] == [{"key": "dedicated", "operator": "Exists"}] and "nodeAffinity" in pod["affinity"]
    assert spec["template"]["metadata"]["labels"]["tier"] == "ranking"
    annotations = dict(spec["template"]["metadata"]["annotations"])
    assert len(annotations.pop("checksum/serving")) == 64 and annotations == {"example.com/note": "hello"}
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast" and claim["resources"]["requests"]["storage"] == "100Gi"


# The objects of tests/helm/production.yaml in addition to those of a retrain.
PRODUCTION = {("ConfigMap", "shop-lodestone-settings"), ("ConfigMap", "shop-lodestone-dashboard"),
              ("CronJob", "shop-lodestone-backup"), ("NetworkPolicy", "shop-lodestone"),
              ("PodDisruptionBudget", "shop-lodestone"), ("ServiceMonitor", "shop-lodestone"),
              ("PrometheusRule", "shop-lodestone")}


def check_production(spec, service):
    pod = spec["template"]["spec"]
    server = pod["containers"][0]
    assert server["args"][7:] == [
        "--config", "/settings/lodestone.toml", "--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key",
        "--tls-client-ca", "/client-ca/ca.crt", "--api-keys", "/keys/keys.toml",
        "--jwt-jwks", "https://login.example/jwks.json", "--jwt-issuer", "https://login.example", "--jwt-audience", "lodestone",
        "--metrics-listen", "0.0.0.0:9464", "--otlp-endpoint", "http://collector.observability:4317", "--trace-sample", "0.05",
        "--drain-timeout", "30", "--drain-wait", "5", "--max-connection-age", "600"]
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {
        "tls": {"secretName": "shop-tls", "defaultMode": 0o440},
        # Not the private key that a secret of cert-manager also has.
        "client-ca": {"secretName": "shop-client-ca", "defaultMode": 0o440, "items": [{"key": "ca.crt", "path": "ca.crt"}]},
        "keys": {"secretName": "shop-keys", "defaultMode": 0o440},
    }
    assert not any("subPath" in mount for mount in server["volumeMounts"]), "the kubelet does not update such files"
    assert len(spec["template"]["metadata"]["annotations"]["checksum/config"]) == 64
    assert service["spec"]["ports"][0]["appProtocol"] == "https"


def check_production_objects(objects):
    """Checks the objects that production.yaml adds."""
    settings = tomllib.loads(objects["ConfigMap", "shop-lodestone-settings"]["data"]["lodestone.toml"])
    assert settings == {"queue_requests_max": 256, "answers_share": 0.5}
    stateful_set = objects["StatefulSet", "shop-lodestone"]
    labels = stateful_set["spec"]["template"]["metadata"]["labels"]

    policy = objects["NetworkPolicy", "shop-lodestone"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    callers, readers = policy["ingress"]
    # An empty `from` would let everybody in.
    assert callers == {"from": [{"podSelector": {"matchLabels": {"app": "storefront"}}}], "ports": [{"port": "grpc", "protocol": "TCP"}]}
    assert readers["ports"] == [{"port": "metrics", "protocol": "TCP"}] and readers["from"]
    dns, collector = policy["egress"]
    assert {entry["port"] for entry in dns["ports"]} == {53} and collector["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    names = policy["podSelector"]["matchExpressions"][0]["values"]
    pods = [labels] + [objects["CronJob", f"shop-lodestone-{job}"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
                       for job in ("retrain", "backup")]
    assert [pod["app.kubernetes.io/name"] for pod in pods] == names
    assert all(policy["podSelector"]["matchLabels"].items() <= pod.items() for pod in pods)

    budget = objects["PodDisruptionBudget", "shop-lodestone"]["spec"]
    assert budget["maxUnavailable"] == 0 and budget["selector"]["matchLabels"].items() <= labels.items()

    monitor = objects["ServiceMonitor", "shop-lodestone"]
    assert monitor["metadata"]["labels"]["release"] == objects["PrometheusRule", "shop-lodestone"]["metadata"]["labels"]["release"]
    selected = [name for (kind, name), found in objects.items() if kind == "Service"
                and monitor["spec"]["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()]
    assert selected == ["shop-lodestone-headless"], "two services would be scraped twice"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "10s"}]

    job = objects["CronJob", "shop-lodestone-backup"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    check_restricted(pod)
    container, = pod["containers"]
    assert container["args"] == ["backup", "create", "--data", "/data", "--out", "/backups", "--keep", "14"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/data"]["readOnly"] is True and set(mounts) == {"/data", "/backups"}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    assert claims == {"data": "data-shop-lodestone-0", "backups": "shop-backups"}
    assert objects["ConfigMap", "shop-lodestone-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"


def check_retrain(spec, _service):
    pod = spec["template"]["spec"]
    bundle, publish = pod["initContainers"]
    assert bundle["name"] == "bundle" and publish["image"] == pod["containers"][0]["image"]
    assert publish["args"] == ["bundle", "publish", "--if-empty", "--bundle", "/bundle", "--store", "s3://bundles/shop"]
    assert publish["env"] == pod["containers"][0]["env"] == [{"name": "AWS_REGION", "value": "eu-west-2"}]


def check_cron_job(cron_job, stateful_set):
    """Checks that a retrain runs alone, on the volume and node of the server, and receives none of its requests."""
    spec = cron_job["spec"]
    assert spec["schedule"] == "0 */6 * * *" and spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 0 and job["activeDeadlineSeconds"] == 3600
    pod = job["template"]["spec"]
    check_restricted(pod)
    container, = pod["containers"]
    assert container["args"] == ["retrain", "--gate", "--data", "/data", "--store", "s3://bundles/shop", "--keep", "3",
                                 "--newest", "2000"]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "6Gi"}}
    assert container["env"] == [{"name": "AWS_REGION", "value": "eu-west-2"}]
    claim = next(volume for volume in pod["volumes"] if volume["name"] == "data")["persistentVolumeClaim"]["claimName"]
    assert claim == f"data-{stateful_set['metadata']['name']}-0"
    selector = stateful_set["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= job["template"]["metadata"]["labels"].items()
    term, = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == selector and term["topologyKey"] == "kubernetes.io/hostname"


def check_texts(spec, service):
    pod, metadata = spec["template"]["spec"], spec["template"]["metadata"]
    assert pod["containers"][0]["image"] == "lodestone:20260101"
    assert pod["initContainers"][0]["image"] == "lodestone-bundle:1"
    assert pod["containers"][0]["args"][-2:] == ["--workers", "4"]
    assert pod["containers"][0]["env"] == [{"name": "LEVEL", "value": "3"}]
    assert metadata["labels"]["release"] == "3" and pod["nodeSelector"] == {"zone": "2"}
    annotations = metadata["annotations"]
    assert annotations["injected"] == "true" and annotations["prometheus.io/scrape"] == "false"
    assert service["metadata"]["annotations"] == {"weight": "5"} and pod["priorityClassName"] == "8"
    assert spec["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "7"


def check_claim(spec, _service):
    pod = spec["template"]["spec"]
    assert "initContainers" not in pod
    bundle = next(volume for volume in pod["volumes"] if volume["name"] == "bundle")
    assert bundle["persistentVolumeClaim"] == {"claimName": "shop-bundle", "readOnly": True}


def check_catalogs(spec, _service):
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["args"][-2:] == ["--catalogs", "/catalogs/catalogs.toml"]
    name = "shop-lodestone-catalogs"
    assert {"name": "catalogs", "configMap": {"name": name}} in pod["volumes"]
    assert len(spec["template"]["metadata"]["annotations"]["checksum/catalogs"]) == 64


def main():
    case, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        documents = [document for document in yaml.load_all(file, UniqueKeys) if document]
    for document in documents:
        # The operator's kinds have no published schemas here; tests/helm/monitoring.py checks their content.
        if document["apiVersion"] == "monitoring.coreos.com/v1":
            continue
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    port = 6000 if case == "changed" else 50051
    assert len(objects) == len(documents), "two objects have one name"
    more = PRODUCTION if case == "production" else set()
    spec = check_wiring(objects, port, case in ("retrain", "production"), more)
    pod = spec["template"]["spec"]
    check_restricted(pod)
    check_probes(pod["containers"][0], port)
    service = next(document for document in documents if document["kind"] == "Service"
                   and document["spec"].get("clusterIP") != "None")
    checks = {"default": check_default, "changed": check_changed, "claim": check_claim, "retrain": check_retrain,
              "texts": check_texts, "catalogs": check_catalogs, "production": check_production}
    checks[case](spec, service)
    if case == "changed":
        served = objects["ConfigMap", "shop-ranking-serving"]["data"]["serving.toml"]
        assert tomllib.loads(served)["configs"]["explore"]["exploration"] == {"temperature": 0.7, "share": 0.2}
    if case == "catalogs":
        served = objects["ConfigMap", "shop-lodestone-catalogs"]["data"]["catalogs.toml"]
        assert tomllib.loads(served)["catalogs"]["de"]["workers"] == 2
    if case == "production":
        check_production_objects(objects)
    if case == "retrain":
        kinds = {document["kind"]: document for document in documents}
        check_cron_job(kinds["CronJob"], kinds["StatefulSet"])


main()
