# Creates the guest's Soft-RoCE devices. Run by /init in the guest.
#
# rxe0 and rxe1 stand on the two ends of a veth pair. Both ends stay in one
# network namespace, because rdma_rxe receives packets in the initial one alone.
# So that they do not talk over lo: each end takes packets whose source is the
# address of the other, and answers ARP for its own address only.
set -eu

ip link set lo up
for dir in all default; do
	echo 1 >/proc/sys/net/ipv4/conf/$dir/accept_local
	echo 0 >/proc/sys/net/ipv4/conf/$dir/rp_filter
	echo 1 >/proc/sys/net/ipv4/conf/$dir/arp_ignore
done
ip link add v0 type veth peer name v1
for n in 0 1; do
	ip link set v$n mtu 9000 up
	ip addr add 10.7.0.$((n + 1))/24 dev v$n
done
for n in 0 1; do
	rdma link add rxe$n type rxe netdev v$n
done
rdma system
rdma link
