"""The loop that everybody writes first: read a record, run the session, send the result.

python -m loadtest.kafka.baseline BOOTSTRAP SOURCE OUTPUT GROUP MODEL raw|json plain|fast

"fast" is the same loop on uvloop, with msgspec for JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from loadtest.mlp import INPUT_NAME, OUTPUT_NAME


async def main(
    bootstrap: str, source: str, output: str, group: str, model: str, written_as: str, way: str
) -> None:
    """Score until killed."""
    loads: Callable[[bytes], Any] = json.loads if way == "plain" else msgspec.json.decode
    dumps: Callable[[Any], bytes] = (
        (lambda value: json.dumps(value).encode()) if way == "plain" else msgspec.json.encode
    )
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    consumer = AIOKafkaConsumer(
        source, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await consumer.start()
    await producer.start()
    async for record in consumer:
        if written_as == "raw":
            row = np.frombuffer(record.value, np.float32).reshape(1, -1)
        else:
            row = np.array([loads(record.value)["features"]], np.float32)
        score = session.run([OUTPUT_NAME], {INPUT_NAME: row})[0][0]
        value = score.tobytes() if written_as == "raw" else dumps({"score": score.tolist()})
        await producer.send(output, value, key=record.key, partition=record.partition)


if __name__ == "__main__":
    (asyncio.run if sys.argv[-1] == "plain" else uvloop.run)(main(*sys.argv[1:]))
