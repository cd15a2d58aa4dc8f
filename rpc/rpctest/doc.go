// Package rpctest is the conformance suite of package rpc: [Run] holds endpoints,
// sessions and requests of any [Backend] against what rpc documents.
//
// A backend makes processes: a session manager and an opened device each.
// [InProcess] puts them all into this process, on simulated devices of one
// fabric, and so does [InfiniBand], on InfiniBand ports; [Loopback] gives
// every one a device that talks UDP; [TwoProcesses] runs the servers as
// processes of the operating system, which are the test binary itself;
// [Device] takes a real device. What a backend cannot do has a name, a
// [Capability], and the tests that need it are skipped with the reason.
//
// A test binary that uses TwoProcesses must have [Main] in its TestMain.
//
// The tests wait for events, never for time to pass, and every wait has a
// deadline. Each test checks that no descriptor, goroutine or registered buffer
// is left behind.
package rpctest
