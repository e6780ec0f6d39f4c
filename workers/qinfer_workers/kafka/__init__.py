"""Kafka stream scoring: a topic in, a topic out (`qinfer kafka-score`)."""
