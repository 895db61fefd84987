package charttest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

const chartFolder = "../helm/opstream"

// values are sets that people would have.
func valueSets() map[string]string {
	return map[string]string{
		"minimal": `
kafka: {brokers: ["kafka:9092"]}
database: {existingSecret: db}
`,
		"dev": `
image: {repository: localhost:5000/opstream, tag: dev, pullPolicy: Always}
kafka: {brokers: ["kafka:9092"], topicPrefix: dev.}
database: {existingSecret: db, urlKey: dsn}
topics: {replicationFactor: 1, minInsyncReplicas: 1, partitions: 4, inboxPartitions: 2}
log: debug
scheduler: {replicas: 1}
worker: {replicas: 1, noop: [bulk-email, bulk-delete], webhookPrivate: true, slots: 8}
api: {replicas: 1}
podDisruptionBudget: {enabled: false}
topologySpread: {enabled: false}
ops: {prometheusAnnotations: false}
`,
		"production": `
fullnameOverride: operations
image: {repository: registry.internal/opstream, tag: 1.2.3}
imagePullSecrets: [pull]
kafka:
  brokers: ["kafka-1:9093", "kafka-2:9093", "kafka-3:9093"]
  tls: {enabled: true, existingSecret: kafka-tls, clientCertificate: true, serverName: kafka.internal}
  sasl: {mechanism: SCRAM-SHA-512}
database: {existingSecret: db}
topics: {job: check, partitions: 24, sasl: {user: admin, existingSecret: kafka-admin}}
scheduler: {replicas: 3, sasl: {user: scheduler, existingSecret: kafka-scheduler, passwordKey: pw}, strategy: {maxUnavailable: 1, maxSurge: 1}}
worker: {replicas: 6, sasl: {user: worker, existingSecret: kafka-worker}, nodeSelector: {pool: work}, tolerations: [{key: work, operator: Exists}]}
projector: {replicas: 2, sasl: {user: projector, existingSecret: kafka-projector}}
api:
  replicas: 3
  sasl: {user: api, existingSecret: kafka-api}
  tls: {existingSecret: api-tls}
  service: {port: 443}
  ingress: {enabled: true, className: nginx, hosts: [operations.internal], tlsSecret: ingress-tls, annotations: {a/b: c}}
  affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname}}]}}
autoscaling:
  enabled: true
  prometheus: {serverAddress: "http://prometheus:9090"}
  scheduler: {minReplicas: 3, maxReplicas: 24}
networkPolicy:
  enabled: true
  apiFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: crm}}}]
  opsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
podLabels: {team: crm}
`,
		"shared principal, own workers": `
kafka: {brokers: ["kafka:9092"], tls: {enabled: true}, sasl: {mechanism: PLAIN, user: all, existingSecret: kafka}}
database: {existingSecret: db}
topics: {job: "off"}
worker: {enabled: false}
serviceAccount: {create: false, name: theirs}
autoscaling: {enabled: true, prometheus: {serverAddress: "http://p", selector: 'job="opstream"'}}
`,
		"tokens of an endpoint": `
kafka:
  brokers: ["kafka:9093"]
  tls: {enabled: true, existingSecret: kafka-tls}
  sasl: {mechanism: OAUTHBEARER, tokenUrl: "https://login.internal/token", scope: kafka, tokenCaSecret: login-ca, tokenCaKey: root.crt}
database: {existingSecret: db}
topics: {sasl: {clientId: admin, existingSecret: login-admin}}
scheduler: {sasl: {clientId: scheduler, existingSecret: login-scheduler, clientSecretKey: pw}}
worker: {sasl: {clientId: worker, existingSecret: login-worker}}
projector: {sasl: {clientId: projector, existingSecret: login-projector}}
api: {sasl: {clientId: api, existingSecret: login-api}}
`,
		"tokens in secrets": `
kafka: {brokers: ["kafka:9093"], tls: {enabled: true}, sasl: {mechanism: OAUTHBEARER, tokenKey: token, existingSecret: everybody}}
database: {existingSecret: db}
scheduler: {sasl: {existingSecret: token-scheduler, tokenKey: jwt}}
`,
		"the image of a branch": `
image: {tag: _feature-of-somebody-who-gives-branches-long-names-and-ends-them--0123456789abcdef}
kafka: {brokers: ["kafka:9092"]}
database: {existingSecret: db}
`,
		"schedulers only": `
kafka: {brokers: ["kafka:9092"]}
worker: {enabled: false}
projector: {enabled: false}
api: {enabled: false}
networkPolicy: {enabled: true}
`,
	}
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	v, err := loader.LoadValues(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// render does what helm template does: defaults, schema, engine.
func render(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	c := load(t)
	kube, err := common.ParseKubeVersion("v1.33.0")
	if err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(c, parse(t, values), common.ReleaseOptions{Name: "crm", Namespace: "ops", Revision: 1, IsInstall: true}, &common.Capabilities{KubeVersion: *kube})
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// scaledObject is as much of KEDA's as the chart uses.
type scaledObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ScaleTargetRef struct {
			Name string `json:"name"`
		} `json:"scaleTargetRef"`
		MinReplicaCount int32 `json:"minReplicaCount"`
		MaxReplicaCount int32 `json:"maxReplicaCount"`
		PollingInterval int32 `json:"pollingInterval"`
		Advanced        struct {
			HPA struct {
				Behavior struct {
					ScaleDown struct {
						Window   int32 `json:"stabilizationWindowSeconds"`
						Policies []struct {
							Type          string `json:"type"`
							Value         int32  `json:"value"`
							PeriodSeconds int32  `json:"periodSeconds"`
						} `json:"policies"`
					} `json:"scaleDown"`
				} `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string            `json:"type"`
			MetricType string            `json:"metricType"`
			Metadata   map[string]string `json:"metadata"`
		} `json:"triggers"`
		Fallback struct {
			FailureThreshold int32  `json:"failureThreshold"`
			Replicas         int32  `json:"replicas"`
			Behavior         string `json:"behavior"`
		} `json:"fallback"`
	} `json:"spec"`
}

// objects are what was rendered, by name.
type objects struct {
	deployments map[string]*appsv1.Deployment
	jobs        map[string]*batchv1.Job
	configs     map[string]*corev1.ConfigMap
	services    map[string]*corev1.Service
	accounts    map[string]*corev1.ServiceAccount
	ingresses   map[string]*networkingv1.Ingress
	policies    map[string]*networkingv1.NetworkPolicy
	budgets     map[string]*policyv1.PodDisruptionBudget
	scaled      map[string]*scaledObject
	notes       string
}

// decode reads every object strictly: a field that its type does not have is a fault.
func decode(files map[string]string) (*objects, error) {
	o := &objects{
		map[string]*appsv1.Deployment{}, map[string]*batchv1.Job{}, map[string]*corev1.ConfigMap{}, map[string]*corev1.Service{},
		map[string]*corev1.ServiceAccount{}, map[string]*networkingv1.Ingress{}, map[string]*networkingv1.NetworkPolicy{},
		map[string]*policyv1.PodDisruptionBudget{}, map[string]*scaledObject{}, "",
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".txt") {
			o.notes += files[name]
			continue
		}
		for _, doc := range regexp.MustCompile(`(?m)^---\s*$`).Split(files[name], -1) {
			if strings.TrimSpace(doc) == "" || strings.HasSuffix(name, ".tpl") {
				continue
			}
			if err := o.add([]byte(doc)); err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", name, err, doc)
			}
		}
	}
	return o, nil
}

func (o *objects) add(doc []byte) error {
	var head metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return err
	}
	if head.Name == "" || len(head.Name) > 63 {
		return fmt.Errorf("expected a name of at most 63 characters, but got %q", head.Name)
	}
	for name, value := range head.Labels {
		if faults := validation.IsValidLabelValue(value); len(faults) > 0 {
			return fmt.Errorf("expected a label that a cluster takes, but %s is %q: %s", name, value, strings.Join(faults, "; "))
		}
	}
	switch head.APIVersion + " " + head.Kind {
	case "apps/v1 Deployment":
		return keep(o.deployments, head.Name, doc)
	case "batch/v1 Job":
		return keep(o.jobs, head.Name, doc)
	case "v1 ConfigMap":
		return keep(o.configs, head.Name, doc)
	case "v1 Service":
		return keep(o.services, head.Name, doc)
	case "v1 ServiceAccount":
		return keep(o.accounts, head.Name, doc)
	case "networking.k8s.io/v1 Ingress":
		return keep(o.ingresses, head.Name, doc)
	case "networking.k8s.io/v1 NetworkPolicy":
		return keep(o.policies, head.Name, doc)
	case "policy/v1 PodDisruptionBudget":
		return keep(o.budgets, head.Name, doc)
	case "keda.sh/v1alpha1 ScaledObject":
		return keep(o.scaled, head.Name, doc)
	}
	return fmt.Errorf("expected no %s %s in the chart", head.APIVersion, head.Kind)
}

func keep[T any](into map[string]*T, name string, doc []byte) error {
	if into[name] != nil {
		return fmt.Errorf("two objects are called %s", name)
	}
	v := new(T)
	into[name] = v
	return yaml.UnmarshalStrict(doc, v)
}

// program knows the options of each command of the real program.
type program struct {
	path     string
	promised map[string]bool
	flags    map[string]map[string]bool
}

func build(t *testing.T) *program {
	t.Helper()
	p := &program{path: filepath.Join(t.TempDir(), "opstream"), promised: map[string]bool{}, flags: map[string]map[string]bool{}}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "../..", "-o", p.path, "./cmd/opstream")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	text, err := os.ReadFile("../promised.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		p.promised[strings.TrimSpace(line)] = true
	}
	return p
}

var flagName = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z0-9-]+)`)

// has says whether a command has an option, or is promised to have it.
func (p *program) has(t *testing.T, command, flag string) bool {
	t.Helper()
	if p.flags[command] == nil {
		out, err := exec.CommandContext(t.Context(), p.path, append(strings.Fields(command), "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("opstream %s --help: %v\n%s", command, err, out)
		}
		p.flags[command] = map[string]bool{}
		for _, m := range flagName.FindAllSubmatch(out, -1) {
			p.flags[command][string(m[1])] = true
		}
	}
	return p.flags[command][flag] || p.promised[command+" --"+flag]
}

func TestRender(t *testing.T) {
	p := build(t)
	for name, values := range valueSets() {
		t.Run(name, func(t *testing.T) {
			files, err := render(t, values)
			if err != nil {
				t.Fatal(err)
			}
			o, err := decode(files)
			if err != nil {
				t.Fatal(err)
			}
			o.check(t, p)
			// A pod that is run by hand has none of the secrets.
			want := "topics plan --brokers="
			if strings.Contains(values, "tls: {enabled: true") || strings.Contains(values, "mechanism:") {
				want = "--set topics.job=check"
			}
			if !strings.Contains(o.notes, want) {
				t.Errorf("expected the notes to tell how to see what would change, but got\n%s", o.notes)
			}
		})
	}
}

func (o *objects) check(t *testing.T, p *program) {
	t.Helper()
	if len(o.configs) != 1 {
		t.Fatalf("expected one ConfigMap, but got %d", len(o.configs))
	}
	for name, d := range o.deployments {
		role := d.Labels["app.kubernetes.io/component"]
		o.pod(t, name, &d.Spec.Template.Spec)
		if sel := selector(t, d.Spec.Selector); !sel.Matches(labels.Set(d.Spec.Template.Labels)) {
			t.Errorf("%s: expected the selector to choose its own pods", name)
		}
		for other, d2 := range o.deployments {
			if other != name && selector(t, d.Spec.Selector).Matches(labels.Set(d2.Spec.Template.Labels)) {
				t.Errorf("%s: chooses the pods of %s", name, other)
			}
		}
		u := d.Spec.Strategy.RollingUpdate
		if u == nil || isZero(u.MaxSurge) && isZero(u.MaxUnavailable) {
			t.Errorf("%s: expected an update that can go on, but got %+v", name, u)
		}
		c := d.Spec.Template.Spec.Containers[0]
		for kind, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			if probe == nil || probe.HTTPGet == nil || !hasPort(c, probe.HTTPGet.Port.StrVal) {
				t.Errorf("%s: expected a %s probe at a port that there is", name, kind)
			}
		}
		// An API that stops listening at once refuses those whom a service still sends to it.
		if drains := c.Lifecycle != nil && c.Lifecycle.PreStop != nil && c.Lifecycle.PreStop.Sleep != nil; drains != (role == "api") {
			t.Errorf("%s: expected the API, and nobody else, to answer for a moment after it was told to stop, but got %+v", name, c.Lifecycle)
		}
		if !slices.Equal(c.Args[:2], []string{"serve", "--config"}) || !p.has(t, "serve", "config") {
			t.Errorf("%s: expected serve with its configuration, but got %q", name, c.Args)
		}
		o.configuration(t, p, name, role, &d.Spec.Template)
		if budget := o.budgets[name]; len(o.budgets) > 0 && (budget == nil || !selector(t, budget.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels))) {
			t.Errorf("%s: expected a disruption budget for its pods", name)
		} else if budget != nil {
			always := budget.Spec.UnhealthyPodEvictionPolicy != nil && *budget.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
			if waits := role == "projector" || role == "api"; always != waits {
				t.Errorf("%s: expected a drain to pass those that only wait, and nobody else, but got %v", name, budget.Spec.UnhealthyPodEvictionPolicy)
			}
		}
		if o.scaled[name] == nil && d.Spec.Replicas == nil {
			t.Errorf("%s: expected a number of replicas, since nothing scales it", name)
		}
		if o.scaled[name] != nil && d.Spec.Replicas != nil {
			t.Errorf("%s: expected no number of replicas, since it is scaled: an upgrade would set it back", name)
		}
	}
	for name := range o.budgets {
		if o.deployments[name] == nil {
			t.Errorf("the disruption budget %s is for nothing", name)
		}
	}
	for name, s := range o.scaled {
		if o.deployments[s.Spec.ScaleTargetRef.Name] == nil || name != s.Spec.ScaleTargetRef.Name {
			t.Errorf("%s scales %s, which is not there", name, s.Spec.ScaleTargetRef.Name)
		}
		if s.Spec.MinReplicaCount < 1 || s.Spec.MaxReplicaCount < s.Spec.MinReplicaCount || len(s.Spec.Triggers) != 1 {
			t.Errorf("%s: expected bounds and a trigger, but got %+v", name, s.Spec)
			continue
		}
		m := s.Spec.Triggers[0].Metadata
		if !strings.Contains(m["query"], "opstream_") || strings.Count(m["query"], "{") != strings.Count(m["query"], "}") || m["threshold"] == "0" || m["serverAddress"] == "" {
			t.Errorf("%s: expected a question about our metrics, but got %v", name, m)
		}
		// KEDA's own defaults take pods away in the middle of the work: an empty answer counts as 0, and a failing Prometheus as a wish
		// for replicas, however many are there.
		if m["ignoreNullValues"] != "false" || s.Spec.Fallback.Behavior != "currentReplicasIfHigher" {
			t.Errorf("%s: expected no pod to be taken away while Prometheus says nothing, but got %v and %+v", name, m, s.Spec.Fallback)
		}
	}
	for name, s := range o.services {
		d := o.deployments[name]
		if d == nil || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) || !hasPort(d.Spec.Template.Spec.Containers[0], s.Spec.Ports[0].TargetPort.StrVal) {
			t.Errorf("the service %s leads nowhere", name)
		}
	}
	for name, in := range o.ingresses {
		for _, rule := range in.Spec.Rules {
			for _, path := range rule.HTTP.Paths {
				s := o.services[path.Backend.Service.Name]
				if s == nil || s.Spec.Ports[0].Port != path.Backend.Service.Port.Number {
					t.Errorf("the ingress %s leads nowhere", name)
				}
			}
		}
	}
	for name, n := range o.policies {
		reached := 0
		for _, d := range o.deployments {
			if selector(t, &n.Spec.PodSelector).Matches(labels.Set(d.Spec.Template.Labels)) && hasPort(d.Spec.Template.Spec.Containers[0], n.Spec.Ingress[0].Ports[0].Port.StrVal) {
				reached++
			}
		}
		if reached == 0 {
			t.Errorf("the network policy %s is for nothing", name)
		}
	}
	for name, j := range o.jobs {
		o.pod(t, name, &j.Spec.Template.Spec)
		if j.Annotations["helm.sh/hook"] != "pre-install,pre-upgrade" {
			t.Errorf("%s: expected a hook before install and upgrade, but got %v", name, j.Annotations)
		}
		if sa := j.Spec.Template.Spec.ServiceAccountName; sa != "default" {
			t.Errorf("%s: expected an account that is there before the chart, but got %s", name, sa)
		}
		// Helm waits five minutes, and six tries take longer: what a second try cannot change must end the Job, and be said.
		if policy := j.Spec.PodFailurePolicy; policy == nil || len(policy.Rules) != 1 || policy.Rules[0].Action != batchv1.PodFailurePolicyActionFailJob ||
			!slices.Equal(policy.Rules[0].OnExitCodes.Values, []int32{2, 3, 6}) || j.Annotations["helm.sh/hook-output-log-policy"] != "hook-failed" {
			t.Errorf("%s: expected what is refused to end the Job and to be told by Helm, but got %+v and %v", name, policy, j.Annotations)
		}
		args := j.Spec.Template.Spec.Containers[0].Args
		for _, arg := range args[2:] {
			flag, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			reference(t, name, flag, value, &j.Spec.Template.Spec)
			if !strings.HasPrefix(arg, "--") || !p.has(t, strings.Join(args[:2], " "), flag) {
				t.Errorf("%s: opstream %s has no option %s", name, strings.Join(args[:2], " "), arg)
			}
		}
	}
}

// pod checks what holds for every pod.
func (o *objects) pod(t *testing.T, name string, pod *corev1.PodSpec) {
	t.Helper()
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 || s.SeccompProfile == nil {
		t.Errorf("%s: expected a pod that is not root", name)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Errorf("%s: expected no token of the service account", name)
	}
	if sa := pod.ServiceAccountName; len(o.accounts) > 0 && sa != "default" && o.accounts[sa] == nil {
		t.Errorf("%s: the service account %s is not there", name, sa)
	}
	if g := pod.TerminationGracePeriodSeconds; pod.RestartPolicy == "" && (g == nil || *g < 30) {
		t.Errorf("%s: expected more time than a stop takes", name)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.Secret != nil && v.Secret.SecretName == "" {
			t.Errorf("%s: the volume %s names no secret", name, v.Name)
		}
	}
	for _, c := range pod.Containers {
		if s := c.SecurityContext; s == nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: expected a container without rights", name)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: expected requests and a limit of memory, but got %+v", name, c.Resources)
		}
		mounted := map[string]bool{}
		for _, m := range c.VolumeMounts {
			mounted[m.Name] = true
			if !volumes[m.Name] || !m.ReadOnly {
				t.Errorf("%s: expected %s to be there and only read", name, m.Name)
			}
		}
		for v := range volumes {
			if !mounted[v] {
				t.Errorf("%s: nobody mounts the volume %s", name, v)
			}
		}
		for _, e := range c.Env {
			if e.Value != "" || e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil || e.ValueFrom.SecretKeyRef.Name == "" {
				t.Errorf("%s: expected %s to come from a secret", name, e.Name)
			}
		}
	}
}

