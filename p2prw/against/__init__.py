"""`bench --against`: another tool and ours by turns on one device, and one table of ratios.

tools     what a command line of such a tool measures, what it lacks, what its output says     pure
child     its server and its client, each with a deadline
session   pairs, by turns; medians, spread, and what differs
"""
