package azureready

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// chooseVersion returns the preferred version if the server has it, else its
// first. Errors: ErrWireServer.
func chooseVersion(raw []byte) (string, error) {
	var v struct {
		XMLName xml.Name `xml:"Versions"`
		Version []string `xml:"Supported>Version"`
	}
	if err := parse(raw, &v); err != nil {
		return "", err
	}
	if len(v.Version) == 0 {
		return "", fmt.Errorf("%w: it supports no version", ErrWireServer)
	}
	if slices.Contains(v.Version, preferred) {
		return preferred, nil
	}
	first := v.Version[0]
	if len(first) == 0 || len(first) > 32 || strings.Trim(first, "0123456789-") != "" {
		return "", fmt.Errorf("%w: the version %q", ErrWireServer, podvm.Printable(first, 32))
	}
	return first, nil
}

// goalState is what a health report repeats.
type goalState struct{ incarnation, container, instance string }

// parseGoalState reads a goal state. Of several instances the first is this VM's.
// Errors: ErrWireServer.
func parseGoalState(raw []byte) (goalState, error) {
	var v struct {
		XMLName     xml.Name `xml:"GoalState"`
		Incarnation string   `xml:"Incarnation"`
		Container   string   `xml:"Container>ContainerId"`
		Instances   []string `xml:"Container>RoleInstanceList>RoleInstance>InstanceId"`
	}
	if err := parse(raw, &v); err != nil {
		return goalState{}, err
	}
	g := goalState{incarnation: v.Incarnation, container: v.Container}
	if len(v.Instances) > 0 {
		g.instance = v.Instances[0]
	}
	for name, text := range map[string]string{"incarnation": g.incarnation, "container id": g.container, "instance id": g.instance} {
		if text == "" || len(text) > maxText {
			return goalState{}, fmt.Errorf("%w: a goal state with %s %q", ErrWireServer, name, podvm.Printable(text, 64))
		}
	}
	return g, nil
}

func parse(raw []byte, into any) error {
	if err := xml.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %s", ErrWireServer, podvm.Printable(err.Error(), maxText))
	}
	return nil
}

// healthReport returns the document that says Ready.
func healthReport(g goalState) ([]byte, error) {
	v := struct {
		XMLName     xml.Name `xml:"Health"`
		Incarnation string   `xml:"GoalStateIncarnation"`
		Container   string   `xml:"Container>ContainerId"`
		Instance    string   `xml:"Container>RoleInstanceList>Role>InstanceId"`
		State       string   `xml:"Container>RoleInstanceList>Role>Health>State"`
	}{Incarnation: g.incarnation, Container: g.container, Instance: g.instance, State: "Ready"}
	body, err := xml.MarshalIndent(v, "", "  ")
	return append([]byte(`<?xml version="1.0" encoding="utf-8"?>`+"\n"), body...), err
}