// configuration checks the file that a role reads: names that the program knows, paths that are mounted.
func (o *objects) configuration(t *testing.T, p *program, name, role string, template *corev1.PodTemplateSpec) {
	t.Helper()
	pod, file := &template.Spec, ""
	for _, v := range pod.Volumes {
		if v.ConfigMap == nil {
			continue
		}
		if c := o.configs[v.ConfigMap.Name]; c != nil {
			file = c.Data[v.ConfigMap.Items[0].Key]
		}
	}
	var options map[string]any
	if err := yaml.UnmarshalStrict([]byte(file), &options); err != nil || len(options) == 0 {
		t.Errorf("%s: expected a configuration, but got %v:\n%s", name, err, file)
		return
	}
	if options["roles"] != role {
		t.Errorf("%s: expected the role %s, but got %v", name, role, options["roles"])
	}
	if template.Annotations["checksum/config"] == "" {
		t.Errorf("%s: expected new pods for a new configuration", name)
	}
	for option, value := range options {
		if !p.has(t, "serve", option) {
			t.Errorf("%s: opstream serve has no option %s", name, option)
		}
		reference(t, name, option, fmt.Sprint(value), pod)
	}
	for _, e := range pod.Containers[0].Env {
		if option := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(e.Name, "OPSTREAM_"), "_", "-")); !p.has(t, "serve", option) {
			t.Errorf("%s: opstream serve has no option for %s", name, e.Name)
		}
	}
}

