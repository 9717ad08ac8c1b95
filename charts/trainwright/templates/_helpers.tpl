{{- define "trainwright.fullname" -}}
{{- if contains "trainwright" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-trainwright" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "trainwright.serviceAccountName" -}}
{{- default (include "trainwright.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "trainwright.selectorLabels" -}}
app.kubernetes.io/name: trainwright-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "trainwright.labels" -}}
{{ include "trainwright.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: trainwright
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "trainwright.certificateSecret" -}}
{{ include "trainwright.fullname" . }}-progress-tls
{{- end }}

{{- define "trainwright.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}{{ end }}
{{- end }}

{{- /* What every pod here runs under: the restricted Pod Security Standard. The image's own user is not root. */}}
{{- define "trainwright.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "trainwright.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "trainwright.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations: {{- include "trainwright.tolerations" . | nindent 2 }}
{{- end }}

{{- /*
A pod leaves a lost node after 20 s instead of the 300 s that Kubernetes adds by itself: longer than the restart of a kubelet,
and before the pods of jobs on that node are taken to be lost (30 s). A value of the user for these taints replaces this.
*/}}
{{- define "trainwright.tolerations" -}}
{{- $tolerations := .Values.tolerations -}}
{{- range $taint := list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" -}}
{{- $stated := false -}}
{{- range $.Values.tolerations -}}
{{- if and (has (default "" .key) (list "" $taint)) (has (default "" .effect) (list "" "NoExecute")) }}{{ $stated = true }}{{ end -}}
{{- end -}}
{{- if not $stated -}}
{{- $tolerations = append $tolerations (dict "key" $taint "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" 20) -}}
{{- end -}}
{{- end -}}
{{- if $tolerations }}{{ toYaml $tolerations }}{{ end -}}
{{- end }}

{{- /* Whether the operator needs rights for Kueue; auto: where the cluster serves it now. */}}
{{- define "trainwright.kueue" -}}
{{- $wanted := .Values.queues.kueue -}}
{{- $served := .Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta2/Workload" -}}
{{- if and (eq $wanted "auto") (not $served) }}off{{ else }}{{ $wanted }}{{ end -}}
{{- end }}
