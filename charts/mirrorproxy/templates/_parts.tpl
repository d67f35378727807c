{{- define "mirrorproxy.labels" -}}
app.kubernetes.io/name: mirrorproxy
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "mirrorproxy.selector" -}}
app.kubernetes.io/name: mirrorproxy
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "mirrorproxy.image" -}}
{{- with .Values.image }}
{{- if .digest -}}
image: {{ printf "%s@%s" .repository .digest }}
{{- else -}}
image: {{ printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
{{- end }}

{{- define "mirrorproxy.pod" -}}
serviceAccountName: {{ .Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "mirrorproxy.user" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "mirrorproxy.nobody" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "mirrorproxy.root" -}}
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  limits:
    memory: 128Mi
securityContext:
  runAsNonRoot: false
  runAsUser: 0
  runAsGroup: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "mirrorproxy.probes" -}}
startupProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 60
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet:
    path: /livez
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- define "mirrorproxy.mounts" -}}
- name: config
  mountPath: /etc/mirrorproxy
  readOnly: true
- name: cache
  mountPath: /var/lib/mirrorproxy
- name: tmp
  mountPath: /tmp
{{- with .volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The settings of the nodes' caches: in two tiers each registry is asked of the cluster's cache first. */}}
{{- define "mirrorproxy.nodeConfig" -}}
{{- $config := deepCopy .Values.node.config }}
{{- if and (eq .Values.mode "two-tier") (not $config.upstreams) }}
{{- $upstreams := dict }}
{{- range .Values.twoTier.registries }}
{{- $central := printf "http://%s-central:5000/%s" $.Release.Name . }}
{{- $own := printf "https://%s" (eq . "docker.io" | ternary "registry-1.docker.io" .) }}
{{- $upstream := dict "endpoints" (list $central $own) "tag_ttl" $.Values.twoTier.tagTTL }}
{{- if eq . "docker.io" }}
{{- $_ := set $upstream "default" true }}
{{- end }}
{{- $_ := set $upstreams . $upstream }}
{{- end }}
{{- $_ := set $config "upstreams" $upstreams }}
{{- end }}
{{- toYaml $config }}
{{- end }}
