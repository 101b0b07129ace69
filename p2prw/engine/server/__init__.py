"""The serving end: one loop, many regions, many clients."""
