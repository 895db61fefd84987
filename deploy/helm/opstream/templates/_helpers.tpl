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
{{- /* Of a tag as much as a label may hold: 63 characters, the first and the last a letter or a digit. */}}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | trunc 63 | regexFind "[A-Za-z0-9](.*[A-Za-z0-9])?" | quote }}
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

{{- /* The SASL principal: of .own, where it says something, else of all. key is what of the secret is used. */ -}}
{{- define "opstream.sasl" -}}
{{- $all := .root.Values.kafka.sasl -}}
{{- $own := .own -}}
{{- $out := dict -}}
{{- range $name := list "user" "existingSecret" "passwordKey" "tokenKey" "clientId" "clientSecretKey" -}}
{{- $_ := set $out $name (default (index $all $name) (index $own $name)) -}}
{{- end -}}
{{- $key := $out.passwordKey -}}
{{- if eq $all.mechanism "OAUTHBEARER" -}}{{- $key = ternary $out.clientSecretKey $out.tokenKey (ne $all.tokenUrl "") -}}{{- end -}}
{{- $_ := set $out "key" $key -}}
{{- toJson $out -}}
{{- end -}}

{{- /* What is wrong with the SASL principal of a role. */ -}}
{{- define "opstream.checkSasl" -}}
{{- $all := .root.Values.kafka.sasl -}}
{{- $sasl := include "opstream.sasl" . | fromJson -}}
{{- if eq $all.mechanism "OAUTHBEARER" -}}
{{- if $sasl.user -}}
{{- fail (printf "expected no user in %s.sasl or kafka.sasl with OAUTHBEARER: the token says who it is" .name) -}}
{{- end -}}
{{- if and $all.tokenUrl $sasl.tokenKey -}}
{{- fail (printf "expected %s.sasl and kafka.sasl to have either tokenUrl or tokenKey, but they have both" .name) -}}
{{- end -}}
{{- if and $all.tokenUrl (not (and $sasl.clientId $sasl.existingSecret)) -}}
{{- fail (printf "expected %s.sasl or kafka.sasl to have clientId and existingSecret, because kafka.sasl.tokenUrl asks for them" .name) -}}
{{- end -}}
{{- if not (or $all.tokenUrl (and $sasl.tokenKey $sasl.existingSecret)) -}}
{{- fail (printf "expected kafka.sasl.tokenUrl, or %s.sasl or kafka.sasl to have tokenKey and existingSecret, because kafka.sasl.mechanism is OAUTHBEARER" .name) -}}
{{- end -}}
{{- if and (not $all.tokenUrl) (or $sasl.clientId $all.scope $all.tokenCaSecret) -}}
{{- fail (printf "expected kafka.sasl.tokenUrl with clientId, scope or tokenCaSecret in %s.sasl or kafka.sasl: they are for a token endpoint" .name) -}}
{{- end -}}
{{- else -}}
{{- if or $all.tokenUrl $all.scope $all.tokenCaSecret $sasl.tokenKey $sasl.clientId -}}
{{- fail (printf "expected kafka.sasl.mechanism to be OAUTHBEARER with tokenUrl, tokenKey, clientId, scope or tokenCaSecret in %s.sasl or kafka.sasl, but it is %q" .name $all.mechanism) -}}
{{- end -}}
{{- if and $all.mechanism (not (and $sasl.user $sasl.existingSecret)) -}}
{{- fail (printf "expected %s.sasl or kafka.sasl to have user and existingSecret, because kafka.sasl.mechanism is %s" .name $all.mechanism) -}}
{{- end -}}
{{- end -}}
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
{{- include "opstream.checkSasl" . -}}
{{- if $v.sasl.mechanism -}}
{{- $sasl := include "opstream.sasl" . | fromJson -}}
{{- $file := printf "/etc/opstream/kafka-sasl/%s" $sasl.key -}}
{{- $_ := set $out "kafka-sasl-mechanism" $v.sasl.mechanism -}}
{{- if ne $v.sasl.mechanism "OAUTHBEARER" -}}
{{- $_ := set $out "kafka-sasl-user" $sasl.user -}}
{{- $_ := set $out "kafka-sasl-password" (printf "file:%s" $file) -}}
{{- else if $v.sasl.tokenUrl -}}
{{- $_ := set $out "kafka-sasl-token-url" $v.sasl.tokenUrl -}}
{{- $_ := set $out "kafka-sasl-client-id" $sasl.clientId -}}
{{- $_ := set $out "kafka-sasl-client-secret" (printf "file:%s" $file) -}}
{{- if $v.sasl.scope -}}{{- $_ := set $out "kafka-sasl-scope" $v.sasl.scope -}}{{- end -}}
{{- if $v.sasl.tokenCaSecret -}}{{- $_ := set $out "kafka-sasl-token-ca" (printf "/etc/opstream/kafka-token-ca/%s" $v.sasl.tokenCaKey) -}}{{- end -}}
{{- else -}}
{{- $_ := set $out "kafka-sasl-token-file" $file -}}
{{- end -}}
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
{{- if .root.Values.kafka.sasl.tokenCaSecret }}
- name: kafka-token-ca
  mountPath: /etc/opstream/kafka-token-ca
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
      - key: {{ $sasl.key }}
        path: {{ $sasl.key }}
{{- end }}
{{- with .root.Values.kafka.sasl.tokenCaSecret }}
- name: kafka-token-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
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
