{{- define "oscar.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "oscar.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "oscar.selector" -}}
app.kubernetes.io/name: {{ include "oscar.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "oscar.labels" -}}
{{ include "oscar.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "oscar.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "oscar.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "oscar.fullname" .) }}
{{- end -}}

{{- define "oscar.secret" -}}
{{ .Values.admin.existingSecret | default (include "oscar.fullname" .) }}
{{- end -}}

{{- define "oscar.minio" -}}
{{ include "oscar.fullname" . }}-minio
{{- end -}}

{{- define "oscar.internalUrl" -}}
http://{{ include "oscar.fullname" . }}.{{ .Release.Namespace }}.svc:8080
{{- end -}}

{{- define "oscar.s3Internal" -}}
{{- if .Values.store.internalEndpoint -}}
{{ .Values.store.internalEndpoint }}
{{- else if eq .Values.store.kind "embedded" -}}
http://{{ include "oscar.fullname" . }}.{{ .Release.Namespace }}.svc:9000
{{- else if .Values.minio.enabled -}}
http://{{ include "oscar.minio" . }}.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{ .Values.store.endpoint }}
{{- end -}}
{{- end -}}

{{- define "oscar.many" -}}
{{- if gt (int .Values.replicas) 1 -}}yes{{- end -}}
{{- end -}}

{{- define "oscar.database" -}}
{{- if or .Values.database.url .Values.database.existingSecret -}}yes{{- end -}}
{{- end -}}

{{- define "oscar.check" -}}
{{- if and (include "oscar.many" .) (not (include "oscar.database" .)) -}}
{{- fail "replicas: more than one server needs a PostgreSQL; set database.url or database.existingSecret" -}}
{{- end -}}
{{- if and (include "oscar.many" .) (eq .Values.store.kind "embedded") -}}
{{- fail "replicas: the built-in S3 server works on one volume; set store.kind to minio for more than one server" -}}
{{- end -}}
{{- if and (eq .Values.store.kind "minio") (not .Values.minio.enabled) -}}
{{- if not .Values.store.endpoint -}}
{{- fail "store.endpoint: name your MinIO's URL, or set minio.enabled" -}}
{{- end -}}
{{- if and (not .Values.admin.existingSecret) (not (and .Values.store.accessKey .Values.store.secretKey)) -}}
{{- fail "store.accessKey and store.secretKey: give the keys of your MinIO's administrator" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.publish.tls.mode "secret") (ne .Values.publish.kind "none") (not .Values.publish.tls.secretName) -}}
{{- fail "publish.tls.secretName: name the Secret with the certificate, or choose another publish.tls.mode" -}}
{{- end -}}
{{- end -}}
