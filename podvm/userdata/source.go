package userdata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/userdata/cidata"
)

// Where user data may come from: the values of Config.Source.
const (
	Auto    = "auto" // look for it
	File    = "file" // a mounted disk, an upload, or a disk that is not mounted
	Azure   = "azure"
	AWS     = "aws"
	GCP     = "gcp"
	Alibaba = "alibaba"
	None    = "none" // others wrote the files; only init data is processed
)

// Sources returns the values Config.Source may have.
func Sources() []string { return []string{Auto, File, Azure, AWS, GCP, Alibaba, None} }

// errNoSource says that nothing on this machine tells where user data is.
var errNoSource = errors.New("no source of user data found")

// errUpload says that a file may not be all there.
var errUpload = errors.New(mountedFile + " may still be being written")

// Places on the machine.
const (
	mountedFile = "/media/cidata/" + cidata.FileName
	labels      = "/dev/disk/by-label"
	dmi         = "/sys/class/dmi/id/"
)

// maxUserData caps user data in bytes, without base64. No cloud takes more than
// 256 KiB; the disk has room for more.
const maxUserData = 1 << 20

// findSource returns where user data is on the machine. Upstream knows Azure and
// Google's cloud by the hypervisor's name and a request, which any machine on KVM
// would make; the firmware's tables tell them apart. A file wins, as upstream.
// Files that somebody wrote, as cloud-init does on IBM's clouds, come last.
//
// Errors: errNoSource.
// Source: cloud-init tools/ds-identify at 25.1 for the values.
func findSource(host podvm.Host) (string, error) {
	if _, err := os.Lstat(host.Path(mountedFile)); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return File, nil
	}
	if disk(host) != "" {
		return File, nil
	}
	vendor := firmware(host, "sys_vendor")
	switch {
	case firmware(host, "chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77":
		return Azure, nil
	case vendor == "Amazon EC2":
		return AWS, nil
	case firmware(host, "product_name") == "Google Compute Engine":
		return GCP, nil
	case vendor == "Alibaba Cloud":
		return Alibaba, nil
	}
	if _, err := os.Stat(host.Path(forwarderFile)); err == nil {
		return None, nil
	}
	return "", fmt.Errorf("%w: no file %s, no disk with the label %s (there are: %s), no cloud known by the firmware (its vendor is %q), and nobody wrote %s",
		errNoSource, mountedFile, cidata.Label, diskLabels(host), podvm.Printable(vendor, 64), forwarderFile)
}

// firmware returns a text of the firmware's DMI tables, "" if there is none.
func firmware(host podvm.Host, name string) string {
	b, err := podvm.ReadFileMax(host.Path(dmi+name), 4096)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// disk returns the path of the disk with our label, "" if there is none.
func disk(host podvm.Host) string {
	for _, label := range []string{cidata.Label, strings.ToUpper(cidata.Label)} {
		path := host.Path(filepath.Join(labels, label))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// diskLabels names the disks there are, for people.
func diskLabels(host podvm.Host) string {
	entries, err := os.ReadDir(host.Path(labels))
	if err != nil || len(entries) == 0 {
		return "none"
	}
	var names []string
	for _, e := range entries[:min(len(entries), 8)] {
		names = append(names, podvm.Printable(e.Name(), 32))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// get returns the user data of a source other than None. Errors: errNoSource,
// errUpload, errMetadata, podvm.ErrTooLarge, those of package cidata and of files.
func (p *provisioner) get(ctx context.Context, source string) ([]byte, error) {
	switch source {
	case Azure:
		return p.http.base64(ctx, p.Host.MetadataURL("/metadata/instance/compute/userData?api-version=2021-01-01&format=text"),
			"Metadata", "true")
	case AWS:
		return p.aws(ctx)
	case GCP:
		// The address is the same as that of the name metadata.google.internal,
		// which takes a name server.
		return p.http.base64(ctx, p.Host.MetadataURL("/computeMetadata/v1/instance/attributes/user-data"),
			"Metadata-Flavor", "Google")
	case Alibaba:
		return p.http.get(ctx, p.Host.ECSMetadataURL("/latest/user-data"), maxUserData)
	}
	return p.readDisk()
}

// readDisk returns the user data of the mounted disk or of an upload, or else of
// the disk. What is being uploaded can look whole where it is not, so it has to be
// the same in two tries.
func (p *provisioner) readDisk() ([]byte, error) {
	host := p.Host
	b, err := readPlain(host.Path(mountedFile))
	if err == nil && !bytes.Equal(b, p.seen) {
		p.seen = b
		return nil, errUpload
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	path := disk(host)
	if path == "" {
		return nil, fmt.Errorf("%w: no file %s and no disk with the label %s (there are: %s)", errNoSource, mountedFile, cidata.Label, diskLabels(host))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if b, err = cidata.Read(f, maxUserData); err != nil {
		return nil, fmt.Errorf("reading the disk %s: %w", cidata.Label, err)
	}
	return b, nil
}

// readPlain reads a file that somebody uploaded: a link would have this program
// read, and tell about, files of the VM, and a pipe would have it wait.
func readPlain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a link", errNoSource, mountedFile)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a plain file", errNoSource, mountedFile)
	}
	b, err := podvm.ReadMax(f, maxUserData)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", mountedFile, err)
	}
	return b, nil
}

// aws returns the user data of EC2: with a token of the second version of its
// metadata service, which some machines require, or without, where that version
// is off.
func (p *provisioner) aws(ctx context.Context) ([]byte, error) {
	url := p.Host.MetadataURL("/latest/user-data")
	token, err := p.http.token(ctx, p.Host.MetadataURL("/latest/api/token"))
	if err != nil {
		p.Log.Warn("The metadata service gave no token, asking without", "err", err)
		return p.http.get(ctx, url, maxUserData)
	}
	return p.http.get(ctx, url, maxUserData, "X-aws-ec2-metadata-token", token)
}
