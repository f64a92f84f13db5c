package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// print writes s as tables for people.
func (s podStatus) print(out io.Writer, now time.Time, color bool) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DAEMON\tSTATE\tVERSION\tUPTIME\tSOCKET\tDETAILS")
	s.Agent.row(t, now)
	s.Hub.row(t, now)
	if s.REST != nil {
		s.REST.row(t, now)
	}
	if s.Forwarder != nil {
		s.Forwarder.row(t, now)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if d := s.Agent.Details; d != nil {
		printAttestation(&b, d, now)
	}
	if d := s.Hub.Details; d != nil {
		printPulls(&b, d)
	}
	counters := map[string]float64{} // no two daemons have the same
	maps.Copy(counters, s.Agent.Counters)
	maps.Copy(counters, s.Hub.Counters)
	if s.REST != nil {
		maps.Copy(counters, s.REST.Counters)
	}
	if s.Forwarder != nil {
		maps.Copy(counters, s.Forwarder.Counters)
	}
	printCounters(&b, counters)
	text := b.String()
	if color {
		text = colors.Replace(text)
	}
	_, err := io.WriteString(out, text)
	return err
}

// colors works on the finished table, which counts characters. The spaces are
// those around the states.
var colors = strings.NewReplacer("  up    ", "  \x1b[32mup\x1b[0m    ", "  down  ", "  \x1b[31mdown\x1b[0m  ")

// row writes the line of a daemon. version is "" when it does not say.
func (s daemonStatus) row(w io.Writer, name, version string, started, now time.Time, details string) {
	state, uptime := "down", "-"
	if s.Up {
		state = "up"
	}
	if version == "" {
		version = "-"
	} else {
		uptime = age(now.Sub(started))
	}
	if !s.Up {
		details = s.Problem
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", name, state, podvm.Printable(version, 64), uptime, s.Socket, details)
}

func (s agentStatus) row(w io.Writer, now time.Time) {
	var d aaserver.Status
	details := "TEE " + strings.Join(append([]string{s.TEE}, s.Devices...), " and ")
	if s.Details != nil {
		d = *s.Details
		details += ", event log " + map[bool]string{true: "on", false: "off"}[d.EventLog]
		if d.InitData != "" {
			details += ", init data bound"
		}
	}
	s.daemonStatus.row(w, "attestation-agent", d.Version, d.Started, now, details)
}

func (s hubStatus) row(w io.Writer, now time.Time) {
	var d server.Status
	details := ""
	if s.Details != nil {
		d = *s.Details
		details = fmt.Sprintf("resources from %s, images being pulled: %d", podvm.Printable(d.KBC, 32), len(d.Pulls))
	}
	s.daemonStatus.row(w, "confidential-data-hub", d.Version, d.Started, now, details)
}

func (s restStatus) row(w io.Writer, now time.Time) {
	var d rest.Status
	if s.Details != nil {
		d = *s.Details
	}
	s.daemonStatus.row(w, "api-server-rest", d.Version, d.Started, now, fmt.Sprintf("features %s, requests running: %d", podvm.Printable(d.Features, 32), d.Running))
}

func (s forwarderStatus) row(w io.Writer, now time.Time) {
	if d := s.Details; d == nil {
		s.daemonStatus.row(w, "agent-protocol-forwarder", "", time.Time{}, now, "")
	} else {
		details := fmt.Sprintf("listens on %s, TLS %s, clients: %d", podvm.Printable(d.Listen, 64), map[bool]string{true: "on", false: "off"}[d.TLS], d.Clients)
		if d.PodName != "" {
			details += ", pod " + podvm.Printable(d.PodNamespace+"/"+d.PodName, 320)
		}
		s.daemonStatus.row(w, "agent-protocol-forwarder", d.Version, d.Started, now, details)
	}
}

// age is how long something is ago, coarsely.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d/time.Hour%24)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d/time.Minute%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d/time.Second%60)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func printAttestation(b *strings.Builder, d *aaserver.Status, now time.Time) {
	if d.Attestation != nil {
		a := d.Attestation
		fmt.Fprintf(b, "\nLAST ATTESTATION\n%s  %s  %s  %s\n", a.Started.UTC().Format(time.RFC3339), podvm.Printable(a.Result, 32), seconds(a.Elapsed), podvm.Printable(d.KBS, 512))
		printParts(b, kbs.Steps(), a.Seconds)
		printCause(b, a.Cause)
	}
	switch t := d.Token; {
	case t != nil:
		fmt.Fprintf(b, "\nTOKEN\n%s old, attests again in %s, expires %s\n", age(now.Sub(t.Since)), age(t.Renewed.Sub(now)), t.Expires.UTC().Format(time.RFC3339))
	case d.Attestation != nil:
		b.WriteString("\nTOKEN\nnone is kept\n")
	}
}

func printPulls(b *strings.Builder, d *server.Status) {
	if len(d.Pulls) > 0 {
		b.WriteString("\nPULLING\n")
	}
	for _, p := range d.Pulls {
		fmt.Fprintf(b, "%s\n  %s\n", podvm.Printable(p.Image, 512), progressLine(p.Status))
	}
	if len(d.Last) > 0 {
		b.WriteString("\nLAST PULLS\n")
	}
	for _, p := range d.Last {
		fmt.Fprintf(b, "%s  %s  %s  %s\n", p.Started.UTC().Format(time.RFC3339), podvm.Printable(p.Result, 32), seconds(p.Elapsed), podvm.Printable(p.Image, 512))
		printParts(b, imagepull.Phases(), p.Seconds)
		printCause(b, p.Cause)
	}
}

// printParts writes how long parts took, in their order.
func printParts[K ~string](b *strings.Builder, order []K, took map[K]float64) {
	var parts []string
	for _, k := range order {
		if t, ok := took[k]; ok {
			parts = append(parts, fmt.Sprintf("%s %.3fs", k, t))
		}
	}
	if len(parts) > 0 {
		fmt.Fprintf(b, "  %s\n", strings.Join(parts, ", "))
	}
}

func printCause(b *strings.Builder, cause string) {
	if cause != "" {
		fmt.Fprintf(b, "  %s\n", podvm.Printable(strings.ReplaceAll(cause, "\n", "; "), 1024))
	}
}

// printCounters writes the counters that are not 0.
func printCounters(b *strings.Builder, counters map[string]float64) {
	heading := "\nCOUNTERS\n"
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if n := counters[name]; n != 0 {
			fmt.Fprintf(b, "%s%s %.12g\n", heading, podvm.Printable(name, 256), n)
			heading = ""
		}
	}
}
