{{/* A setting as text. Helm holds numbers as floats, and would write 100000000 as 1e+08. */}}
{{- define "veil.text" -}}
{{- kindIs "string" . | ternary . (toJson .) | quote }}
{{- end }}

{{/* A map as JSON, without values that are null, by which a later file drops those of an earlier one. */}}
{{- define "veil.kept" -}}
{{- $kept := dict }}
{{- range $name, $value := . }}
{{- if kindIs "map" $value }}
{{- $_ := set $kept $name (include "veil.kept" $value | fromJson) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $_ := set $kept $name $value }}
{{- end }}
{{- end }}
{{- toJson $kept }}
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
{{- $own := .Values.triggers.settings | default dict }}
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

{{/* Fail without routes, with two lists of them, and for a component without the file that VEIL_ROUTES_FILE names. */}}
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
{{- if and $file (ne $file "from elsewhere") }}
{{- include "veil.checkFile" (dict "root" $ "file" $file "mounts" $reader.mounts "who" $name "setting" "VEIL_ROUTES_FILE") }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fail if `who` has no `file`, which `setting` names: neither in `files` nor below one of the `mounts`. */}}
{{- define "veil.checkFile" -}}
{{- $found := get .root.Values.files (trimPrefix "/etc/veil/" .file) }}
{{- range .mounts }}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $.file) }}{{ $found = true }}{{ end }}
{{- end }}
{{- if not $found }}
{{- fail (printf "%s has no file %s, which %s names: put it into `files`, which are mounted on /etc/veil, or mount it with volumeMounts" .who .file .setting) }}
{{- end }}
{{- end }}

