{{/* The whole policy folder in one volume: a change swaps every file at once. */}}
{{- define "tollhouse.policiesVolume" -}}
{{- if include "tollhouse.hasPolicies" . -}}
- name: policies
  configMap:
    name: {{ include "tollhouse.policiesConfigMap" . }}
    items:
      {{- if .Values.policies.existingConfigMap }}
      {{- if not .Values.policies.items }}{{ fail "policies.items: say which key is which file" }}{{ end }}
      {{- toYaml .Values.policies.items | nindent 6 }}
      {{- else }}
      {{- range $path, $_ := .Values.policies.files }}
      - {key: {{ $path | replace "/" "__" }}, path: {{ $path }}}
      {{- end }}
      {{- end }}
{{- end -}}
{{- end -}}

{{- define "tollhouse.policiesMount" -}}
{{- if include "tollhouse.hasPolicies" . -}}
- {name: policies, mountPath: /etc/tollhouse/policies, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "tollhouse.policiesEnv" -}}
{{- if include "tollhouse.hasPolicies" . -}}
- name: TOLLHOUSE_POLICIES_DIR
  value: /etc/tollhouse/policies
{{- end -}}
{{- end -}}

{{/* Soft spread over zones and nodes, or what the values say: (list $ "proxy" constraints) */}}
{{- define "tollhouse.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- with index . 2 -}}
{{- toYaml . -}}
{{- else -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "tollhouse.selector" (list $root $component) | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}
{{- end -}}

{{/* Placement, the same keys in every component's values: (list $ "proxy" values) */}}
{{- define "tollhouse.placement" -}}
{{- $values := index . 2 -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- include "tollhouse.spread" (list (index . 0) (index . 1) $values.topologySpreadConstraints) | trim | nindent 2 }}
{{- end -}}
