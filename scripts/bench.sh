#!/usr/bin/env bash
# Runs the benchmarks that are quoted in notes: ns and allocations per operation of each layer.
# Compare figures within one run only: machines are noisy. Usage: scripts/bench.sh [REGEX] [BENCHTIME]
set -euo pipefail
cd "$(dirname "$0")/.."
regex=${1:-.}
time=${2:-0.5s}
export CGO_ENABLED=0
echo "# $(go version), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || echo unknown)"
for pkg in ./mlx5 ./mlx5/mlx5sim ./internal/roce ./msgbuf ./rpc/congestion ./rpc/internal/engine ./rpc; do
  echo "## $pkg"
  go test -run '^$' -bench "$regex" -benchtime "$time" -benchmem "$pkg" | grep -E '^(Benchmark|ok|FAIL|---|panic)' || true
done
