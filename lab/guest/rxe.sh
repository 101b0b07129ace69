#!/bin/bash
# rxe0 on dummy0: GID index 1 is ::ffff:10.9.0.1, an IPv6 address is at a later index.
set -euo pipefail
modprobe -a rdma_rxe ib_uverbs rdma_ucm
# Without systemd's modprobe.d the module makes a dummy0 of its own, and ours would be one too many.
modprobe dummy numdummies=0
ip link set lo up
ip link add dummy0 type dummy
ip address add 10.9.0.1/24 dev dummy0
ip address add fd09::1/64 dev dummy0 nodad
# A path MTU of 4096 needs more than 4096 bytes of Ethernet.
ip link set dummy0 mtu 9000 up
rdma link add rxe0 type rxe netdev dummy0
