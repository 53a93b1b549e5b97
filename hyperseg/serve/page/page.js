// The page: an image goes to /api/segment, its mask comes back and is drawn over it here.

import { indicesOf } from "/png.js";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
const STAGES = [
  ["upload", "sending"], ["queue", "waiting"], ["decode", "decoding the image"], ["build", "building the network"],
  ["network", "network"], ["encode", "encoding the mask"], ["download", "receiving"], ["draw", "drawing"],
];
const CAMERA_SIDE = 960; // of the frames that are sent

let about = null; // what /api/networks says
let shown = null; // { picture, width, height, indices, classes, name, png }
let file = null; // { blob, name }: the photo, to run it again with other settings
let current = null; // AbortController of the request under way
let stream = null; // of the camera
const hidden = new Set(); // names of classes
let pointed = -1; // the class whose entry in the legend is pointed at
const overlay = document.createElement("canvas");

// ---- Messages

class Failure extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

function say(error) {
  const message = error instanceof Error ? error.message : String(error);
  $("error").hidden = !message;
  $("error").firstElementChild.textContent = message.charAt(0).toUpperCase() + message.slice(1);
}

function busy(text) {
  $("busy").hidden = !text;
  $("busy-text").textContent = text || "";
}

const ms = (value) => (value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const color = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};

// ---- Settings

const network = () => about.networks.find((each) => each.name === $("network").value);

async function load() {
  let response;
  try {
    response = await fetch("/api/networks");
  } catch {
    throw new Failure("the server cannot be reached; is it still running? Then load this page again");
  }
  about = await documentOf(response);
  $("machine").textContent = `${about.networks.length === 1 ? about.networks[0].name : `${about.networks.length} networks`} on ${about.device}, ${about.dtype}`;
  $("network").replaceChildren(...about.networks.map(({ name, random_weights }) =>
    new Option(random_weights ? `${name} (random)` : name, name)));
  $("network").value = about.default.network;
  $("backend").replaceChildren(...about.backends.map((name) => new Option(BACKENDS[name] || name, name)));
  $("backend").value = about.default.backend;
  sizes();
  $("size").value = about.default.size;
}

const BACKENDS = {
  auto: "auto: the fastest", cpp: "C++", cuda: "CUDA C++", triton: "Triton", reference: "reference: PyTorch",
};

function sizes() {
  const [height, width] = network().resolution, before = $("size").value;
  const half = `${height / 2}x${width / 2}`, own = about.default.size;
  const options = [
    ["fit", `photo's shape, ≤ ${(height * width / 1e6).toFixed(2)} MP`],
    ["model", `${height}×${width}, as published`],
    [half, `${half.replace("x", "×")}, half of that`],
    ["native", "photo's own size"],
  ];
  if (!options.some(([value]) => value === own)) options.push([own, own.replace("x", "×")]);
  $("size").replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === before)) $("size").value = before;
  $("network").title = $("network").selectedOptions[0].text;  // a long name is cut off
  $("warning").hidden = !network().random_weights;
  $("warning").textContent = `${network().name} has random weights: its labels mean nothing. Start the server with --weights for trained ones.`;
}

// ---- Requests

async function documentOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch { /* no JSON: of a proxy, or of the server when it is full */ }
  if (response.ok && body) return body;
  const wait = Number(response.headers.get("Retry-After")) || 0;
  const message = body?.error?.message || `the server replied with status ${response.status} ${response.statusText}`;
  throw new Failure(message, response.status, wait);
}

