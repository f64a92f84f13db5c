// Package demo tells the whole story on one machine: an owner seals and signs
// an image and puts its key into a relying party; a pod attests, gets the key,
// pulls, verifies, decrypts and unpacks the image and fetches a secret; then
// three things that must be refused are.
//
// Data path: all of it, on loopback. The relying party and the registry run in
// this process; the guest's daemons are real sealpod processes with real
// configuration files. The evidence comes from the sample attester or from a
// simulated TEE; no relying party accepts either unless its owner says so, as
// this one does. With a simulated TEE, five machines that are not what the owner
// expects are refused as well.
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

	"github.com/sealpod/sealpod/teesim"
)

// Options say how to run a demo. The zero value of each field is usable.
type Options struct {
	Sealpod string    // guest binary; found beside sealctl or on PATH when empty
	Image   string    // the user's own image instead of the built one
	TEE     string    // the kind of machine, one of Kinds; Sample when empty
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
	evidence := "the evidence is of a simulated TEE."
	if o.TEE == "" || o.TEE == Sample {
		evidence = "the evidence is a sample."
	}
	t.out.line("A confidential pod start, on this machine. No TEE here, so %s", evidence)
	w := &story{teller: t, options: o, sealpod: sealpod, dir: dir}
	err = w.tell(ctx)
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

// story is what a demo has running.
type story struct {
	*teller
	options Options
	sealpod string
	dir     string
	site    *site
	own     *owner
	pod     *pod
	source  string // the image before it is sealed
	weights []byte // what the built image holds; nil for the user's own
	sealed  sealedImage
}

// tell is the story, top to bottom. It leaves nothing running or mounted.
func (w *story) tell(ctx context.Context) (err error) {
	defer func() {
		if w.pod != nil {
			err = errors.Join(err, w.pod.stop())
		}
		if w.own != nil {
			err = errors.Join(err, w.own.stop())
		}
	}()
	w.out.chapter("The owner")
	if err := w.tellOwner(ctx); err != nil {
		return err
	}
	w.out.chapter("The pod")
	if err := w.tellPod(ctx); err != nil {
		return err
	}
	w.out.chapter("What is refused")
	return w.tellRefusals(ctx)
}

// tellOwner is the owner's side: a relying party, and an image sealed for a pod
// that nobody trusts yet.
func (w *story) tellOwner(ctx context.Context) error {
	if err := w.step("relying-party", "Relying party started; it knows what a good pod looks like", func() (note, error) {
		var err error
		if w.site, err = openSite(w.options.TEE, w.dir); err != nil {
			return note{}, err
		}
		verifiers, err := w.site.verifiers()
		if err != nil {
			return note{}, err
		}
		if w.own, err = startOwner(ctx, w.dir, verifiers); err != nil {
			return note{}, err
		}
		return note{text: w.own.url(), facts: map[string]string{"url": w.own.url()}}, w.own.setPolicies(ctx)
	}); err != nil {
		return err
	}
	if err := w.step("registry", "Registry started", func() (note, error) {
		return note{text: "loopback, plain HTTP: nothing below trusts it"}, w.own.startRegistry(ctx, filepath.Join(w.dir, "registry"))
	}); err != nil {
		return err
	}
	if w.options.Image == "" {
		if err := w.step("build", "Image built: a public base, a model, an app", func() (n note, err error) {
			w.source, w.weights, err = w.own.buildImage(ctx, "app")
			return note{text: w.source}, err
		}); err != nil {
			return err
		}
	} else {
		w.source = w.options.Image
		w.report.Steps = append(w.report.Steps, Step{ID: "build", Title: "The user's image", OK: true, Detail: w.source})
	}
	if err := w.step("encrypt", "Encrypted, and the key placed at the relying party", func() (n note, err error) {
		w.sealed, err = w.own.encrypt(ctx, w.source, "app", kekPath, w.options.Image != "")
		return note{text: w.sealed.note(kekPath)}, err
	}); err != nil {
		return err
	}
	return w.step("sign", "Signed with the owner's key", func() (note, error) {
		return note{text: w.sealed.ref}, w.own.sign(ctx, w.sealed.ref)
	})
}

// tellPod is the pod's side: a machine, the daemons, an image and a secret.
func (w *story) tellPod(ctx context.Context) error {
	g, err := w.own.guestConfig(ctx, filepath.Join(w.dir, "pod"), w.own.url())
	if err != nil {
		return fmt.Errorf("writing the pod's configuration: %w", err)
	}
	if w.site != nil {
		if err := w.step("machine", "A machine booted; the owner knows what it should measure", func() (note, error) {
			if err := w.site.boot(ctx, g, teesim.Launch{}); err != nil {
				return note{}, err
			}
			n := note{text: w.options.TEE + ": simulated, with a root of its own that this relying party was told to trust"}
			values, err := expected(g)
			if err != nil {
				return n, err
			}
			return n, w.own.admin.SetReferenceValues(ctx, values)
		}); err != nil {
			return errors.Join(err, g.close())
		}
	}
	if err := w.step("daemons", "Three daemons started from one binary", func() (note, error) {
		var err error
		if w.pod, err = startPod(ctx, w.sealpod, g); err != nil {
			return note{}, err
		}
		text, facts := w.pod.readiness()
		return note{text: text, facts: facts}, nil
	}); err != nil {
		return err
	}
	if err := w.step("pull", "Attested, then pulled, verified, decrypted, unpacked", func() (n note, err error) {
		bundle, digest, err := w.pod.pull(ctx, w.sealed.ref, "app")
		if err != nil {
			return note{}, err
		}
		defer func() { err = errors.Join(err, unmount(bundle)) }()
		kind, err := checkRootfs(bundle, w.weights)
		text := digest + "\nrootfs: " + kind
		if w.weights != nil {
			text += ", with the owner's bytes in it"
		}
		return note{
			text:  text,
			facts: map[string]string{"digest": digest, "rootfs": kind},
		}, err
	}); err != nil {
		return err
	}
	if err := w.step("secret", "A container asked for its secret over plain HTTP", func() (note, error) {
		got, err := w.pod.fetchSecret(ctx)
		if err == nil && string(got) != w.own.secret {
			err = errors.New("the secret that came is not the one placed")
		}
		return note{text: fmt.Sprintf("curl http://%s/cdh/resource/%s", w.pod.rest, secretPath)}, err
	}); err != nil {
		return err
	}
	w.report.Attestations = w.own.rp.Attestations()
	if w.report.Attestations != 1 {
		w.good = false
	}
	w.out.line("      Image policy, signing key, layer key and secret have cost %d attestation.", w.report.Attestations)
	return nil
}

// tellRefusals shows attacks on the pod of the story and, with a TEE, machines
// that are not the owner's.
func (w *story) tellRefusals(ctx context.Context) error {
	for _, a := range w.own.attacks() {
		ref, err := a.prepare(ctx)
		if err != nil {
			return fmt.Errorf("preparing %s: %w", a.id, err)
		}
		if err := w.refusal(a.id, a.title, a.want, func() error {
			bundle, _, err := w.pod.pull(ctx, ref, a.id)
			if err == nil {
				return unmount(bundle)
			}
			if left := leftovers(bundle); left != nil {
				return left
			}
			return err
		}); err != nil {
			return err
		}
	}
	if w.site == nil {
		return ctx.Err()
	}
	for _, f := range faults() {
		if err := w.refusal(f.id, f.title, f.want, func() error { return w.try(ctx, f) }); err != nil {
			return err
		}
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
