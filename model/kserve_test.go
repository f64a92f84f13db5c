package model

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// The kinds of KServe that the samples have, with the fields they may use and no
// others. Source: kserve pkg/apis/serving/{v1alpha1/storage_container_types.go,
// v1beta1/predictor.go, v1alpha2/llm_inference_service_types.go} at aaac4e2.
type (
	object[Spec any] struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name        string
			Annotations map[string]string
		}
		Spec Spec
	}
	container struct {
		Name            string
		Image           string
		ImagePullPolicy string `yaml:"imagePullPolicy"`
		Env             []struct{ Name, Value string }
		Resources       resources
		SecurityContext struct {
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			RunAsNonRoot             bool  `yaml:"runAsNonRoot"`
			Capabilities             struct{ Drop []string }
		} `yaml:"securityContext"`
	}
	resources        struct{ Requests, Limits struct{ Memory, CPU string } }
	storageContainer struct {
		Container                  container
		SupportedURIFormats        []struct{ Prefix, Regex string } `yaml:"supportedUriFormats"`
		WorkloadType               string                           `yaml:"workloadType"`
		SupportsMultiModelDownload bool                             `yaml:"supportsMultiModelDownload"`
	}
	confidential struct {
		Enabled    bool
		ResourceID string `yaml:"resourceId"`
	}
	inferenceService struct {
		Predictor struct {
			Annotations          map[string]string
			RuntimeClassName     string `yaml:"runtimeClassName"`
			ServiceAccountName   string `yaml:"serviceAccountName"`
			StorageContainerName string `yaml:"storageContainerName"`
			Model                struct {
				ModelFormat  struct{ Name string } `yaml:"modelFormat"`
				Runtime      string
				StorageURI   string `yaml:"storageUri"`
				Confidential confidential
				Resources    resources
			}
		}
	}
	llmInferenceService struct {
		Replicas    int
		Annotations map[string]string
		Model       struct {
			Name, URI    string
			Confidential confidential
		}
		Router   struct{ Route, Gateway struct{} }
		Template struct {
			RuntimeClassName   string      `yaml:"runtimeClassName"`
			ServiceAccountName string      `yaml:"serviceAccountName"`
			InitContainers     []container `yaml:"initContainers"`
			Containers         []container
		}
	}
)

// sample reads a sample, and nothing but what is known of its kind.
func sample[Spec any](t *testing.T, file, version, kind string) object[Spec] {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("kserve", file))
	if err != nil {
		t.Fatal(err)
	}
	var o object[Spec]
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if o.APIVersion != "serving.kserve.io/"+version || o.Kind != kind || o.Metadata.Name == "" {
		t.Errorf("%s is a %s %s called %q", file, o.APIVersion, o.Kind, o.Metadata.Name)
	}
	return o
}

// initializer checks a container that stands in for KServe's.
func (c container) initializer(t *testing.T) {
	t.Helper()
	if c.Name != "storage-initializer" {
		t.Errorf("container %q: KServe merges only with the one of its name", c.Name)
	}
	if c.Image == "" || c.ImagePullPolicy != "IfNotPresent" {
		t.Errorf("image %q, pulled %s", c.Image, c.ImagePullPolicy)
	}
	c.Resources.check(t)
	if c.Resources.Limits.Memory != "1Gi" {
		t.Errorf("memory limit %s, KServe's is 1Gi", c.Resources.Limits.Memory)
	}
	s := c.SecurityContext
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !s.RunAsNonRoot || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
		t.Errorf("security context %+v", s)
	}
	strict := false
	for _, e := range c.Env {
		strict = strict || e.Name == "MODEL_STRICT" && e.Value == "true"
		if strings.HasPrefix(e.Name, "CONFIDENTIAL_") {
			t.Errorf("%s is for all models", e.Name)
		}
	}
	if !strict {
		t.Error("a bucket's owner can add files")
	}
}

var (
	memoryQuantity = regexp.MustCompile(`^[1-9][0-9]*[MG]i$`)
	cpuQuantity    = regexp.MustCompile(`^[1-9][0-9]*m?$`)
)

func (r resources) check(t *testing.T) {
	t.Helper()
	for _, m := range []string{r.Requests.Memory, r.Limits.Memory} {
		if !memoryQuantity.MatchString(m) {
			t.Errorf("%q is no amount of memory", m)
		}
	}
	for _, c := range []string{r.Requests.CPU, r.Limits.CPU} {
		if !cpuQuantity.MatchString(c) {
			t.Errorf("%q is no share of a CPU", c)
		}
	}
}

