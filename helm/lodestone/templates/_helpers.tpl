{{/* A value that must be a text. Takes a dict: path, value. `--set` reads `1` as a number and `true` as a flag, which are
     rendered as they were written. A number of a values file is refused, because YAML reads 1e3 as 1000 and 1.10 as 1.1. */}}
{{- define "lodestone.text" -}}
{{- if kindIs "float64" .value }}
{{- fail (printf "%s: %.0f is a number; write it in quotes" .path .value) }}
{{- end }}
{{- .value | toString }}
{{- end }}

{{/* A map of texts as YAML. Takes a dict: path, map. */}}
{{- define "lodestone.texts" -}}
{{- $all := . }}
{{- range $key := keys .map | sortAlpha }}
{{- $value := get $all.map $key }}
{{ $key | quote }}: {{ include "lodestone.text" (dict "path" (printf "%s.%s" $all.path $key) "value" $value) | quote }}
{{- end }}
{{- end }}

{{/* Additional arguments as YAML. Takes a dict: path, args, set (a dict: flags that the chart sets, with the value that
     determines each). */}}
{{- define "lodestone.extraArgs" -}}
{{- $all := . }}
{{- range $index, $value := .args }}
{{- $path := printf "%s[%d]" $all.path $index }}
{{- $arg := include "lodestone.text" (dict "path" $path "value" $value) }}
{{- $flag := first (splitList "=" $arg) }}
{{- if hasKey $all.set $flag }}
{{- fail (printf "%s: the chart sets %s itself; see %s" $path $flag (get $all.set $flag)) }}
{{- end }}
- {{ $arg | quote }}
{{- end }}
{{- end }}

{{/* Additional environment variables as YAML; their values are texts. */}}
{{- define "lodestone.extraEnv" -}}
{{- range $index, $entry := .Values.extraEnv }}
{{- $entry := deepCopy $entry }}
{{- if hasKey $entry "value" }}
{{- $_ := set $entry "value" (include "lodestone.text" (dict "path" (printf "extraEnv[%d].value" $index) "value" $entry.value)) }}
{{- end }}
{{ list $entry | toYaml }}
{{- end }}
{{- end }}

{{/* The flags of `lodestone serve` that the chart sets, each with the value that determines it, as YAML. */}}
{{- define "lodestone.flags" -}}
--api-keys: security.apiKeysSecret
--bundle: bundle
--catalogs: catalogs
--config: config
--data: persistence
--drain-timeout: drain.timeoutSeconds
--drain-wait: drain.waitSeconds
--insecure: security.insecure
--jwt-audience: security.jwt.audience
--jwt-issuer: security.jwt.issuer
--jwt-jwks: security.jwt.jwks
--listen: service.port
--max-connection-age: maxConnectionAgeSeconds
--metrics-listen: metrics.port
--otlp-endpoint: tracing.otlpEndpoint
--serving: serving
--store: retrain.store
--tls-cert: security.tls
--tls-client-ca: security.tls.clientCaSecret
--tls-key: security.tls
--trace-sample: tracing.sample
{{- end }}

{{/* Checks who may reach the server: what the server would refuse on startup is refused here. */}}
{{- define "lodestone.checkSecurity" -}}
{{- $security := .Values.security }}
{{- $authenticates := or $security.apiKeysSecret $security.jwt.jwks $security.tls.clientCaSecret }}
{{- $is_closed := and $security.tls.enabled $authenticates }}
{{- if and $is_closed $security.insecure }}
{{- fail "security.insecure: is true, and the server has encryption and authentication; leave it out" }}
{{- end }}
{{- if not (or $is_closed $security.insecure) }}
{{- $missing := list }}
{{- if not $security.tls.enabled }}
{{- $missing = append $missing "encryption: set security.tls.enabled and security.tls.secret" }}
{{- end }}
{{- if not $authenticates }}
{{- $missing = append $missing "authentication: set security.apiKeysSecret, security.jwt or security.tls.clientCaSecret" }}
{{- end }}
{{- fail (printf "security: other pods reach the server, and it has no %s; or state with security.insecure=true that every pod is trusted, or that a service mesh does it" (join "; no " $missing)) }}
{{- end }}
{{- end }}

