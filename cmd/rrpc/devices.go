package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// devices lists the machine's devices.
func devices(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("devices", flag.ContinueOnError)
	if err := parse(fs, args, stderr); err != nil {
		return err
	}
	list, err := uverbs.Devices()
	if err != nil {
		return err
	}
	if len(list) == 0 {
		fmt.Fprintln(stdout, "no RDMA device; rrpc hello runs on the simulated ConnectX")
	}
	for _, d := range list {
		describe(stdout, d)
	}
	return nil
}

func describe(w io.Writer, d *uverbs.Device) {
	fmt.Fprintf(w, "%v  node GUID %x\n", d, d.NodeGUID())
	c, err := d.Open()
	if err != nil {
		fmt.Fprintf(w, "  %v\n", err)
		return
	}
	defer c.Close()
	attr, err := c.QueryDevice()
	if err != nil {
		fmt.Fprintf(w, "  %v\n", err)
		return
	}
	fmt.Fprintf(w, "  firmware %s, vendor 0x%x part %d, up to %d QPs, %d CQs\n", attr.FirmwareVersion, attr.VendorID, attr.VendorPartID, attr.MaxQP, attr.MaxCQ)
	for port := 1; port <= attr.Ports && port < 256; port++ {
		describePort(w, c, uint8(port))
	}
}

func describePort(w io.Writer, c *uverbs.Context, port uint8) {
	p, err := c.QueryPort(port)
	if err != nil {
		fmt.Fprintf(w, "  %v\n", err)
		return
	}
	fmt.Fprintf(w, "  port %d: %v, %v, MTU %v of %v\n", port, p.State, p.LinkLayer, p.ActiveMTU, p.MaxMTU)
	if e, why, err := c.ChooseGID(port, -1); err != nil {
		fmt.Fprintf(w, "    %v\n", err)
	} else {
		fmt.Fprintf(w, "    uses GID %d: %v, %v (%s)\n", e.Index, e.GID.Addr(), e.Type, why)
	}
}
