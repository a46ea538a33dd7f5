{{/* The name of everything of the proxies: that of the release, with the chart's if it is not in it. */}}
{{- define "heliosproxy.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* The same for the control planes. */}}
{{- define "heliosproxy.controlplane" -}}
{{ include "heliosproxy.name" . }}-controlplane
{{- end }}

{{/* What selects the pods of a component: a list of the context and the component's name. */}}
{{- define "heliosproxy.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: heliosproxy
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of a component. */}}
{{- define "heliosproxy.labels" -}}
{{- $context := index . 0 -}}
{{ include "heliosproxy.selector" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version }}
{{- end }}

{{/* An image: a list of the context and the values of the image. */}}
{{- define "heliosproxy.image" -}}
{{- $context := index . 0 -}}
{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default (printf "v%s" $context.Chart.AppVersion) }}
{{- end }}

{{/* Variables for the configuration. */}}
{{- define "heliosproxy.environment" -}}
{{- with .Values.existingSecret -}}
envFrom:
  - secretRef:
      name: {{ . }}
{{ end -}}
env:
  - name: POD_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
{{- end }}

{{/* Liveness does not look at databases; readiness goes at SIGTERM. No more rights than the programs need. */}}
{{- define "heliosproxy.hardened" -}}
livenessProbe:
  httpGet:
    path: /health/live
    port: admin
readinessProbe:
  httpGet:
    path: /health/ready
    port: admin
securityContext:
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  seccompProfile:
    type: RuntimeDefault
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Where Prometheus looks without an operator. */}}
{{- define "heliosproxy.scraped" -}}
{{- if not .Values.serviceMonitor.enabled -}}
prometheus.io/scrape: "true"
prometheus.io/port: "9090"
{{- end }}
{{- end }}
