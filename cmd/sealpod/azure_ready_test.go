package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// wireServer returns the address of a WireServer for scripts.
func wireServer(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.String() {
		case "GET /?comp=versions":
			_, _ = io.WriteString(w, "<Versions><Supported><Version>2015-04-05</Version></Supported></Versions>")
		case "GET /machine/?comp=goalstate":
			_, _ = io.WriteString(w, "<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c</ContainerId>"+
				"<RoleInstanceList><RoleInstance><InstanceId>i</InstanceId></RoleInstance></RoleInstanceList></Container></GoalState>")
		case "POST /machine?comp=health":
			if body, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(body), "<State>Ready</State>") {
				http.Error(w, "not ready", http.StatusBadRequest)
			}
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}
