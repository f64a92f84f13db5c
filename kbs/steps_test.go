package kbs

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"
)

func TestStepsOfAHandshake(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	broken := errors.New("no device")
	for name, c := range map[string]struct {
		prepare func(*fakeKBS)
		tee     fakeTEE
		want    []Step
	}{
		"all":           {func(*fakeKBS) {}, fakeTEE{}, Steps()},
		"no challenge":  {func(k *fakeKBS) { k.onAuth = refuse }, fakeTEE{}, []Step{StepChallenge}},
		"no evidence":   {func(*fakeKBS) {}, fakeTEE{err: broken}, []Step{StepChallenge, StepEvidence}},
		"refused twice": {func(k *fakeKBS) { k.onAttest = refuse }, fakeTEE{}, append(Steps(), Steps()...)},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKBS(t)
			c.prepare(k)
			var got []Step
			ctx := WithSteps(t.Context(), func(s Step, d time.Duration) {
				got = append(got, s)
				if d <= 0 {
					t.Errorf("%s took %v", s, d)
				}
			})
			_, err := k.client(t, nil).Attest(ctx, &c.tee, nil, "")
			if (err == nil) != (len(c.want) == 3) || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
