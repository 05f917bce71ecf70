// The page: a picture -> codes -> a picture, by two ONNX graphs. `MODEL` of model.js has those that it begins with.
"use strict";

const byId = (id) => document.getElementById(id);
const given = byId("given"), grid = byId("codes"), decoded = byId("decoded"), palette = byId("palette");
const state = { encoder: null, decoder: null, about: null, tiles: null, pixels: null, codes: null, chosen: 0, at: 0, byKeys: false };

// ------------------------------------------------------------------------------------------------------------- the model

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function use(encoder, decoder, tiles) {
  const about = JSON.parse(encoder.metadata.smalti ?? "null");
  if (!about || encoder.metadata.smalti !== decoder.metadata.smalti) throw new Error("these two are not an encoder and a decoder of one `smalti export-onnx`");
  const [one] = about.layout.grids;
  if (about.layout.grids.length > 1 || one.shape.length !== 2 || one.depth > 1 || !one.factors)
    throw new Error("this page shows one grid of rows and columns with one code a place; the exported model has another layout");
  if (about.batch_size !== 1 || encoder.inputs.length > 1) throw new Error("the page computes one picture at once, told of no class: export with --batch_size 1");
  const [H, W] = about.image_size, [h, w] = one.shape, K = one.factors.reduce((a, b) => a * b, 1);
  Object.assign(state, { encoder, decoder, about: { H, W, C: about.image_channels, h, w, K, binary: about.black_and_white }, tiles, chosen: 0, at: 0 });
  for (const canvas of [given, decoded]) Object.assign(canvas, { width: W, height: H });
  const cell = Math.max(16, Math.floor(336 / Math.max(h, w)));
  Object.assign(grid, { width: w * cell, height: h * cell });
  byId("about").textContent = `Here: ${W} × ${H} pixels${about.image_channels === 1 ? ", grey" : ""}, ${w} × ${h} codes of ${K}; ` +
    `${(h * w * Math.log2(K) / 8).toFixed(0)} bytes of codes for ${H * W * about.image_channels} of pixels.`;
  showPalette();
}

// ------------------------------------------------------------------------------------------------------ pixels and codes

function pixelsOf(image) { // of a picture that can be drawn: its middle square, averaged down, in [-1, 1], a plane a channel
  const { H, W, C, binary } = state.about, canvas = document.createElement("canvas");
  const width = image.naturalWidth ?? image.width, height = image.naturalHeight ?? image.height, scale = Math.min(width / W, height / H);
  let [w, h] = [W * scale, H * scale];
  const step = (source, x, y, sw, sh, tw, th) => {
    const to = document.createElement("canvas");
    Object.assign(to, { width: tw, height: th });
    const context = to.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff"; // under what is transparent
    context.fillRect(0, 0, tw, th);
    context.drawImage(source, x, y, sw, sh, 0, 0, tw, th);
    return to;
  };
  let now = step(image, (width - w) / 2, (height - h) / 2, w, h, Math.max(W, Math.min(2048, Math.round(w))), Math.max(H, Math.min(2048, Math.round(h))));
  while (now.width > 2 * W) now = step(now, 0, 0, now.width, now.height, Math.ceil(now.width / 2), Math.ceil(now.height / 2)); // halves do not alias
  const rgba = step(now, 0, 0, now.width, now.height, W, H).getContext("2d").getImageData(0, 0, W, H).data;
  const found = new Float32Array(C * H * W);
  for (let i = 0; i < H * W; i++) {
    const [r, g, b] = rgba.subarray(4 * i, 4 * i + 3), grey = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
    for (let c = 0; c < C; c++) {
      const level = C === 1 ? grey : [r, g, b][c];
      found[c * H * W + i] = binary ? (level < 128 ? -1 : 1) : Math.fround(level / 127.5) - 1; // rounded as torch rounds
    }
  }
  return found;
}

