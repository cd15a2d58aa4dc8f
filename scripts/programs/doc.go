// Package programs holds tests alone: programs of others, linked against the real
// libibverbs and libmlx5, run against the simulated ConnectX by way of
// "rrpc sim", and talk to each other and to this module's own verbs.
//
// They need Debian's packages ibverbs-utils, perftest and python3-pyverbs, and a
// kernel that grants seccomp user notification; what is missing is skipped, with
// the reason.
//
// The results of rdma-core's own pyverbs tests are kept in
// testdata/pyverbs/results.txt. A test that has another result fails here;
// "go test ./scripts/programs -run Pyverbs -update" writes the file anew.
package programs
