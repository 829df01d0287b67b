{{/* The beginning of all names. A Job's name has it as a prefix, and ends at 63 characters. */}}
{{- define "palisade.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "palisade.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: palisade
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: palisade
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (list root component values): a pod's labels, with those of the values. The schema keeps the chart's own keys out of these. */}}
{{- define "palisade.podLabels" -}}
{{- $labels := fromYaml (include "palisade.labels" (index . 0)) -}}
{{- $labels = mergeOverwrite $labels (default dict (index . 2).podLabels) -}}
{{- toYaml (set $labels "app.kubernetes.io/component" (index . 1)) -}}
{{- end -}}

{{/* Where pods of these values run. */}}
{{- define "palisade.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with index $ $key }}
{{ toYaml (dict $key .) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A time such as 1m30s, in milliseconds. */}}
{{- define "palisade.milliseconds" -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $sum = add $sum (mul (regexFind "[0-9]+" . | int64) (index (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* (list root component): what a Deployment's pods are found by. */}}
{{- define "palisade.selector" -}}
app.kubernetes.io/name: palisade
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "palisade.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the databases' URLs. */}}
{{- define "palisade.databaseSecret" -}}
{{- if .Values.postgres.enabled -}}
{{ include "palisade.fullname" . }}-postgres
{{- else -}}
{{ .Values.database.existingSecret }}
{{- end -}}
{{- end -}}

{{/* (list root NAME KEY optional): a variable that is one of these URLs. */}}
{{- define "palisade.databaseUrl" -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ include "palisade.databaseSecret" (index . 0) }}
      key: {{ index . 2 }}
      {{- if index . 3 }}
      optional: true
      {{- end }}
{{- end -}}

{{/* Every connection's certificate is checked against this CA, unless its URL says otherwise. */}}
{{- define "palisade.databaseTlsEnv" -}}
{{- if .Values.database.tls.caSecret.name }}
- name: PGSSLMODE
  value: verify-full
- name: PGSSLROOTCERT
  value: /etc/palisade/database-ca/ca.crt
{{- end }}
{{- end -}}

{{- define "palisade.databaseTlsMount" -}}
{{- if .Values.database.tls.caSecret.name }}
volumeMounts:
  - name: database-ca
    mountPath: /etc/palisade/database-ca
    readOnly: true
{{- end }}
{{- end -}}

{{- define "palisade.databaseTlsVolume" -}}
{{- with .Values.database.tls.caSecret }}
{{- if .name }}
volumes:
  - name: database-ca
    secret:
      secretName: {{ .name }}
      items:
        - key: {{ .key }}
          path: ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{- define "palisade.logEnv" -}}
{{- with .Values.log.filter }}
- name: PALISADE_LOG
  value: {{ . | quote }}
{{- end }}
- name: PALISADE_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end -}}

{{- define "palisade.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "palisade.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/*
(list root FILE): a file of files/, with what the program fills in as well (src/manifests/mod.rs), and the chart's labels.
A document is read and written anew: no number in these files is large enough to suffer from that.
*/}}
{{- define "palisade.filled" -}}
{{- $root := index . 0 -}}
{{- $name := include "palisade.fullname" $root -}}
{{- $namespace := $root.Release.Namespace -}}
{{- $watched := $root.Values.watchNamespace -}}
{{- $worker := printf "system:serviceaccount:%s:%s-worker" $namespace $name -}}
{{- $controller := printf "system:serviceaccount:%s:%s-controller" $namespace $name -}}
{{- $text := $root.Files.Get (index . 1)
  | replace "${NAME}" $name
  | replace "${NAMESPACE}" $namespace
  | replace "${SCOPE}" (ternary "" "Cluster" (not (empty $watched)))
  | replace "${IN_WATCHED}" (ternary (printf "namespace: %q" $watched) "" (not (empty $watched)))
  | replace "${WATCHED}" (ternary (printf "matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %q}}}" $watched) "" (not (empty $watched)))
  | replace "${ACCOUNTS}" (printf "['%s', '%s']" $worker $controller)
  | replace "${WORKERS}" (printf "['%s']" $worker)
  | replace "${CONTROLLERS}" (printf "['%s']" $controller)
  | replace "${WORKER_SUBJECTS}" (printf "[{kind: ServiceAccount, name: %q, namespace: %q}]" (printf "%s-worker" $name) $namespace)
  | replace "${CONTROLLER_SUBJECTS}" (printf "[{kind: ServiceAccount, name: %q, namespace: %q}]" (printf "%s-controller" $name) $namespace)
-}}
{{- range splitList "\n---\n" $text }}
{{- $object := fromYaml . }}
{{- if $object.kind }}
{{- $_ := set $object.metadata "labels" (fromYaml (include "palisade.labels" $root)) }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The doctor asks what the policies refuse, by dry runs; a role cannot say that nothing else is meant. */}}
{{- define "palisade.doctorAsks" -}}
- apiGroups: [""]
  resources: [services]
  verbs: [create]
{{- end -}}

{{/* What the doctor reads where ModelDeployments are looked after: who is bound there, and which fences are in use. */}}
{{- define "palisade.doctorRules" -}}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [{{ . }}]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list]
- apiGroups: [""]
  resources: [services]
  verbs: [list]
- apiGroups: [palisade.dev]
  resources: [modeldeployments]
  verbs: [list]
{{- end -}}