{{/* Fail for a setting that names a file in /etc/veil, such as a certificate in VEIL_REDIS_URL, if no pod has it. */}}
{{- define "veil.checkFiles" -}}
{{- $mounts := list }}
{{- range concat (values (omit .Values.triggers "settings")) (list .Values.worker .Values.review .Values.flower) }}
{{- if .enabled }}{{ $mounts = concat $mounts (.volumeMounts | default list) }}{{ end }}
{{- end }}
{{- $given := list .Values.settings (.Values.triggers.settings | default dict) }}
{{- range .Values.env }}{{ $given = append $given (dict .name .value) }}{{ end }}
{{- range $settings := $given }}
{{- range $name, $value := include "veil.kept" $settings | fromJson }}
{{- range regexFindAll "/etc/veil/[A-Za-z0-9._/-]+" (toString $value) -1 }}
{{- include "veil.checkFile" (dict "root" $ "file" . "mounts" $mounts "who" "the release" "setting" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fail for an address of the metrics at which the probes do not reach a pod, and for one of some pods alone. */}}
{{- define "veil.checkMetrics" -}}
{{- if not (regexMatch "^(0[.]0[.]0[.]0|\\[::\\]):[0-9]+$" .Values.settings.VEIL_METRICS) }}
{{- $port := include "veil.metricsPort" . }}
{{- fail (printf "settings.VEIL_METRICS is %s, at which neither the probes nor Prometheus reach a pod: write 0.0.0.0:%s, or \"[::]:%s\" with IPv6 alone" .Values.settings.VEIL_METRICS $port $port) }}
{{- end }}
{{- $elsewhere := list }}
{{- with get (.Values.triggers.settings | default dict) "VEIL_METRICS" }}{{ $elsewhere = append $elsewhere "triggers.settings" }}{{ end }}
{{- range .Values.env }}{{ if eq .name "VEIL_METRICS" }}{{ $elsewhere = append $elsewhere "env" }}{{ end }}{{ end }}
{{- with $elsewhere }}
{{- fail (printf "%s: VEIL_METRICS has its place in `settings` alone, where the probes of all pods find the port" (first .)) }}
{{- end }}
{{- $port := include "veil.metricsPort" . }}
{{- if and (eq $port "8080") .Values.triggers.webhook.enabled }}
{{- fail (printf "settings.VEIL_METRICS has the port %s, at which the webhook listens: choose another one" $port) }}
{{- end }}
{{- end }}

{{/* Fail if the `args` of `place` have one of the `flags` that the chart gives the command itself. */}}
{{- define "veil.refuseFlags" -}}
{{- range $argument := .args }}
{{- range $flag, $instead := $.flags }}
{{- $given := regexReplaceAll "^-+" (regexFind "^--?[A-Za-z_-]+" $argument) "" | replace "_" "-" }}
{{- if eq $given $flag }}
{{- fail (printf "%s.args has %s, which the chart sets itself: %s" $.place $argument $instead) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fail for flags in `args` that contradict those of the chart. */}}
{{- define "veil.checkFlags" -}}
{{- $host := "leave it out; all pods listen at the host of settings.VEIL_METRICS" }}
{{- $triggers := dict "http" "triggers.webhook.enabled starts it, at the host of settings.VEIL_METRICS"
  "sqs" "use triggers.sqs.enabled and queueUrl" "poll" "use triggers.poll.enabled and seconds" }}
{{- range $name, $values := omit .Values.triggers "settings" }}
{{- include "veil.refuseFlags" (dict "place" (printf "triggers.%s" $name) "args" $values.args "flags" $triggers) }}
{{- end }}
{{- $one := "a pod has one worker, and worker.replicas is their number" }}
{{- include "veil.refuseFlags" (dict "place" "worker" "args" .Values.worker.args "flags" (dict "workers" $one "w" $one)) }}
{{- include "veil.refuseFlags" (dict "place" "review" "args" .Values.review.args "flags" (dict "http" $host)) }}
{{- $flower := dict "app" "it is tasks.app" "A" "it is tasks.app" "address" $host "port" "the Service has port 5555"
  "url-prefix" "use flower.ingress.path" "db" "use flower.existingClaim" "persistent" "use flower.existingClaim" }}
{{- include "veil.refuseFlags" (dict "place" "flower" "args" .Values.flower.args "flags" $flower) }}
{{- end }}

{{/* Fail if workers have a password of Redis or its sentinels that KEDA lacks. `parameters` are those of KEDA. */}}
{{- define "veil.checkKeda" -}}
{{- $given := list }}
{{- range $name, $value := .root.Values.settings }}{{ if $value }}{{ $given = append $given $name }}{{ end }}{{ end }}
{{- range .root.Values.env }}{{ $given = append $given .name }}{{ end }}
{{- range pick .root.Values.secrets "all" "store" "worker" }}
{{- range . }}{{ $given = append $given .variable }}{{ end }}
{{- end }}
{{- $known := list }}
{{- range .parameters }}{{ $known = append $known .parameter }}{{ end }}
{{- range $variable, $parameter := .passwords }}
{{- range $name := list $variable (printf "%s_FILE" $variable) }}
{{- if and (has $name $given) (not (has $parameter $known)) }}
{{- fail (printf "autoscaling.enabled needs the password of %s for KEDA too: name its Secret in autoscaling.authentication, as {parameter: %s, name: SECRET, key: KEY}" $name $parameter) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The host at which all pods listen, as that of VEIL_METRICS: 0.0.0.0 or [::]. */}}
{{- define "veil.host" -}}
{{- trimSuffix (printf ":%s" (include "veil.metricsPort" .)) .Values.settings.VEIL_METRICS }}
{{- end }}

{{/* The port of VEIL_METRICS, HOST:PORT. */}}
{{- define "veil.metricsPort" -}}
{{- splitList ":" .Values.settings.VEIL_METRICS | last }}
{{- end }}

{{/* The parts of VEIL_REDIS_URL as YAML: tls, sentinels, user (decoded), hosts (with ports) and database. */}}
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
user: {{ (regexReplaceAll $pattern $url "redis://redis/${4}" | trimSuffix ":" | urlParse).path | trimPrefix "/" | toJson }}
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