// reference checks an option's value: files are mounted, what is secret is in one, and there under the key that the volume takes.
func reference(t *testing.T, name, option, value string, pod *corev1.PodSpec) {
	t.Helper()
	path := strings.TrimPrefix(value, "file:")
	if (strings.Contains(option, "password") || strings.Contains(option, "secret")) && path == value {
		t.Errorf("%s: expected %s to be a reference", name, option)
	}
	if !strings.HasPrefix(path, "/") {
		return
	}
	i := slices.IndexFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(path, m.MountPath+"/") })
	if i < 0 {
		t.Errorf("%s: %s is %s, which nothing mounts", name, option, path)
		return
	}
	mount := pod.Containers[0].VolumeMounts[i]
	for _, v := range pod.Volumes {
		if v.Name == mount.Name && v.Secret != nil && len(v.Secret.Items) > 0 &&
			!slices.ContainsFunc(v.Secret.Items, func(k corev1.KeyToPath) bool { return k.Path == strings.TrimPrefix(path, mount.MountPath+"/") }) {
			t.Errorf("%s: %s is %s, which the secret %s does not bring", name, option, path, v.Secret.SecretName)
		}
	}
}

func selector(t *testing.T, s *metav1.LabelSelector) labels.Selector {
	t.Helper()
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func hasPort(c corev1.Container, name string) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
}