{{/* Checks the content of the configuration file: TOML without tables, and no setting that the chart sets. */}}
{{- define "lodestone.checkConfig" -}}
{{- $flags := include "lodestone.flags" . | fromYaml }}
{{- with .Values.config }}
{{- $file := fromToml . }}
{{- if hasKey $file "Error" }}
{{- fail (printf "config: is not TOML: %v" $file.Error) }}
{{- end }}
{{- range $key, $value := $file }}
{{- if kindIs "map" $value }}
{{- fail (printf "config: has the table [%s]; the settings are at the top level" $key) }}
{{- end }}
{{- $flag := printf "--%s" ($key | replace "_" "-") }}
{{- if hasKey $flags $flag }}
{{- fail (printf "config: the chart sets %s itself; see %s" $key (get $flags $flag)) }}
{{- end }}
{{- end }}
{{- if hasKey $.Values.podAnnotations "checksum/config" }}
{{- fail "podAnnotations: the chart sets checksum/config, which restarts the pod when `config` changes" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks that the server can end before it is killed: a checkpoint follows the drain. */}}
{{- define "lodestone.checkDrain" -}}
{{- $wait := ternary 5 .Values.drain.waitSeconds (eq (toString .Values.drain.waitSeconds) "") | int }}
{{- $timeout := ternary 10 .Values.drain.timeoutSeconds (eq (toString .Values.drain.timeoutSeconds) "") | int }}
{{- $least := add $wait $timeout 10 }}
{{- if gt $least (int .Values.terminationGracePeriodSeconds) }}
{{- fail (printf "terminationGracePeriodSeconds: is %v; drain.waitSeconds %v, drain.timeoutSeconds %v and 10 for the last flush need at least %v" .Values.terminationGracePeriodSeconds $wait $timeout $least) }}
{{- end }}
{{- end }}

{{/* Checks that the network policy lets through what other values need. */}}
{{- define "lodestone.checkNetworkPolicy" -}}
{{- $policy := .Values.networkPolicy }}
{{- if $policy.enabled }}
{{- if and .Values.metrics.serviceMonitor.enabled (not $policy.metrics) }}
{{- fail "networkPolicy.metrics: is empty, so Prometheus cannot read the metrics of metrics.serviceMonitor; name its pods" }}
{{- end }}
{{- $remote := dict "tracing.otlpEndpoint" .Values.tracing.otlpEndpoint }}
{{- if .Values.retrain.enabled }}
{{- $_ := set $remote "retrain.store" .Values.retrain.store }}
{{- end }}
{{- $_ := set $remote "security.jwt.jwks" .Values.security.jwt.jwks }}
{{- range $path, $url := $remote }}
{{- if and (contains "://" $url) (not $policy.egress) }}
{{- fail (printf "networkPolicy.egress: is empty, so the server cannot reach %s, %s" $path $url) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks values that depend on each other, as far as the schema cannot. */}}
{{- define "lodestone.check" -}}
{{- include "lodestone.checkSecurity" . }}
{{- include "lodestone.checkConfig" . }}
{{- include "lodestone.checkDrain" . }}
{{- include "lodestone.checkNetworkPolicy" . }}
{{- if and .Values.metrics.enabled (eq (int .Values.metrics.port) (int .Values.service.port)) }}
{{- fail (printf "metrics.port: %v is service.port; the two must differ" .Values.metrics.port) }}
{{- end }}
{{- $labels := include "lodestone.labels" . | fromYaml }}
{{- range $key, $_ := .Values.podLabels }}
{{- if hasKey $labels $key }}
{{- fail (printf "podLabels: the chart sets %s; services select the pod by the chart's labels" $key) }}
{{- end }}
{{- end }}
{{- if and .Values.serving (hasKey .Values.podAnnotations "checksum/serving") }}
{{- fail "podAnnotations: the chart sets checksum/serving, which restarts the pod when `serving` changes" }}
{{- end }}
{{- with .Values.catalogs }}
{{- if hasKey $.Values.podAnnotations "checksum/catalogs" }}
{{- fail "podAnnotations: the chart sets checksum/catalogs, which restarts the pod when `catalogs` changes" }}
{{- end }}
{{- $file := fromToml . }}
{{- if not (kindIs "map" $file.catalogs) }}
{{- fail (printf "catalogs: is not TOML with a table [catalogs.NAME] %v" ($file.Error | default "")) }}
{{- end }}
{{- range $name, $catalog := $file.catalogs }}
{{- $data := dig "data" "" $catalog | toString }}
{{- if or (not (hasPrefix "/data/" $data)) (contains ".." $data) }}
{{- fail (printf "catalogs: catalogs.%s.data is `%s`; only directories below /data are on the volume" $name $data) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The pod's annotations. Those of the values take precedence over the chart's, such as prometheus.io/path. */}}
{{- define "lodestone.podAnnotations" -}}
{{- $annotations := dict }}
{{- with .Values.serving }}
{{- $_ := set $annotations "checksum/serving" (sha256sum .) }}
{{- end }}
{{- with .Values.catalogs }}
{{- $_ := set $annotations "checksum/catalogs" (sha256sum .) }}
{{- end }}
{{- with .Values.config }}
{{- $_ := set $annotations "checksum/config" (sha256sum .) }}
{{- end }}
{{- /* A service monitor and the annotations together would scrape the pod twice. */}}
{{- if and .Values.metrics.enabled (not .Values.metrics.serviceMonitor.enabled) }}
{{- $_ := set $annotations "prometheus.io/scrape" "true" }}
{{- $_ := set $annotations "prometheus.io/port" (.Values.metrics.port | int | toString) }}
{{- $_ := set $annotations "prometheus.io/path" "/metrics" }}
{{- end }}
{{- range $key, $value := .Values.podAnnotations }}
{{- $_ := set $annotations $key $value }}
{{- end }}
{{- include "lodestone.texts" (dict "path" "podAnnotations" "map" $annotations) }}
{{- end }}

