#!/usr/bin/env bash
# Lints the chart, renders it with default and changed values, checks the rendered objects, the alerts and the dashboard, and
# checks that the schema and the templates refuse invalid values.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/tools.sh helm python promtool
helm=target/tools/bin/helm
python=target/tools/venv/bin/python
chart=helm/lodestone
# The default values have no secrets, so they need this one.
insecure=(--set security.insecure=true)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0

pass() {
    passed=$((passed + 1))
    echo "ok   $1"
}

fail() {
    echo "FAIL $1" >&2
    exit 1
}

# lints TITLE [arguments of helm]: helm lint must succeed.
lints() {
    local title=$1
    shift
    "$helm" lint --strict "$chart" "$@" >"$out/lint" 2>&1 || { cat "$out/lint" >&2; fail "$title"; }
    pass "$title"
}

# renders TITLE CASE [arguments of helm]: helm template must succeed, and its output must pass check.py CASE.
renders() {
    local title=$1 case=$2
    shift 2
    "$helm" template shop "$chart" --namespace shop --kube-version 1.37.0 "$@" >"$out/$case.yaml" ||
        fail "$title: helm template failed"
    "$python" tests/helm/check.py "$case" "$out/$case.yaml" || fail "$title"
    pass "$title"
}

# refuses TITLE TEXT [arguments of helm]: helm template must fail with a message that contains TEXT. The values are valid but
# for these arguments.
refuses() {
    local title=$1 text=$2
    shift 2
    if "$helm" template shop "$chart" "${insecure[@]}" "$@" >"$out/refused" 2>&1; then fail "$title: helm template succeeded"; fi
    grep -q -- "$text" "$out/refused" || { cat "$out/refused" >&2; fail "$title: the message does not contain '$text'"; }
    pass "$title"
}

lints "default values lint" "${insecure[@]}"
lints "changed values lint" --values tests/helm/changed.yaml
lints "a retrain lints" --values tests/helm/retrain.yaml
renders "default values render valid objects at the restricted level" default "${insecure[@]}"
renders "changed values appear in the objects" changed --values tests/helm/changed.yaml
renders "a retrain is a cron job on the node of the server" retrain --values tests/helm/retrain.yaml
lints "further catalogues lint" --values tests/helm/catalogs.yaml
renders "further catalogues are a file of the server" catalogs --values tests/helm/catalogs.yaml
renders "a bundle in a volume claim needs no init container" claim "${insecure[@]}" --set bundle.existingClaim=shop-bundle
lints "TLS, policies, monitoring, backups and tokens lint" --values tests/helm/production.yaml
renders "TLS, policies, monitoring, backups and tokens are in the objects" production --values tests/helm/production.yaml
"$python" tests/helm/monitoring.py "$out/production.yaml" target/tools/bin/promtool || fail "alerts and dashboard"
pass "every alert fires when it should and has a runbook, and every metric is documented"
refuses "an unknown value is refused" "replicas" --set replicas=3
refuses "an unknown nested value is refused" "tagg" --set image.tagg=1
refuses "the root user is refused" "runAsUser" --set runAsUser=0
refuses "a port that is not a number is refused" "port" --set-string service.port=http
refuses "a privileged port is refused" "port" --set service.port=80
refuses "a size without a unit is refused" "size" --set-string persistence.size=20
refuses "an invalid digest is refused" "digest" --set image.digest=sha256:abc
refuses "a schedule with three fields is refused" "schedule" --set retrain.enabled=true --set-string "retrain.schedule=0 3 *"
refuses "a relative store is refused" "store" --set-string retrain.store=bundles
refuses "a relative bundle path is refused" "path" --set bundle.path=bundle

refuses "a label that selects the pod is refused" "podLabels: the chart sets app.kubernetes.io/name" \
    --set-string 'podLabels.app\.kubernetes\.io/name=other'
refuses "an annotation that restarts the pod is refused" "podAnnotations: the chart sets checksum/serving" \
    --set-string 'podAnnotations.checksum/serving=0,serving=x'
refuses "an argument that the chart sets is refused" "extraArgs\[1\]: the chart sets --listen itself; see service.port" \
    --set 'extraArgs={--cuda,--listen=[::]:1}'
refuses "a data directory that is not on the volume is refused" "catalogs.outlet.data is .outlet.; only directories below /data" \
    --values <(printf 'catalogs: |\n  [catalogs.outlet]\n  store = "s"\n  data = "outlet"\n')
refuses "a data directory that leaves the volume is refused" "only directories below /data" \
    --values <(printf 'catalogs: |\n  [catalogs.outlet]\n  store = "s"\n  data = "/data/../outlet"\n')
