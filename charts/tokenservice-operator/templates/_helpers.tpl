{{/* Name of the application: a label's value. */}}
{{- define "tokenservice-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the release's objects; 10 characters are left free for endings such as "-metrics". */}}
{{- define "tokenservice-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "tokenservice-operator.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Name of a cluster-wide object: two releases in two namespaces may have the same name. */}}
{{- define "tokenservice-operator.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "tokenservice-operator.fullname" .) }}
{{- end }}

{{/* Labels that select the operator's pods; never the pod of `helm test`. */}}
{{- define "tokenservice-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokenservice-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: manager
{{- end }}

{{/* Labels of every object, without the component. */}}
{{- define "tokenservice-operator.baseLabels" -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/name" (include "tokenservice-operator.name" .)
  "app.kubernetes.io/instance" .Release.Name }}
{{- merge $labels .Values.commonLabels | toYaml }}
{{- end }}

{{/* Labels of the operator's own objects. */}}
{{- define "tokenservice-operator.labels" -}}
{{ merge (dict "app.kubernetes.io/component" "manager") (include "tokenservice-operator.baseLabels" . | fromYaml) | toYaml }}
{{- end }}

{{- define "tokenservice-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tokenservice-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create is false: give serviceAccount.name, the name of the ServiceAccount to use" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Reference of the operator's image. */}}
{{- define "tokenservice-operator.image" -}}
{{- $repository := required "image.repository is empty: give the registry and repository of the operator's image, e.g. --set image.repository=registry.example.com/tokenservice/operator" .Values.image.repository }}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- if and .Values.image.digest (not .Values.image.tag) }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else if .Values.image.digest }}
{{- printf "%s:%s@%s" $repository $tag .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository $tag }}
{{- end }}
{{- end }}

{{/* The strictest pod security: what the "restricted" Pod Security Standard asks for. */}}
{{- define "tokenservice-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tokenservice-operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
