package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/ttrpc"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// mapperPrefix is before the name of a volume in the device-mapper. Nothing else
// has it.
const mapperPrefix = "caa-"

const mapperDir = "/dev/mapper/"

// luksMagic is what a LUKS header begins with.
// Source: LUKS2 On-Disk Format Specification 1.1.3, §2.1.
const luksMagic = "LUKS\xba\xbe"

// secureMount has the data hub open or make the volume and mount it in its place.
// Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/forwarder/interceptor/{interceptor,cdh_client}.go at
// fbdde756.
func (m *Manager) secureMount(ctx context.Context, v Volume, d disk) error {
	if m.hub == nil {
		return podvm.Explain(errors.New("no data hub"), "encrypted cloud volumes need the data hub, which this pod VM has not")
	}
	source := "empty"
	if luks, err := beginsWith(d.path, luksMagic); err != nil {
		return podvm.Explain(fmt.Errorf("%w: reading %s: %w", ErrDevice, d.path, err), "the disk cannot be read")
	} else if luks {
		source = "encrypted"
	}
	req := &datahub.SecureMountRequest{
		VolumeType: "block-device",
		Options: map[string]string{
			"devicePath": d.inGuest, "sourceType": source, "targetType": "fileSystem", "encryptionType": "luks2",
			"filesystemType": v.FSType, "key": keyScheme + v.KeyID, "mapperName": mapperPrefix + v.Name,
		},
		MountPoint: Base + "/" + v.Name,
	}
	err := m.hub.Do(ctx, func(c *ttrpc.Client) error {
		_, err := datahub.NewSecureMountServiceClient(c).SecureMount(ctx, req)
		return err
	})
	switch {
	case errors.Is(err, rpc.ErrPeerAbsent) && ctx.Err() == nil:
		return podvm.Explain(err, "the data hub, which opens encrypted cloud volumes, does not listen")
	case err != nil:
		return fmt.Errorf("asking the data hub: %w", err)
	}
	return nil
}

func beginsWith(path, magic string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, len(magic))
	_, err = f.ReadAt(b, 0)
	return string(b) == magic, err
}

// isMapping reports whether mount is that of the encrypted volume called name.
func (m *Manager) isMapping(name string, mount *mountinfo.Info) bool {
	// Not by mount.Source, which whoever mounts may choose.
	var st unix.Stat_t
	return unix.Stat(m.host.Path(mapperDir+mapperPrefix+name), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && int(unix.Major(st.Rdev)) == mount.Major && int(unix.Minor(st.Rdev)) == mount.Minor
}

// mappings lists the volumes whose mapping exists, mounted or not, sorted.
func (m *Manager) mappings() ([]string, error) {
	nodes, err := os.ReadDir(m.host.Path(mapperDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, node := range nodes {
		if name, ok := strings.CutPrefix(node.Name(), mapperPrefix); ok && bareName(name) {
			names = append(names, name)
		}
	}
	return names, err
}
