"""Memory kinds: a spec string becomes opened memory that can be mapped or staged. See `base` for the seam."""
