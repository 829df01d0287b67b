// node is what runs on a Kubernetes node, in one binary, for `make e2e`: kubelet
// and kube-proxy. Its first argument names the one to be, the rest are that
// program's own flags. Run it through hack/node.sh.
//
// Beside the control plane and not in it: `make test` does without a node, and
// should not wait until one is compiled.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const usage = "usage: node kubelet|kube-proxy [flags]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	component := os.Args[1]
	// Each component parses os.Args as if it were a program of its own.
	os.Args = append([]string{component}, os.Args[2:]...)
	command := newCommand(component)
	if command == nil {
		fmt.Fprintf(os.Stderr, "node: no component %q\n%s\n", component, usage)
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

// newCommand builds only the command that was asked for: both register feature
// gates in process-wide state.
func newCommand(component string) *cobra.Command {
	switch component {
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	case "kube-proxy":
		return proxy.NewProxyCommand()
	}
	return nil
}
