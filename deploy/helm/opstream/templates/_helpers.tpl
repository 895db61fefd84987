{{- define "opstream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Labels that choose pods; role is added by those who have one. */ -}}
{{- define "opstream.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "opstream.labels" -}}
{{ include "opstream.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "opstream.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "opstream.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "opstream.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The roles that run, as a list. */ -}}
{{- define "opstream.roles" -}}
{{- $roles := list -}}
{{- range $role := list "scheduler" "worker" "projector" "api" -}}
{{- if (index $.Values $role).enabled -}}{{- $roles = append $roles $role -}}{{- end -}}
{{- end -}}
{{- toJson $roles -}}
{{- end -}}

{{- /* The SASL principal: of .own, where it says something, else of all. */ -}}
{{- define "opstream.sasl" -}}
{{- $all := .root.Values.kafka.sasl -}}
{{- $own := .own -}}
{{- dict "user" (default $all.user $own.user) "existingSecret" (default $all.existingSecret $own.existingSecret) "passwordKey" (default $all.passwordKey $own.passwordKey) | toJson -}}
{{- end -}}

{{- /* What every client of Kafka is told, as options of the program. Secrets are named, never shown. */ -}}
{{- define "opstream.kafka" -}}
{{- $v := .root.Values.kafka -}}
{{- $out := dict "brokers" (join "," $v.brokers) "topic-prefix" $v.topicPrefix -}}
{{- if $v.tls.enabled -}}
{{- $_ := set $out "kafka-tls" "true" -}}
{{- if $v.tls.existingSecret -}}{{- $_ := set $out "kafka-tls-ca" (printf "/etc/opstream/kafka-tls/%s" $v.tls.caKey) -}}{{- end -}}
{{- if $v.tls.clientCertificate -}}
{{- $_ := set $out "kafka-tls-cert" (printf "/etc/opstream/kafka-tls/%s" $v.tls.certKey) -}}
{{- $_ := set $out "kafka-tls-key" (printf "/etc/opstream/kafka-tls/%s" $v.tls.keyKey) -}}
{{- end -}}
{{- if $v.tls.serverName -}}{{- $_ := set $out "kafka-tls-server-name" $v.tls.serverName -}}{{- end -}}
{{- end -}}
{{- if $v.sasl.mechanism -}}
{{- $sasl := include "opstream.sasl" . | fromJson -}}
{{- if not (and $sasl.user $sasl.existingSecret) -}}
{{- fail (printf "expected %s.sasl or kafka.sasl to have user and existingSecret, because kafka.sasl.mechanism is %s" .name $v.sasl.mechanism) -}}
{{- end -}}
{{- $_ := set $out "kafka-sasl-mechanism" $v.sasl.mechanism -}}
{{- $_ := set $out "kafka-sasl-user" $sasl.user -}}
{{- $_ := set $out "kafka-sasl-password" (printf "file:/etc/opstream/kafka-sasl/%s" $sasl.passwordKey) -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{- /* The configuration file of a role. */ -}}
{{- define "opstream.config" -}}
{{- $v := .root.Values -}}
{{- $out := include "opstream.kafka" . | fromJson -}}
{{- $_ := set $out "roles" .name -}}
{{- $_ := set $out "log" $v.log -}}
{{- $_ := set $out "ops-listen" (printf "0.0.0.0:%d" (int $v.ops.port)) -}}
{{- if has .name (list "scheduler" "worker") -}}{{- $_ := set $out "lease" $v.lease -}}{{- end -}}
{{- if eq .name "worker" -}}
{{- $_ := set $out "slots" (int $v.worker.slots) -}}
{{- if $v.worker.noop -}}{{- $_ := set $out "noop" $v.worker.noop -}}{{- end -}}
{{- if $v.worker.webhookPrivate -}}{{- $_ := set $out "webhook-private" true -}}{{- end -}}
{{- end -}}
{{- if eq .name "api" -}}
{{- $_ := set $out "listen" "0.0.0.0:8080" -}}
{{- if $v.api.tls.existingSecret -}}
{{- $_ := set $out "tls-cert" "/etc/opstream/tls/tls.crt" -}}
{{- $_ := set $out "tls-key" "/etc/opstream/tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $_ := set $out "brokers" $v.kafka.brokers -}}
{{- if $v.kafka.tls.enabled -}}{{- $_ := set $out "kafka-tls" true -}}{{- end -}}
{{- toYaml $out -}}
{{- end -}}

{{- define "opstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "opstream.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Files with what is secret for Kafka. */ -}}
{{- define "opstream.kafkaMounts" -}}
{{- if and .root.Values.kafka.tls.enabled .root.Values.kafka.tls.existingSecret }}
- name: kafka-tls
  mountPath: /etc/opstream/kafka-tls
  readOnly: true
{{- end }}
{{- if .root.Values.kafka.sasl.mechanism }}
- name: kafka-sasl
  mountPath: /etc/opstream/kafka-sasl
  readOnly: true
{{- end }}
{{- end -}}

{{- define "opstream.kafkaVolumes" -}}
{{- if and .root.Values.kafka.tls.enabled .root.Values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ .root.Values.kafka.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if .root.Values.kafka.sasl.mechanism }}
{{- $sasl := include "opstream.sasl" . | fromJson }}
- name: kafka-sasl
  secret:
    secretName: {{ $sasl.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ $sasl.passwordKey }}
        path: {{ $sasl.passwordKey }}
{{- end }}
{{- end -}}

{{- /* What a chart can know to be wrong before anything runs. */ -}}
{{- define "opstream.validate" -}}
{{- $v := .Values -}}
{{- if not $v.kafka.brokers -}}{{- fail "expected kafka.brokers to name some brokers, host:port" -}}{{- end -}}
{{- if and (or $v.projector.enabled $v.api.enabled) (not $v.database.existingSecret) -}}
{{- fail "expected database.existingSecret to name the secret with the database's URL, for projector and api" -}}
{{- end -}}
{{- if gt (int $v.scheduler.replicas) (int $v.topics.partitions) -}}
{{- fail (printf "expected scheduler.replicas to be at most topics.partitions (%d), because more have nothing to do" (int $v.topics.partitions)) -}}
{{- end -}}
{{- if and $v.kafka.tls.clientCertificate (not $v.kafka.tls.existingSecret) -}}
{{- fail "expected kafka.tls.existingSecret to hold the client's certificate, because kafka.tls.clientCertificate is true" -}}
{{- end -}}
{{- if and (gt (int $v.topics.minInsyncReplicas) 1) (ge (int $v.topics.minInsyncReplicas) (int $v.topics.replicationFactor)) -}}
{{- fail "expected topics.minInsyncReplicas below topics.replicationFactor: else nothing can be appended while one broker is away" -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- if not $v.autoscaling.prometheus.serverAddress -}}{{- fail "expected autoscaling.prometheus.serverAddress, because autoscaling is enabled" -}}{{- end -}}
{{- if gt (int $v.autoscaling.scheduler.maxReplicas) (int $v.topics.partitions) -}}
{{- fail (printf "expected autoscaling.scheduler.maxReplicas to be at most topics.partitions (%d), because more have nothing to do" (int $v.topics.partitions)) -}}
{{- end -}}
{{- range $role := list "scheduler" "worker" -}}
{{- $a := index $v.autoscaling $role -}}
{{- if gt (int $a.minReplicas) (int $a.maxReplicas) -}}{{- fail (printf "expected autoscaling.%s.minReplicas to be at most maxReplicas" $role) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
