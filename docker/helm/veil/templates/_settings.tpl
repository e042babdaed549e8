{{/* A setting as text. Helm holds numbers as floats, and would write 100000000 as 1e+08. */}}
{{- define "veil.text" -}}
{{- kindIs "string" . | ternary . (toJson .) | quote }}
{{- end }}

{{/* Fail if the variable `name` is a secret, or its `value` contains one. `place` is where it stands. */}}
{{- define "veil.refuseSecret" -}}
{{- $problem := "" }}
{{- if regexMatch "(PASSWORD|TOKEN|SECRET|AUTH|DSN|ACCESS_KEY|ACCESS_KEY_ID|RECEIPT_KEY|NOTIFY_KEY|NAMES_KEY|HEADERS)$" .name }}
{{- $problem = "is a secret" }}
{{- else if regexMatch "://[^@/]*:[^@/]*@|[?&]ssl_password=" (toString .value) }}
{{- $problem = "contains a password" }}
{{- end }}
{{- if $problem }}
{{- fail (printf "%s%s %s: move it to an existing Secret, and name that in `secrets`" .place .name $problem) }}
{{- end }}
{{- end }}

{{/* The enabled components that read the routes, with their values and settings, as YAML. */}}
{{- define "veil.routeReaders" -}}
{{- $own := .Values.triggers.settings }}
{{- $readers := dict "worker" (dict "values" .Values.worker "settings" dict) "review" (dict "values" .Values.review "settings" dict) }}
{{- range $name, $values := omit .Values.triggers "settings" }}
{{- $_ := set $readers (printf "triggers.%s" $name) (dict "values" $values "settings" $own) }}
{{- end }}
{{- range $name, $reader := $readers }}
{{- if $reader.values.enabled }}
{{ $name }}: {{ dict "mounts" $reader.values.volumeMounts "settings" $reader.settings | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fail without routes, with two lists of them, and without the file that VEIL_ROUTES_FILE names. */}}
{{- define "veil.checkRoutes" -}}
{{- $given := dict }}
{{- range concat .Values.env .Values.secrets.all }}
{{- $_ := set $given (.name | default .variable) "from elsewhere" }}
{{- end }}
{{- range $name, $reader := include "veil.routeReaders" . | fromYaml }}
{{- $settings := merge dict $reader.settings $given $.Values.settings }}
{{- $file := $settings.VEIL_ROUTES_FILE | default "" }}
{{- if and $settings.VEIL_ROUTES $file }}
{{- fail "VEIL_ROUTES and VEIL_ROUTES_FILE are set: keep one of them" }}
{{- end }}
{{- if not (or $settings.VEIL_ROUTES $file) }}
{{- fail (printf "%s needs routes: settings.VEIL_ROUTES, such as s3://camera-uploads=s3://camera-clean, or VEIL_ROUTES_FILE" $name) }}
{{- end }}
{{- $found := or (not $file) (eq $file "from elsewhere") (hasKey $.Values.files (trimPrefix "/etc/veil/" $file)) }}
{{- range $reader.mounts }}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $file) }}{{ $found = true }}{{ end }}
{{- end }}
{{- if not $found }}
{{- fail (printf "%s has no file %s, which VEIL_ROUTES_FILE names: put it into `files`, which are mounted on /etc/veil, or mount it with volumeMounts" $name $file) }}
{{- end }}
{{- end }}
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