func isZero(v *intstr.IntOrString) bool {
	return v == nil || v.Type == intstr.Int && v.IntVal == 0 || v.StrVal == "0%"
}

func TestProduction(t *testing.T) {
	files, err := render(t, valueSets()["production"])
	if err != nil {
		t.Fatal(err)
	}
	o, err := decode(files)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.deployments) != 4 || len(o.budgets) != 4 || len(o.scaled) != 2 || len(o.ingresses) != 1 || len(o.policies) != 2 || len(o.jobs) != 1 {
		t.Errorf("expected everything to be there, but got %d deployments, %d budgets, %d scaled, %d ingresses, %d policies, %d jobs",
			len(o.deployments), len(o.budgets), len(o.scaled), len(o.ingresses), len(o.policies), len(o.jobs))
	}
	config := o.configs["operations"].Data["scheduler.yaml"]
	for _, want := range []string{
		"kafka-sasl-user: scheduler\n", "kafka-sasl-password: file:/etc/opstream/kafka-sasl/pw\n", "kafka-tls: true\n", "kafka-tls-ca: /etc/opstream/kafka-tls/ca.crt\n",
		"kafka-tls-key: /etc/opstream/kafka-tls/tls.key\n", "- kafka-3:9093\n", "ops-listen: 0.0.0.0:9600",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("expected %q in\n%s", want, config)
		}
	}
	args := strings.Join(o.jobs["operations-topics"].Spec.Template.Spec.Containers[0].Args, " ")
	for _, want := range []string{"topics apply --check", "--partitions=24", "--kafka-sasl-user=admin", "--brokers=kafka-1:9093,kafka-2:9093,kafka-3:9093"} {
		if !strings.Contains(args, want) {
			t.Errorf("expected %q in %s", want, args)
		}
	}
	if q := o.scaled["operations-worker"].Spec.Triggers[0].Metadata["query"]; q != `sum(opstream_scheduler_operations_ready{served="yes",namespace="ops"}) + sum(opstream_worker_slots_used{namespace="ops"})` {
		t.Errorf("expected the workers to be scaled by what is ready and what runs, but got %s", q)
	}
}

