"""What a fleet's telemetry is received with, kept in, and read by.

Devices need none of it: they have `edgekit.runtime.recorder`, and send OTLP (its wire contract is
`edgekit.runtime.otlp`) to this receiver or to any OpenTelemetry Collector.
"""
