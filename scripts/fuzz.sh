#!/usr/bin/env bash
# Runs the fuzz targets of the repository, one after the other. Without it, the
# tests run their seeds alone.
#
#   scripts/fuzz.sh                      every target for one minute
#   scripts/fuzz.sh 10s                  for ten seconds
#   scripts/fuzz.sh 10s ./mlx5/...       those of some packages
#
# An input that fails is kept under testdata/fuzz of its package, where the tests
# run it from then on: commit it with the repair. The exit code is 1 if there is
# one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
-h | --help)
	sed -n '2,11s/^# \{0,1\}//p' scripts/fuzz.sh
	exit 0
	;;
esac
time=${1:-1m}
shift || true
(($#)) || set -- ./...

export CGO_ENABLED=0
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

failed=()
ran=0
while read -r dir; do
	grep -qs '^func Fuzz' "$dir"/*_test.go || continue
	while read -r name; do
		printf '\nfuzz: %s of .%s for %s\n' "$name" "${dir#"$PWD"}" "$time"
		ran=$((ran + 1))
		# Making an interesting input smaller teaches nothing and takes up to a
		# minute by itself.
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x "$dir" </dev/null || failed+=("$name of .${dir#"$PWD"}")
	done < <(go test -list '^Fuzz' "$dir" | grep '^Fuzz')
done < <(go list -f '{{.Dir}}' "$@")

printf '\nfuzz: %d targets\n' "$ran"
if ((${#failed[@]})); then
	printf 'fuzz: FAILED: %s\n' "${failed[@]}"
	git status --short -- '*/testdata/fuzz/*' || true
	exit 1
fi
if ((ran == 0)); then
	echo "fuzz: there is no target in: $*" >&2
	exit 1
fi
