"""The bus on Apache Kafka, for places that run nothing else. Needs the extra `kafka`."""

from qinfer.bus.kafka.bus import KafkaBus

__all__ = ["KafkaBus"]