// TestTokens: with OAUTHBEARER each role, and the Job, has its own way to its tokens.
func TestTokens(t *testing.T) {
	rendered := func(set string) *objects {
		t.Helper()
		files, err := render(t, valueSets()[set])
		if err != nil {
			t.Fatal(err)
		}
		o, err := decode(files)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	expect := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("expected %q in\n%s", w, text)
			}
		}
		if strings.Contains(text, "kafka-sasl-user") || strings.Contains(text, "kafka-sasl-password") {
			t.Errorf("expected nothing of passwords with tokens, but got\n%s", text)
		}
	}
	secrets := func(volumes []corev1.Volume) string {
		text := ""
		for _, v := range volumes {
			if v.Secret != nil {
				text += v.Secret.SecretName + " "
			}
		}
		return text
	}
	o := rendered("tokens of an endpoint")
	data, job := o.configs["crm-opstream"].Data, o.jobs["crm-opstream-topics"].Spec.Template.Spec
	expect(data["scheduler.yaml"], "kafka-sasl-mechanism: OAUTHBEARER\n", "kafka-sasl-token-url: https://login.internal/token\n", "kafka-sasl-client-id: scheduler\n",
		"kafka-sasl-client-secret: file:/etc/opstream/kafka-sasl/pw\n", "kafka-sasl-scope: kafka\n", "kafka-sasl-token-ca: /etc/opstream/kafka-token-ca/root.crt\n")
	expect(data["worker.yaml"], "kafka-sasl-client-id: worker\n", "kafka-sasl-client-secret: file:/etc/opstream/kafka-sasl/client-secret\n")
	expect(strings.Join(job.Containers[0].Args, " "), "--kafka-sasl-client-id=admin", "--kafka-sasl-client-secret=file:/etc/opstream/kafka-sasl/client-secret", "--kafka-sasl-token-ca=")
	if got := secrets(job.Volumes); got != "kafka-tls login-admin login-ca " {
		t.Errorf("expected the Job to have the secrets of the admin, but got %s", got)
	}
	if got := secrets(o.deployments["crm-opstream-scheduler"].Spec.Template.Spec.Volumes); got != "kafka-tls login-scheduler login-ca " {
		t.Errorf("expected the schedulers to have their own secret, but got %s", got)
	}

	o = rendered("tokens in secrets")
	data = o.configs["crm-opstream"].Data
	expect(data["scheduler.yaml"], "kafka-sasl-token-file: /etc/opstream/kafka-sasl/jwt\n")
	expect(data["api.yaml"], "kafka-sasl-mechanism: OAUTHBEARER\n", "kafka-sasl-token-file: /etc/opstream/kafka-sasl/token\n")
	if got := secrets(o.deployments["crm-opstream-scheduler"].Spec.Template.Spec.Volumes); got != "token-scheduler " {
		t.Errorf("expected the schedulers to have their own secret, but got %s", got)
	}
}

