package intercept

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/podvm"
)

// errPlace says that a missing source of a mount is not to be made where it is said
// to be.
var errPlace = errors.New("not a place for sources of mounts")

// Sources of mounts are only made below base, in one of places: there both runtimes
// have the agent keep what they copy, share and mount. Anywhere else a file that
// appears may mean something: to a unit that waits for it, to cgroups, to the
// agent's own bookkeeping.
// Source: kata-containers src/runtime/virtcontainers/kata_agent.go and
// src/libs/kata-types/src/mount.rs at 7c6ba40c.
const base = "/run/kata-containers"

var places = []string{"shared", "sandbox", "virtual-volumes"}

// Caps of what one request may make.
const (
	maxMade  = 128
	maxDepth = 16 // names in a path below base
)

// sources makes what is missing of one request's sources of bind mounts. What fails
// is logged once: the agent will refuse the mount.
type sources struct {
	host     podvm.Host
	req      *agent.CreateContainerRequest
	made     int
	failed   int
	firstBad string
	firstErr error
}

func (i *Interceptor) sources(req *agent.CreateContainerRequest) *sources {
	return &sources{host: i.host, req: req}
}

// provide makes the source of m if it is missing, unless the agent will mount it.
func (s *sources) provide(m *agent.Mount) {
	if !path.IsAbs(m.Source) {
		return
	}
	if _, err := os.Stat(s.host.Path(m.Source)); !errors.Is(err, fs.ErrNotExist) || s.mounted(m.Source) {
		return
	}
	err := s.make(m)
	if err == nil {
		s.made++
		return
	}
	s.failed++
	if s.firstErr == nil {
		s.firstBad, s.firstErr = m.Source, err
	}
}

// mounted reports whether source is, or is below, what the agent mounts for the
// container, and makes as it needs it, directory or file.
func (s *sources) mounted(source string) bool {
	return slices.ContainsFunc(s.req.Storages, func(st *agent.Storage) bool {
		return st.MountPoint != "" && (source == st.MountPoint || strings.HasPrefix(source, st.MountPoint+"/"))
	})
}

func (s *sources) make(m *agent.Mount) (err error) {
	rel, below := strings.CutPrefix(strings.TrimRight(m.Source, "/"), base+"/")
	place, rest, named := strings.Cut(rel, "/")
	switch {
	case !below, !named, path.Clean(rel) != rel, !filepath.IsLocal(rest), !slices.Contains(places, place), strings.Count(rel, "/") >= maxDepth:
		return errPlace
	case s.made == maxMade:
		return fmt.Errorf("more than %d sources are missing", maxMade)
	}
	dir := s.host.Path(path.Join(base, place))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Nothing below leads out of it, whatever links a container has left there.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if !isFile(m.Destination, s.req.OCI.Annotations) {
		return root.MkdirAll(rest, 0o755)
	}
	if err := root.MkdirAll(path.Dir(rest), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(rest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		// Another container's request was faster, unless this is a link.
		if info, e := root.Lstat(rest); e == nil && info.Mode().IsRegular() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// report logs what came of a request.
func (s *sources) report(log *slog.Logger) {
	if s.made > 0 {
		log.Info("Missing sources of mounts made", "count", s.made)
	}
	if s.failed > 0 {
		log.Warn("Missing sources of mounts not made", "count", s.failed, "first", podvm.Printable(s.firstBad, 256), "err", podvm.Printable(s.firstErr.Error(), 512))
	}
}

// terminationPath is the annotation with the file that a container leaves its last
// words in. Source: kata-containers src/agent/src/rpc.rs at 7c6ba40c.
const terminationPath = "io.kubernetes.container.terminationMessagePath"

// Destinations at which Kubernetes mounts files, and names that are hardly given to
// directories.
var (
	fileDestinations = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}
	fileSuffixes     = []string{".cfg", ".conf", ".crt", ".env", ".ini", ".js", ".json", ".key", ".log", ".pem", ".properties", ".py", ".sh", ".sql", ".toml", ".txt", ".xml", ".yaml", ".yml"}
)

// isFile reports whether what is mounted on destination is meant to be a file. The
// request does not say, and the container's root file system is not there yet; a
// source of the wrong kind is an error of the mount later on.
func isFile(destination string, annotations map[string]string) bool {
	return slices.Contains(fileDestinations, destination) ||
		destination != "" && destination == annotations[terminationPath] ||
		slices.Contains(fileSuffixes, strings.ToLower(path.Ext(destination)))
}
