package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: interop host|guest FLAG...; see doc.go")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "host":
		err = hostMain(os.Args[2:])
	case "guest":
		err = guestMain(os.Args[2:])
	default:
		err = fmt.Errorf("no command %s", os.Args[1])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "interop %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