// TestRefused are values that must not get to a cluster.
func TestRefused(t *testing.T) {
	base := valueSets()["minimal"]
	tokens := func(all, scheduler string) string {
		return "topics: {job: \"off\"}\ndatabase: {existingSecret: db}\nkafka: {brokers: [\"k:1\"], sasl: {" + all + "}}\nscheduler: {sasl: {" + scheduler + "}}\n"
	}
	for values, want := range map[string]string{
		"database: {existingSecret: db}":          "expected kafka.brokers",
		"kafka: {brokers: [\"k:1\"]}":             "expected database.existingSecret",
		base + "worker: {slotz: 3}":               "slotz",
		base + "workers: {}":                      "workers",
		base + "scheduler: {replicas: 13}":        "at most topics.partitions (12)",
		base + "terminationGracePeriodSeconds: 5": "terminationGracePeriodSeconds",
		base + "topics: {minInsyncReplicas: 3}":   "below topics.replicationFactor",
		base + "autoscaling: {enabled: true}":     "expected autoscaling.prometheus.serverAddress",
		base + "autoscaling: {enabled: true, prometheus: {serverAddress: x}, scheduler: {maxReplicas: 99}}": "at most topics.partitions (12)",
		base + "autoscaling: {worker: {minReplicas: 0}}":                                                    "minReplicas",
		base + "api: {ingress: {enabled: true}}":                                                            "expected api.ingress.hosts",
		base + "log: loud":                                                                                  "log",
		base + "lease: soon":                                                                                "lease",
		base + "scheduler: {strategy: {maxSurge: 1}}":                                                       "maxUnavailable",
		"topics: {job: \"off\"}\ndatabase: {existingSecret: db}\nkafka: {brokers: [\"k:1\"], sasl: {mechanism: PLAIN}}": "expected scheduler.sasl or kafka.sasl to have user and existingSecret",
		"database: {existingSecret: db}\nkafka: {brokers: [\"k:1\"], sasl: {mechanism: PLAIN, password: x}}":            "password",
		"database: {existingSecret: db}\nkafka: {brokers: [\"k:1\"], tls: {enabled: true, clientCertificate: true}}":    "expected kafka.tls.existingSecret",
		tokens("mechanism: OAUTHBEARER", ""):                                                                       "expected kafka.sasl.tokenUrl, or scheduler.sasl or kafka.sasl to have tokenKey and existingSecret",
		tokens("mechanism: OAUTHBEARER, tokenKey: token", ""):                                                      "expected kafka.sasl.tokenUrl, or",
		tokens("mechanism: OAUTHBEARER, tokenUrl: \"https://l/t\", existingSecret: s", ""):                         "to have clientId and existingSecret",
		tokens("mechanism: OAUTHBEARER, tokenUrl: \"https://l/t\"", "clientId: c"):                                 "expected scheduler.sasl or kafka.sasl to have clientId and existingSecret",
		tokens("mechanism: OAUTHBEARER, tokenUrl: \"https://l/t\", clientId: c, existingSecret: s", "tokenKey: t"): "either tokenUrl or tokenKey",
		tokens("mechanism: OAUTHBEARER, tokenUrl: \"http://l/t\", clientId: c, existingSecret: s", ""):             "tokenUrl",
		tokens("mechanism: OAUTHBEARER, tokenKey: t, existingSecret: s", "user: me"):                               "expected no user in scheduler.sasl",
		tokens("mechanism: OAUTHBEARER, tokenKey: t, existingSecret: s, scope: kafka", ""):                         "they are for a token endpoint",
		tokens("mechanism: OAUTHBEARER, tokenKey: t, existingSecret: s, token: very-secret", ""):                   "token",
		tokens("mechanism: OAUTHBEARER, tokenUrl: \"https://l/t\", clientId: c, clientSecret: x", ""):              "clientSecret",
		tokens("mechanism: PLAIN, user: u, existingSecret: s", "tokenKey: t"):                                      "expected kafka.sasl.mechanism to be OAUTHBEARER",
		tokens("tokenUrl: \"https://l/t\"", ""):                                                                    "expected kafka.sasl.mechanism to be OAUTHBEARER",
		tokens("mechanism: OAUTH", ""):                                                                             "mechanism",
		"database: {existingSecret: db, url: x}\nkafka: {brokers: [\"k:1\"]}":                                      "url",
		"database: {existingSecret: db}\nkafka: {brokers: [\"no port\"]}":                                          "brokers",
	} {
		if _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected to hear %q of these values, but got %v:\n%s", want, err, values)
		}
	}
}

