// Package wire is what podvm/vmtest and the first program of its guests agree
// on: a job that goes in with the initramfs, and events that come out of a
// virtio-serial port, one JSON object a line. The host answers the last of them
// with one byte, whatever it is. Neither side is hostile; the caps are there for
// programs that go wild.
package wire

const (
	// JobPath is where the guest finds its Job.
	JobPath = "/vmtest/job.json"
	// ModuleDir holds the kernel modules to load, in the order of their names.
	ModuleDir = "/vmtest/modules"
	// PortName is the name of the virtio-serial port that events go to.
	PortName = "vmtest.events"
	// AfterTime is in seconds.
	AfterTime = 150
	// GuestIP is the guest's address; the network is /24, the host is its .2.
	GuestIP = "10.0.2.15"
	// OutputSize is the most output in one Event, in bytes.
	OutputSize = 32 << 10
	// LineSize is more than any Event takes as a line.
	LineSize = 64 << 10
)

// Job is what a guest does before it powers itself off.
type Job struct {
	// Args is the program to run and its arguments; none is none.
	Args []string `json:"args"`
	// Env is its whole environment, as NAME=value.
	Env []string `json:"env"`
	// After is a file of the guest that the program waits for, AfterTime at most;
	// empty is none.
	After string `json:"after,omitempty"`
}

// Event is what the guest says; one of its fields is set.
type Event struct {
	// Ready says that the program starts now.
	Ready *Ready `json:"ready,omitempty"`
	// Output is what the program wrote to standard output or error.
	Output []byte `json:"output,omitempty"`
	// Exit says that the program has ended. It is the last event.
	Exit *Exit `json:"exit,omitempty"`
}

// Ready has two points of the guest's boot, in seconds since its kernel started.
type Ready struct {
	Init    float64 `json:"init"`    // init was started
	Program float64 `json:"program"` // the program is about to be
}

// Exit is how the program ended, or why it could not be started.
type Exit struct {
	// Status is the exit status, or 128 and the number of the signal.
	Status int `json:"status"`
	// Error is set where init failed; the program may not have run.
	Error string `json:"error,omitempty"`
}
