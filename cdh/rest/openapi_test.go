package rest

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
)

// api is what openapi.json says, references resolved.
type api struct {
	Paths map[string]map[string]json.RawMessage
	ops   map[string]map[string]map[string]reply // path, method, status

	doc map[string]any
}

// reply is a documented answer.
type reply struct {
	Ref     string `json:"$ref"`
	Body    string `json:"x-body"`
	Content map[string]struct {
		Schema map[string]any `json:"schema"`
	} `json:"content"`
}

var methods = []string{"get", "put", "post", "delete", "options", "head", "patch", "trace"}

func readAPI(t *testing.T) *api {
	t.Helper()
	raw, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{ops: map[string]map[string]map[string]reply{}}
	if err := json.Unmarshal(raw, a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &a.doc); err != nil {
		t.Fatal(err)
	}
	for path, item := range a.Paths {
		a.ops[path] = map[string]map[string]reply{}
		for method, op := range item {
			if !slices.Contains(methods, method) {
				continue
			}
			var o struct{ Responses map[string]reply }
			if err := json.Unmarshal(op, &o); err != nil {
				t.Fatal(err)
			}
			for status, r := range o.Responses {
				if r.Ref != "" {
					b, err := json.Marshal(a.at(t, r.Ref))
					if err != nil {
						t.Fatal(err)
					}
					if err := json.Unmarshal(b, &r); err != nil {
						t.Fatal(err)
					}
					o.Responses[status] = r
				}
			}
			a.ops[path][method] = o.Responses
		}
	}
	return a
}

// at follows a reference.
func (a *api) at(t *testing.T, ref string) map[string]any {
	t.Helper()
	at := a.doc
	for _, name := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		next, ok := at[name].(map[string]any)
		if !ok {
			t.Fatalf("%s leads nowhere", ref)
		}
		at = next
	}
	return at
}

// conforms checks a JSON value against as much of JSON Schema as openapi.json uses.
func (a *api) conforms(t *testing.T, schema map[string]any, v any) {
	t.Helper()
	if ref, ok := schema["$ref"].(string); ok {
		schema = a.at(t, ref)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		t.Errorf("%v is none of %v", v, enum)
	}
	switch schema["type"] {
	case "string":
		if _, ok := v.(string); !ok {
			t.Errorf("%v is no string", v)
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			t.Errorf("%v is no array", v)
		}
		for _, x := range list {
			a.conforms(t, schema["items"].(map[string]any), x)
		}
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			t.Errorf("%v is no object", v)
		}
		for _, name := range schema["required"].([]any) {
			if _, ok := o[name.(string)]; !ok {
				t.Errorf("%v has no %s", o, name)
			}
		}
		properties := schema["properties"].(map[string]any)
		for name, x := range o {
			if p, ok := properties[name].(map[string]any); ok {
				a.conforms(t, p, x)
			} else if schema["additionalProperties"] == false {
				t.Errorf("%s is not documented", name)
			}
		}
	default:
		t.Errorf("schema of type %v", schema["type"])
	}
}

// probe is a request that makes the server give a documented answer.
type probe struct{ world, target, body string }

const goodEvent = `{"domain":"d","operation":"o","content":"c"}`

// probes are by path and status, for every documented method.
var probes = map[string]map[string][]probe{
	"/info":     {"200": {{"all", "/info", ""}, {"resource", "/info", ""}, {"attestation", "/info", ""}}, "500": {{"lonely", "/info", ""}}},
	"/aa/token": {"200": {{"all", "/aa/token?token_type=kbs", ""}}, "400": {{"all", "/aa/token", ""}}, "404": {{"resource", "/aa/token", ""}}, "500": {{"all", "/aa/token?token_type=x", ""}, {"lonely", "/aa/token?token_type=kbs", ""}}},
	"/aa/evidence": {
		"200": {{"all", "/aa/evidence?runtime_data=x", ""}, {"all", "/aa/evidence?runtime_data=eA&encoding=base64", ""}},
		"400": {{"all", "/aa/evidence?runtime_data=x&encoding=hex", ""}, {"all", "/aa/evidence", ""}},
		"404": {{"resource", "/aa/evidence?runtime_data=x", ""}}, "500": {{"all", "/aa/evidence?runtime_data=fail", ""}},
	},
	"/aa/additional-evidence": {
		"200": {{"all", "/aa/additional-evidence?runtime_data=x", ""}, {"all", "/aa/additional-evidence?runtime_data=eA&encoding=base64", ""}},
		"400": {{"all", "/aa/additional-evidence?runtime_data=!&encoding=base64", ""}}, "404": {{"resource", "/aa/additional-evidence?runtime_data=x", ""}},
		"500": {{"lonely", "/aa/additional-evidence?runtime_data=x", ""}},
	},
	"/aa/aael": {
		"200": {{"all", "/aa/aael", goodEvent}}, "404": {{"resource", "/aa/aael", goodEvent}},
		"500": {{"all", "/aa/aael", "{}"}, {"lonely", "/aa/aael", goodEvent}},
	},
	"/cdh/resource/{repository}/{type}/{tag}": {
		"200": {{"all", "/cdh/resource/a/b/c", ""}, {"resource", "/cdh/resource/a/b/c", "body"}}, "404": {{"attestation", "/cdh/resource/a/b/c", ""}},
		"500": {{"all", "/cdh/resource/denied/b/c", ""}, {"lonely", "/cdh/resource/a/b/c", ""}},
	},
}

