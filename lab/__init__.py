"""The lab: real kernel RDMA and real PCI memory in a QEMU guest, without hardware and without rights on a NIC.

`lab/run` boots a kernel on the machine's own root file system (virtme-ng), with a described PCI tree, and runs one
command in it. See lab/README.md.
"""
