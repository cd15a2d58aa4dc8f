//go:build !unix

package rpctest

func idleSleeps(e *env) { e.Skip("this system does not tell the processor time of a process") }
