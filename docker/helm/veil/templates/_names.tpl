{{/* The prefix of all names: `veil` for a release of that name. */}}
{{- define "veil.fullname" -}}
{{- $name := .Release.Name }}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end }}
{{- .Values.fullnameOverride | default $name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The labels by which selectors find the pods of a component, or of the release. They never change. */}}
{{- define "veil.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* The metadata of a resource, whose name ends with `suffix`, or with that of its component. */}}
{{- define "veil.metadata" -}}
name: {{ include "veil.fullname" .root }}{{ with .suffix | default .component }}-{{ . }}{{ end }}
labels:
  {{- include "veil.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "veil.image" -}}
{{- $pin := get (.root.Values.image.pins | default dict) .image | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- printf "%s/%s%s%s" .root.Values.image.repository .image (hasPrefix "sha256:" $pin | ternary "@" ":") $pin }}
{{- end }}

{{- define "veil.serviceAccountName" -}}
{{- with .values.serviceAccount }}
{{- .name | default (.create | ternary (printf "%s-%s" (include "veil.fullname" $.root) $.component) "default") }}
{{- end }}
{{- end }}