refuses "catalogues that are not TOML are refused" "catalogs: is not TOML with a table" --set-string 'catalogs=outlet'
refuses "a file of catalogues is no additional argument" "the chart sets --catalogs itself; see catalogs" \
    --set 'extraArgs={--catalogs=/data/catalogs.toml}'
refuses "a file of keys is no additional argument" "the chart sets --api-keys itself; see security.apiKeysSecret" \
    --set 'extraArgs={--api-keys=/data/keys.toml}'
refuses "a secret with an invalid name is refused" "apiKeysSecret" --set security.apiKeysSecret=Keys_1
refuses "two equal ports are refused" "metrics.port: 50051 is service.port" --set metrics.port=50051
refuses "a number in a file is refused, because YAML changes numbers" "bundle.image.tag: 1000 is a number; write it in quotes" \
    --values <(printf 'bundle: {image: {tag: 1e3}}')
refuses "an open server is refused" "security: other pods reach the server, and it has no encryption: .*; no authentication: " \
    --set security.insecure=false
refuses "TLS without authentication is refused" "security: other pods reach the server, and it has no authentication: " \
    --set security.insecure=false,security.tls.enabled=true,security.tls.secret=shop-tls
refuses "authentication without TLS is refused" "security: other pods reach the server, and it has no encryption: " \
    --set security.insecure=false,security.apiKeysSecret=shop-keys
refuses "a server that is both closed and open is refused" "security.insecure: is true, and the server has encryption" \
    --set security.tls.enabled=true,security.tls.secret=shop-tls,security.apiKeysSecret=shop-keys
refuses "TLS without a secret is refused" "/security/tls/secret': minLength" --set security.tls.enabled=true
refuses "a secret without TLS is refused" "/security/tls/secret': maxLength" --set security.tls.secret=shop-tls
refuses "authorities of clients without TLS are refused" "/security/tls/clientCaSecret': maxLength" \
    --set security.tls.clientCaSecret=shop-ca
refuses "a certificate in the values is refused" "additional properties 'cert' not allowed" --set security.tls.cert=PEM
refuses "tokens without an audience are refused" "/security/jwt/audience': minLength" \
    --set security.jwt.jwks=https://login.example/keys,security.jwt.issuer=https://login.example
refuses "an issuer without a key set is refused" "/security/jwt/issuer': maxLength" --set security.jwt.issuer=https://login.example
refuses "a key set without https is refused" "/security/jwt/jwks'" --set security.jwt.jwks=http://login.example/keys
refuses "probes without their port are refused" "/metrics/enabled': value must be true" --set metrics.enabled=false
refuses "probes of gRPC with TLS are refused" "/security/tls/enabled': value must be false" \
    --set probes.type=grpc,security.insecure=false,security.tls.enabled=true,security.tls.secret=t,security.apiKeysSecret=k
refuses "a monitor without metrics is refused" "/metrics/serviceMonitor/enabled': value must be false" \
    --set probes.type=grpc,metrics.enabled=false,metrics.serviceMonitor.enabled=true
refuses "alerts without metrics are refused" "/metrics/alerts/enabled': value must be false" \
    --set probes.type=grpc,metrics.enabled=false,metrics.alerts.enabled=true
refuses "a ratio in percent is refused" "/metrics/alerts/errorRatioMax': maximum" --set metrics.alerts.errorRatioMax=5
refuses "a runbook's URL with an anchor is refused" "/metrics/alerts/runbookUrl'" --set metrics.alerts.runbookUrl=https://a.example/b#c
refuses "an interval without a unit is refused" "/metrics/serviceMonitor/interval'" --set-string metrics.serviceMonitor.interval=15
refuses "a network policy that lets nobody in is refused" "/networkPolicy/clients': minItems" --set networkPolicy.enabled=true
policy=(--set 'networkPolicy.enabled=true,networkPolicy.clients[0].podSelector.matchLabels.app=shop')
refuses "an unknown kind of peer is refused" "/networkPolicy/clients/0'" "${policy[@]}" --set 'networkPolicy.clients[0].pods=a'
refuses "a policy that shuts out Prometheus is refused" "networkPolicy.metrics: is empty" "${policy[@]}" \
    --set metrics.serviceMonitor.enabled=true
refuses "a policy that shuts out the store is refused" "networkPolicy.egress: is empty, so the server cannot reach retrain.store" \
    "${policy[@]}" --set retrain.enabled=true,retrain.store=s3://bundles/shop
