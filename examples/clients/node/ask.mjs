// node ask.mjs                                      lists the models that can be asked for
// node ask.mjs MODEL [NAME DATATYPE SHAPE VALUE]... asks one: node ask.mjs mlp x FP32 1,2 1.5 2.5
import { Client, QInferError, tensor, values } from "./client.mjs";

const [model, ...words] = process.argv.slice(2);
const { QINFER_NATS = "nats://127.0.0.1:4222", QINFER_NAMESPACE: namespace } = process.env;

function inputs(words) {
  const tensors = [];
  while (words.length) {
    const [name, datatype, sizes] = words.splice(0, 3), shape = sizes.split(",").map(Number);
    const given = words.splice(0, shape.reduce((all, size) => all * size, 1));
    tensors.push(tensor(name, datatype, shape, given));
  }
  return tensors;
}

const client = await Client.connect(QINFER_NATS, { namespace });
try {
  if (model) {
    for await (const { outputs } of client.stream(model, inputs(words)))
      for (const [name, datatype, shape, data] of outputs)
        console.log(name, datatype, shape.join(), ...Array.from(values(datatype, data), String));
  } else {
    for (const { model, model_version, inputs } of await client.models()) console.log(model, model_version, inputs);
  }
} catch (error) {
  if (!(error instanceof QInferError)) throw error;
  console.error(`${error.reason}: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
