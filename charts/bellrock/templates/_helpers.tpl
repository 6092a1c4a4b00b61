{{- define "bellrock.fullname" -}}
{{- if contains "bellrock" .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-bellrock" .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "bellrock.controller" -}}
{{ include "bellrock.fullname" . }}-controller
{{- end -}}

{{- define "bellrock.speaker" -}}
{{ include "bellrock.fullname" . }}-speaker
{{- end -}}

{{- define "bellrock.webhook" -}}
{{ include "bellrock.fullname" . }}-webhook
{{- end -}}

{{- define "bellrock.l2Secret" -}}
{{ .Values.l2.existingSecret | default (printf "%s-l2" (include "bellrock.fullname" .)) }}
{{- end -}}

{{- define "bellrock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "bellrock.selector" -}}
app.kubernetes.io/name: bellrock
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bellrock.labels" -}}
{{ include "bellrock.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What every container is told. */}}
{{- define "bellrock.env" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{ include "bellrock.logEnv" . }}
{{- end -}}

{{- define "bellrock.logEnv" -}}
- name: BELLROCK_LOG
  value: {{ .Values.logLevel | quote }}
- name: BELLROCK_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
{{- end -}}

{{- define "bellrock.scheduling" -}}
priorityClassName: {{ .priorityClassName }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