func TestOpenAPI(t *testing.T) {
	a := readAPI(t)
	worlds := map[string]*world{"lonely": {}}
	for _, f := range []string{"resource", "attestation", "all"} {
		worlds[f] = newWorld(t, f)
	}
	dir := t.TempDir()
	worlds["lonely"].serve(t, Config{Features: "all", CDHAddr: "unix://" + dir + "/c", AAAddr: "unix://" + dir + "/a", wait: time.Millisecond})

	check := func(t *testing.T, method string, want reply, contentType []string, body string) {
		t.Helper()
		var documented []string
		for ct := range want.Content {
			documented = append(documented, ct)
		}
		if !slices.Equal(contentType, documented) {
			t.Errorf("Content-Type %q, want %q", contentType, documented)
		}
		if method == "head" {
			return
		}
		if schema := want.Content[asJSON].Schema; schema != nil {
			var v any
			if err := json.Unmarshal([]byte(body), &v); err != nil {
				t.Fatal(err)
			}
			a.conforms(t, schema, v)
		}
		if want.Content == nil && (want.Body == "" || !regexp.MustCompile(want.Body).MatchString(body)) {
			t.Errorf("body %q, want %s", body, want.Body)
		}
	}
	for path, ops := range a.ops {
		for method, replies := range ops {
			for status, want := range replies {
				if status == "403" {
					continue // see below
				}
				if len(probes[path][status]) == 0 {
					t.Errorf("%s %s: nothing leads to %s", method, path, status)
				}
				for _, p := range probes[path][status] {
					t.Run(fmt.Sprint(method, " ", status, " ", p.world, " ", p.target), func(t *testing.T) {
						code, ct, body := worlds[p.world].raw(t, strings.ToUpper(method), p.target, p.body)
						if fmt.Sprint(code) != status {
							t.Fatalf("%d %q", code, body)
						}
						check(t, method, want, ct, body)
					})
				}
			}
			for status := range probes[path] {
				if _, ok := replies[status]; !ok {
					t.Errorf("%s %s: %s is not documented", method, path, status)
				}
			}
			t.Run(method+" 403 "+path, func(t *testing.T) {
				h, err := New(Config{Features: "all", CDHAddr: "unix:///x", AAAddr: "unix:///x", Log: cdhtest.Quiet})
				if err != nil {
					t.Fatal(err)
				}
				r := httptest.NewRequest(strings.ToUpper(method), probes[path]["200"][0].target, nil)
				r.RemoteAddr = "10.0.0.1:1"
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				want, ok := replies["403"]
				if rec.Code != 403 || !ok {
					t.Fatalf("%d, documented: %v", rec.Code, ok)
				}
				check(t, method, want, rec.Header()["Content-Type"], rec.Body.String())
			})
		}
	}
	if len(probes) != len(a.ops) {
		t.Errorf("%d paths are documented, %d tried", len(a.ops), len(probes))
	}
}

// What is not documented is not there.
func TestNothingAnswersThatIsNotDocumented(t *testing.T) {
	a, w := readAPI(t), newWorld(t, "all")
	refused := func(method, target string) {
		t.Helper()
		code, ct, text := w.raw(t, strings.ToUpper(method), target, "")
		want := 404
		if target == "/info" {
			want = 405
		}
		if code != want || len(ct) != 0 {
			t.Errorf("%s %s: %d %q %q", method, target, code, ct, text)
		}
	}
	for path, ops := range a.ops {
		for _, method := range append(methods, "propfind", "x") {
			switch _, ok := ops[method]; {
			case ok:
			case !strings.HasPrefix(path, "/cdh/"):
				refused(method, path)
			case slices.Contains(methods, method): // there all methods do the same
				t.Errorf("%s %s is not documented", method, path)
			}
		}
	}
	for _, path := range []string{
		"/", "/info/", "/INFO", "/aa", "/aa/", "/aa/token/", "/aa/evidence/x", "/aa/aael/", "/aa/derived-key", "/cdh", "/cdh/", "/cdh/resource", "/cdh/secret",
		"/cdh/image", "/metrics", "/healthz", "/debug/pprof/", "/debug/vars", "/openapi.json", "/favicon.ico", "/cdh/unseal", "/aa/../info",
	} {
		for _, method := range methods {
			refused(method, path)
		}
	}
}
