"""Shared machinery of the benchmarks. A module imports only modules on lines above its own:

errors, machine, timing, parity
roofline, networks
results
calls, options, peers, plots, tables
run, training
"""
