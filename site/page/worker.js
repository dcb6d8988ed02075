// Everything slow happens here: downloads, chalk, the models, the ranks. Messages: see `onmessage` and `send`.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { averaged, chalk } from "./chalk.js";
import { arraysOf, download } from "./download.js";
import { evalTransform, square } from "./pixels.js";
import { makeReader } from "./words.js";

const FIRST = ["runtime/ort-wasm-simd-threaded.wasm", "models/arrays.bin", "models/stem.onnx", "models/blocks.onnx"];
const sessions = {};
let site, arrays, redraw, readWords;

const send = (kind, content = {}, transfer = []) => postMessage({ kind, ...content }, transfer);

// ---- loading

async function fetchAll(names) {
  const total = names.reduce((sum, name) => sum + site.files[name].bytes, 0);
  let received = 0, shown = 0;
  return Promise.all(names.map((name) => download(name, site.files[name], (bytes) => {
    received += bytes;
    if (received - shown > total / 50 || received === total) send("progress", { received: shown = received, total });
  })));
}

async function open(name, bytes) {
  sessions[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function load(about) {
  site = about;
  const [wasm, numbers, stem, blocks] = await fetchAll(FIRST);
  Object.assign(ort.env.wasm, { wasmBinary: wasm.buffer, numThreads: 1, proxy: false });
  arrays = arraysOf(numbers, site.arrays);
  const lattices = [0, 1, 2, 3].map((i) => arrays[`grain/${i}`]);
  redraw = chalk(site.chalk.side, lattices, site.chalk.stick);
  await open("stem", stem);
  await open("blocks", blocks);
  send("ready", { lattices: lattices.map(({ shape, values }) => ({ shape, values: values.slice() })) });
  const later = [...site.methods.map((method) => method.simulator).filter(Boolean), "words"];
  const [table, ...files] = await fetchAll(["models/words.json", ...later.map((name) => `models/${name}.onnx`)]);
  for (const [i, name] of later.entries()) await open(name, files[i]);
  readWords = makeReader(JSON.parse(new TextDecoder().decode(table)));
  send("complete");
}

// ---- features and ranks

// {output} of a part, and what else it gives, each as {shape, values}.
async function run(part, inputs) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(([name, { shape, values }]) =>
    [name, new ort.Tensor(values instanceof BigInt64Array ? "int64" : "float32", values, shape)]));
  const found = Object.entries(await sessions[part].run(feeds));
  return Object.fromEntries(found.map(([name, { dims, data }]) => [name, { shape: dims, values: data }]));
}

function joined(a, b) {                                              // tokens [1, A, W] and [1, B, W] -> [1, A+B, W]
  const values = new Float32Array(a.values.length + b.values.length);
  values.set(a.values);
  values.set(b.values, a.values.length);
  return { shape: [1, a.shape[1] + b.shape[1], a.shape[2]], values };
}

// What the projection of a method reads, [W], and its attention to the patches. simulator: null where no prompts are used.
async function readOut(patches, token, simulator) {
  const { values } = arrays[`class_token/${token}`];
  let first = { shape: [1, 1, values.length], values: values.slice() };
  if (simulator) first = joined(first, (await run(simulator, { patches })).output);
  const { output, attention } = await run("blocks", { first, patches });
  return { values: output.values, attention: attention.values };
}

// A feature [D], not normalised: the scale of the query changes no rank.
function projected(values, { shape: [width, size], values: projection }) {
  const feature = new Float32Array(size);
  for (let i = 0; i < width; i++)
    for (let j = 0; j < size; j++) feature[j] += values[i] * projection[i * size + j];
  return feature;
}

function ranked(feature, method, prompts, all, count) {
  const { shape: [, size], values } = arrays[`gallery/${method.key}/${method.simulator ? prompts : "none"}`];
  const length = Math.hypot(...feature), scores = [];
  site.gallery.unseen.forEach((unseen, place) => {
    if (!all && !unseen) return;
    let score = 0;
    for (let i = 0; i < size; i++) score += feature[i] * values[place * size + i];
    scores.push([score / length, place]);
  });
  return scores.sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, count);
}

// What the tower is given, as bytes: a drawing goes through chalk, a picture as it is.
function prepared({ picture, strength }) {
  if (picture.channels === 3) return picture;
  const { side } = site.chalk;
  return averaged(redraw(picture.data, strength), side, side / site.pixels.side);
}

async function answerDrawing(question) {
  const seen = prepared(question), { size } = site.pixels;
  const image = { shape: [1, 3, size, size], values: evalTransform(seen, site.pixels) };
  const { output: patches } = await run("stem", { image });
  const strips = [], known = {};                                     // methods that differ in the projection alone share
  for (const key of question.methods) {
    const method = site.methods.find((each) => each.key === key), { token } = method;
    const simulator = question.prompts === "own" ? method.simulator : null;
    if (simulator && !sessions[simulator]) {
      strips.push({ key, ranks: null });                             // its simulator is still on the way
      continue;
    }
    const { values, attention } = known[`${token} ${simulator}`] ??= await readOut(patches, token, simulator);
    const feature = projected(values, arrays[`projection/${key}`]);
    strips.push({ key, ranks: ranked(feature, method, question.prompts, question.all, question.count), attention });
  }
  const shown = seen.width === site.pixels.side && seen.height === site.pixels.side ? seen : square(seen, size);
  return { strips, shown };
}

async function answerWords(question) {
  if (!readWords) throw new Error("the part that reads words is still being downloaded.");
  const { tokens, end, left } = readWords(question.words);
  if (end === null) return { strips: [], left };
  const ends = { shape: [1], values: BigInt64Array.of(BigInt(end)) };
  const { output } = await run("words", { tokens: { shape: [1, tokens.length], values: tokens }, end: ends });
  const strips = question.methods.map((key) => {
    const method = site.methods.find((each) => each.key === key);
    const feature = projected(output.values, arrays[`text_projection/${key}`]);
    return { key, ranks: ranked(feature, method, question.prompts, question.all, question.count) };
  });
  return { strips, left };
}

async function answer(question) {
  const start = performance.now();
  const found = question.words ? await answerWords(question) : await answerDrawing(question);
  send("answer", { number: question.number, words: question.words, ...found, spent: performance.now() - start });
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") await load(data.site);
    else if (data.kind === "question") await answer(data);
  } catch (error) {
    send(data.kind === "load" ? "failed" : "fault", { message: error.message, number: data.number });
  }
};
