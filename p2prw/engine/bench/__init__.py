"""Measuring: the same work requests over and over, timed; what a transfer is to bytes, this is to figures.

model        what is asked, what one size gave, the whole result
sizes        which sizes fit                                        pure
lane         one queue pair, its work requests built once
loop         bandwidth: keep every lane full
latency      one message at a time
statistics   intervals and samples to figures                       pure
row          counts, intervals and samples to a row of the result   pure
session      connect, run every test at every size, report
"""
