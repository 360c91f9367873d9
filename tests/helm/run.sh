#!/usr/bin/env bash
# Lints the chart, renders it with default and changed values, checks the rendered objects, and checks that the schema
# refuses invalid values.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/tools.sh helm python
helm=target/tools/bin/helm
python=target/tools/venv/bin/python
chart=helm/lodestone
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

# refuses TITLE TEXT [arguments of helm]: helm template must fail with a message that contains TEXT.
refuses() {
    local title=$1 text=$2
    shift 2
    if "$helm" template shop "$chart" "$@" >"$out/refused" 2>&1; then fail "$title: helm template succeeded"; fi
    grep -q -- "$text" "$out/refused" || { cat "$out/refused" >&2; fail "$title: the message does not contain '$text'"; }
    pass "$title"
}

lints "default values lint"
lints "changed values lint" --values tests/helm/changed.yaml
lints "a retrain lints" --values tests/helm/retrain.yaml
renders "default values render valid objects at the restricted level" default
renders "changed values appear in the objects" changed --values tests/helm/changed.yaml
renders "a retrain is a cron job on the node of the server" retrain --values tests/helm/retrain.yaml
lints "further catalogues lint" --values tests/helm/catalogs.yaml
renders "further catalogues are a file of the server" catalogs --values tests/helm/catalogs.yaml
renders "a bundle in a volume claim needs no init container" claim --set bundle.existingClaim=shop-bundle
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
renders "numbers and flags of --set are texts" texts --set bundle.image.tag=1 --set image.tag=20260101 \
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
printf 'global: {domain: shop.example}\nlodestone: {enabled: false}\n' >"$out/parent/values.yaml"
"$helm" lint --strict "$out/parent" >"$out/lint" 2>&1 || { cat "$out/lint" >&2; fail "a parent chart lints"; }
"$helm" template shop "$out/parent" >"$out/off.yaml" || fail "a parent chart without the dependency renders"
! grep -q "^kind:" "$out/off.yaml" || fail "a disabled dependency has no objects"
"$helm" template shop "$out/parent" --namespace shop --kube-version 1.37.0 --set lodestone.enabled=true >"$out/on.yaml" ||
    fail "an enabled dependency renders"
"$python" tests/helm/check.py default "$out/on.yaml" || fail "an enabled dependency has the objects of the chart"
pass "the chart is a dependency with a condition"

# The notes after an installation have a command line that can be pasted.
"$helm" install shop "$chart" --dry-run=client --namespace shop >"$out/install" 2>"$out/install.err" ||
    { cat "$out/install.err" >&2; fail "helm install --dry-run failed"; }
grep -q "grpcurl -plaintext -d '{\"viewer\": .*}' 127.0.0.1:50051 lodestone.v1.RankingService/Search" "$out/install" ||
    fail "the notes have no valid grpcurl line"
pass "the notes have a grpcurl line"

echo "helm: $passed passed, 0 failed"
