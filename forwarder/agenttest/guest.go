package agenttest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// SecretAnnotation names a resource of the relying party, REPOSITORY/TYPE/TAG. A
// container that has it asks for the resource when it is started.
const SecretAnnotation = "sealpod.test/secret"

// Guest is what the agent has in a pod VM.
type Guest struct {
	// Hub is the socket of the data hub.
	Hub string
	// Namespace is the path of the pod's network namespace.
	Namespace string
	// Containers is the directory with a directory for each container.
	Containers string
}

// Files of a container's directory, once there is what they are about. Each has
// the time since the kernel's start in seconds; SecretFile has the secret on a
// second line.
const (
	RootFSFile = "rootfs.time"
	SecretFile = "secret"
)

const (
	guestPull = "image_guest_pull"
	// bundleDir has the image of a container, as a directory rootfs.
	// Source: kata-containers src/agent/src/confidential_data_hub at 7c6ba40c.
	bundleDir = "images"
	// secretTime bounds what a container waits for its secret.
	secretTime = 90 * time.Second
)

func (g *Guest) dir(container string) (string, error) {
	dir := filepath.Join(g.Containers, filepath.Base(container))
	return dir, os.MkdirAll(dir, 0o700)
}

// pull has the data hub pull the images among the storages.
func (g *Guest) pull(ctx context.Context, r *agent.CreateContainerRequest) error {
	for _, s := range r.Storages {
		if s.Driver != guestPull {
			continue
		}
		dir, err := g.dir(r.ContainerId)
		if err != nil {
			return err
		}
		bundle := filepath.Join(dir, bundleDir)
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			return err
		}
		hub := rpc.NewClient(g.Hub, time.Second)
		err = hub.Do(ctx, func(c *ttrpc.Client) error {
			_, err := datahub.NewImagePullServiceClient(c).PullImage(ctx, &datahub.ImagePullRequest{ImageUrl: s.Source, BundlePath: bundle})
			return err
		})
		if err := errors.Join(err, hub.Close()); err != nil {
			return fmt.Errorf("pulling %s: %w", s.Source, err)
		}
		if err := os.WriteFile(filepath.Join(dir, RootFSFile), []byte(sinceKernel()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fetch does what a process of the container does that wants a secret: it asks
// on loopback of the pod's network.
func (g *Guest) fetch(ctx context.Context, container, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, secretTime)
	defer cancel()
	dir, err := g.dir(container)
	if err != nil {
		return err
	}
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		body, err := get(ctx, g.Namespace, secret)
		if err == nil {
			return os.WriteFile(filepath.Join(dir, SecretFile), append([]byte(sinceKernel()+"\n"), body...), 0o600)
		}
		select {
		case <-again.C: // the REST server may be about to start
		case <-ctx.Done():
			return fmt.Errorf("fetching the secret of %s: %w", container, err)
		}
	}
}

// get asks the REST server of the pod whose network namespace is at path.
func get(ctx context.Context, namespace, secret string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+podvm.RESTAddr+"/cdh/resource/"+secret, nil)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, namespace)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, podvm.Printable(string(body), 500))
	}
	return body, err
}

// dial connects to the REST server from a network namespace, to which sockets made
// there belong for good.
func dial(ctx context.Context, namespace string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var fd int
		if fd, err = unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		if err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd)); err == nil {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", podvm.RESTAddr)
		}
	}()
	<-done
	return conn, err
}

// sinceKernel is the monotonic time in seconds.
func sinceKernel() string {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it never fails
	return fmt.Sprintf("%.2f", time.Duration(ts.Nano()).Seconds())
}

// ReadTime reads the time of a RootFSFile or SecretFile, and what follows it.
func ReadTime(path string) (seconds, rest string, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	seconds, rest, _ = strings.Cut(string(raw), "\n")
	return seconds, rest, nil
}