refuses "a backup without a volume is refused" "/backup/existingClaim': minLength" --set backup.enabled=true
refuses "a backup that keeps nothing is refused" "/backup/keep': minimum" --set backup.keep=0
refuses "a grace period that is shorter than the drain is refused" \
    "terminationGracePeriodSeconds: is 60; drain.waitSeconds 20, drain.timeoutSeconds 31 and 10 for the last flush need at least 61" \
    --set drain.waitSeconds=20,drain.timeoutSeconds=31
refuses "a grace period that is shorter than the default drain is refused" "need at least 25" --set terminationGracePeriodSeconds=20
refuses "a drain that is not a number is refused" "/drain/waitSeconds'" --set drain.waitSeconds=5s
refuses "a share of traces above 1 is refused" "/tracing/sample': maximum" --set tracing.sample=10
refuses "a collector without a scheme is refused" "/tracing/otlpEndpoint'" --set tracing.otlpEndpoint=collector:4317
refuses "settings that are not TOML are refused" "config: is not TOML" --set-string 'config=workers'
refuses "settings in a table are refused" "config: has the table \[server\]" --set-string 'config=[server]'
refuses "a setting that has a value is refused" "config: the chart sets tls_cert itself; see security.tls" --set-string 'config=tls_cert = "/a"'
refuses "a flag that has a value is refused" "the chart sets --otlp-endpoint itself; see tracing.otlpEndpoint" \
    --set 'extraArgs={--otlp-endpoint=http://a:1}'
renders "numbers and flags of --set are texts" texts "${insecure[@]}" --set bundle.image.tag=1 --set image.tag=20260101 \
    --set podLabels.release=3 --set podAnnotations.injected=true --set nodeSelector.zone=2 \
    --set-string 'podAnnotations.prometheus\.io/scrape=false' --set 'service.annotations.weight=5' \
    --set 'extraArgs={--workers,4}' --set 'extraEnv[0].name=LEVEL,extraEnv[0].value=3' \
    --set persistence.storageClass=7 --set priorityClassName=8

# A shop's own chart has this chart as a dependency, with a condition.
mkdir -p "$out/parent/charts" "$out/parent/templates"
echo "A shop." >"$out/parent/templates/NOTES.txt"
cp -R "$chart" "$out/parent/charts/lodestone"
cat >"$out/parent/Chart.yaml" <<'YAML'
apiVersion: v2
name: parent
version: 0.1.0
dependencies:
  - name: lodestone
    version: ">=0.0.0"
    condition: lodestone.enabled
YAML
printf 'global: {domain: shop.example}\nlodestone: {enabled: false, security: {insecure: true}}\n' >"$out/parent/values.yaml"
"$helm" lint --strict "$out/parent" >"$out/lint" 2>&1 || { cat "$out/lint" >&2; fail "a parent chart lints"; }
"$helm" template shop "$out/parent" >"$out/off.yaml" || fail "a parent chart without the dependency renders"
! grep -q "^kind:" "$out/off.yaml" || fail "a disabled dependency has no objects"
"$helm" template shop "$out/parent" --namespace shop --kube-version 1.37.0 --set lodestone.enabled=true >"$out/on.yaml" ||
    fail "an enabled dependency renders"
"$python" tests/helm/check.py default "$out/on.yaml" || fail "an enabled dependency has the objects of the chart"
pass "the chart is a dependency with a condition"

# The notes after an installation have a command line that can be pasted.
"$helm" install shop "$chart" "${insecure[@]}" --dry-run=client --namespace shop >"$out/install" 2>"$out/install.err" ||
    { cat "$out/install.err" >&2; fail "helm install --dry-run failed"; }
grpcurl="grpcurl -import-path proto -proto lodestone/v1/ranking_service.proto"
grep -q "$grpcurl -plaintext -d '{\"viewer\": .*}' 127.0.0.1:50051 lodestone.v1.RankingService/Search" "$out/install" ||
    fail "the notes have no valid grpcurl line"
pass "the notes have a grpcurl line"
"$helm" install shop "$chart" --values tests/helm/production.yaml --dry-run=client --namespace shop >"$out/install" 2>"$out/install.err" ||
    { cat "$out/install.err" >&2; fail "helm install --dry-run with TLS failed"; }
grep -q "$grpcurl -cacert ca.crt -authority shop-lodestone.shop -cert client.crt -key client.key -H \"authorization: Bearer \$KEY\" " \
    "$out/install" || fail "the notes have no grpcurl line with TLS"
pass "the notes have a grpcurl line with TLS"

echo "helm: $passed passed, 0 failed"
