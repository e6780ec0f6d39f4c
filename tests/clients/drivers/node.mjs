// Does with the example's client what the tests say, one JSON object a line; see tests/clients/driven.py.
// It is run beside a copy of the client: node driver.mjs URL NAMESPACE, or node driver.mjs vectors FOLDER.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Client, QInferError, decoder, encoder, readResponses, tensor, values } from "./client.mjs";

const hex = (data) => ({ $hex: Buffer.from(data).toString("hex") });
const say = (told) => process.stdout.write(JSON.stringify(told, printable) + "\n");
function printable(key, value) {
  if (typeof value === "bigint") return { $int: String(value) };
  return this[key] instanceof Uint8Array ? hex(this[key]) : value; // a Buffer has made itself JSON already
}

const failed = ({ reason, message, retryAfter }) => ({ reason, message, retry_after: retryAfter });
const given = (response) => response && {
  version: response.modelVersion,
  parameters: response.parameters,
  outputs: response.outputs.map(([name, datatype, shape, data]) => [name, datatype, shape,
    Array.from(values(datatype, data), (value) => (datatype === "BYTES" ? value.toString("hex") : String(value)))]),
};

function options({ inputs, timeout, window, version, parameters }, signal) {
  const tensors = inputs.map(([name, datatype, shape, values]) =>
    tensor(name, datatype, shape, datatype === "BYTES" ? values.map((item) => Buffer.from(item, "hex")) : values));
  return [tensors, { timeout, window, version, parameters, signal }];
}

async function converse(url, namespace) {
  const client = await Client.connect(url, { namespace }), streams = new Map(), aborts = new Map();
  const verbs = {
    infer: (told) => client.infer(told.model, ...options(told, abortable(told.of))).then(given),
    open: (told) => void streams.set(told.of,
      client.stream(told.model, ...options(told, abortable(told.of)))[Symbol.asyncIterator]()),
    next: async ({ of }) => {
      const { value, done } = await streams.get(of).next();
      return done ? "done" : given(value);
    },
    leave: async ({ of }) => void await streams.get(of).return(),
    abort: ({ of }) => void aborts.get(of).abort(),
  };
  const abortable = (of) => aborts.set(of, new AbortController()).get(of).signal;
  const act = async (told) => {
    try {
      say({ key: told.key, got: (await verbs[told.do](told)) ?? null });
    } catch (error) {
      say({ key: told.key, error: error instanceof QInferError ? failed(error) : { reason: "?", message: String(error) } });
    }
  };
  for await (const line of createInterface({ input: process.stdin })) void act(JSON.parse(line));
  await client.close();
}

function readVectors(folder) {
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".bin"))) {
    const name = file.slice(0, -4), data = new Uint8Array(readFileSync(join(folder, file))), told = { name };
    try {
      told.wire = decoder.decode(data);
      told.encoded = hex(encoder.encode(told.wire));
    } catch (error) {
      told.unreadable = String(error);
    }
    if (name.startsWith("response-")) {
      try {
        told.responses = readResponses(data).map(({ error, outputs, parameters, flags, claim, index }) =>
          ({ error, outputs, parameters, flags, claim, index }));
      } catch (error) {
        told.error = error.reason;
      }
    }
    say(told);
  }
}

const [first, second] = process.argv.slice(2);
if (first === "vectors") readVectors(second);
else await converse(first, second);