// TestSchema holds values.yaml and its schema to one another: every value has a line in the schema, and every line a value.
func TestSchema(t *testing.T) {
	c := load(t)
	var schema map[string]any
	if err := yaml.UnmarshalStrict(c.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, schema map[string]any, value any)
	walk = func(path string, schema map[string]any, value any) {
		properties, _ := schema["properties"].(map[string]any)
		values, ok := value.(map[string]any)
		if schema["type"] == "object" && properties != nil && schema["additionalProperties"] != false {
			t.Errorf("%s: expected the schema to refuse what it does not know", path)
		}
		if !ok || len(values) == 0 { // empty: what may be there is for the schema alone to say
			return
		}
		for name, v := range values {
			inner, _ := properties[name].(map[string]any)
			if inner == nil && properties != nil {
				t.Errorf("%s.%s is not in the schema", path, name)
				continue
			}
			walk(path+"."+name, inner, v)
		}
		for name := range properties {
			if _, ok := values[name]; !ok && name != "global" {
				t.Errorf("%s.%s is in the schema, but has no default", path, name)
			}
		}
	}
	walk("", schema, c.Values)
	readme, err := os.ReadFile(filepath.Join(chartFolder, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range c.Values {
		if !bytes.Contains(readme, []byte("`"+name)) {
			t.Errorf("expected the chart's README to tell of %s, but it does not", name)
		}
	}
}

// TestLint is helm lint.
func TestLint(t *testing.T) {
	for name, values := range valueSets() {
		result := lint.RunAll(chartFolder, parse(t, values), "ops")
		for _, m := range result.Messages {
			if m.Severity >= support.WarningSev {
				t.Errorf("%s: %s", name, m)
			}
		}
	}
}

// TestStrictness makes sure that a misspelt field would be seen.
func TestStrictness(t *testing.T) {
	_, err := decode(map[string]string{"a.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {port: []}\n"})
	if err == nil || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("expected an unknown field to be refused, but got %v", err)
	}
	if _, err := decode(map[string]string{"a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n"}); err == nil {
		t.Error("expected a secret in the chart to be refused, but it was not")
	}
}