async function segment(blob, signal) {
  const query = new URLSearchParams({ network: $("network").value, backend: $("backend").value, size: $("size").value });
  const start = performance.now();
  let response;
  try {
    response = await fetch(`/api/segment?${query}`, { method: "POST", body: blob, signal, headers: { "Content-Type": blob.type || "application/octet-stream" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("the server cannot be reached; is it still running?");
  }
  const replied = performance.now();
  const result = await documentOf(response);
  const came = performance.now();
  const bytes = Uint8Array.from(atob(result.mask_png), (character) => character.charCodeAt(0));
  const mask = await indicesOf(bytes);
  const inside = Object.values(result.milliseconds).reduce((sum, value) => sum + value, 0);
  const times = { ...result.milliseconds, upload: Math.max(0, replied - start - inside), download: came - replied };
  return { ...result, ...mask, png: new Blob([bytes], { type: "image/png" }), times, came, start };
}

// ---- Photos

async function run(opened = file) {
  if (!opened) return;
  stopCamera();
  current?.abort();
  const mine = (current = new AbortController());
  let slow = 0;
  busy("Segmenting …");
  try {
    const { blob, picture } = await prepared(opened.blob);
    if (mine.signal.aborted) return;
    file = opened;
    slow = setTimeout(() => busy("Still at it. The first photo of a shape takes longer: the network is built for it …"), 1500);
    const result = await segment(blob, mine.signal);
    if (mine.signal.aborted) return;
    show(picture, result, opened.name);
    say("");
  } catch (error) {
    if (error.name !== "AbortError" && mine === current) say(error);
  } finally {
    clearTimeout(slow);
    if (mine === current) busy("");
  }
}

// The file as the server takes it, and the picture to draw; a photo above the server's limits is shrunk.
async function prepared(blob) {
  let picture;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    const kind = blob.type && !blob.type.startsWith("image/") ? `it is ${blob.type}` : "it is damaged, or of a kind that browsers do not show";
    throw new Failure(`this file is not a photo that can be shown (${kind}); choose a JPEG, PNG or WebP`);
  }
  const pixels = picture.width * picture.height, { body_bytes, pixels: most } = about.limits;
  const known = /^image\/(jpeg|png|webp|avif|gif)$/.test(blob.type);
  if (blob.size <= body_bytes && pixels <= most && known) return { blob, picture };
  const scale = Math.min(1, Math.sqrt(Math.min(most, 4e6) / pixels));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.floor(side * scale)));
  const smaller = new OffscreenCanvas(width, height);
  smaller.getContext("2d").drawImage(picture, 0, 0, width, height);
  return { blob: await smaller.convertToBlob({ type: "image/jpeg", quality: 0.92 }), picture: await createImageBitmap(smaller) };
}

function show(picture, result, name) {
  shown?.picture.close?.();
  shown = { ...result, picture, name };
  canvas.width = result.width;
  canvas.height = result.height;
  canvas.style.setProperty("--shape", result.width / result.height);
  $("empty").hidden = true;
  $("stage").classList.remove("empty");
  canvas.hidden = false;
  $("save").disabled = false;
  const before = performance.now();
  paint();
  shown.times.draw = performance.now() - before + Math.max(0, before - result.came);
  legend();
  times();
  if (cross) tip(Math.min(cross[0], canvas.width - 1), Math.min(cross[1], canvas.height - 1), true);
  else if (pointer) point(pointer);
  const [height, width] = result.network_size;
  $("facts").textContent = `${name}: ${result.height}×${result.width} pixels (height × width); the network ran at ${height}×${width}.`;
}

// ---- Drawing

