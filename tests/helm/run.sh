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

# The notes after an installation have a command line that can be pasted.
"$helm" install shop "$chart" --dry-run=client --namespace shop >"$out/install" 2>"$out/install.err" ||
    { cat "$out/install.err" >&2; fail "helm install --dry-run failed"; }
grep -q "grpcurl -plaintext -d '{\"viewer\": .*}' 127.0.0.1:50051 lodestone.v1.RankingService/Search" "$out/install" ||
    fail "the notes have no valid grpcurl line"
pass "the notes have a grpcurl line"

echo "helm: $passed passed, 0 failed"
