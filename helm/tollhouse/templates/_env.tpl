{{/* One secret as an environment variable: (list $ "TOLLHOUSE_REDIS_URL" "redisUrl" optional chartMadeSecretSuffix) */}}
{{- define "tollhouse.secretEnv" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $entry := index $root.Values.secrets (index . 2) -}}
{{- $optional := index . 3 -}}
{{- $own := printf "%s-%s" (include "tollhouse.fullname" $root) (index . 4) -}}
{{- $secret := ternary $own (default $root.Values.existingSecret $entry.existingSecret) (ne $entry.value "") -}}
{{- if not $secret -}}
{{- if not $optional -}}
{{- fail (printf "secrets.%s: name a Secret that holds it (existingSecret), or give its value" (index . 2)) -}}
{{- end -}}
{{- else -}}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $entry.key }}
      {{- if and $optional (not $entry.value) }}
      optional: true
      {{- end }}
{{ end -}}
{{- end -}}

{{/* Settings that are not secret and hold for every process. */}}
{{- define "tollhouse.configEnv" -}}
{{- range $key, $value := .Values.config }}
- name: TOLLHOUSE_{{ upper $key }}
  {{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
  value: {{ printf "%d" (int64 $value) | quote }}
  {{- else }}
  value: {{ toString $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "tollhouse.runtimeSecrets" -}}
{{ include "tollhouse.secretEnv" (list . "TOLLHOUSE_DATABASE_URL" "databaseUrl" false "secrets") }}
{{- include "tollhouse.secretEnv" (list . "TOLLHOUSE_REDIS_URL" "redisUrl" false "secrets") }}
{{- include "tollhouse.secretEnv" (list . "TOLLHOUSE_MASTER_KEY" "masterKey" false "secrets") }}
{{- include "tollhouse.secretEnv" (list . "TOLLHOUSE_PREVIOUS_MASTER_KEY" "previousMasterKey" true "secrets") }}
{{- end -}}

{{- define "tollhouse.awsEnv" -}}
- name: TOLLHOUSE_AWS_REGION
  value: {{ .Values.aws.region | quote }}
- name: AWS_REGION
  value: {{ .Values.aws.region | quote }}
{{- with .Values.aws.endpointUrl }}
- name: TOLLHOUSE_BEDROCK_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.aws.controlEndpointUrl }}
- name: TOLLHOUSE_BEDROCK_CONTROL_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.aws.credentialsSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: access-key-id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: secret-access-key}}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: session-token, optional: true}}
{{- end }}
- name: AWS_EC2_METADATA_DISABLED
  value: "true"
{{- end -}}

{{- define "tollhouse.listenEnv" -}}
- name: TOLLHOUSE_HOST
  value: {{ .Values.listenAddress | quote }}
- name: TOLLHOUSE_METRICS_PORT
  value: {{ int .Values.metrics.port | quote }}
{{- end -}}
