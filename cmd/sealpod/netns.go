package main

import (
	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netns"
)

func netnsApplet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netns",
		Short: "Make and delete network namespaces that have a name",
		Long: `netns makes the network namespace of the pod, /run/netns/podns, with its loopback
device up, and deletes it, as "ip netns" would. Both can be repeated.`,
		Example: `  sealpod netns add podns
  sealpod netns delete podns`,
		Args:    cobra.NoArgs,
		Version: podvm.Version(),
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "add NAME", Short: "Make /run/netns/NAME unless it exists", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return netns.Add(netns.Dir, args[0]) },
		},
		&cobra.Command{
			Use: "delete NAME", Short: "Delete /run/netns/NAME if it exists", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return netns.Delete(netns.Dir, args[0]) },
		},
	)
	return cmd
}
