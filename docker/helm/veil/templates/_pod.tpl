{{/*
The parts that all pods share. The argument has the root, the name of the component, its values, the variables of
`secrets` that the component needs, and the list `env` if it has variables of its own.
*/}}

{{- define "veil.podMetadata" -}}
labels:
  {{- include "veil.selector" . | nindent 2 }}
  {{- with include "veil.kept" .values.labels | fromJson }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A change of the settings or the files restarts the pods.
  checksum/settings: {{ list (include "veil.kept" .root.Values.settings | fromJson) (include "veil.kept" .root.Values.files | fromJson) | toJson | sha256sum }}
  {{- with include "veil.kept" .values.annotations | fromJson }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "veil.podSpec" -}}
serviceAccountName: {{ include "veil.serviceAccountName" . }}
automountServiceAccountToken: false
# Otherwise Kubernetes adds variables for each Service of the namespace, and Veil refuses unknown VEIL_ variables.
enableServiceLinks: false
# As process 1, Python would ignore a SIGTERM that arrives before it has a handler.
shareProcessNamespace: true
securityContext:
  runAsNonRoot: true
  {{- with .root.Values.user }}
  runAsUser: {{ int . }}
  runAsGroup: {{ int . }}
  fsGroup: {{ int . }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "veil.kept" .values.pod | fromJson }}
{{ toYaml . }}
{{- end }}
{{- with .values.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - labelSelector:
      matchLabels:
        {{- include "veil.selector" $ | nindent 8 }}
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .values.tmp }}}
  {{- if include "veil.kept" .root.Values.files | fromJson }}
  - name: files
    configMap: {name: {{ include "veil.fullname" .root }}-files}
  {{- end }}
  {{- with .values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "veil.container" -}}
name: {{ .component }}
image: {{ include "veil.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
envFrom:
  - configMapRef: {name: {{ include "veil.fullname" .root }}}
{{- $env := concat (.env | default list) .root.Values.env }}
{{- if or .secrets $env }}
env:
  {{- include "veil.secrets" .secrets | trimPrefix "\n" | nindent 2 }}
  {{- with $env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
resources:
  {{- include "veil.kept" .values.resources | fromJson | toYaml | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if include "veil.kept" .root.Values.files | fromJson }}
  - {name: files, mountPath: /etc/veil, readOnly: true}
  {{- end }}
  {{- with .values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/*
No probe that restarts a pod tests Redis: while it is unavailable the process waits, and a restart would not help.
*/}}
{{- define "veil.metricsProbes" -}}
# Only this path is answered without asking Redis, for which a probe would wait too long.
startupProbe:
  httpGet: {path: /favicon.ico, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: {{ .startupTries }}
livenessProbe:
  httpGet: {path: /favicon.ico, port: metrics}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 4
{{- end }}

{{- define "veil.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "veil.metadata" . | nindent 2 }}
spec:
  {{- toYaml .values.disruptionBudget | nindent 2 }}
  selector:
    matchLabels:
      {{- include "veil.selector" . | nindent 6 }}
{{- end }}

{{- define "veil.service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "veil.metadata" . | nindent 2 }}
spec:
  selector:
    {{- include "veil.selector" . | nindent 4 }}
  ports:
    - {name: {{ .portName }}, port: {{ .port }}, targetPort: {{ .portName }}}
{{- end }}

{{- define "veil.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "veil.metadata" . | nindent 2 }}
  {{- with include "veil.kept" .values.ingress.annotations | fromJson }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .values.ingress }}
  {{- with .className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .tlsSecret }}
  tls:
    - {hosts: [{{ $.values.ingress.host | quote }}], secretName: {{ . }}}
  {{- end }}
  rules:
    - host: {{ .host | quote }}
      http:
        paths:
          - path: {{ .path }}
            pathType: Prefix
            backend:
              service: {name: {{ include "veil.fullname" $.root }}-{{ $.component }}, port: {name: {{ $.portName }}}}
  {{- end }}
{{- end }}
