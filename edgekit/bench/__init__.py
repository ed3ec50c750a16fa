"""Bench: latency, load time and memory of artifacts, each in a process of its own.

Import what is needed from `edgekit.bench.measure`; this package imports nothing, because the
worker's memory is measured and everything imported here would be counted.
"""
