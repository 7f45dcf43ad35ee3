// Run a GGUF file in llama.cpp, as node-llama-cpp ships it: see llama_engine.py.
//
// Reads {"package", "model", "cache", "rows", "texts", "specials", "logits", "ids"} from standard
// input: the folder of node-llama-cpp, a GGUF file, the type of the KV cache, rows of ids, texts,
// whether special tokens are found in the texts, and two files to write. Writes the logits of each row to the file "logits", float32 (T, vocab_size) one
// after another, and the ids of each text to the file "ids" as JSON.
import fs from "node:fs";
import path from "node:path";

const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const { getLlama } = await import(path.join(asked.package, "dist", "index.js"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: asked.model, gpuLayers: 0 });

const longest = Math.max(16, ...asked.rows.map((row) => row.length + 1));
const context = await model.createContext({
  contextSize: longest,
  batchSize: longest,
  flashAttention: false,
  experimentalKvCacheKeyType: asked.cache,
  experimentalKvCacheValueType: asked.cache,
});
const sequence = context.getSequence();
const out = fs.openSync(asked.logits, "w");
for (const row of asked.rows) {
  await sequence.clearHistory();
  const found = await sequence.controlledEvaluate(
    row.map((id) => [id, { generateNext: { logits: true } }]),
  );
  for (const position of found) {
    const logits = position.next.logits;
    const line = new Float32Array(logits.size).fill(NaN);
    for (const [id, value] of logits) line[id] = value;
    fs.writeSync(out, Buffer.from(line.buffer));
  }
}
fs.closeSync(out);
const ids = asked.texts.map((text) => model.tokenize(text, asked.specials));
fs.writeFileSync(asked.ids, JSON.stringify(ids));
process.exit(0);