function paint() {
  if (!shown) return;
  const { width, height, indices, picture } = shown, { classes, background } = network_of(shown);
  const colors = new Uint32Array(256); // alpha, blue, green, red
  classes.forEach(({ name, color: [r, g, b] }, index) => {
    const off = index === background || hidden.has(name) || (pointed >= 0 && pointed !== index);
    colors[index] = off ? 0 : ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
  const pixels = new Uint32Array(width * height);
  for (let at = 0; at < pixels.length; at++) pixels[at] = colors[indices[at]];
  overlay.width = width;
  overlay.height = height;
  overlay.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
  compose();
}

function compose() {
  if (!shown) return;
  context.globalAlpha = 1;
  context.drawImage(shown.picture, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(overlay, 0, 0);
}

const network_of = (result) => about.networks.find((each) => each.name === result.network);

// The entries of classes are kept from frame to frame, so that they can be clicked while the camera runs.
const entries = new Map(); // by network and index

function legend() {
  $("classes").hidden = false;
  const classes = stream ? [...shown.classes].sort((a, b) => a.index - b.index) : shown.classes;
  const items = classes.map((each) => {
    const key = `${each.index} ${shown.network}`;
    if (!entries.has(key)) entries.set(key, entryOf(each));
    const item = entries.get(key), entry = item.firstElementChild, percent = 100 * each.share;
    entry.querySelector(".share").textContent = percent >= 9.95 ? `${Math.round(percent)} %` : percent >= 0.095 ? `${percent.toFixed(1)} %` : "< 0.1 %";
    entry.querySelector(".meter b").style.width = `${percent}%`;
    entry.setAttribute("aria-pressed", String(!hidden.has(each.name)));
    return item;
  });
  const before = [...$("legend").children];
  if (items.length !== before.length || items.some((item, at) => item !== before[at])) $("legend").replaceChildren(...items);
  $("all").hidden = !hidden.size;
}

function entryOf({ index, name, color: rgb }) {
  const swatch = make("i");
  swatch.style.background = color(rgb);
  const entry = make("button", { type: "button", title: "Show or hide this class" }, swatch,
    make("span", { className: "name", textContent: name }), make("span", { className: "share" }),
    make("span", { className: "meter" }, make("b")));
  entry.dataset.index = index;
  entry.onclick = () => {
    hidden[hidden.has(name) ? "delete" : "add"](name);
    pointed = -1;
    legend();
    paint();
  };
  entry.onpointerenter = (event) => { if (event.pointerType === "mouse" && !hidden.has(name)) { pointed = index; paint(); } };
  entry.onpointerleave = () => { if (pointed === index) { pointed = -1; paint(); } };
  return make("li", {}, entry);
}

function times() {
  const present = STAGES.filter(([stage]) => shown.times[stage] !== undefined);
  const total = present.reduce((sum, [stage]) => sum + shown.times[stage], 0);
  $("times").hidden = false;
  $("total").textContent = stream ? `${ms(total)}, ${fps.text()}` : ms(total);
  $("lane").replaceChildren(...present.map(([stage]) => {
    const part = make("b", { className: `k-${stage}` });
    part.style.flexGrow = shown.times[stage] / total;
    return part;
  }));
  $("stages").replaceChildren(...present.flatMap(([stage, text]) =>
    [make("dt", {}, make("i", { className: `k-${stage}` }), make("span", { textContent: text })), make("dd", { textContent: ms(shown.times[stage]) })]));
}

// ---- The class under the pointer, or under the cross that the arrow keys move

let cross = null; // its pixel
let pointer = null; // the pointer's place in the window

function classAt(x, y) {
  const index = shown.indices[y * shown.width + x];
  return { index, ...network_of(shown).classes[index] };
}

function tip(x, y, spoken = false) {
  const box = canvas.getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  const { index, name, color: rgb } = classAt(x, y);
  const left = box.left - stage.left + ((x + 0.5) / canvas.width) * box.width, top = box.top - stage.top + ((y + 0.5) / canvas.height) * box.height;
  $("tip").hidden = false;
  $("tip").firstElementChild.style.background = color(rgb);
  $("tip").lastElementChild.textContent = name;
  const width = $("tip").offsetWidth, height = $("tip").offsetHeight;
  const at = [Math.min(left + 14, stage.width - width - 4), top - height - 10 < 0 ? top + 16 : top - height - 10];
  $("tip").style.transform = `translate(${at[0]}px, ${at[1]}px)`;
  document.querySelectorAll("#legend button").forEach((entry) => entry.classList.toggle("under", Number(entry.dataset.index) === index));
  if (spoken) {
    $("cross").hidden = false;
    $("cross").style.left = `${left}px`;
    $("cross").style.top = `${top}px`;
    $("spoken").textContent = name;
  }
}

function noTip() {
  pointer = null;
  $("tip").hidden = $("cross").hidden = true;
  cross = null;
  document.querySelectorAll("#legend .under").forEach((entry) => entry.classList.remove("under"));
}

canvas.addEventListener("pointermove", (event) => point(event));
canvas.addEventListener("pointerdown", (event) => point(event));
canvas.addEventListener("pointerleave", noTip);
canvas.addEventListener("blur", noTip);

function point(event) {
  if (!shown) return;
  pointer = { clientX: event.clientX, clientY: event.clientY };
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width), y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  if (x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return noTip();
  $("cross").hidden = true;
  cross = null;
  tip(x, y);
}

canvas.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "Escape") noTip();
  if (!move || !shown) return;
  event.preventDefault();
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(canvas.width / 50));
  cross = cross ? [cross[0] + move[0] * step, cross[1] + move[1] * step] : [canvas.width >> 1, canvas.height >> 1];
  cross = [Math.min(Math.max(cross[0], 0), canvas.width - 1), Math.min(Math.max(cross[1], 0), canvas.height - 1)];
  tip(...cross, true);
});

