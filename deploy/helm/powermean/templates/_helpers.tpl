{{- define "powermean.labels" -}}
app.kubernetes.io/name: powermean
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{/* Never root, and nothing that a process could gain by exec. */}}
{{- define "powermean.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "powermean.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* A map of settings, each given once: {"settings": ..., "files": ...}. */}}
{{- define "powermean.env" -}}
{{- range $name, $value := .settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range $name, $key := .files }}
- {name: {{ $name }}_FILE, value: /run/secrets/powermean/{{ $key }}}
{{- end }}
{{- end }}

{{- define "powermean.secretVolume" -}}
- name: secret
  secret:
    secretName: {{ .root.Values.secret }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}

{{- define "powermean.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "powermean.artefacts" -}}
{{ .Values.artefactsUrl | default "file:///data/artefacts" }}
{{- end }}

{{- define "powermean.claim" -}}
{{ .claim.existingClaim | default (printf "%s-%s" .root.Release.Name .name) }}
{{- end }}

{{- define "powermean.peer" -}}
- podSelector:
    matchLabels: {{- include "powermean.labels" . | nindent 6 }}
{{- end }}