{{/* The chart's name, at most 53 characters so that the suffixes fit. */}}
{{- define "lodestone.name" -}}
{{- include "lodestone.text" (dict "path" "nameOverride" "value" (default .Chart.Name .Values.nameOverride)) | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* The name of the objects: the release's and the chart's, or only the release's if it contains the chart's. */}}
{{- define "lodestone.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- include "lodestone.text" (dict "path" "fullnameOverride" "value" .Values.fullnameOverride) | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "lodestone.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The labels by which services and the stateful set select the server's pod. */}}
{{- define "lodestone.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lodestone.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels of all objects. */}}
{{- define "lodestone.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "lodestone.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An image's reference. Takes a dict: path, image, and tag, which applies if the image has no tag. */}}
{{- define "lodestone.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- $tag := include "lodestone.text" (dict "path" (printf "%s.tag" .path) "value" .image.tag) }}
{{- printf "%s:%s" .image.repository (default .tag $tag) }}
{{- end }}
{{- end }}

{{/* The security context of every container: the "restricted" level of the pod security standards, and no writes except to
     volumes. */}}
{{- define "lodestone.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop:
    - ALL
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* A probe. Takes a dict: top (the chart), values (periodSeconds, failureThreshold), path of HTTP, service of
     grpc.health.v1. */}}
{{- define "lodestone.probe" -}}
{{- if eq .top.Values.probes.type "http" -}}
httpGet:
  path: {{ .path }}
  port: metrics
{{- else -}}
grpc:
  port: {{ .top.Values.service.port }}
  service: {{ .service | quote }}
{{- end }}
periodSeconds: {{ .values.periodSeconds }}
failureThreshold: {{ .values.failureThreshold }}
timeoutSeconds: 3
{{- end }}

{{/* The settings of the pods of jobs that need the data volume, up to their containers. */}}
{{- define "lodestone.jobPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.runAsUser }}
  runAsGroup: {{ .Values.runAsGroup }}
  fsGroup: {{ .Values.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
# The data volume is attached to the server's node only.
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "lodestone.selectorLabels" . | nindent 12 }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of the pods of a job: other ones than the server's, because the service must not send requests to them.
     Takes a dict: top (the chart), job. */}}
{{- define "lodestone.jobLabels" -}}
app.kubernetes.io/name: {{ include "lodestone.name" .top }}-{{ .job }}
app.kubernetes.io/instance: {{ .top.Release.Name }}
{{- end }}
