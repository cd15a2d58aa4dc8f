#!/usr/bin/env bash
# Runs the tests on a real Linux kernel with Soft-RoCE (rdma_rxe), in a virtual
# machine: QEMU without KVM, so that it needs no rights and runs anywhere.
#
#   scripts/kerneltest.sh                           all tests, on kernel 6.1
#   scripts/kerneltest.sh --kernel all              on 6.1 and 6.12
#   scripts/kerneltest.sh --test ./uverbs -- -test.run Guest -test.v
#                                                   one package's tests, with these flags
#   scripts/kerneltest.sh --exec 'rrpc devices'     a shell command; busybox, ip, rdma, tc, rrpc are there
#
#   --kernel V     6.1 (the default), 6.12, newest (of Debian's backports), or all,
#                  which is 6.1, and 6.12 if it can be had, without the jobs that it names
#   --run REGEX    of the standard jobs, those whose name matches
#   --list         the names of the standard jobs
#   --test PKG     may be given several times; words after -- go to the test binaries
#   --exec CMD     the same as --shell-cmd; may be given several times; after the tests
#   --two-guests   nothing but rrpc hello from one guest to another, over a network
#                  between them; the server has the first of the kernels, the client
#                  the last. The standard jobs of all kernels have that, too
#   --again        a job that fails, or a guest that dies, gets a second chance
#   --kills N      how often the job rpc-kills kills each kind of process (2)
#   --figures      nothing but scripts/figures: latencies and rates, with perftest's beside them
#   --crossing     nothing but scripts/figures --crossing: messages of a few datagrams, and by RDMA READ
#   --tools        put ibverbs-utils, perftest and strace into the guest
#   --timeout S    seconds that one job of --test or --exec may take (120)
#   --qemu ARG     one more word for QEMU's command line; may be given several times
#   --keep         keep the initramfs, and what went into it, until the next run
#   --update       look for newer kernel and program packages
#
# Everything that is downloaded or built lies in .cache/kerneltest; the kernel's
# console goes to console-VERSION.log there (-server and -client of two guests), what the jobs wrote to
# output-VERSION.log. In the guest, /src/PKG holds each package's testdata and is
# the working directory of its tests. RRPC_GUEST=1 says where they are, RRPC_DEVICE
# and RRPC_DEVICE2 name rxe0 (10.7.0.1) and rxe1 (10.7.0.2), the two ends of a veth
# pair. Soft-RoCE has UDP port 4791 there: the simulator's UDP link needs unshare -n.
#
# Exit code: 0 everything passed, 1 a job failed, 2 wrong usage, 3 something that
# is needed cannot be had, 4 the guest did not start or died.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
repo=$PWD
cache=$repo/.cache/kerneltest

command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export CGO_ENABLED=0 GOOS=linux GOARCH=amd64
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

