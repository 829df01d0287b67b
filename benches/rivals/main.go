// rivals measures what people use instead of Palisade, with the client that they would use. Each subcommand prints one
// JSON object. Run it through `make bench`.
package main

import (
	"fmt"
	"os"
)

const usage = "usage: rivals etcd-mutex [flags]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	var err error
	switch command, args := os.Args[1], os.Args[2:]; command {
	case "election":
		err = election(args)
	case "etcd-mutex":
		err = etcdMutex(args)
	default:
		err = fmt.Errorf("there is no %q; %s", command, usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
