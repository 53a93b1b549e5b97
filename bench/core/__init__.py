"""Shared machinery of the benchmarks. A module imports only modules of the floors above its own:

errors, machine, timing, parity
roofline, networks
results
calls, options, peers, plots, tables
run
"""
