{{- define "tollhouse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that every name made from it stays a DNS label. */}}
{{- define "tollhouse.fullname" -}}
{{- $name := include "tollhouse.name" . -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- $full | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* (list $ "proxy") */}}
{{- define "tollhouse.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "tollhouse.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "tollhouse.labels" -}}
{{- $root := index . 0 -}}
{{ include "tollhouse.selector" . }}
app.kubernetes.io/version: {{ $root.Values.image.tag | default $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* Pods carry no chart version: a new chart with the same image leaves running streams alone. */}}
{{- define "tollhouse.podLabels" -}}
{{ include "tollhouse.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Values.image.tag | default (index . 0).Chart.AppVersion | quote }}
{{- end -}}

{{- define "tollhouse.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "tollhouse.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "tollhouse.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* The port of the collector of traces. */}}
{{- define "tollhouse.collectorPort" -}}
{{- $url := urlParse .Values.config.otlp_endpoint -}}
{{- $usual := dict "https" "443" "http" "80" -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (dig $url.scheme "4318" $usual) -}}
{{- if and (eq $port "80") (not .Values.networkPolicy.collectorTo) -}}
{{- fail "networkPolicy.collectorTo: say where the collector is; port 80 of every address is also the instance metadata's" -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{/* Seconds one call may take; the default is that of TOLLHOUSE_CALL_SECONDS. */}}
{{- define "tollhouse.callSeconds" -}}
{{- int (default 3600 .Values.config.call_seconds) -}}
{{- end -}}

{{/* Seconds the load balancer keeps a connection to a pod that nothing passes over: ALB its idle time-out, ingress-nginx its upstream-keepalive-timeout. */}}
{{- define "tollhouse.balancerSeconds" -}}
{{- if .Values.ingress.enabled -}}
{{- if eq .Values.ingress.controller "alb" -}}
{{- min (add (include "tollhouse.callSeconds" . | int) 60) 4000 -}}
{{- else if eq .Values.ingress.controller "nginx" -}}
60
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tollhouse.shutdownSeconds" -}}
{{- add (include "tollhouse.callSeconds" . | int) (int .Values.proxy.settleSeconds) -}}
{{- end -}}

{{- define "tollhouse.graceSeconds" -}}
{{- $least := add (int .Values.proxy.preStopSeconds) (include "tollhouse.shutdownSeconds" . | int) 30 | int -}}
{{- $given := .Values.proxy.terminationGracePeriodSeconds -}}
{{- if $given -}}
{{- if lt (int $given) $least -}}
{{- fail (printf "proxy.terminationGracePeriodSeconds: %d would cut calls that are paid for; at least %d (preStopSeconds + config.call_seconds + settleSeconds + 30)" (int $given) $least) -}}
{{- end -}}
{{- int $given -}}
{{- else -}}
{{- $least -}}
{{- end -}}
{{- end -}}

{{/* Replicas that may share the limits while Redis is away. */}}
{{- define "tollhouse.mostReplicas" -}}
{{- if .Values.autoscaling.enabled }}{{ int .Values.autoscaling.maxReplicas }}{{ else }}{{ int .Values.proxy.replicas }}{{ end -}}
{{- end -}}

{{- define "tollhouse.adminPortName" -}}
{{- ternary "admin" "http" .Values.admin.separatePort -}}
{{- end -}}

{{- define "tollhouse.scheme" -}}
{{- ternary "HTTPS" "HTTP" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{- define "tollhouse.hasPolicies" -}}
{{- if or .Values.policies.files .Values.policies.existingConfigMap }}true{{ end -}}
{{- end -}}

{{- define "tollhouse.policiesConfigMap" -}}
{{- .Values.policies.existingConfigMap | default (printf "%s-policies" (include "tollhouse.fullname" .)) -}}
{{- end -}}

{{- define "tollhouse.podSecurityContext" -}}
{{- toYaml .Values.podSecurityContext -}}
{{- end -}}

{{/* Where metrics come from, for ServiceMonitor and PodMonitor alike. */}}
{{- define "tollhouse.monitoredComponents" -}}
- key: app.kubernetes.io/component
  operator: In
  values: [proxy, worker]
{{- end -}}
