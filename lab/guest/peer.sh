#!/bin/bash
# A wire between rxe and something that is not rxe: rxe1 on this end (10.9.1.1, fd09:1::1), the other end (10.9.1.2,
# fd09:1::2) in the network namespace `peer`. rxe owns UDP 4791 in its own namespace only, so 4791 is free over there.
set -euo pipefail
modprobe -a rdma_rxe ib_uverbs rdma_ucm veth
ip link set lo up
ip netns add peer
ip link add wire0 mtu 9000 type veth peer name wire1 mtu 9000 netns peer
ip address add 10.9.1.1/24 dev wire0
ip address add fd09:1::1/64 dev wire0 nodad
ip link set wire0 up
ip -n peer address add 10.9.1.2/24 dev wire1
ip -n peer address add fd09:1::2/64 dev wire1 nodad
ip -n peer link set lo up
ip -n peer link set wire1 up
rdma link add rxe1 type rxe netdev wire0
