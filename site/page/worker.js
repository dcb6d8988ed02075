// Everything slow happens here: downloads, chalk, the models, the ranks. Messages: see `onmessage` and `send`.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { averaged, chalk } from "./chalk.js";
import { arraysOf, download } from "./download.js";
import { evalTransform, square } from "./pixels.js";

const FIRST = ["runtime/ort-wasm-simd-threaded.wasm", "models/arrays.bin", "models/stem.onnx", "models/blocks.onnx"];
const sessions = {};
let site, arrays, redraw;

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
  const simulators = site.methods.map((method) => method.simulator).filter(Boolean);
  const files = await fetchAll(simulators.map((name) => `models/${name}.onnx`));
  for (const [i, name] of simulators.entries()) await open(name, files[i]);
  send("complete");
}

// ---- features and ranks

async function run(part, inputs) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(([name, { shape, values }]) =>
    [name, new ort.Tensor("float32", values, shape)]));
  const { output } = await sessions[part].run(feeds);
  return { shape: output.dims, values: output.data };
}

function joined(a, b) {                                              // tokens [1, A, W] and [1, B, W] -> [1, A+B, W]
  const values = new Float32Array(a.values.length + b.values.length);
  values.set(a.values);
  values.set(b.values, a.values.length);
  return { shape: [1, a.shape[1] + b.shape[1], a.shape[2]], values };
}

// What the projection of a method reads, [W]. simulator: null where no prompts are used.
async function readOut(patches, token, simulator) {
  const { values } = arrays[`class_token/${token}`];
  let first = { shape: [1, 1, values.length], values: values.slice() };
  if (simulator) first = joined(first, await run(simulator, { patches }));
  return (await run("blocks", { first, patches })).values;
}

// A feature [D] by a method, not normalised: the scale of the query changes no rank. known: of the same picture, what
// methods have read before; those that differ in nothing but the projection share it.
async function featureOf(patches, { key, token, simulator }, prompts, known) {
  const used = prompts === "own" ? simulator : null, name = `${token} ${used}`;
  const values = known[name] ??= await readOut(patches, token, used);
  const { shape: [width, size], values: projection } = arrays[`projection/${key}`];
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

async function answer(question) {
  const start = performance.now(), seen = prepared(question), { size } = site.pixels;
  const patches = await run("stem", { image: { shape: [1, 3, size, size], values: evalTransform(seen, site.pixels) } });
  const strips = [], known = {};
  for (const key of question.methods) {
    const method = site.methods.find((each) => each.key === key);
    if (question.prompts === "own" && method.simulator && !sessions[method.simulator]) {
      strips.push({ key, ranks: null });                             // its simulator is still on the way
      continue;
    }
    const feature = await featureOf(patches, method, question.prompts, known);
    strips.push({ key, ranks: ranked(feature, method, question.prompts, question.all, question.count) });
  }
  const shown = seen.width === site.pixels.side && seen.height === site.pixels.side ? seen : square(seen, size);
  send("answer", { number: question.number, strips, shown, spent: performance.now() - start });
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") await load(data.site);
    else if (data.kind === "question") await answer(data);
  } catch (error) {
    send(data.kind === "load" ? "failed" : "fault", { message: error.message, number: data.number });
  }
};
