"""Providers of RDMA devices: `soft` (ours, always there) and `scripted` (for tests). See `base` for the seam."""
