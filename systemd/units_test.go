// Package systemd_test holds the units to what images and other units rely on.
package systemd_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/hostrun"
)

// unit is a unit file: the values of "Section.Key" in order.
type unit map[string][]string

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	f, err := os.Open(filepath.Join("system", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, section := unit{}, ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case ok:
			u[section+"."+key] = append(u[section+"."+key], value)
		default:
			t.Errorf("%s: %q", name, line)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return u
}

// has tells whether one of the words of a setting is word.
func (u unit) has(key, word string) bool {
	for _, v := range u[key] {
		if v == word || slices.Contains(strings.Fields(v), word) {
			return true
		}
	}
	return false
}

const aaToml, cdhSocket, podns = "/run/peerpod/aa.toml", "/run/confidential-containers/cdh.sock", "netns@podns.service"

// The facts are those of upstream's units, which images, presets and drop-ins are
// made for. Source: cloud-api-adaptor src/cloud-api-adaptor/podvm/files/etc/systemd
// at fbdde756.
func TestUnitsAreWhatOthersRelyOn(t *testing.T) {
	for name, facts := range map[string][]string{
		"process-user-data.service": {"Service.Type=oneshot", "Service.RemainAfterExit=yes", "Unit.DefaultDependencies=no",
			"Unit.After=network.target", "Unit.After=cloud-init.service", "Install.WantedBy=multi-user.target"},
		"process-user-data.path":     {"Path.PathExists=/media/cidata/user-data"},
		"attestation-agent.path":     {"Path.PathExists=" + aaToml},
		"attestation-agent.service":  {"Service.ExecStart=-c", "Service.ExecStart=" + aaToml, "Unit.After=process-user-data.service"},
		"confidential-data-hub.path": {"Path.PathExists=" + aaToml},
		"confidential-data-hub.service": {"Unit.After=process-user-data.service",
			"Service.Environment=OCICRYPT_KEYPROVIDER_CONFIG=/etc/ocicrypt_config.json",
			"Service.Environment=CDH_DEFAULT_IMAGE_AUTHENTICATED_REGISTRY_CREDENTIALS=file:///run/peerpod/auth.json"},
		"api-server-rest.path": {"Path.PathExists=" + aaToml},
		"api-server-rest.service": {"Service.NetworkNamespacePath=/run/netns/podns", "Unit.BindsTo=" + podns, "Unit.After=" + podns,
			"Service.ExecStart=--features", "Service.ExecStart=all"},
		"kata-agent.path": {"Path.PathExists=" + cdhSocket},
		"kata-agent.service": {"Unit.BindsTo=" + podns, "Unit.After=" + podns, "Unit.Wants=scratch-storage.service", "Unit.After=scratch-storage.service",
			"Unit.After=confidential-data-hub.service", "Service.ExecStart=/etc/agent-config.toml", "Service.RuntimeDirectory=kata-containers"},
		"agent-protocol-forwarder.path": {"Path.PathExists=/run/peerpod/apf.json"},
		"agent-protocol-forwarder.service": {"Service.EnvironmentFile=-/etc/default/agent-protocol-forwarder", "Service.ExecStart=/run/netns/podns",
			"Service.ExecStart=/run/kata-containers/agent.sock", "Service.ExecStart=$TLS_OPTIONS", "Service.ExecStart=$OPTIONS"},
		"netns@.service":       {"Service.Type=oneshot", "Service.RemainAfterExit=yes"},
		"scratch-storage.path": {"Path.PathExists=/run/peerpod/scratch-space.marker"},
		"scratch-storage.service": {"Service.Type=oneshot", "Service.RemainAfterExit=yes", "Unit.After=systemd-repart.service", "Unit.Before=kata-agent.service",
			"Unit.ConditionPathExists=/run/peerpod/scratch-space.marker"},
		"setup-nat-for-imds.service": {"Service.Type=oneshot", "Unit.Wants=agent-protocol-forwarder.service", "Unit.After=agent-protocol-forwarder.service",
			"Unit.ConditionPathExists=/etc/default/setup-nat-for-imds"},
		"azure-ready.service": {"Service.Type=oneshot", "Service.RemainAfterExit=yes", "Unit.After=network-online.target", "Unit.Wants=network-online.target",
			"Unit.ConditionVirtualization=microsoft", "Service.Restart=on-failure", "Service.RestartSec=10", "Service.TimeoutStartSec=5min"},
	} {
		u := readUnit(t, name)
		for _, fact := range facts {
			if key, value, _ := strings.Cut(fact, "="); !u.has(key, value) {
				t.Errorf("%s: not %s: %q", name, fact, u[key])
			}
		}
	}
}

// Who is killed comes back, however often; who hangs is killed.
func TestDaemonsHeal(t *testing.T) {
	for _, name := range []string{"attestation-agent", "confidential-data-hub", "api-server-rest", "agent-protocol-forwarder", "kata-agent"} {
		u := readUnit(t, name+".service")
		for _, fact := range []string{"Service.Restart=always", "Service.RestartSec=1", "Unit.StartLimitIntervalSec=0", "Service.Type=notify", "Service.WatchdogSec=30"} {
			key, value, _ := strings.Cut(fact, "=")
			// The agent is upstream's, and tells systemd nothing.
			if told := key == "Service.Type" || key == "Service.WatchdogSec"; u.has(key, value) == (told && name == "kata-agent") {
				t.Errorf("%s: %s is %q", name, key, u[key])
			}
		}
	}
	for _, name := range []string{"process-user-data", "azure-ready", "scratch-storage", "setup-nat-for-imds", "netns@"} {
		u := readUnit(t, name+".service")
		if !u.has("Service.Restart", "on-failure") || !u.has("Unit.StartLimitIntervalSec", "0") {
			t.Errorf("%s is not tried again", name)
		}
	}
}

// impliesMountNamespace are the settings that give a unit a view of the file
// system of its own. Source: systemd.exec(5) at v252.
var impliesMountNamespace = []string{"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateIPC", "ProtectProc",
	"ProcSubset", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups", "ReadWritePaths", "ReadOnlyPaths",
	"InaccessiblePaths", "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage",
	"MountFlags", "DynamicUser", "LogNamespace", "NetworkNamespacePath", "PrivateNetwork"}

// What is mounted in one place is seen in all.
func TestMountsAreShared(t *testing.T) {
	for _, name := range []string{"kata-agent", "netns@", "scratch-storage"} {
		u := readUnit(t, name+".service")
		for _, key := range impliesMountNamespace {
			if v, ok := u["Service."+key]; ok {
				t.Errorf("%s: %s=%q gives it mounts of its own", name, key, v)
			}
		}
	}
	for _, name := range []string{"confidential-data-hub", "agent-protocol-forwarder"} {
		u := readUnit(t, name+".service")
		for _, fact := range []string{"Service.ExecStartPre=lend-run", "Service.NotifyAccess=exec", "Service.FileDescriptorStoreMax=1",
			"Service.Environment=" + hostrun.Env + "=yes"} {
			if key, value, _ := strings.Cut(fact, "="); !u.has(key, value) {
				t.Errorf("%s has mounts of its own and not %s", name, fact)
			}
		}
		if u.has("Service.PrivateIPC", "yes") {
			t.Errorf("%s: cryptsetup would wait for udev for ever", name)
		}
	}
}

// A preset that names no unit enables nothing, silently.
func TestPresetsNameUnits(t *testing.T) {
	raw, err := os.ReadFile("system-preset/20-sealpod.preset")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		var verb, name string
		if _, err := fmt.Sscan(line, &verb, &name); err != nil || verb[0] == '#' {
			continue
		}
		said[name] = verb
		if len(readUnit(t, name)["Install.WantedBy"]) == 0 {
			t.Errorf("%s cannot be enabled", name)
		}
	}
	units, err := filepath.Glob("system/*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range units {
		name := filepath.Base(path)
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue
		}
		if _, ok := readUnit(t, name)["Install.WantedBy"]; ok && said[name] == "" {
			t.Errorf("no preset says whether %s is enabled", name)
		}
	}
}

// make install puts what units start where they look for it.
func TestInstall(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, applets, _ := strings.Cut(string(makefile), "\nAPPLETS := ")
	applets, _, _ = strings.Cut(applets, "\nBINDIR")
	units, err := filepath.Glob("system/*.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range units {
		u := readUnit(t, filepath.Base(path))
		for _, key := range []string{"ExecStart", "ExecStartPre", "ExecStop"} {
			for _, line := range u["Service."+key] {
				program, ours := strings.CutPrefix(strings.TrimLeft(strings.Fields(line)[0], "+-"), "/usr/local/bin/")
				if ours && program != "sealpod" && program != "kata-agent" && !slices.Contains(strings.Fields(applets), program) {
					t.Errorf("%s starts %s, for which there is no link", path, program)
				}
			}
		}
	}
}
