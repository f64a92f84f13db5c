package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// setUpNetwork makes 127.0.0.1 and ::1 work, and gives the network card its
// address where there is one.
func setUpNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting up the network: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := up(fd, "lo"); err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	address := netip.MustParseAddr(wire.GuestIP).AsSlice()
	for _, step := range []struct {
		request uint
		value   []byte
	}{{unix.SIOCSIFADDR, address}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		card, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		if err := card.SetInet4Addr(step.value); err != nil {
			return err
		}
		err = unix.IoctlIfreq(fd, step.request, card)
		if errors.Is(err, unix.ENODEV) {
			return nil // a machine without network
		}
		if err != nil {
			return fmt.Errorf("giving the network card its address: %w", err)
		}
	}
	if err := up(fd, "eth0"); err != nil {
		return fmt.Errorf("bringing up the network card: %w", err)
	}
	return nil
}

func up(fd int, name string) error {
	i, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	i.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, i)
}
