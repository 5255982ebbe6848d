{{- define "nemotron-embed.labels" -}}
app.kubernetes.io/name: nemotron-embed
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "nemotron-embed.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* What the restricted pod standard asks of a pod, and more: a read-only root. */}}
{{- define "nemotron-embed.podSecurityContext" -}}
securityContext:
  runAsNonRoot: true
  {{- if not .Values.openshift }}
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "nemotron-embed.containerSecurityContext" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* A Job that runs pipeline.py: dict "root" $ "name" NAME "args" LIST. */}}
{{- define "nemotron-embed.pipelineJob" -}}
{{- $values := .root.Values }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "nemotron-embed.labels" .root | nindent 4 }}
  annotations:
    # Argo CD takes these for its PostSync.
    helm.sh/hook: post-install,post-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  backoffLimit: 5
  activeDeadlineSeconds: 900
  # Wrong parameters and refused access do not get better by themselves.
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes: {operator: In, values: [2, 3]}
  template:
    metadata:
      labels:
        {{- include "nemotron-embed.labels" .root | nindent 8 }}
      annotations:
        sidecar.istio.io/inject: "false"
    spec:
      restartPolicy: Never
      serviceAccountName: nemotron-embed-pipelines
      automountServiceAccountToken: false
      {{- with include "nemotron-embed.imagePullSecrets" .root }}
      {{- trim . | nindent 6 }}
      {{- end }}
      {{- include "nemotron-embed.podSecurityContext" .root | nindent 6 }}
      containers:
        - name: pipeline
          image: {{ quote $values.images.cpu }}
          command: [python, /opt/nemotron-embed/pipeline.py]
          args:
            {{- toYaml .args | nindent 12 }}
          env:
            {{- range $name, $image := $values.images }}
            - name: {{ upper $name }}_IMAGE
              value: {{ quote $image }}
            {{- end }}
            - name: KF_PIPELINES_SA_TOKEN_PATH
              value: /var/run/secrets/kubeflow/pipelines/token
          {{- include "nemotron-embed.containerSecurityContext" . | nindent 10 }}
          resources:
            requests: {cpu: 100m, memory: 512Mi}
            limits: {cpu: "1", memory: 1Gi}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: token, mountPath: /var/run/secrets/kubeflow/pipelines, readOnly: true}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 256Mi}
        - name: token
          projected:
            sources:
              - serviceAccountToken:
                  path: token
                  expirationSeconds: 7200
                  audience: pipelines.kubeflow.org
{{- end }}

{{- /* Arguments that upload and schedule have in common. */}}
{{- define "nemotron-embed.pipelineArguments" -}}
{{- $pipelines := .Values.pipelines }}
{{- $args := list "--host" $pipelines.host "--profile" $pipelines.profile "--node-labels" $pipelines.nodeLabels }}
{{- $args = concat $args (list "--version" ($pipelines.version | default .Chart.AppVersion)) }}
{{- if .Values.kueue.enabled }}
{{- $args = concat $args (list "--queue" .Values.kueue.localQueue) }}
{{- end }}
{{- if .Values.cache.enabled }}
{{- $args = concat $args (list "--cache-claim" "nemotron-embed-cache") }}
{{- end }}
{{- if $pipelines.multiUser }}
{{- $args = concat $args (list "--namespace" .Release.Namespace) }}
{{- end }}
{{- range $name, $value := $pipelines.set }}
{{- $args = concat $args (list "--set" (printf "%s=%s" $name (include "nemotron-embed.argumentValue" $value))) }}
{{- end }}
{{- toYaml $args }}
{{- end }}

{{- /* A value as pipeline.py reads it: texts as they are, all else as JSON. */}}
{{- define "nemotron-embed.argumentValue" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}