# Debian's releases that have the kernels. A private list of sources and a
# private state of apt: the machine's own stay as they are.
declare -A suite=([6.1]=bookworm [6.12]=trixie [newest]=trixie-backports)
mirror=${KERNELTEST_MIRROR:-http://deb.debian.org}
# What the guest's programs are taken from, whatever its kernel.
userland=bookworm

# Loaded in the guest. crc32 is in no module's list of dependencies, but the
# older rdma_rxe looks for it by name. ib_umad, rdma_ucm: as on real machines.
modules="crc32_generic? ib_uverbs ib_umad rdma_ucm rdma_rxe veth dummy sch_netem virtio_net virtio_pci e1000"

# dash is the shell, because busybox's prefers busybox's own ip, which knows no
# veth pairs.
programs="busybox dash ip rdma tc"
packages="busybox-static dash iproute2"
tool_programs="ibv_devinfo ibv_rc_pingpong ibv_ud_pingpong ibv_srq_pingpong ib_send_lat ib_send_bw ib_read_lat ib_read_bw ib_write_lat ib_write_bw ib_atomic_lat strace"
tool_packages="ibverbs-utils ibverbs-providers perftest strace"
tool_files="etc/libibverbs.d/rxe.driver usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so"

usage() {
	sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//p}' "$repo/scripts/kerneltest.sh"
}

die() {
	local code=$1
	shift
	echo "kerneltest: $*" >&2
	exit "$code"
}

kernels=6.1 run_regex=. list= keep= update= tools= figures= crossing= two_guests= again= timeout=120 kills=2
tests=() commands=() test_args=() qemu_args=()

parse() {
	while (($#)); do
		case $1 in
		--kernel | --run | --test | --exec | --shell-cmd | --timeout | --kills | --qemu)
			(($# > 1)) || die 2 "$1 wants an argument; --help lists the options"
			;;&
		--kernel)
			case $2 in
			all) kernels="6.1 6.12" ;;
			6.1 | 6.12 | newest) kernels=$2 ;;
			*) die 2 "--kernel $2: 6.1, 6.12, newest or all" ;;
			esac
			shift
			;;
		--run) run_regex=$2 && shift ;;
		--test) tests+=("$2") && shift ;;
		--exec | --shell-cmd) commands+=("$2") && shift ;;
		--timeout)
			[[ $2 =~ ^[1-9][0-9]*$ ]] || die 2 "--timeout $2: a number of seconds"
			timeout=$2 && shift
			;;
		--kills)
			[[ $2 =~ ^[1-9][0-9]*$ ]] || die 2 "--kills $2: a number"
			kills=$2 && shift
			;;
		--qemu) qemu_args+=("$2") && shift ;;
		--list) list=1 ;;
		--tools) tools=1 ;;
		--two-guests) two_guests=1 ;;
		--again) again=1 ;;
		--figures) figures=1 tools=1 ;;
		--crossing) figures=1 crossing=--crossing ;;
		--keep) keep=1 ;;
		--update) update=1 ;;
		-h | --help)
			usage
			exit 0
			;;
		--)
			shift
			((${#tests[@]})) || die 2 "words after -- are for --test"
			test_args=("$@")
			return
			;;
		*) die 2 "no option $1; --help lists them" ;;
		esac
		shift
	done
}

# --- what is needed -----------------------------------------------------------

need_qemu() {
	command -v qemu-system-x86_64 >/dev/null && command -v xz >/dev/null && command -v flock >/dev/null && return
	[[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
		die 3 "needs qemu-system-x86_64, xz and flock (Debian: qemu-system-x86, xz-utils, util-linux)"
	echo "kerneltest: installing qemu-system-x86"
	export DEBIAN_FRONTEND=noninteractive
	{
		timeout 120 apt-get -qq update &&
			timeout 300 apt-get -qq -y --no-install-recommends install qemu-system-x86 xz-utils util-linux
	} </dev/null >"$cache/install.log" 2>&1 ||
		{
			tail -5 "$cache/install.log" >&2
			die 3 "apt-get install qemu-system-x86 failed"
		}
}

# apt SUITE PROGRAM ARGUMENT... runs a program of apt on the private lists.
apt() {
	local dir=$cache/apt-$1 program=$2
	shift 2
	timeout 300 "$program" -qq -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferences=/dev/null \
		-o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Architecture=amd64 \
		-o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Debug::NoLocking=1 "$@" </dev/null
}

# lists SUITE reads the suite's lists of packages, once.
lists() {
	local dir=$cache/apt-$1 key=/usr/share/keyrings/debian-archive-keyring.gpg part parts
	[[ -e $dir/updated ]] && return
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die 3 "needs apt-get and dpkg-deb to fetch Debian's packages"
	[[ -e $key ]] || die 3 "needs $key (package debian-archive-keyring)"
	mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
	: >"$dir/status"
	parts=("$mirror/debian $1" "$mirror/debian-security $1-security")
	# Alone, because packages of the release would be preferred to them.
	[[ $1 != *-backports ]] || parts=("$mirror/debian $1")
	for part in "${parts[@]}"; do
		echo "deb [arch=amd64 signed-by=$key] $part main"
	done >"$dir/sources.list"
	echo "kerneltest: reading Debian $1's lists of packages"
	# Otherwise lists that cannot be fetched are a warning.
	apt "$1" apt-get update -o APT::Update::Error-Mode=any || return 1
	touch "$dir/updated"
}

# get_kernel VERSION unpacks the suite's current kernel to kernel-VERSION:
# vmlinuz, modules (what is in /lib/modules/RELEASE), release.
get_kernel() {
	local s=${suite[$1]} dir=$cache/kernel-$1 version=$1 image parts new deb found
	[[ -e $dir/release ]] && return
	lists "$s" || return 1
	[[ $version != newest ]] || version='[0-9]*'
	image=$(apt "$s" apt-cache depends linux-image-amd64 | sed -n "s/^ *Depends: \(linux-image-$version[.].*\)/\1/p") || return 1
	[[ -n $image ]] || { echo "kerneltest: $s has no linux-image of $1" >&2 && return 1; }
	# Newer packages are split.
	parts=$(apt "$s" apt-cache depends "$image" | sed -n 's/^ *Depends: \(linux-\(base\|binary\|modules\)-.*\)/\1/p') || return 1
	echo "kerneltest: fetching $image" $parts
	new=$dir.new
	rm -rf "$new" "$dir"
	mkdir -p "$new"
	(cd "$new" && apt "$s" apt-get download "$image" $parts) || return 1
	for deb in "$new"/*.deb; do
		dpkg-deb -x "$deb" "$new/root" || return 1
	done
	found=$(find "$new/root" -name 'vmlinuz*' -type f | head -1)
	[[ -n $found ]] && mv "$found" "$new/vmlinuz" || return 1
	found=$(find "$new/root" -name modules.builtin | head -1)
	[[ -n $found ]] && mv "${found%/*}" "$new/modules" || return 1
	rm -rf "$new/root" "$new"/*.deb
	echo "$image" >"$new/release"
	mv "$new" "$dir"
}

# get_root NAME PACKAGE... unpacks the packages, and all that they depend on, to
# root-NAME.
get_root() {
	local dir=$cache/root-$1 deb
	shift
	[[ -e $dir/packages && $(<"$dir/packages") == "$*" ]] && return
	lists "$userland" || return 1
	echo "kerneltest: fetching $*"
	rm -rf "$dir" "$cache/apt-$userland"/cache/archives/*.deb
	mkdir -p "$dir"
	apt "$userland" apt-get -y --no-install-recommends --download-only install "$@" >/dev/null || return 1
	for deb in "$cache/apt-$userland"/cache/archives/*.deb; do
		dpkg-deb -x "$deb" "$dir" || return 1
	done
	rm -f "$cache/apt-$userland"/cache/archives/*.deb
	echo "$*" >"$dir/packages"
}

# --- what runs in the guest ---------------------------------------------------

# job NAME SECONDS puts the script on its standard input on the list.
jobs=0
job() {
	jobs=$((jobs + 1))
	mkdir -p "$tree/jobs"
	{
		printf '#!/bin/sh\n# timeout: %d\n' "$2"
		cat
	} >"$tree/jobs/$(printf %02d "$jobs")-$1"
}

# quote WORD... as one line of shell.
quote() { printf '%q ' "$@"; }

# build_test PACKAGE builds its tests, with the folder that they run in. It says
# on its output where they are in the guest.
build_test() {
	local rel dir
	rel=$(go list -f '{{.ImportPath}}' "$1")
	rel=${rel#*/*/*/}
	dir=$tree/src/$rel
	mkdir -p "$dir"
	go test -c -o "$dir/${rel##*/}.test" "./$rel" >&2
	[[ -e $dir/${rel##*/}.test ]] || { echo "kerneltest: $1 has no tests" >&2 && return 1; }
	[[ ! -d $rel/testdata ]] || cp -r "$rel/testdata" "$dir/"
	echo "$rel"
}

# tested PACKAGE says whether it has tests.
tested() { [[ -n $(go list -f '{{join .TestGoFiles " "}}{{join .XTestGoFiles " "}}' "$1") ]]; }

# links_rxe PACKAGE says whether its program, or its tests, have the provider for
# Soft-RoCE. (grep -q would end go list by SIGPIPE, and pipefail make that a no.)
links_rxe() { go list -deps -test "$1" | grep '/uverbs/rxe$' >/dev/null; }

# standard NAME: whether the standard job of that name is wanted. With --list it
# prints the name instead.
standard() {
	if [[ $list ]]; then
		echo "$1"
		return 1
	fi
	[[ $1 =~ $run_regex ]]
}

# standard_test NAME SECONDS PACKAGE REGEX [SKIP [WORD...]] runs the package's tests
# of that name, but for those that SKIP matches, as the arguments of WORD... if there
# are any. That there are no tests is a failure: nothing would be tested.
standard_test() {
	local rel test
	standard "$1" || return 0
	rel=$(build_test "$3") || die 1 "$3 does not build, or has no tests"
	test=./${rel##*/}.test
	job "$1" "$2" <<-END
		cd /src/$rel || exit 1
		[ -n "\$($test -test.list '${4%%/*}')" ] || { echo "no tests match $4"; exit 1; }
		exec ${*:6} $test -test.v -test.short -test.run '$4' -test.skip '${5-}' -test.timeout $(($2 - 5))s
	END
}

standard_jobs() {
	if standard devices; then
		job devices 20 <<-'END'
			set -e
			rrpc devices | tee /tmp/devices
			grep -q '^rxe0 ' /tmp/devices
			grep -q '^rxe1 ' /tmp/devices
		END
	fi
	standard_test kernel 60 ./internal/kernel .
	standard_test uverbs 60 ./uverbs .
	if tested ./uverbs/rxe; then standard_test rxe 120 ./uverbs/rxe .; fi
	standard_test hugepages 30 ./mlx5 '^TestLargeQueuesLieInHugePages$' # of which few machines have some to spare
	# The suites on Soft-RoCE, which RRPC_DEVICE and RRPC_DEVICE2 name. The other
	# backends do not need a guest.
	if tested ./uverbs/verbstest; then standard_test verbs 300 ./uverbs/verbstest 'Environment|Device'; fi
	if links_rxe ./rpc; then
		standard_test rpc 300 ./rpc '^TestDevice$'
		standard_test rpc-kills $((60 + 8 * kills)) ./rpc '^TestDeviceKills$' '' env "RRPC_KILLS=$kills"
		# 16 MiB each way take half a minute at 1 %, because rxe finds out by a
		# timeout that the last packets of a READ were lost, and minutes at 5 %.
		# At 5 % run the tests that are about requests, answers and READs: session
		# management does not go by the wire that loses packets, but by loopback.
		standard_test rpc-loss-1 200 ./rpc '^TestDevice$' '//^(Sixteen|SixtyFour)MiB$' with-loss 1
		standard_test rpc-loss-5 200 ./rpc '^TestDevice$//Request|Response|Large|OneMiB|Nest|Wait|Thousand|Abort|Backlog|EverySize|Broken|Crowd|Outstanding' \
			'//Session|Endpoint|Dead|Dropped|Refused|LongerThan|IsPolled' with-loss 5
	fi
	if standard hello-sim; then
		# In a network of its own, because Soft-RoCE has the port of RoCEv2 in
		# the first one.
		job hello-sim 60 <<<"unshare -n sh -ec 'ip link set lo up; rrpc hello --device sim'"
	fi
	if links_rxe ./cmd/rrpc; then
		if standard hello; then
			job hello 90 <<<"rrpc hello --device rxe0"
		fi
		if standard hello-wire; then
			job hello-wire 90 <<-'END'
				sent=$(cat /sys/class/net/v1/statistics/tx_packets)
				wire-hello || exit
				sent=$(($(cat /sys/class/net/v1/statistics/tx_packets) - sent))
				echo "packets from rxe1 on the wire: $sent"
				# 16 MiB each way, by packets of 4 KiB.
				[ $sent -gt 4096 ]
			END
		fi
		for loss in 1 5; do
			if standard "hello-loss-$loss"; then
				job "hello-loss-$loss" 120 <<<"with-loss $loss wire-hello --large 2097152"
			fi
		done
	fi
	interop_jobs
}

source scripts/guest/interop.sh

# base_tree DIR puts there what every guest has.
base_tree() {
	mkdir -p "$1/bin" "$1/jobs"
	install -m 644 scripts/guest/setup.sh "$1/setup.sh"
	install -m 755 scripts/guest/wire-hello scripts/guest/with-loss scripts/guest/pair-hello "$1/bin/"
	ln -s dash "$1/bin/sh"
}

# make_tree builds our binaries and the list of jobs.
make_tree() {
	local p rel i=0
	base_tree "$tree"
	if [[ $figures ]]; then
		go build -o "$tree/bin/figures" ./scripts/figures || die 1 "scripts/figures does not build"
		job figures 600 <<<"exec figures $crossing"
		return
	fi
	if ((${#tests[@]} + ${#commands[@]} == 0)); then
		go build -o "$tree/bin/rrpc" ./cmd/rrpc || die 1 "cmd/rrpc does not build"
		standard_jobs
		((jobs)) || [[ $two_guests ]] || die 2 "--run $run_regex: no standard job of that name; --list lists them"
		return
	fi
	# What was asked for may not need it.
	go build -o "$tree/bin/rrpc" ./cmd/rrpc || echo "kerneltest: cmd/rrpc does not build: the guest has no rrpc"
	((${#test_args[@]})) || test_args=(-test.v)
	for p in "${tests[@]}"; do
		rel=$(build_test "$p") || die 1 "$p does not build"
		job "${rel//\//-}" "$timeout" <<<"cd /src/$rel && exec ./${rel##*/}.test $(quote "${test_args[@]}")"
	done
	for p in "${commands[@]}"; do
		i=$((i + 1))
		job "exec$i" "$timeout" <<<"$p"
	done
}

# --- the guest ----------------------------------------------------------------

# pack VERSION TREE FILE writes an initramfs.
pack() {
	local root=$cache/root-base progs=$programs files=
	if [[ $tools ]]; then
		root=$cache/root-tools progs+=" $tool_programs" files=$tool_files
	fi
	"$work/guest" pack -o "$3" -init "$work/init" -modules "$cache/kernel-$1/modules" -load "$modules" \
		-root "$root" -programs "$progs" -root-files "$files" -tree "$2"
}

# limit_of TREE is how many seconds a guest may take, longer than all jobs may,
# so that a job's own limit speaks first.
limit_of() { echo $((60 + $(sed -n 's/^# timeout: //p' "$1"/jobs/* | paste -sd+))); }

# boot NAME VERSION INITRD SECONDS THREADS WORD... starts a guest and shows what
# comes of it, until it ends. The words are for QEMU, but those up to -- for the
# kernel.
boot() {
	local name=$1 version=$2 initrd=$3 limit=$4 threads=$5 params=() code=0
	shift 5
	while [[ $1 != -- ]]; do params+=("$1") && shift; done
	shift
	: >"$cache/console-$name.log"
	# The second serial port is the jobs' output.
	nice -n 10 timeout --foreground -k 5 "$limit" qemu-system-x86_64 -M q35 -cpu max -accel "tcg,thread=$threads" -smp 2 -m 2048 \
		-display none -monitor none -no-reboot -nodefaults -serial "file:$cache/console-$name.log" -serial stdio \
		-kernel "$cache/kernel-$version/vmlinuz" -initrd "$initrd" \
		-append "console=ttyS0 loglevel=5 panic=-1 mitigations=off tsc=reliable ${params[*]}" "$@" ${qemu_args[@]+"${qemu_args[@]}"} </dev/null {lock}>&- |
		tee "$cache/output-$name.log" || code=$?
	((code != 124 && code != 137)) || echo "kerneltest: the guest was still running after $limit s"
}

# said_hello NAME: whether /init came up in the guest. Now and then a kernel dies
# at start-up under TCG.
said_hello() { grep -qa '^guest: hello' "$cache/output-$1.log"; }

# judge NAME SECONDS says what became of a guest, with the script's code.
judge() {
	local output=$cache/output-$1.log last
	last=$(grep -a '^guest: ' "$output" | tail -1) || true
	if [[ $last != "guest: end "* ]]; then
		tail -n 60 "$cache/console-$1.log" | sed 's/^/console: /'
		echo "kerneltest: guest $1: it died; its last word was: ${last:-(nothing)}; see $cache/console-$1.log"
		return 4
	fi
	grep -a '^ *--- FAIL\|^guest: FAILED\|^panic: ' "$output" | sed 's/^/kerneltest: /' || true
	echo "kerneltest: guest $1: ${last#guest: end } ($2 s)"
	[[ $last == *" 0 failed" ]] || return 1
}

# guest VERSION TREE runs the tree's jobs on one kernel. The code is as the
# script's.
guest() {
	local start=$SECONDS initrd=$work/initrd-$1 limit
	limit=$(limit_of "$2")
	pack "$1" "$2" "$initrd" || die 1 "cannot pack the initramfs"
	echo "kerneltest: Linux $1 ($(<"$cache/kernel-$1/release")), initramfs $(du -m "$initrd" | cut -f1) MiB"
	boot "$1" "$1" "$initrd" "$limit" multi --
	if ! said_hello "$1"; then
		echo "kerneltest: no hello from the guest; once more, on one host thread"
		boot "$1" "$1" "$initrd" "$limit" single --
	fi
	judge "$1" $((SECONDS - start))
}

# all_jobs VERSION runs the guest, and with --again what failed a second time.
all_jobs() {
	local code=0 job
	guest "$1" "$tree" || code=$?
	[[ $again ]] && ((code == 1 || code == 4)) || return $code
	rm -rf "$work/again"
	cp -r "$tree" "$work/again"
	if ((code == 1)); then
		for job in "$work"/again/jobs/*; do
			grep -qa "^guest: ok $(basename "$job" | cut -d- -f2-) " "$cache/output-$1.log" && rm "$job"
		done
	fi
	mv "$cache/output-$1.log" "$cache/output-$1-first.log"
	mv "$cache/console-$1.log" "$cache/console-$1-first.log"
	echo "kerneltest: guest $1: what failed gets a second chance; the first is kept in $cache/output-$1-first.log"
	code=0
	guest "$1" "$work/again" || code=$?
	((code)) || echo "kerneltest: guest $1: passed at the second attempt"
	return $code
}

# pair VERSION VERSION starts two guests with a network between them: frames go
# as datagrams between two UNIX sockets.
pair() {
	local start=$SECONDS pair_tree=$work/pair qemu_args threads limit role version code=0
	qemu_args=(${pair_qemu_args[@]+"${pair_qemu_args[@]}"})
	if [[ ! -e $pair_tree ]]; then
		base_tree "$pair_tree"
		cp "$tree/bin/rrpc" "$pair_tree/bin/rrpc"
		tree=$pair_tree jobs=0 job two-guests 120 <<<"exec pair-hello"
	fi
	limit=$(limit_of "$pair_tree")
	for version in "$1" "$2"; do
		pack "$version" "$pair_tree" "$work/pair-$version" || die 1 "cannot pack the initramfs"
	done
	echo "kerneltest: two guests: the server has Linux $1, the client $2"
	for threads in multi single; do
		(
			# The sockets' names may not be long.
			cd "$work"
			rm -f server client
			boot server "$1" "pair-$1" "$limit" $threads guest.role=server -- $(nic server client) >server.out &
			boot client "$2" "pair-$2" "$limit" $threads guest.role=client -- $(nic client server)
			wait
		)
		said_hello server && said_hello client && break
	done
	sed 's/^/server: /' "$work/server.out"
	for role in server client; do judge $role $((SECONDS - start)) || { c=$? && ((code > c)) || code=$c; }; done
	return $code
}

# nic OWN PEER is a network card whose cable ends at the peer's.
nic() {
	local mac=52:54:00:08:00:01
	[[ $1 == server ]] || mac=52:54:00:08:00:02
	echo "-netdev dgram,id=n0,local.type=unix,local.path=$1,remote.type=unix,remote.path=$2 -device virtio-net-pci,netdev=n0,mac=$mac,romfile="
}

# worst CODE: the exit code is that of the worst that happened.
code=0
worst() { ((code > $1)) || code=$1; }

# spare PATTERN REASON takes jobs off the list.
spare() {
	local job
	for job in "$tree"/jobs/[0-9][0-9]-$1; do
		[[ -e $job ]] || continue
		echo "kerneltest: Linux $version: without ${job##*/[0-9][0-9]-}: $2; --kernel $version --run ${job##*/[0-9][0-9]-} runs it"
		rm "$job"
		jobs=$((jobs - 1))
	done
}

# A function, so that all of this file has been read before anything runs: it may
# be edited meanwhile.
main() {
	local version c had
	parse "$@"
	if [[ $list ]]; then
		standard_jobs
		echo two-guests
		exit 0
	fi
	mkdir -p "$cache"
	# One run at a time: it keeps two cores busy, and the logs have one name.
	exec {lock}>"$cache/lock"
	flock -n "$lock" || { echo "kerneltest: waiting for another run to end" && flock "$lock"; }
	need_qemu
	if [[ $update ]]; then
		rm -rf "$cache"/apt-* "$cache"/kernel-* "$cache"/root-*
	fi
	get_root base $packages || die 3 "cannot get the guest's programs"
	[[ ! $tools ]] || get_root tools $packages $tool_packages || die 3 "cannot get the tools"

	rm -rf "$cache"/run.* # of a run that was killed
	work=$(mktemp -d "$cache/run.XXXXXX")
	if [[ $keep ]]; then
		echo "kerneltest: kept: $work"
	else
		trap 'rm -rf "$work"' EXIT
	fi
	if [[ $two_guests ]]; then
		run_regex='^$'
	elif ((${#tests[@]} + ${#commands[@]} == 0)) && [[ ! $figures && two-guests =~ $run_regex ]]; then
		two_guests=1
	fi
	tree=$work/tree
	pair_qemu_args=(${qemu_args[@]+"${qemu_args[@]}"}) # without what jobs add
	go build -o "$work/init" ./scripts/guest || die 1 "scripts/guest does not build"
	make_tree
	(unset GOOS GOARCH && go build -o "$work/guest" ./scripts/guest)

	had=()
	for version in $kernels; do
		if ! get_kernel "$version"; then
			[[ $kernels == *" "* && $version != 6.1 ]] || die 3 "cannot get a kernel $version"
			echo "kerneltest: skipped: Linux $version: its package cannot be had here"
			continue
		fi
		had+=("$version")
		if ((${#had[@]} > 1)); then
			spare 'rpc-loss-*' "takes long, and Linux ${had[0]} has run it"
		fi
		((jobs == 0)) || all_jobs "$version" || worst $?
	done
	interop_end || worst 1
	if [[ $two_guests ]]; then
		c=0
		pair "${had[0]}" "${had[-1]}" || c=$?
		if ((c)) && [[ $again ]]; then
			echo "kerneltest: the two guests get a second chance"
			c=0
			pair "${had[0]}" "${had[-1]}" || c=$?
		fi
		worst $c
	fi
	exit $code
}

main "$@"
