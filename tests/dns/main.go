// coredns is CoreDNS with the few plugins that the node of `make e2e` needs. Run it
// through hack/node.sh.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func init() {
	// The order in which plugins handle a request, whatever the order in the Corefile.
	dnsserver.Directives = []string{"errors", "ready", "kubernetes"}
}

func main() { coremain.Run() }
