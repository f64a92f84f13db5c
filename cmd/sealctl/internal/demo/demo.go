// Package demo tells the whole story on one machine: an owner seals and signs
// an image and puts its key into a relying party; a pod attests, gets the key,
// pulls, verifies, decrypts and unpacks the image and fetches a secret; then
// three things that must be refused are.
//
// Data path: all of it, on loopback. The relying party and the registry run in
// this process; the guest's daemons are real sealpod processes with real
// configuration files. The evidence comes from the sample attester, which no
// relying party accepts unless its owner says so, as this one does.
//
// Trust: everything here belongs to the user who runs it; nothing listens
// beyond loopback, and everything is gone when it ends.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Options say how to run a demo. The zero value of each field is usable.
type Options struct {
	Sealpod string    // guest binary; found beside sealctl or on PATH when empty
	Image   string    // the user's own image instead of the built one
	Keep    bool      // leave the working directory and name it
	Text    io.Writer // where the story is told; nil tells none
	Color   bool      // whether Text understands ANSI colours
}

// Run runs the demo. The report says what happened also when the error does
// not: an error means that the demo could not go on, Report.OK that every step
// worked and every refusal was made for its reason.
func Run(ctx context.Context, o Options) (*Report, error) {
	began := time.Now()
	t := &teller{report: &Report{Steps: []Step{}, Refusals: []Refusal{}}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer watchSignals(cancel)()
	if o.Text != nil {
		t.out = &printer{w: o.Text, color: o.Color, broken: cancel}
	}
	sealpod, err := findSealpod(o.Sealpod)
	if err != nil {
		return t.report, err
	}
	dir, err := os.MkdirTemp("", "sealpod-demo-")
	if err != nil {
		return t.report, fmt.Errorf("creating a working directory: %w", err)
	}
	t.out.line("%s", "A confidential pod start, on this machine. No TEE here, so the evidence is a sample.")
	err = tell(ctx, t, o, sealpod, dir)
	if o.Keep {
		t.out.line("\nKept: %s", dir)
	} else {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	t.report.DurationMS = ms(time.Since(began))
	if err == nil && t.good {
		t.out.line("\n%s Done in %.1f s: %d steps, %d refusals, %d attestation.", t.out.ok(), time.Since(began).Seconds(),
			len(t.report.Steps), len(t.report.Refusals), t.report.Attestations)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = errors.Join(cause, err)
	}
	t.report.OK = err == nil && t.good
	return t.report, err
}

// watchSignals keeps a reader that went away (as in "| head") and a terminal
// that closed from ending the process before it has cleaned up: the first
// becomes an error of the write, the second of the demo. The result undoes it.
func watchSignals(cancel context.CancelCauseFunc) (stop func()) {
	pipe, hangup, done := make(chan os.Signal, 1), make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(pipe, syscall.SIGPIPE)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signal.Notify(hangup, syscall.SIGHUP)
	}
	go func() {
		defer close(done)
		if _, ok := <-hangup; ok {
			cancel(errors.New("the terminal hung up"))
		}
	}()
	return func() {
		signal.Stop(pipe)
		signal.Stop(hangup)
		close(hangup)
		<-done
	}
}

// tell is the story, top to bottom. It leaves nothing running or mounted.
func tell(ctx context.Context, t *teller, o Options, sealpod, dir string) (err error) {
	// The owner's side.
	t.out.chapter("The owner")
	var own *owner
	defer func() {
		if own != nil {
			err = errors.Join(err, own.stop())
		}
	}()
	if err := t.step("relying-party", "Relying party started; it knows what a good pod looks like", func() (note, error) {
		own, err = startOwner(ctx, dir)
		if err != nil {
			return note{}, err
		}
		return note{text: own.url(), facts: map[string]string{"url": own.url()}}, own.setPolicies(ctx)
	}); err != nil {
		return err
	}
	if err := t.step("registry", "Registry started", func() (note, error) {
		return note{text: "loopback, plain HTTP: nothing below trusts it"}, own.startRegistry(ctx, filepath.Join(dir, "registry"))
	}); err != nil {
		return err
	}
	source := o.Image
	var weights []byte
	if source == "" {
		if err := t.step("build", "Image built: a public base, a model, an app", func() (note, error) {
			source, weights, err = own.buildImage(ctx, "app")
			return note{text: source}, err
		}); err != nil {
			return err
		}
	} else {
		t.report.Steps = append(t.report.Steps, Step{ID: "build", Title: "The user's image", OK: true, Detail: source})
		t.good = true
	}
	var sealed sealedImage
	if err := t.step("encrypt", "Encrypted, and the key placed at the relying party", func() (note, error) {
		sealed, err = own.encrypt(ctx, source, "app", kekPath, o.Image != "")
		return note{text: sealed.note(kekPath)}, err
	}); err != nil {
		return err
	}
	if err := t.step("sign", "Signed with the owner's key", func() (note, error) {
		return note{text: sealed.ref}, own.sign(ctx, sealed.ref)
	}); err != nil {
		return err
	}

	// The pod's side.
	t.out.chapter("The pod")
	var p *pod
	defer func() {
		if p != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	if err := t.step("daemons", "Three daemons started from one binary", func() (note, error) {
		g, err := own.guestConfig(ctx, dir)
		if err != nil {
			return note{}, err
		}
		p, err = startPod(ctx, sealpod, g)
		if err != nil {
			return note{}, err
		}
		text, facts := p.readiness()
		return note{text: text, facts: facts}, nil
	}); err != nil {
		return err
	}
	if err := t.step("pull", "Attested, then pulled, verified, decrypted, unpacked", func() (n note, err error) {
		bundle, digest, err := p.pull(ctx, sealed.ref, "app")
		if err != nil {
			return note{}, err
		}
		defer func() { err = errors.Join(err, unmount(bundle)) }()
		kind, err := checkRootfs(bundle, weights)
		text := digest + "\nrootfs: " + kind
		if weights != nil {
			text += ", with the owner's bytes in it"
		}
		return note{
			text:  text,
			facts: map[string]string{"digest": digest, "rootfs": kind},
		}, err
	}); err != nil {
		return err
	}
	if err := t.step("secret", "A container asked for its secret over plain HTTP", func() (note, error) {
		got, err := p.fetchSecret(ctx)
		if err == nil && string(got) != own.secret {
			err = errors.New("the secret that came is not the one placed")
		}
		return note{text: fmt.Sprintf("curl http://%s/cdh/resource/%s", p.rest, secretPath)}, err
	}); err != nil {
		return err
	}
	t.report.Attestations = own.rp.Attestations()
	if t.report.Attestations != 1 {
		t.good = false
	}
	t.out.line("      Image policy, signing key, layer key and secret have cost %d attestation.", t.report.Attestations)

	t.out.chapter("What is refused")
	return refusals(ctx, t, own, p)
}

// refusals shows three attacks on the pod of the story.
func refusals(ctx context.Context, t *teller, own *owner, p *pod) error {
	for _, a := range own.attacks() {
		ref, err := a.prepare(ctx)
		if err != nil {
			return fmt.Errorf("preparing %s: %w", a.id, err)
		}
		t.refusal(a.id, a.title, a.want, func() error {
			bundle, _, err := p.pull(ctx, ref, a.id)
			if err == nil {
				return unmount(bundle)
			}
			if left := leftovers(bundle); left != nil {
				return left
			}
			return err
		})
	}
	return ctx.Err()
}

// checkRootfs compares the unpacked tree with what the owner built and says
// what kind of rootfs it is.
func checkRootfs(bundle string, weights []byte) (kind string, err error) {
	kind = "directory"
	if mounted(filepath.Join(bundle, "rootfs")) {
		kind = "overlay"
	}
	if _, err := os.Stat(filepath.Join(bundle, "config.json")); err != nil {
		return kind, err
	}
	if weights == nil {
		return kind, nil
	}
	got, err := os.ReadFile(filepath.Join(bundle, "rootfs", weightsPath))
	if err != nil {
		return kind, err
	}
	if string(got) != string(weights) {
		return kind, errors.New("the model in the rootfs is not the one built")
	}
	if _, err := os.Stat(filepath.Join(bundle, "rootfs/tmp/build-leftover")); !errors.Is(err, os.ErrNotExist) {
		return kind, errors.New("a file removed by a later layer is still there")
	}
	return kind, nil
}

// mounted reports whether path is the root of a mount.
func mounted(path string) bool {
	var a, b syscall.Stat_t
	return syscall.Stat(path, &a) == nil && syscall.Stat(filepath.Dir(path), &b) == nil && a.Dev != b.Dev
}

// unmount undoes a pull as kata-agent does when a container ends.
func unmount(bundle string) error {
	rootfs := filepath.Join(bundle, "rootfs")
	if !mounted(rootfs) {
		return nil
	}
	if err := syscall.Unmount(rootfs, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", rootfs, err)
	}
	return nil
}

// leftovers is an error if a refused pull left anything in its bundle.
func leftovers(bundle string) error {
	entries, err := os.ReadDir(bundle)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("the refused pull left %s behind", entries[0].Name())
	}
	return nil
}
