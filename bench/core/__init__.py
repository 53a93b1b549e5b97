"""Shared machinery of the benchmarks. A module imports only modules on lines above its own:

errors, machine, timing, parity, stages
roofline, networks, bounded, turns, labeller, plain, rivals
results
calls, launches, options, peers, plots, tables
gpu_model, run, training
frame_peers
"""
