# Part of kerneltest.sh: the job interop, in which the guest's Soft-RoCE and
# rdma-core's programs talk to the simulated ConnectX of a process on the host
# (scripts/interop). Their wire is a pair of datagram sockets, one Ethernet frame
# each; TCP crosses by a second interface.

interop_pid= interop_hold=

# interop_jobs starts the host's half, and puts the job on the list.
interop_jobs() {
	standard interop || return 0
	local dir port
	tools=1
	get_root tools $packages $tool_packages || die 3 "cannot get the tools"
	go build -o "$tree/bin/interop" ./scripts/interop || die 1 "scripts/interop does not build"
	(unset GOOS GOARCH && go build -o "$work/interop" ./scripts/interop) || die 1 "scripts/interop does not build"
	# Not in the repository: the path of a socket must be short. The host
	# removes it.
	dir=$(mktemp -d /tmp/interop.XXXXXX)
	mkfifo "$dir/hold"
	# KERNELTEST_PCAP names a file for the packets.
	"$work/interop" host -dir "$dir" -pcap "${KERNELTEST_PCAP:-}" <"$dir/hold" >"$cache/interop.log" 2>&1 {lock}>&- &
	interop_pid=$!
	exec {interop_hold}>"$dir/hold" # it lives as long as this script
	until [[ -e $dir/port ]]; do
		kill -0 "$interop_pid" 2>/dev/null || { cat "$cache/interop.log" >&2 && die 1 "the host's half of interop does not start"; }
		sleep 0.05
	done
	port=$(<"$dir/port")
	qemu_args+=(
		-netdev "dgram,id=wire,local.type=unix,local.path=$dir/guest,remote.type=unix,remote.path=$dir/host"
		-device "virtio-net-pci,netdev=wire,mac=52:54:00:09:00:01,romfile="
		-netdev "user,id=tcp"
		-device "virtio-net-pci,netdev=tcp,mac=52:54:00:09:00:02,romfile="
	)
	job interop 88 <<-END
		set -e
		for d in /sys/class/net/*; do
			case \$(cat \$d/address) in
			52:54:00:09:00:01) wire=\${d##*/} ;;
			52:54:00:09:00:02) tcp=\${d##*/} ;;
			esac
		done
		ip addr add 10.0.2.15/24 dev \$tcp
		ip link set \$tcp up
		ip addr add 10.9.0.2/24 dev \$wire
		ip link set \$wire mtu 9000 up
		rdma link add rxe9 type rxe netdev \$wire
		code=0
		echo "packets of 4096 bytes:"
		interop guest -connect 10.0.2.2:$port -device rxe9 -local rxe0 -local-peer rxe1 || code=1
		ip link set \$wire mtu 1500
		echo "packets of 1024 bytes:"
		interop guest -connect 10.0.2.2:$port -device rxe9 -parts scenario || code=1
		rdma link delete rxe9
		exit \$code
	END
}

# interop_end ends the host's half, which must have left nothing behind.
interop_end() {
	[[ $interop_pid ]] || return 0
	exec {interop_hold}>&-
	local code=0
	wait "$interop_pid" || code=1
	cat "$cache/interop.log"
	return $code
}
