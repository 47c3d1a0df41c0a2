// Tokenizer and model, off the page's own thread, so that it can be scrolled and typed into meanwhile.

import * as ort from "./runtime/ort.js";
import { answer, meanOf } from "./answers.js";
import { makeTokenizer } from "./tokens.js";

const at = (name) => new URL(name, import.meta.url);

const fetchBytes = async (name, bytes, onBytes) => {
  const response = await fetch(at(name));
  if (!response.ok) throw new Error(`${name}: the server says ${response.status}`);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  // A server that answers whatever is asked for with a page of its own.
  if (whole.length !== bytes) throw new Error(`${name} has ${whole.length} bytes instead of ${bytes}`);
  return whole;
};

const text = (bytes) => new TextDecoder().decode(bytes);

let demo;
let rowsOf;
let session;

const load = async () => {
  demo = await (await fetch(at("demo.json"))).json();
  const total = Object.values(demo.files).reduce((sum, bytes) => sum + bytes, 0);
  let loaded = 0;
  const get = (name) =>
    fetchBytes(name, demo.files[name], (bytes) => {
      loaded += bytes;
      postMessage({ type: "progress", loaded, total });
    });
  const [graph, wasm, tokenizer, tables] = await Promise.all(
    ["model_quantized.onnx", "runtime/ort.wasm", "tokenizer.json", "tables.json"].map(get),
  );
  rowsOf = makeTokenizer(JSON.parse(text(tokenizer)), demo.reading, JSON.parse(text(tables)));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  ort.env.logLevel = "error";
  postMessage({ type: "starting" });
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
};

const logitsOf = async (ids) => {
  const whole = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const { logits } = await session.run({ input_ids: whole(ids), attention_mask: whole(ids.map(() => 1)) });
  return Array.from(logits.data);
};

const classify = async (words) => {
  const { rows, tokens } = rowsOf(words);
  const logits = [];
  for (const row of rows) logits.push(await logitsOf(row));
  return { ...answer(meanOf(logits), demo.decision), tokens, rows: rows.length };
};

// Texts that the export wrote down with what is right for them: does this browser do as the run did?
const check = async () => {
  let split = 0;
  let difference = 0;
  for (const { text: words, rows, probabilities } of demo.check) {
    if (JSON.stringify(rowsOf(words).rows) !== JSON.stringify(rows)) split += 1;
    if (!probabilities) continue;
    const { probabilities: here } = await classify(words);
    difference = Math.max(difference, ...here.map((p, i) => Math.abs(p - probabilities[i])));
  }
  return { texts: demo.check.length, split, difference };
};

let work = Promise.resolve();
addEventListener("message", ({ data }) => {
  work = work.then(async () => {
    try {
      postMessage({ type: "answer", id: data.id, ...(await classify(data.text)) });
    } catch (error) {
      postMessage({ type: "failed", id: data.id, message: String(error?.message ?? error) });
    }
  });
});

work = (async () => {
  try {
    await load();
    postMessage({ type: "ready", check: await check() });
  } catch (error) {
    postMessage({ type: "broken", message: String(error?.message ?? error) });
  }
})();
