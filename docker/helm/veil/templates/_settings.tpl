{{/* A setting as text. Helm holds numbers as floats, and would write 100000000 as 1e+08. */}}
{{- define "veil.text" -}}
{{- kindIs "string" . | ternary . (toJson .) | quote }}
{{- end }}

{{/* The port of VEIL_METRICS, HOST:PORT. */}}
{{- define "veil.metricsPort" -}}
{{- splitList ":" .Values.settings.VEIL_METRICS | last }}
{{- end }}

{{/* The parts of VEIL_REDIS_URL as YAML: tls, sentinels, user, hosts (with ports) and database. */}}
{{- define "veil.redis" -}}
{{- $url := .Values.settings.VEIL_REDIS_URL }}
{{- $pattern := "^(redis|sentinel)(s?)://(([^@/]*)@)?([^/?@]+)(/([0-9]*))?.*$" }}
{{- $sentinels := hasPrefix "sentinel" $url }}
{{- $hosts := list }}
{{- range splitList "," (regexReplaceAll $pattern $url "${5}") }}
{{- $port := $sentinels | ternary "26379" "6379" }}
{{- $hosts = append $hosts (regexMatch ":[0-9]+$" . | ternary . (printf "%s:%s" . $port)) }}
{{- end }}
tls: {{ eq "s" (regexReplaceAll $pattern $url "${2}") }}
sentinels: {{ $sentinels }}
user: {{ regexReplaceAll $pattern $url "${4}" | trimSuffix ":" | quote }}
hosts: {{ toJson $hosts }}
database: {{ regexReplaceAll $pattern $url "${7}" | default "0" | quote }}
{{- end }}

{{/* The host and port of Redis, or of a sentinel, for pods of other namespaces: they do not find the Services of this one. */}}
{{- define "veil.address" -}}
{{- regexReplaceAll "^([A-Za-z0-9-]+):" .host (printf "${1}.%s:" .root.Release.Namespace) }}
{{- end }}

{{/* The ports of the store, and of SQS, STS and a proxy if they are in use, as JSON. Veil finds the addresses likewise. */}}
{{- define "veil.storePorts" -}}
{{- $settings := .Values.settings }}
{{- $other := $settings.AWS_ENDPOINT_URL }}
{{- $addresses := list (coalesce $settings.VEIL_S3_ENDPOINT $settings.AWS_ENDPOINT_URL_S3 $other "https://") }}
{{- if .Values.triggers.sqs.enabled }}
{{- $addresses = append $addresses (coalesce $settings.AWS_ENDPOINT_URL_SQS .Values.triggers.sqs.queueUrl) }}
{{- end }}
{{- if or $settings.VEIL_S3_SOURCE_ROLE $settings.VEIL_S3_OUTPUT_ROLE }}
{{- $addresses = append $addresses (coalesce $settings.AWS_ENDPOINT_URL_STS $other "https://") }}
{{- end }}
{{- with $settings.HTTPS_PROXY }}{{ $addresses = append $addresses . }}{{ end }}
{{- $ports := list }}
{{- range $addresses }}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" }}
{{- $ports = append $ports ($port | default (hasPrefix "http://" . | ternary "80" "443") | int) }}
{{- end }}
{{- uniq $ports | toJson }}
{{- end }}

{{/* Environment variables from Secrets. */}}
{{- define "veil.secrets" -}}
{{- range . }}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}{{ if .optional }}, optional: true{{ end }}}}
{{- end }}
{{- end }}
