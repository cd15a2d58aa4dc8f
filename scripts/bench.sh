#!/usr/bin/env bash
# Measures what the notes quote, and sums it up with benchstat.
#
#   scripts/bench.sh                     the figures of RPC
#   scripts/bench.sh all                 the benchmarks of every layer
#   scripts/bench.sh REGEX               those benchmarks, of every layer
#   scripts/bench.sh sim                 the simulated ConnectX: what the oracles counted,
#                                        and what its operations cost
#
#   --count N      how often each is run, 6 by default: benchstat wants that many
#   --time T       how long each run takes, 0.3s by default (go test -benchtime)
#   --out FILE     keep the raw results there
#   --against FILE compare with results that were kept, of the same machine
#
# The figures of RPC:
#   Loopback           32 bytes there and back, 1, 8 and 32 at a time, both ends on one
#                      goroutine, and rings where the NICs would be: the engine alone
#   LoopbackLarge      large requests that way, GB/s
#   Enqueue            the same through the simulated ConnectX, queues and all
#   Callers            1, 64 and 1024 goroutines that block in Call, through it
#   LargeEnqueue       16 KiB to 64 MiB, pulled by RDMA READ, through it
#   TwoProcesses...    the same kinds between two processes, over UDP
#   IdlePoll           a turn of the loop with 1 to 20,000 idle sessions
#   IdleProcess        what a process with 1,000 idle sessions uses of a core
#   SessionMemory      heap that both ends of an idle session take
#   NestedCall         a handler that makes a call, by the ways that it can wait
#
# Compare within one run only: machines are noisy, and their frequencies change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

count=6 time=0.3s out= against= what=figures
while (($#)); do
	case $1 in
	--count) count=$2 && shift 2 ;;
	--time) time=$2 && shift 2 ;;
	--out) out=$2 && shift 2 ;;
	--against) against=$2 && shift 2 ;;
	-h | --help)
		sed -n '2,29s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
		exit 0
		;;
	-*)
		echo "bench.sh: unknown flag $1; --help tells" >&2
		exit 2
		;;
	*) what=$1 && shift ;;
	esac
done
export CGO_ENABLED=0
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[[ -n $out ]] || out=$work/results
: >"$out"

# run PACKAGE REGEX [TIME] adds the results to the file, and shows them as they come.
run() {
	go test -run '^$' -bench "$2" -benchtime "${3:-$time}" -count "$count" -benchmem -timeout 60m "$1" |
		{ grep --line-buffered -E '^(goos|goarch|pkg|cpu|Benchmark|FAIL|---|panic)' || true; } | tee -a "$out"
}

echo "# $(go version), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || echo unknown), $(date -u +%F)"
# counts TITLE PACKAGE TEST PATTERN shows what of the test's log matches.
counts() {
	echo "$1: $(go test -run "$3" -count=1 -v "$2" 2>/dev/null | grep -oE "$4" || echo "did not run")"
}

case $what in
sim)
	counts "golden vectors of libmlx5" ./mlx5 '^TestGolden$' ': [0-9]+ ran, [0-9]+ skipped$' |
		awk '/ran,/ { sub(/.*: /, ""); ran += $1; skipped += $3 } END { print "golden vectors of libmlx5: " ran + 0 " ran, " skipped + 0 " skipped" }'
	counts "pyverbs" ./scripts/programs '^TestPyverbs$' '[0-9]+ ok, [0-9]+ skipped, .*'
	run ./mlx5/mlx5sim '^Benchmark(UDSend32|RC|Copy|VerbsUDSend32|VerbsRead|Read1MiBOverUDP|UDPingPongOverUDP)$'
	;;
figures)
	run ./rpc/internal/engine '^BenchmarkLoopback(Large|Congestion)?$'
	run ./rpc '^Benchmark(Enqueue|Callers|LargeEnqueue|NestedCall)$'
	run ./rpc '^BenchmarkTwoProcesses'
	run ./rpc '^BenchmarkIdlePoll$'
	run ./rpc '^Benchmark(SessionMemory|IdleProcess)$' 1x
	;;
*)
	[[ $what != all ]] || what=.
	for pkg in ./mlx5 ./mlx5/mlx5sim ./internal/roce ./msgbuf ./nexus ./rpc/congestion ./rpc/internal/engine ./rpc; do
		run "$pkg" "$what"
	done
	;;
esac
if ! grep -q '^Benchmark' "$out"; then
	echo "bench.sh: no benchmark's name matches $what" >&2
	exit 1
fi
echo
go tool -modfile=scripts/tools/go.mod benchstat ${against:+"before=$against"} "now=$out"
