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

{{/* Checks values that depend on each other. */}}
{{- define "lodestone.check" -}}
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
{{- if .Values.metrics.enabled }}
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

{{/* A probe of grpc.health.v1. Takes a dict: values (periodSeconds, failureThreshold), port, service. */}}
{{- define "lodestone.probe" -}}
grpc:
  port: {{ .port }}
  service: {{ .service | quote }}
periodSeconds: {{ .values.periodSeconds }}
failureThreshold: {{ .values.failureThreshold }}
timeoutSeconds: 3
{{- end }}
