"""Smoke: every device and memory kind of this host, written and read in a minute, each cell verified.

model      the nouns
discover   what takes part and what is left alone, with the reason    pure, over an `Inventory`
regions    the fixed names that `serve --smoke` offers
commands   what to type to do one cell again                         pure
plan       devices x memory x operations x sizes -> cells, skips      pure
servers    the serving end of a loopback
runner     cells in order, each with a deadline
session    from a request to a plan, from a plan to a result
"""
