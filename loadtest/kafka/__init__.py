"""Measures and breaks the stream scorer on a real Kafka."""