// readable opens an address, without asking its store anything.
func readable(t *testing.T, address string) {
	t.Helper()
	env, err := settings.Load(podvm.Host{LookupEnv: func(name string) (string, bool) {
		if name == "awsAnonymousCredential" {
			return "true", true
		}
		return "", false
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(address, env); errors.Is(err, source.ErrUnsupported) || errors.Is(err, source.ErrUsage) {
		t.Errorf("%s: %v", address, err)
	}
}

// resourceID is what KServe accepts. Source: kserve pkg/validation/confidential.go
// at aaac4e2.
var resourceID = regexp.MustCompile(`^kbs:///[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+$`)

const initData = "io.katacontainers.config.hypervisor.cc_init_data"

// served checks what the two kinds of services have in common.
func served(t *testing.T, registered storageContainer, address, runtimeClass string, c confidential, annotations map[string]string) {
	t.Helper()
	if runtimeClass != "kata-remote" {
		t.Errorf("runtime class %q: the pod is no TEE", runtimeClass)
	}
	if annotations[initData] != "REPLACE-WITH-INIT-DATA" {
		t.Errorf("init data %q", annotations[initData])
	}
	if !c.Enabled || !resourceID.MatchString(c.ResourceID) {
		t.Errorf("confidential: %+v", c)
	}
	readable(t, address)
	if !registered.supports(t, address) {
		t.Errorf("%s is not registered", address)
	}
}

// supports decides as KServe does: a regular expression may match anywhere.
func (s storageContainer) supports(t *testing.T, address string) bool {
	t.Helper()
	for _, f := range s.SupportedURIFormats {
		if f.Prefix != "" && strings.HasPrefix(address, f.Prefix) || f.Regex != "" && regexp.MustCompile(f.Regex).MatchString(address) {
			return true
		}
	}
	return false
}

func TestSampleStorageContainer(t *testing.T) {
	o := sample[storageContainer](t, "storage-container.yaml", "v1alpha1", "ClusterStorageContainer")
	s := o.Spec
	s.Container.initializer(t)
	if s.WorkloadType != "initContainer" {
		t.Errorf("workload %s runs outside the TEE", s.WorkloadType)
	}
	if !s.SupportsMultiModelDownload {
		t.Error("several models at once are refused by KServe")
	}
	for _, f := range s.SupportedURIFormats {
		if (f.Prefix == "") == (f.Regex == "") {
			t.Errorf("%+v: want one of prefix and regex", f)
		}
		if f.Prefix != "" {
			readable(t, f.Prefix+"models/granite")
		}
	}
	for address, want := range map[string]bool{
		"s3://models/granite":                               true,
		"gs://models/granite":                               true,
		"hf://acme/granite:main":                            true,
		"https://models.example/granite.gz":                 true,
		"https://acme.blob.core.windows.net/models/granite": true,
		"http://models.example/granite.gz":                  true,
		// KServe's own affairs, and what nobody here reads.
		"pvc://claim/granite": false, "hdfs://x/y": false, "webhdfs://x/y": false, "modelscope://x/y": false,
		"/mnt/models": false, "oci://registry.example/granite:1": false, "oci+native://registry.example/granite:1": false,
	} {
		if s.supports(t, address) != want {
			t.Errorf("%s: registered %v, want %v", address, !want, want)
		}
		if want {
			readable(t, address)
		}
	}
}

func TestSampleInferenceServices(t *testing.T) {
	registered := sample[storageContainer](t, "storage-container.yaml", "v1alpha1", "ClusterStorageContainer")
	for file, format := range map[string]string{"caikit-tgis.yaml": "caikit", "vllm.yaml": "vLLM"} {
		t.Run(file, func(t *testing.T) {
			o := sample[inferenceService](t, file, "v1beta1", "InferenceService")
			// Knative lets no pod choose its runtime class unless told to.
			if mode := o.Metadata.Annotations["serving.kserve.io/deploymentMode"]; mode != "Standard" {
				t.Errorf("deployment mode %q", mode)
			}
			p := o.Spec.Predictor
			if p.StorageContainerName != registered.Metadata.Name {
				t.Errorf("storage container %q, registered is %q", p.StorageContainerName, registered.Metadata.Name)
			}
			if p.Model.ModelFormat.Name != format || p.Model.Runtime == "" || p.ServiceAccountName == "" {
				t.Errorf("%+v", p)
			}
			p.Model.Resources.check(t)
			served(t, registered.Spec, p.Model.StorageURI, p.RuntimeClassName, p.Model.Confidential, p.Annotations)
		})
	}
}

func TestSampleLLMInferenceService(t *testing.T) {
	registered := sample[storageContainer](t, "storage-container.yaml", "v1alpha1", "ClusterStorageContainer")
	o := sample[llmInferenceService](t, "llm-inference-service.yaml", "v1alpha2", "LLMInferenceService")
	s := o.Spec
	if s.Replicas != 1 || s.Model.Name == "" || s.Template.ServiceAccountName == "" {
		t.Errorf("%+v", s)
	}
	if len(s.Template.InitContainers) != 1 || len(s.Template.Containers) != 1 || s.Template.Containers[0].Name != "main" {
		t.Fatalf("%+v", s.Template)
	}
	s.Template.InitContainers[0].initializer(t)
	s.Template.Containers[0].Resources.check(t)
	served(t, registered.Spec, s.Model.URI, s.Template.RuntimeClassName, s.Model.Confidential, s.Annotations)
	if c := registered.Spec.Container; s.Template.InitContainers[0].Image != c.Image {
		t.Errorf("two images: %s and %s", s.Template.InitContainers[0].Image, c.Image)
	}
}
