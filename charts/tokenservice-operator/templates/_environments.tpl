{{/* Not empty where there is a registry to push to: then the operator makes environments. */}}
{{- define "tokenservice-operator.environments" -}}
{{- with .Values.registry }}
{{- if and .enabled .url }}
{{- fail "registry.enabled and registry.url are both given: the first installs a registry for evaluation, the second names one of your own" }}
{{- end }}
{{- if and .pullUrl (not .url) }}
{{- fail "registry.pullUrl is given without registry.url" }}
{{- end }}
{{- if and $.Values.builder.collectImages $.Values.watchNamespaces }}
{{- fail "builder.collectImages is true with watchNamespaces: images of namespaces that are not watched would be deleted" }}
{{- end }}
{{- if or .enabled .url }}true{{ end }}
{{- end }}
{{- end }}

{{/* The registry as Jobs reach it. */}}
{{- define "tokenservice-operator.registryUrl" -}}
{{- if .Values.registry.enabled }}
{{- printf "%s-registry.%s.svc.%s:5000" (include "tokenservice-operator.fullname" .) .Release.Namespace .Values.clusterDomain }}
{{- else }}
{{- .Values.registry.url }}
{{- end }}
{{- end }}

{{/* The registry as the nodes' container runtimes reach it. */}}
{{- define "tokenservice-operator.registryPullUrl" -}}
{{- if .Values.registry.enabled }}
{{- printf "localhost:%d" (int .Values.registry.nodePort) }}
{{- else }}
{{- .Values.registry.pullUrl }}
{{- end }}
{{- end }}