// ---- The camera: a frame is sent when the last one has come back

const fps = {
  intervals: [],
  last: 0,
  tick(now) {
    if (this.last) this.intervals = [...this.intervals.slice(-14), now - this.last];
    this.last = now;
  },
  text() {
    const sum = this.intervals.reduce((a, b) => a + b, 0);
    return sum ? `${(1000 * this.intervals.length / sum).toFixed(1)} fps` : "";
  },
};

async function startCamera() {
  say("");
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Failure(`browsers open the camera on https:// and localhost only, and this page is ${location.origin}`);
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } }, audio: false });
  } catch (error) {
    const reasons = {
      NotAllowedError: "the camera may not be used: allow it in the browser's settings for this page",
      NotFoundError: "there is no camera here", NotReadableError: "another program is using the camera",
    };
    throw new Failure(reasons[error.name] || `the camera could not be opened (${error.message})`);
  }
  current?.abort();
  const mine = (current = new AbortController()), opened = stream;
  file = null;
  fps.intervals = [];
  fps.last = 0;
  $("camera").textContent = "Stop the camera";
  $("camera").className = "toggle";
  $("camera").setAttribute("aria-pressed", "true");
  busy("Waiting for the first frame …");
  const video = make("video", { srcObject: opened, muted: true, playsInline: true });
  opened.getVideoTracks()[0].onended = () => { if (stream === opened) { stopCamera(); say("the camera was disconnected"); } };
  try {
    await video.play();
    while (stream === opened) {
      if (document.hidden || !video.videoWidth) {
        await pause(200);
        continue;
      }
      await frame(video, mine.signal, opened);
    }
  } catch (error) {
    if (error.name !== "AbortError" && stream === opened) {
      stopCamera();
      say(error);
    }
  }
}

async function frame(video, signal, opened) {
  const scale = Math.min(1, CAMERA_SIDE / Math.max(video.videoWidth, video.videoHeight));
  const picture = new OffscreenCanvas(Math.round(video.videoWidth * scale), Math.round(video.videoHeight * scale));
  picture.getContext("2d").drawImage(video, 0, 0, picture.width, picture.height);
  try {
    const result = await segment(await picture.convertToBlob({ type: "image/jpeg", quality: 0.85 }), signal);
    if (stream !== opened) return;
    fps.tick(performance.now());
    busy("");
    show(picture, result, "camera");
    if (!$("error").hidden) say("");
  } catch (error) {
    if (error.status !== 429 && error.status !== 503) throw error;
    say(error);
    await pause(1000 * (error.wait || 1));
  }
}

function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  current?.abort();
  busy("");
  $("camera").textContent = "Open the camera";
  $("camera").className = "";
  $("camera").removeAttribute("aria-pressed");
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// ---- What the user does

const accept = (files, otherwise) => {
  const chosen = [...files].find((each) => each.type.startsWith("image/")) || files[0];
  if (!chosen) return say(otherwise);
  if (about) run({ blob: chosen, name: chosen.name || "pasted image" });
};

$("choose").onclick = () => $("file").click();
$("stage").onclick = () => { if (!shown && !stream) $("file").click(); };
$("file").onchange = () => { accept($("file").files, "no file was chosen"); $("file").value = ""; };
$("camera").onclick = () => { if (stream) stopCamera(); else startCamera().catch(say); };
$("opacity").oninput = compose;
$("all").onclick = () => { hidden.clear(); paint(); legend(); };
const changed = () => { if (!stream) run(); };
$("network").onchange = () => { sizes(); changed(); };
$("backend").onchange = $("size").onchange = changed;
$("error").lastElementChild.onclick = () => say("");
$("save").onclick = () => {
  const link = make("a", { href: URL.createObjectURL(shown.png), download: `${shown.name.replace(/\.[^.]*$/, "")}_labels.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  accept(event.dataTransfer.files, "that was a link or a text; drop the file of a photo");
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length || !event.clipboardData.types.includes("text/plain")) {
    accept(event.clipboardData.files, "there is no image in the clipboard");
  }
});
addEventListener("keydown", (event) => { if (event.key === "Escape" && stream) stopCamera(); });

$("stage").classList.add("empty");
load().catch(say);
