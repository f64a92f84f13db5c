package intercept

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
)

func TestTheSandboxKeepsTheMachinesDNS(t *testing.T) {
	p := newPod(t)
	req := &agent.CreateSandboxRequest{Dns: []string{"nameserver 10.0.0.10", "search svc"}, SandboxId: "s1"}
	req.ProtoReflect().SetUnknown(encode2(1, []byte("hostname")))
	want := proto.Clone(req).(*agent.CreateSandboxRequest)
	want.Dns = nil
	raw, err := p.createSandbox(t.Context(), encode(t, req))
	if err != nil {
		t.Fatal(err)
	}
	var got agent.CreateSandboxRequest
	if err := proto.Unmarshal(raw, &got); err != nil || !proto.Equal(&got, want) {
		t.Errorf("%v, %v", &got, err)
	}
	again, err := p.createSandbox(t.Context(), raw)
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("without DNS it became %q, %v", again, err)
	}
	for name, payload := range map[string][]byte{
		"malformed":  {0xff},
		"not UTF-8":  encode2(5, []byte("\xff")),
		"many lines": slices.Repeat(encode2(2, nil), maxItems+1),
	} {
		if _, err := p.createSandbox(t.Context(), payload); code(err) != "InvalidArgument" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheEndOfASandboxDetachesVolumes(t *testing.T) {
	p := newPod(t)
	payload := encode2(200, []byte("of a newer runtime"))
	got, err := p.destroySandbox(t.Context(), payload)
	if err != nil || !bytes.Equal(got, payload) || p.vols.detached != 1 {
		t.Errorf("%q, %v, detached %d times", got, err, p.vols.detached)
	}
	t.Run("which has its time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p.vols.hang = true
			start := time.Now()
			if _, err := p.destroySandbox(t.Context(), payload); err != nil {
				t.Errorf("the agent is not told: %v", err)
			}
			if took := time.Since(start); took != detachTimeout || !errors.Is(p.vols.ended, context.DeadlineExceeded) {
				t.Errorf("after %v, %v", took, p.vols.ended)
			}
		})
	})
}
