"""Schema registries with the REST interface of Confluent's, and the bytes they add to records."""
