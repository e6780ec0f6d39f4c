"""Metrics, statistics, traces and logs of every role.

The submodules are imported by name (`qinfer.telemetry.stats`, `.tracing`, ...), so that a process pays only
for what it uses. All follow two rules: counters are updated once a batch, by the thread that runs the event
loop, and read when they are scraped; a request that is not traced never touches the OpenTelemetry SDK.
"""
