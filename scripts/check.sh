#!/usr/bin/env bash
# All checks of the repository. Run it before you push; .ci/run runs it too.
#
#   scripts/check.sh         everything
#   scripts/check.sh quick   without the race tests and without vet for other platforms
#
# With RRPC_FUZZ=1 in the environment every fuzz target runs for a minute, too
# (scripts/fuzz.sh); that takes half an hour more, for a nightly run.
#
# Every step runs, whatever became of the ones before it. The last lines name
# the steps that failed; the exit code is 1 when there is one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=
case "${1-}" in
"") ;;
quick) quick=1 ;;
-h | --help)
	sed -n '2,11s/^# \{0,1\}//p' scripts/check.sh
	exit 0
	;;
*)
	echo "usage: scripts/check.sh [quick]" >&2
	exit 2
	;;
esac

# The library promises to build and work without cgo, so that is how it is
# checked. The race detector alone needs cgo and sets it for itself.
export CGO_ENABLED=0
# No stamp of the repository's state in what is built: git refuses to answer
# when the checkout belongs to another user, as it does in some CI containers.
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

# Where real devices can be opened (linux) and where everything must build and
# the simulator must do.
targets=(linux/amd64 linux/arm64 darwin/arm64 windows/amd64)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

failed=()
skipped=()

# step NAME COMMAND... runs the command in a subshell of its own under set -e,
# notes the name if it fails, and goes on.
step() {
	local name=$1 start=$SECONDS code=0
	shift
	printf '\n=== %s\n' "$name"
	set +e
	(
		set -e
		"$@"
	)
	code=$?
	set -e
	if ((code == 0)); then
		printf -- '--- ok: %s (%d s)\n' "$name" $((SECONDS - start))
	else
		printf -- '--- FAILED: %s (exit code %d, %d s)\n' "$name" "$code" $((SECONDS - start))
		failed+=("$name")
	fi
}

# skip NAME REASON says that a step was left out.
skip() {
	printf '\n=== %s\n--- skipped: %s\n' "$1" "$2"
	skipped+=("$1: $2")
}

check_gofmt() {
	local files
	files=$(find . \( -name '.?*' -o -name vendor -o -name testdata \) -prune -o -name '*.go' -type f -print0 | xargs -0 -r gofmt -l)
	[[ -z $files ]] && return
	printf 'gofmt would change:\n%s\n' "$files"
	return 1
}

check_staticcheck() {
	# staticcheck's version is pinned by a module file of its own, so that the
	# library's go.mod stays free of it. -modfile tells the go command where to
	# find the tool; the tool then runs here without that flag and loads the
	# packages by the library's own go.mod.
	go tool -modfile=scripts/tools/go.mod staticcheck ./...
}

check_mod_tidy() {
	local code=0
	go mod tidy -diff || code=1
	(cd scripts/tools && go mod tidy -diff) || code=1
	(cd rpc/rpcprom && go mod tidy -diff) || code=1
	return $code
}

# The collector for Prometheus is a module of its own, with dependencies that the
# library does not have.
check_rpcprom() {
	go -C rpc/rpcprom vet ./...
	go -C rpc/rpcprom test ./...
}

# for_target OS/ARCH COMMAND... runs the command for another platform.
for_target() {
	local target=$1
	shift
	GOOS=${target%/*} GOARCH=${target#*/} "$@"
}

# The rrpc binary must run on any Linux of its architecture: no interpreter in
# the file, and built without cgo according to the file itself.
check_static() {
	local bin=$work/rrpc
	for_target linux/amd64 go build -o "$bin" ./cmd/rrpc
	go version -m "$bin" | grep -w 'CGO_ENABLED=0'
	if command -v file >/dev/null; then
		file -b "$bin" | tee "$work/static"
		grep -q 'statically linked' "$work/static"
	elif command -v readelf >/dev/null; then
		readelf -lW "$bin" >"$work/static"
		if grep -w INTERP "$work/static"; then return 1; fi
		echo "readelf finds no INTERP segment"
	else
		echo "neither file nor readelf is installed: the build settings are all the proof there is"
	fi
}

# The race detector works where cgo does. Where it does not, say why.
race_obstacle() {
	local cc
	case "$(go env GOOS)/$(go env GOARCH)" in
	linux/amd64 | linux/arm64 | darwin/amd64 | darwin/arm64 | windows/amd64) ;;
	*)
		echo "the race detector does not support $(go env GOOS)/$(go env GOARCH)"
		return
		;;
	esac
	cc=$(go env CC)
	command -v "${cc%% *}" >/dev/null || echo "it needs a C compiler, and there is no ${cc%% *}"
}

step "gofmt" check_gofmt
step "go vet" go vet ./...
step "staticcheck" check_staticcheck
step "tidy (imports, unsafe, package comments, length)" go run ./scripts/tidy
step "go mod tidy" check_mod_tidy
for target in "${targets[@]}"; do
	# -o /dev/null: a lone main package would otherwise leave its binary here.
	step "build $target" for_target "$target" go build -o /dev/null ./...
	# vet also type-checks the tests and compares assembly with its Go
	# declarations, for each platform.
	[[ -n $quick ]] || step "vet $target" for_target "$target" go vet ./...
done
step "static binary" check_static
# Runs the seeds of every fuzz target as well.
step "tests" go test -timeout 10m ./...
step "tests of rpc/rpcprom" check_rpcprom
if [[ -n $quick ]]; then
	skip "race tests" "quick"
elif obstacle=$(race_obstacle) && [[ -n $obstacle ]]; then
	skip "race tests" "$obstacle"
else
	step "race tests" env CGO_ENABLED=1 go test -race -timeout 10m ./...
fi

if [[ ${RRPC_FUZZ-} == 1 ]]; then
	step "fuzz targets" scripts/fuzz.sh 1m
else
	skip "fuzz targets" "RRPC_FUZZ is not 1; their seeds ran with the tests"
fi

printf '\n=== %d s\n' "$SECONDS"
for s in ${skipped[@]+"${skipped[@]}"}; do
	printf 'skipped: %s\n' "$s"
done
if ((${#failed[@]})); then
	for s in "${failed[@]}"; do
		printf 'FAILED: %s\n' "$s"
	done
	exit 1
fi
echo "all checks hold"
