// Package verbstest is the conformance suite of verbs: one table of tests that
// runs on every device, simulated or real.
//
//	func TestVerbs(t *testing.T) { verbstest.Run(t, verbstest.InProcess()) }
//
// A [Backend] opens two devices that reach each other (or one device twice) and
// says what they can do. A test names the capabilities that it needs; where the
// backend lacks one, it is skipped with the backend's reason. All else is asked
// of every backend alike.
//
// # What counts as right
//
// What the InfiniBand specification and the ibv_ manual pages say, as a
// ConnectX does it. Where a device answers differently, the backend declares a
// [Deviation]: which [Rule], what comes instead, and why. A test accepts exactly
// what is declared; a declared deviation that does not show fails the test, too.
//
// # Backends
//
//	InProcess           two simulated ConnectX on one fabric
//	InProcessOneDevice  one simulated ConnectX, opened twice
//	Loopback            two simulated ConnectX that send RoCEv2 over UDP
//	Foreign             two simulated ConnectX, opened as if from another process
//	ForeignLoopback     the same, over UDP
//	InfiniBand          two simulated ConnectX on InfiniBand, by LID alone
//	InfiniBandOneDevice one simulated ConnectX on InfiniBand, by LID and GRH
//	Devices             real devices, by name
//	FromEnvironment     the ones that RRPC_DEVICE and RRPC_DEVICE2 name
//
// # Rules of the house
//
// Every wait has a deadline and yields the processor. Nothing sleeps to
// synchronise; that something does not happen is shown by what happens after
// it in order. Memory that a device sees is mapped outside the Go heap. Every
// object that a test makes is closed in order when it ends, and closing must
// not fail. With -short, rounds are scaled down for slow machines such as an
// emulated guest.
//
// A test binary that uses this package has [Main] as its TestMain, because some
// tests start the binary again as a second process.
package verbstest
