package verifier

import "context"

type parkKey struct{}

// WithPark returns a context in which Wait calls park with its call: whoever
// bounds how much evidence is worked on at a time may let others go first. park
// must make the call, once, before it returns.
func WithPark(ctx context.Context, park func(call func())) context.Context {
	return context.WithValue(ctx, parkKey{}, park)
}

// Wait makes a call that may wait for others, a key server for example. Verifiers
// make all of those through it, and no work.
func Wait(ctx context.Context, call func()) {
	if park, ok := ctx.Value(parkKey{}).(func(func())); ok {
		park(call)
		return
	}
	call()
}
