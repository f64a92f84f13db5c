package oss

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Where upstream has the programs; gocryptfs is looked for on PATH, too.
const (
	ossfs     = "/usr/local/bin/ossfs"
	gocryptfs = "/usr/local/bin/gocryptfs"
)

// stateDir holds a directory per volume, in memory: the mount of the bucket
// below gocryptfs, and while a program starts its password file.
const stateDir = podvm.CDHRunDir + "/oss"

// Config says what a Driver works with.
type Config struct {
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
	// Unseal opens a sealed secret. The caller of it wipes what it returns.
	Unseal func(ctx context.Context, sealed string) (podvm.Secret, error)
}

// Driver mounts buckets. It is safe for concurrent use, by several processes
// too.
type Driver struct {
	host   podvm.Host
	log    *slog.Logger
	unseal func(context.Context, string) (podvm.Secret, error)
	run    tool.Runner
}

// New returns a Driver.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Driver{host: cfg.Host, log: cfg.Log, unseal: cfg.Unseal, run: tool.Runner{Host: cfg.Host}}
}

// Mount puts the bucket of v on its mount point. The same request again succeeds
// and changes nothing while it is mounted. When Mount fails, it leaves nothing
// behind.
//
// Errors, all with a cause: tool.ErrOption, tool.ErrBusy, those of unsealing and
// of programs, the cause of ctx.
func (d *Driver) Mount(ctx context.Context, v Volume) (err error) {
	if err := v.Check(); err != nil {
		return err
	}
	dir := d.host.Path(stateDir + "/" + v.Digest)
	unlock, err := tool.Lock(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if done, err := d.resume(&v, dir); err != nil || done {
		return err
	}
	var undo tool.Undo
	defer func() { undo.OnError(ctx, &err) }()
	undo.Add(func(context.Context) error { return removeState(dir) })
	if err := os.Mkdir(dir, 0o700); err != nil {
		return tool.Explain("keeping the state of the volume", err, "the state of the volume cannot be kept")
	}
	mp, real, err := tool.Directory(v.MountPoint, &undo)
	if err != nil {
		return tool.Explain("preparing the mount point", err, "the mount point is not a directory, or cannot be made one")
	}
	defer mp.Close()

	start := time.Now()
	if v.Encrypted != "gocryptfs" {
		err = d.bucket(ctx, &v, dir, real, &undo)
	} else {
		err = d.encrypted(ctx, &v, dir, real, &undo)
	}
	if err == nil {
		err = remember(dir, real)
	}
	if err != nil {
		return err
	}
	d.log.Info("Bucket in place", "bucket", v.Bucket, "mount_point", v.MountPoint, "encrypted", v.Encrypted == "gocryptfs", "dur", time.Since(start))
	return nil
}

func (d *Driver) encrypted(ctx context.Context, v *Volume, dir, point string, undo *tool.Undo) error {
	below := filepath.Join(dir, "cipher")
	if err := os.Mkdir(below, 0o700); err != nil {
		return tool.Explain("keeping the state of the volume", err, "the state of the volume cannot be kept")
	}
	if err := d.bucket(ctx, v, dir, below, undo); err != nil {
		return err
	}
	password, err := d.plaintext(ctx, v.Password)
	if err != nil {
		return err
	}
	defer password.Wipe()
	program := gocryptfs
	if _, err := d.run.Path(program); err != nil {
		program = "gocryptfs"
	}
	err = d.withFile(dir, password, func(file string) error {
		return d.mount(ctx, point, undo, program, "-nosyslog", "-passfile", file, "--", below, point)
	})
	return tool.Explain("mounting the encrypted directory", err, "gocryptfs could not mount the bucket; is the password right?")
}

// bucket mounts the bucket itself on point.
func (d *Driver) bucket(ctx context.Context, v *Volume, dir, point string, undo *tool.Undo) error {
	id, err := d.plaintext(ctx, v.AccessKeyID)
	if err != nil {
		return err
	}
	defer id.Wipe()
	secret, err := d.plaintext(ctx, v.SecretKey)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	if !credential(id) || !credential(secret) {
		return tool.Option("akId or akSecret, unsealed, has characters that credentials do not have")
	}
	line := make(podvm.Secret, 0, len(v.Bucket)+len(id)+len(secret)+2) // it does not grow, so leaves no copies
	line = append(append(append(append(append(line, v.Bucket...), ':'), id...), ':'), secret...)
	defer line.Wipe()
	options, err := ossfsOptions(v.Options)
	if err != nil {
		return err
	}
	err = d.withFile(dir, line, func(file string) error {
		args := append([]string{v.Bucket + ":" + v.Path, point, "-ourl=" + v.URL, "-opasswd_file=" + file}, options...)
		return d.mount(ctx, point, undo, ossfs, args...)
	})
	return tool.Explain("mounting the bucket", err, "ossfs could not mount the bucket")
}

// mount runs a program that leaves a file system on point.
func (d *Driver) mount(ctx context.Context, point string, undo *tool.Undo, program string, args ...string) error {
	before, err := tool.Top(point)
	if err != nil {
		return err
	}
	appeared := func() (bool, error) {
		after, err := tool.Top(point)
		return after != nil && (before == nil || after.ID != before.ID), err
	}
	// A program that is killed half-way may have mounted already.
	undo.Add(func(context.Context) error {
		if there, err := appeared(); err != nil || !there {
			return err
		}
		return tool.Unmount(point)
	})
	if _, err := d.run.Run(ctx, nil, program, args...); err != nil {
		return err
	}
	if there, err := appeared(); err != nil || !there {
		return errors.Join(err, fmt.Errorf("%s ended well, but mounted nothing on %s", program, point))
	}
	return nil
}

// withFile calls f with a file that holds secret as long as f runs.
func (d *Driver) withFile(dir string, secret podvm.Secret, f func(path string) error) (err error) {
	path := filepath.Join(dir, "secret")
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	if err := os.WriteFile(path, secret, 0o600); err != nil {
		return err
	}
	return f(path)
}

// plaintext returns a copy of s, unsealed if it is sealed.
func (d *Driver) plaintext(ctx context.Context, s string) (podvm.Secret, error) {
	if !strings.HasPrefix(s, "sealed.") {
		return podvm.Secret(s), nil
	}
	secret, err := d.unseal(ctx, s)
	return secret, tool.Explain("unsealing a credential", err, "a sealed credential of the volume cannot be opened")
}

// resume looks at what an earlier call left. done says that the volume is in
// place; otherwise nothing of that call is left.
func (d *Driver) resume(v *Volume, dir string) (done bool, err error) {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	cipher := filepath.Join(dir, "cipher")
	real, err := ownMount(v.MountPoint, dir)
	if err != nil {
		return false, tool.Explain("looking for the mount", err, "the mounts of the pod VM cannot be read")
	}
	// Of an encrypted volume both halves must be alive.
	if real != "" && alive(real) && alive(cipher) {
		d.log.Info("Bucket is in place already", "bucket", v.Bucket, "mount_point", v.MountPoint)
		return true, nil
	}
	if real != "" {
		err = tool.Unmount(real)
	}
	err = errors.Join(err, tool.Unmount(cipher), removeState(dir))
	return false, tool.Explain("taking back an earlier mount", err, "an earlier mount of the bucket cannot be taken away")
}

// mountFile holds the id of the mount that a volume ends in.
func mountFile(dir string) string { return filepath.Join(dir, "mount") }

// remember keeps the id of the topmost mount on point.
func remember(dir, point string) error {
	top, err := tool.Top(point)
	if err == nil && top == nil {
		err = errors.New("it is gone already")
	}
	if err == nil {
		err = os.WriteFile(mountFile(dir), []byte(strconv.Itoa(top.ID)), 0o600)
	}
	return tool.Explain("keeping the state of the volume", err, "the state of the volume cannot be kept")
}

// ownMount returns point without links if the mount on it is the one that was
// remembered, "" if not.
func ownMount(point, dir string) (string, error) {
	id, err := podvm.ReadFileMax(mountFile(dir), 64)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	real := tool.Real(point)
	if err != nil || real == "" {
		return "", err
	}
	top, err := tool.Top(real)
	if err != nil || top == nil || strconv.Itoa(top.ID) != string(id) {
		return "", err
	}
	return real, nil
}

// removeState removes what Mount keeps in dir. It does not descend: below cipher
// there may be a bucket.
func removeState(dir string) error {
	var errs []error
	for _, path := range []string{filepath.Join(dir, "secret"), filepath.Join(dir, "cipher"), mountFile(dir), dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// alive tells whether the program behind a FUSE mount still answers.
func alive(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED)
}
