"""Where the figures of metrics come from beside our own records: Loki, Prometheus, logs of pods."""