{{/* Labels of the pods of Jobs, and of the evaluation registry's: what NetworkPolicies select them by. The chart's version
is not among them, since the operator restarts when the Jobs' template changes. */}}
{{- define "tokenservice-operator.jobLabels" -}}
app.kubernetes.io/name: {{ include "tokenservice-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: job
{{- end }}

{{- define "tokenservice-operator.registryLabels" -}}
app.kubernetes.io/name: {{ include "tokenservice-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: registry
{{- end }}

{{/* As the operator's, and volumes belong to the process's group. */}}
{{- define "tokenservice-operator.volumeSecurityContext" -}}
{{ include "tokenservice-operator.podSecurityContext" . }}
{{- with .Values.runAsUser }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}

{{/* Folder of a host's credentials. A mount path may have no colon. */}}
{{- define "tokenservice-operator.credentialsFolder" -}}
{{- printf "/etc/tokenservice/credentials/%s" (replace ":" "_" .) }}
{{- end }}

{{/* What tokenservice.builder.settings reads: camelCase keys, none that it does not know. */}}
{{- define "tokenservice-operator.settings" -}}
{{- $builder := .Values.builder }}
{{- $credentials := dict }}
{{- range $host, $secret := $builder.credentials }}
{{- $_ := set $credentials $host (include "tokenservice-operator.credentialsFolder" $host) }}
{{- end }}
{{- $registry := dict
  "url" (include "tokenservice-operator.registryUrl" .)
  "pullUrl" (include "tokenservice-operator.registryPullUrl" .)
  "plainHTTP" (or .Values.registry.enabled .Values.registry.plainHTTP) }}
{{- dict
  "registry" $registry
  "channels" $builder.channels
  "pip" $builder.pip
  "baseImage" $builder.baseImage
  "baseImages" $builder.baseImages
  "caBundle" (ternary "/etc/tokenservice/ca/ca.crt" "" (ne $builder.caBundle.configMap ""))
  "timeoutSeconds" (int $builder.timeoutSeconds)
  "retries" (int $builder.retries)
  "solveTimeoutSeconds" (int $builder.solveTimeoutSeconds)
  "postLinkScripts" $builder.postLinkScripts
  "credentials" $credentials
  "dockerConfig" (ternary "/etc/tokenservice/docker/config.json" "" (ne .Values.registry.dockerConfigSecret ""))
  "cacheFolder" (ternary "/var/cache/tokenservice" "" $builder.cache.enabled) | toYaml }}
{{- end }}

{{/* A Job as far as the chart knows it. The operator adds name, namespace, its labels, `args` and TOKENSERVICE_REQUEST. */}}
{{- define "tokenservice-operator.jobTemplate" -}}
{{- $fullname := include "tokenservice-operator.fullname" . }}
{{- $builder := .Values.builder }}
{{- $labels := merge (include "tokenservice-operator.jobLabels" . | fromYaml) .Values.commonLabels | toYaml }}
apiVersion: batch/v1
kind: Job
metadata:
  labels:
    {{- $labels | nindent 4 }}
spec:
  backoffLimit: 3
  activeDeadlineSeconds: {{ int $builder.deadlineSeconds }}
  ttlSecondsAfterFinished: 86400 # how long a Job's log can be read
  podFailurePolicy:
    rules: # the first that fits counts
      - action: FailJob # trying again cannot help
        onExitCodes:
          containerName: job
          operator: In
          values: [2]
      - action: Ignore # drained, preempted, evicted: not the Job's fault
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    metadata:
      labels:
        {{- $labels | nindent 8 }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ $fullname }}-jobs
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "tokenservice-operator.volumeSecurityContext" . | nindent 8 }}
      {{- with $builder.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $builder.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: job
          image: {{ include "tokenservice-operator.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          command: [tokenservice]
          env:
            {{- range $name, $value := $builder.env }}
            - name: {{ $name }}
              value: {{ $value | quote }}
            {{- end }}
            - name: TOKENSERVICE_SETTINGS
              value: /etc/tokenservice/settings.yaml
            - name: HOME
              value: /tmp
            - name: TMPDIR
              value: /tmp
          {{- with $builder.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          terminationMessagePath: /dev/termination-log
          terminationMessagePolicy: File
          securityContext:
            {{- include "tokenservice-operator.containerSecurityContext" . | nindent 12 }}
          volumeMounts:
            - name: scratch
              mountPath: /tmp
            - name: settings
              mountPath: /etc/tokenservice/settings.yaml
              subPath: settings.yaml # other volumes are mounted beside it
              readOnly: true
            {{- if .Values.registry.dockerConfigSecret }}
            - name: docker
              mountPath: /etc/tokenservice/docker
              readOnly: true
            {{- end }}
            {{- range $index, $host := keys $builder.credentials | sortAlpha }}
            - name: credentials-{{ $index }}
              mountPath: {{ include "tokenservice-operator.credentialsFolder" $host }}
              readOnly: true
            {{- end }}
            {{- if $builder.caBundle.configMap }}
            - name: ca
              mountPath: /etc/tokenservice/ca
              readOnly: true
            {{- end }}
            {{- if $builder.cache.enabled }}
            - name: cache
              mountPath: /var/cache/tokenservice
            {{- end }}
      volumes:
        - name: scratch
          emptyDir:
            sizeLimit: {{ $builder.scratchSize }}
        - name: settings
          configMap:
            name: {{ $fullname }}-jobs
            items:
              - key: settings.yaml
                path: settings.yaml
        {{- with .Values.registry.dockerConfigSecret }}
        - name: docker
          secret:
            secretName: {{ . }}
            items:
              - key: .dockerconfigjson
                path: config.json
        {{- end }}
        {{- range $index, $host := keys $builder.credentials | sortAlpha }}
        - name: credentials-{{ $index }}
          secret:
            secretName: {{ get $builder.credentials $host }}
        {{- end }}
        {{- with $builder.caBundle }}
        {{- if .configMap }}
        - name: ca
          configMap:
            name: {{ .configMap }}
            items:
              - key: {{ .key | quote }}
                path: ca.crt
        {{- end }}
        {{- end }}
        {{- if $builder.cache.enabled }}
        - name: cache
          persistentVolumeClaim:
            claimName: {{ $fullname }}-cache
        {{- end }}
{{- end }}
