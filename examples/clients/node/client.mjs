// Asks models that qinfer serves, over NATS. The protocol is docs/protocol.md; ask.mjs shows how this is used.
import { Decoder, Encoder } from "@msgpack/msgpack";
import { connect, createInbox, errors } from "@nats-io/transport-node";
// 64-bit integers are BigInt both ways: numbers lose digits above 2^53.
export const encoder = new Encoder({ useBigInt64: true }), decoder = new Decoder({ useBigInt64: true });
const [FINAL, END] = [1, 4]; // bits of a response's flags
const ARRAYS = { BOOL: Uint8Array, FP16: Uint16Array, BF16: Uint16Array, FP32: Float32Array, FP64: Float64Array,
  UINT8: Uint8Array, UINT16: Uint16Array, UINT32: Uint32Array, UINT64: BigUint64Array, // FP16, BF16 as bit patterns
  INT8: Int8Array, INT16: Int16Array, INT32: Int32Array, INT64: BigInt64Array };

export class QInferError extends Error { // `reason` is one of docs/errors.md, `retryAfter` in seconds or null
  constructor(reason, message, retryAfter = null) { Object.assign(super(message), { reason, retryAfter }); }
}

export function tensor(name, datatype, shape, values) { // of numbers, BigInts for 64 bits, or strings or bytes
  const size = (item) => Buffer.from(Uint32Array.of(Buffer.byteLength(item)).buffer);
  if (datatype !== "BYTES") return [name, datatype, shape, new Uint8Array(ARRAYS[datatype].from(values).buffer)];
  return [name, datatype, shape, Buffer.concat(values.flatMap((item) => [size(item), Buffer.from(item)]))];
}

export function values(datatype, data) { // of a tensor: a typed array, or Buffers for BYTES
  if (datatype !== "BYTES") return new ARRAYS[datatype](new Uint8Array(data).buffer); // a copy, so aligned
  const bytes = Buffer.from(data), items = [];
  for (let at = 0; at < bytes.length; at += 4 + items.at(-1).length)
    items.push(bytes.subarray(at + 4, at + 4 + bytes.readUInt32LE(at)));
  return items;
}

export function readResponses(data) { // with defaults, and without what later versions append
  const [version, , modelVersion, , responses, failed] = decoder.decode(data);
  if (version !== 1) throw new QInferError("unsupported_version", `protocol version ${version}; expected 1`);
  if (failed) throw new QInferError(...failed);
  return responses.map(([id, , error, outputs = [], parameters = {}, flags = 1, , claim = "", , , index = 0]) => (
    { id, modelVersion, error, outputs, parameters, flags: Number(flags), claim, index: Number(index) }));
}

const escape = (name) => Buffer.from(name).toString("latin1") // as a token of a subject
  .replace(/[^\w-]/g, (byte) => `=${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);
function checkStored(message) { // what the broker says to a publish
  if (message.headers?.code === 503) throw new QInferError("no_worker", "the model has no queue", 1);
  const { error } = message.json(), full = [10077, 10047, 10054].includes(error?.err_code);
  if (error) throw new QInferError(full ? "queue_full" : "bus_unavailable", error.description, 1);
}

export class Client {
  static async connect(url, { namespace = "default", ...options } = {}) { // the others are for the NATS package
    const { host, username, password } = new URL(url);
    if (username) Object.assign(options, { user: decodeURIComponent(username), pass: decodeURIComponent(password) });
    return Object.assign(new Client(), { namespace, options, nc: await connect({ servers: host, ...options }) });
  }
  close() { return this.nc.drain(); }
  async models() { // what live workers serve, as each describes it
    const told = [], answers = await this.nc.requestMany("$SRV.INFO", "", { strategy: "stall" });
    try { for await (const message of answers) told.push(message.json().metadata ?? {}); }
    catch (error) { if (!(error instanceof errors.NoRespondersError)) throw error; }
    return told.filter((one) => one.protocol === "qinfer/1" && one.namespace === this.namespace);
  }
  async infer(model, inputs, options) { // the first response; null where a decoupled model gives none
    for await (const response of this.stream(model, inputs, { ...options, window: 1 })) return response;
    return null;
  }
  // All responses in order. To leave the loop cancels the request, as do `signal` and the end of `timeout`, in ms.
  async *stream(model, inputs, { version = "", timeout = 10_000, window = 32, parameters = {}, signal } = {}) {
    const send = (verb, rest, frame, options) => this.nc.publish(
      `qinfer.${this.namespace}.${verb}.${escape(model)}${rest}`, encoder.encode(frame), options);
    const inbox = createInbox(this.options.inboxPrefix), messages = this.nc.subscribe(`${inbox}.*`);
    const reply = `${inbox}.reply`, stored = `${inbox}.stored`, now = BigInt(Date.now()) * 1000n;
    const deadline = now + BigInt(timeout) * 1000n; // both are microseconds
    const request = [1, "", inputs, [], deadline, parameters, 0, "", 0, "", "", "", "", 0, "", window];
    let taken = 0, over = false, failure = new QInferError("bus_unavailable", "the connection was closed");
    const stop = (reason, why) => { failure = new QInferError(reason, why); messages.unsubscribe(); };
    const timer = setTimeout(stop, timeout, "deadline_exceeded", `no answer within ${timeout} ms`);
    const abort = () => stop("cancelled", "the caller has gone");
    signal?.addEventListener("abort", abort);
    try {
      if (signal?.aborted) abort();
      else send("infer", `.${version || "latest"}`, [1, reply, model, version, now, 0, [request]], { reply: stored });
      for await (const message of messages) {
        if (message.subject !== reply) checkStored(message);
        else for (const { index, error, claim, flags, ...response } of readResponses(message.data)) {
          over = error || flags & FINAL;
          if (error) throw new QInferError(...error);
          if (index > taken) throw new QInferError("bus_unavailable", `responses ${taken} to ${index - 1} are lost`);
          if (claim) throw new QInferError("unsupported", "the answer is too large for this client");
          if (index === taken && !(flags & END)) yield response; // else a worker died, and another began anew
          if (over) return;
          taken = Math.max(taken, index + 1);
          if ((index + 1) % Math.ceil(window / 2) === 0) send("cancel", "", [1, reply, [], [[1, taken]]]);
        }
      }
      throw failure;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      messages.unsubscribe();
      if (!over) send("cancel", "", [1, reply, [1], []]);
    }
  }
}