function show(canvas, pixels) {
  const { H, W, C } = state.about, image = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round((pixels[(C === 1 ? 0 : c) * H * W + i] + 1) * 127.5);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const hue = (code) => `hsl(${(code * 137.508) % 360} 45% ${28 + (code * 7) % 20}%)`;

function showCodes() {
  const { h, w } = state.about, cell = grid.width / w, context = grid.getContext("2d");
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${Math.floor(cell / 3)}px system-ui, sans-serif`;
  state.codes.forEach((code, i) => {
    const x = (i % w) * cell, y = Math.floor(i / w) * cell;
    context.fillStyle = hue(code);
    context.fillRect(x, y, cell - 1, cell - 1);
    context.fillStyle = "#fff";
    context.fillText(String(code), x + cell / 2, y + cell / 2);
  });
  if (document.activeElement === grid && state.byKeys) {
    context.strokeStyle = "#fff";
    context.lineWidth = 3;
    context.strokeRect((state.at % w) * cell + 2, Math.floor(state.at / w) * cell + 2, cell - 5, cell - 5);
  }
  document.body.dataset.codes = [...state.codes].join(" ");
}

function decode() {
  const start = performance.now(), pixels = state.decoder.run(Float64Array.from(state.codes));
  show(decoded, pixels);
  showCodes();
  byId("took").textContent = `Decoded in ${(performance.now() - start).toFixed(0)} ms.`;
  return pixels;
}

function encode(pixels) {
  state.pixels = pixels;
  show(given, pixels);
  const codes = state.encoder.run(pixels);
  state.codes = Float64Array.from(codes);
  decode();
  return [...codes];
}

// ------------------------------------------------------------------------------------------------------------ the palette

function showPalette() {
  palette.replaceChildren();
  for (let code = 0; code < state.about.K && code < 4096; code++) {
    const button = document.createElement("button");
    button.title = button.ariaLabel = `code ${code}`;
    button.style.background = state.tiles ? `url(${state.tiles[code]}) center / cover` : hue(code);
    button.ariaPressed = String(code === state.chosen);
    button.addEventListener("click", () => choose(code));
    palette.append(button);
  }
}

function choose(code) {
  const buttons = palette.children;
  buttons[state.chosen]?.setAttribute("aria-pressed", "false");
  buttons[code]?.setAttribute("aria-pressed", "true");
  state.chosen = code;
  byId("under").textContent = `A press paints code ${code}.`;
}

function tilesOf(picture, K, across) { // each code's patch, cut out of one picture, as a data URL
  const side = picture.width / across, found = [];
  for (let code = 0; code < K; code++) {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: side, height: side });
    canvas.getContext("2d").drawImage(picture, (code % across) * side, Math.floor(code / across) * side, side, side, 0, 0, side, side);
    found.push(canvas.toDataURL());
  }
  return found;
}

// ------------------------------------------------------------------------------------------------------------- the visitor

function complain(error) {
  byId("problem").textContent = error ? error.message : "";
}

async function pictureOf(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Error(`${blob.name ?? "this"} is no picture that this browser can read`);
  }
}

async function take(files) {
  complain(null);
  try {
    const graphs = [...files].filter((file) => file.name.endsWith(".onnx"));
    if (!graphs.length) return encode(pixelsOf(await pictureOf(files[0])));
    const read = async (part) => {
      const file = graphs.find((each) => each.name.includes(part));
      if (!file) throw new Error("drop encoder.onnx and decoder.onnx together");
      return new Onnx.Graph(new Uint8Array(await file.arrayBuffer()));
    };
    use(await read("encoder"), await read("decoder"), null);
    byId("examples").replaceChildren();
    state.codes = new Float64Array(state.about.h * state.about.w);
    decode();
  } catch (error) {
    complain(error);
  }
}

function paint(event) {
  const box = grid.getBoundingClientRect(), { h, w } = state.about;
  const x = Math.floor((event.clientX - box.left) / box.width * w), y = Math.floor((event.clientY - box.top) / box.height * h);
  if (x < 0 || y < 0 || x >= w || y >= h) return;
  state.byKeys = false;
  if (event.shiftKey) choose(state.codes[y * w + x]);
  else put(y * w + x);
}

function put(place) {
  if (state.codes[place] === state.chosen) return;
  state.codes[place] = state.chosen;
  decode();
}

function press(event) { // arrows walk over the grid, Enter and the space bar paint
  const { h, w } = state.about, [x, y] = [state.at % w, Math.floor(state.at / w)];
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way && event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  state.byKeys = true;
  if (way) state.at = Math.min(h - 1, Math.max(0, y + way[1])) * w + Math.min(w - 1, Math.max(0, x + way[0]));
  else put(state.at);
  showCodes();
}

function listen() {
  grid.addEventListener("pointerdown", (event) => { grid.setPointerCapture(event.pointerId); paint(event); });
  grid.addEventListener("pointermove", (event) => { if (event.buttons & 1 && !event.shiftKey) paint(event); });
  grid.addEventListener("keydown", press);
  grid.addEventListener("blur", showCodes);
  byId("file").addEventListener("change", (event) => event.target.files.length && take(event.target.files));
  byId("again").addEventListener("click", () => state.pixels && encode(state.pixels));
  byId("random").addEventListener("click", () => {
    state.codes = Float64Array.from(state.codes, () => Math.floor(Math.random() * state.about.K));
    decode();
  });
  byId("save").addEventListener("click", () => {
    const link = document.createElement("a");
    Object.assign(link, { href: decoded.toDataURL(), download: "decoded.png" });
    link.click();
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); given.classList.add("over"); });
  document.addEventListener("dragleave", () => given.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    given.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
}

async function begin() {
  const [encoder, decoder] = [MODEL.encoder, MODEL.decoder].map((each) => new Onnx.Graph(bytesOf(each)));
  const picture = async (base64) => createImageBitmap(new Blob([bytesOf(base64)], { type: "image/png" }));
  use(encoder, decoder, null);
  state.tiles = tilesOf(await picture(MODEL.tiles), state.about.K, MODEL.across);
  showPalette();
  const strip = await picture(MODEL.examples), { H, W } = state.about;
  for (let i = 0; i < strip.width / W; i++) {
    const canvas = document.createElement("canvas"), button = document.createElement("button");
    Object.assign(canvas, { width: W, height: H });
    canvas.getContext("2d").drawImage(strip, -i * W, 0);
    button.ariaLabel = `example ${i + 1}`;
    button.append(canvas);
    button.addEventListener("click", () => { complain(null); encode(pixelsOf(canvas)); });
    byId("examples").append(button);
    if (i === 0) encode(pixelsOf(canvas));
  }
  listen();
  document.body.dataset.ready = "yes";
}

begin().catch(complain);
