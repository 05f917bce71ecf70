// Reads an ONNX graph and runs it, in plain JavaScript: the operators of the graphs that `smalti export-onnx` writes of
// convolutional tokenizers of codes, and no others. An unknown operator is refused by name.
//
// A tensor is {dims, data}: data is a Float32Array, or a Float64Array of whole numbers and truth values, row-major.
// Sums are made in 64 bits and rounded once to 32, so that they are nearer to the exact value than fp32 sums are.
"use strict";

var Onnx = (function () {
  // ------------------------------------------------------------------------------------------------- protocol buffers

  function fieldsOf(bytes) { // -> [[field number, value]]: a number, or the bytes of a message, a text or packed numbers
    const found = [], view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = 0;
    const varint = () => {
      let value = 0n, shift = 0n, byte;
      do {
        if (at >= bytes.length) throw new Error("this is no ONNX file, or it is damaged");
        byte = bytes[at++];
        value |= BigInt(byte & 127) << shift;
        shift += 7n;
      } while (byte & 128);
      return Number(BigInt.asIntN(64, value));
    };
    while (at < bytes.length) {
      const key = varint(), kind = key & 7;
      let value;
      if (kind === 0) value = varint();
      else if (kind === 1) { value = view.getFloat64(at, true); at += 8; }
      else if (kind === 5) { value = view.getFloat32(at, true); at += 4; }
      else if (kind === 2) {
        const length = varint();
        if (length < 0 || at + length > bytes.length) throw new Error("this is no ONNX file, or it is damaged");
        value = bytes.subarray(at, at + length);
        at += length;
      } else throw new Error("this is no ONNX file, or it is damaged");
      found.push([key >>> 3, value]);
    }
    return found;
  }

  const text = (bytes) => new TextDecoder().decode(bytes);
  const all = (fields, number) => fields.filter((f) => f[0] === number).map((f) => f[1]);
  const one = (fields, number, otherwise) => { const f = all(fields, number); return f.length ? f[f.length - 1] : otherwise; };

  function whole(fields, number) { // repeated integers, packed or not
    return all(fields, number).flatMap((value) => {
      if (typeof value === "number") return [value];
      const numbers = [], padded = new Uint8Array(value.length);
      padded.set(value);
      let current = 0n, shift = 0n;
      for (const byte of padded) {
        current |= BigInt(byte & 127) << shift;
        shift += 7n;
        if (!(byte & 128)) { numbers.push(Number(BigInt.asIntN(64, current))); current = 0n; shift = 0n; }
      }
      return numbers;
    });
  }

  function tensorOf(bytes) {
    const f = fieldsOf(bytes), dims = whole(f, 1), kind = one(f, 2), raw = one(f, 9), size = product(dims);
    if (!raw) {
      if (size) throw new Error(`the numbers of ${text(one(f, 8, new Uint8Array()))} are not in the file itself`);
      return { dims, data: new Float64Array(0) };
    }
    const buffer = raw.slice().buffer;
    let data;
    if (kind === 1) data = new Float32Array(buffer);
    else if (kind === 11) data = Float32Array.from(new Float64Array(buffer));
    else if (kind === 7) data = Float64Array.from(new BigInt64Array(buffer), Number);
    else if (kind === 6) data = Float64Array.from(new Int32Array(buffer));
    else if (kind === 9) data = Float64Array.from(new Uint8Array(buffer));
    else throw new Error(`numbers of type ${kind} are not known here`);
    return { dims, data };
  }

  function attributesOf(node) {
    const found = {};
    for (const bytes of all(node, 5)) {
      const f = fieldsOf(bytes), kind = one(f, 20);
      found[text(one(f, 1))] =
        kind === 1 ? one(f, 2, 0) : kind === 2 ? one(f, 3, 0) : kind === 3 ? text(one(f, 4)) :
        kind === 4 ? tensorOf(one(f, 5)) : kind === 7 ? whole(f, 8) : null;
    }
    return found;
  }

  function valueOf(bytes) { // of a graph's input or output: its name and shape
    const f = fieldsOf(bytes), shape = one(fieldsOf(one(fieldsOf(one(f, 2)), 1)), 2);
    return { name: text(one(f, 1)), dims: all(fieldsOf(shape), 1).map((dim) => one(fieldsOf(dim), 1, null)) };
  }

  // ------------------------------------------------------------------------------------------------------- the helpers

  const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
  const like = (tensor, size) => tensor.data instanceof Float32Array ? new Float32Array(size) : new Float64Array(size);
  const axisOf = (axis, tensor) => axis < 0 ? axis + tensor.dims.length : axis;

  function strides(dims) {
    const found = new Array(dims.length);
    for (let i = dims.length - 1, step = 1; i >= 0; step *= dims[i--]) found[i] = step;
    return found;
  }

  function broadcast(a, b) {
    const rank = Math.max(a.length, b.length), dims = [];
    for (let i = 0; i < rank; i++) {
      const x = a[i - rank + a.length] ?? 1, y = b[i - rank + b.length] ?? 1;
      if (x !== y && x !== 1 && y !== 1) throw new Error(`shapes ${a} and ${b} do not go together`);
      dims.push(x === 1 ? y : x);
    }
    return dims;
  }

  function gathered(tensor, dims, step, start = 0) { // the numbers at start + Σ index · step, for every index of dims
    const data = like(tensor, product(dims)), index = new Array(dims.length).fill(0);
    for (let i = 0, from = start; i < data.length; i++) {
      data[i] = tensor.data[from];
      for (let axis = dims.length - 1; axis >= 0; axis--) {
        from += step[axis];
        if (++index[axis] < dims[axis]) break;
        from -= step[axis] * dims[axis];
        index[axis] = 0;
      }
    }
    return { dims, data };
  }

  function expanded(tensor, dims) {
    if (tensor.dims.length === dims.length && tensor.dims.every((n, i) => n === dims[i])) return tensor;
    const own = strides(tensor.dims), extra = dims.length - tensor.dims.length;
    return gathered(tensor, dims, dims.map((_, i) => i < extra || tensor.dims[i - extra] === 1 ? 0 : own[i - extra]));
  }

  const pairwise = (compute, truth = false) => ([a, b]) => {
    const dims = broadcast(a.dims, b.dims), x = expanded(a, dims), y = expanded(b, dims);
    const data = truth ? new Float64Array(x.data.length) : like(a, x.data.length);
    for (let i = 0; i < data.length; i++) data[i] = compute(x.data[i], y.data[i]);
    return { dims, data };
  };

  const each = (compute) => ([x]) => ({ dims: x.dims, data: x.data.map(compute) });

  const reduction = (begin, add, end) => ([x, axes], a) => {
    const over = (axes ? [...axes.data] : a.axes ?? x.dims.map((_, i) => i)).map((axis) => axisOf(axis, x));
    const kept = x.dims.map((n, i) => over.includes(i) ? 1 : n), step = strides(kept), sums = new Float64Array(product(kept)).fill(begin);
    const own = x.dims.map((_, i) => over.includes(i) ? 0 : step[i]), counted = x.data.length / sums.length;
    const place = gathered({ data: Float64Array.from(sums, (_, i) => i), dims: kept }, x.dims, own).data;
    for (let i = 0; i < x.data.length; i++) sums[place[i]] = add(sums[place[i]], x.data[i]);
    const dims = a.keepdims === 0 ? x.dims.filter((_, i) => !over.includes(i)) : kept, data = like(x, sums.length);
    return { dims, data: data.map((_, i) => end(sums[i], counted)) };
  };

  function halfToEven(x) {
    const below = Math.floor(x), rest = x - below;
    return rest < 0.5 ? below : rest > 0.5 ? below + 1 : below % 2 ? below + 1 : below;
  }

  // ------------------------------------------------------------------------------------------------------ the operators

  function conv([x, w, bias], a) { // images (1, C, H, W), weights (O, C, h, w)
    const [N, C, H, W] = x.dims, [O, c, h, k] = w.dims, [up, left, down, right] = a.pads ?? [0, 0, 0, 0];
    const [sy, sx] = a.strides ?? [1, 1];
    if (c !== C || (a.dilations ?? [1]).some((n) => n !== 1)) throw new Error("convolutions in groups or with holes are not known here");
    const oh = Math.floor((H + up + down - h) / sy) + 1, ow = Math.floor((W + left + right - k) / sx) + 1;
    const data = new Float32Array(N * O * oh * ow), sum = new Float64Array(oh * ow);
    for (let n = 0; n < N; n++) for (let o = 0; o < O; o++) {
      sum.fill(bias ? bias.data[o] : 0);
      for (let ch = 0; ch < C; ch++) for (let i = 0; i < h; i++) for (let j = 0; j < k; j++) {
        const weight = w.data[((o * C + ch) * h + i) * k + j];
        const first = Math.max(0, Math.ceil((left - j) / sx)), last = Math.min(ow, Math.floor((W - 1 + left - j) / sx) + 1);
        for (let y = 0; y < oh; y++) {
          const row = y * sy + i - up;
          if (row < 0 || row >= H) continue;
          let from = ((n * C + ch) * H + row) * W + first * sx + j - left;
          for (let to = y * ow + first, end = y * ow + last; to < end; to++, from += sx) sum[to] += weight * x.data[from];
        }
      }
      data.set(sum, (n * O + o) * oh * ow);
    }
    return { dims: [N, O, oh, ow], data };
  }

  function instanceNorm([x, scale, shift], a) {
    const [N, C] = x.dims, size = product(x.dims.slice(2)), data = new Float32Array(x.data.length);
    for (let at = 0; at < N * C; at++) {
      let mean = 0, square = 0;
      for (let i = at * size; i < (at + 1) * size; i++) mean += x.data[i];
      mean /= size;
      for (let i = at * size; i < (at + 1) * size; i++) square += (x.data[i] - mean) ** 2;
      const by = scale.data[at % C] / Math.sqrt(square / size + a.epsilon), to = shift.data[at % C];
      for (let i = at * size; i < (at + 1) * size; i++) data[i] = (x.data[i] - mean) * by + to;
    }
    return { dims: x.dims, data };
  }

  function matmul([a, b]) {
    const n = a.dims[a.dims.length - 2], D = a.dims[a.dims.length - 1], m = b.dims[b.dims.length - 1];
    const outer = broadcast(a.dims.slice(0, -2), b.dims.slice(0, -2)), many = product(outer);
    const x = expanded(a, [...outer, n, D]).data, y = expanded(b, [...outer, D, m]).data;
    const data = new Float32Array(many * n * m), sum = new Float64Array(m);
    for (let q = 0; q < many; q++) for (let i = 0; i < n; i++) {
      sum.fill(0);
      for (let d = 0; d < D; d++) {
        const by = x[(q * n + i) * D + d];
        for (let j = 0, from = (q * D + d) * m; j < m; j++) sum[j] += by * y[from + j];
      }
      data.set(sum, (q * n + i) * m);
    }
    return { dims: [...outer, n, m], data };
  }

  function reshape([x, shape], a) {
    const dims = [...shape.data].map((n, i) => n === 0 && !a.allowzero ? x.dims[i] : n), open = dims.indexOf(-1);
    if (open >= 0) dims[open] = x.data.length / -product(dims);
    return { dims, data: x.data };
  }

  function transpose([x], a) {
    const perm = a.perm ?? x.dims.map((_, i) => x.dims.length - 1 - i), own = strides(x.dims);
    return gathered(x, perm.map((i) => x.dims[i]), perm.map((i) => own[i]));
  }

  function slice(x, axis, start, length, step = 1) {
    const own = strides(x.dims), dims = x.dims.map((n, i) => i === axis ? length : n);
    return gathered(x, dims, own.map((s, i) => i === axis ? s * step : s), start * own[axis]);
  }

  function slices([x, starts, ends, axes, steps]) {
    [...starts.data].forEach((start, i) => {
      const axis = axisOf(axes ? axes.data[i] : i, x), step = steps ? steps.data[i] : 1, n = x.dims[axis];
      const inside = (at) => Math.min(Math.max(at < 0 ? at + n : at, 0), n);
      if (step < 1) throw new Error("slices that run backwards are not known here");
      x = slice(x, axis, inside(start), Math.max(0, Math.ceil((inside(ends.data[i]) - inside(start)) / step)), step);
    });
    return x;
  }

  function split([x, sizes], a, outputs) {
    const axis = axisOf(a.axis ?? 0, x), parts = sizes ? [...sizes.data] : new Array(outputs).fill(x.dims[axis] / outputs);
    let start = 0;
    return parts.map((length) => slice(x, axis, (start += length) - length, length));
  }

  function concat(tensors, a) {
    const axis = axisOf(a.axis, tensors[0]), dims = [...tensors[0].dims];
    dims[axis] = tensors.reduce((sum, t) => sum + t.dims[axis], 0);
    const outer = product(dims.slice(0, axis)), data = like(tensors[0], product(dims));
    let at = 0;
    for (let i = 0; i < outer; i++) for (const t of tensors) {
      const size = t.data.length / outer;
      data.set(t.data.subarray(i * size, (i + 1) * size), at);
      at += size;
    }
    return { dims, data };
  }

  function gather([x, indices], a) {
    const axis = axisOf(a.axis ?? 0, x), inner = product(x.dims.slice(axis + 1)), n = x.dims[axis], outer = product(x.dims.slice(0, axis));
    const data = like(x, outer * indices.data.length * inner);
    let at = 0;
    for (let i = 0; i < outer; i++) for (const index of indices.data) {
      const from = (i * n + (index < 0 ? index + n : index)) * inner;
      data.set(x.data.subarray(from, from + inner), at);
      at += inner;
    }
    return { dims: [...x.dims.slice(0, axis), ...indices.dims, ...x.dims.slice(axis + 1)], data };
  }

  function argmax([x], a) { // the first of those that are equal, as torch takes
    const axis = axisOf(a.axis ?? 0, x), n = x.dims[axis], inner = product(x.dims.slice(axis + 1)), outer = product(x.dims.slice(0, axis));
    const data = new Float64Array(outer * inner);
    for (let i = 0; i < outer; i++) for (let j = 0; j < inner; j++) {
      let best = 0;
      for (let k = 1; k < n; k++) if (x.data[(i * n + k) * inner + j] > x.data[(i * n + best) * inner + j]) best = k;
      data[i * inner + j] = best;
    }
    return { dims: a.keepdims === 0 ? x.dims.filter((_, i) => i !== axis) : x.dims.map((d, i) => i === axis ? 1 : d), data };
  }

  function resize([x, , scales, sizes], a) { // to the nearest below, as torch's Upsample
    if (a.mode !== "nearest" || a.coordinate_transformation_mode !== "asymmetric") throw new Error("only plain enlargement is known here");
    const dims = sizes ? [...sizes.data] : x.dims.map((n, i) => Math.floor(n * scales.data[i]));
    const own = strides(x.dims), data = new Float32Array(product(dims)), [N, C, H, W] = dims;
    for (let at = 0, n = 0; n < N * C; n++) for (let y = 0; y < H; y++) for (let i = 0; i < W; i++)
      data[at++] = x.data[n * own[1] + Math.floor(y * x.dims[2] / H) * own[2] + Math.floor(i * x.dims[3] / W)];
    return { dims, data };
  }

  function depthToSpace([x], a) {
    const [N, C, H, W] = x.dims, p = a.blocksize, deep = C / p / p;
    const parted = a.mode === "CRD" ? [N, deep, p, p, H, W] : [N, p, p, deep, H, W], perm = a.mode === "CRD" ? [0, 1, 4, 2, 5, 3] : [0, 3, 4, 1, 5, 2];
    return { dims: [N, deep, H * p, W * p], data: transpose([{ dims: parted, data: x.data }], { perm }).data };
  }

  function clip([x, low, high]) {
    const least = low ? low.data[0] : -Infinity, most = high ? high.data[0] : Infinity;
    return { dims: x.dims, data: x.data.map((v) => Math.min(Math.max(v, least), most)) };
  }

  function unsqueeze([x, axes]) {
    const rank = x.dims.length + axes.data.length, dims = [...x.dims];
    for (const axis of [...axes.data].map((i) => i < 0 ? i + rank : i).sort((p, q) => p - q)) dims.splice(axis, 0, 1);
    return { dims, data: x.data };
  }

  function squeeze([x, axes]) {
    const gone = axes ? [...axes.data].map((i) => axisOf(i, x)) : x.dims.flatMap((n, i) => n === 1 ? [i] : []);
    return { dims: x.dims.filter((_, i) => !gone.includes(i)), data: x.data };
  }

  function where([condition, a, b]) {
    const dims = broadcast(broadcast(condition.dims, a.dims), b.dims);
    const [c, x, y] = [condition, a, b].map((t) => expanded(t, dims).data);
    return { dims, data: like(a, c.length).map((_, i) => c[i] ? x[i] : y[i]) };
  }

  function cast([x], a) {
    if (a.to === 1) return { dims: x.dims, data: Float32Array.from(x.data) };
    if (a.to === 9) return { dims: x.dims, data: Float64Array.from(x.data, (v) => v ? 1 : 0) };
    if (a.to === 6 || a.to === 7) return { dims: x.dims, data: Float64Array.from(x.data, Math.trunc) };
    throw new Error(`numbers of type ${a.to} are not known here`);
  }

  function softmax([x], a) {
    const axis = axisOf(a.axis ?? -1, x), n = x.dims[axis], data = new Float32Array(x.data.length);
    if (axis !== x.dims.length - 1) throw new Error("a softmax over another axis than the last is not known here");
    for (let at = 0; at < data.length; at += n) {
      const row = x.data.subarray(at, at + n), most = row.reduce((p, q) => Math.max(p, q), -Infinity);
      const powers = Array.from(row, (v) => Math.exp(v - most)), sum = powers.reduce((p, q) => p + q, 0);
      for (let i = 0; i < n; i++) data[at + i] = powers[i] / sum;
    }
    return { dims: x.dims, data };
  }

  const OPERATORS = {
    Add: pairwise((a, b) => a + b), Sub: pairwise((a, b) => a - b), Mul: pairwise((a, b) => a * b),
    Div: ([a, b]) => pairwise(a.data instanceof Float32Array ? (x, y) => x / y : (x, y) => Math.trunc(x / y))([a, b]),
    Mod: pairwise((a, b) => a - Math.floor(a / b) * b), Pow: pairwise((a, b) => a ** b),
    Greater: pairwise((a, b) => a > b, true), Less: pairwise((a, b) => a < b, true), Equal: pairwise((a, b) => a === b, true),
    And: pairwise((a, b) => a && b, true), Max: pairwise(Math.max), Min: pairwise(Math.min), Softmax: softmax,
    Sigmoid: each((x) => 1 / (1 + Math.exp(-x))), Tanh: each(Math.tanh), Sqrt: each(Math.sqrt), Exp: each(Math.exp),
    Log: each(Math.log), Neg: each((x) => -x), Abs: each(Math.abs), Floor: each(Math.floor), Round: each(halfToEven),
    Sign: each(Math.sign), Atanh: each(Math.atanh), Reciprocal: each((x) => 1 / x), Identity: ([x]) => x, Cast: cast,
    IsNaN: ([x]) => ({ dims: x.dims, data: Float64Array.from(x.data, (v) => Number.isNaN(v)) }),
    IsInf: ([x], a) => ({ dims: x.dims, data: Float64Array.from(x.data, (v) =>
      (v === Infinity && a.detect_positive !== 0) || (v === -Infinity && a.detect_negative !== 0)) }),
    ReduceSum: reduction(0, (a, b) => a + b, (a) => a), ReduceMean: reduction(0, (a, b) => a + b, (a, n) => a / n),
    ReduceL2: reduction(0, (a, b) => a + b * b, (a) => Math.sqrt(a)), ReduceSumSquare: reduction(0, (a, b) => a + b * b, (a) => a),
    ReduceMax: reduction(-Infinity, Math.max, (a) => a),
    Conv: conv, InstanceNormalization: instanceNorm, MatMul: matmul, Reshape: reshape, Transpose: transpose, Slice: slices,
    Split: split, Concat: concat, Gather: gather, ArgMax: argmax, Resize: resize, DepthToSpace: depthToSpace, Clip: clip,
    Unsqueeze: unsqueeze, Squeeze: squeeze, Where: where, Constant: (_, a) => a.value,
    Expand: ([x, shape]) => expanded(x, broadcast(x.dims, [...shape.data])),
  };

  // ---------------------------------------------------------------------------------------------------------- the graph

  class Graph {
    constructor(bytes) {
      const model = fieldsOf(bytes), graph = one(model, 7);
      if (!(graph instanceof Uint8Array)) throw new Error("this is no ONNX file, or it is damaged");
      const f = fieldsOf(graph);
      this.constants = new Map(all(f, 5).map((each) => [text(one(fieldsOf(each), 8)), tensorOf(each)]));
      this.nodes = all(f, 1).map(fieldsOf).map((node) => ({
        operator: text(one(node, 4)), inputs: all(node, 1).map(text), outputs: all(node, 2).map(text), attributes: attributesOf(node),
      }));
      this.inputs = all(f, 11).map(valueOf);
      this.outputs = all(f, 12).map(valueOf);
      const metadata = all(model, 14).map(fieldsOf).map((each) => [text(one(each, 1)), text(one(each, 2))]);
      this.metadata = Object.fromEntries(metadata);
      const unknown = this.nodes.map((node) => node.operator).find((name) => !(name in OPERATORS));
      if (unknown) throw new Error(`this page does not know the operator ${unknown}; onnxruntime runs the file`);
    }

    run(...given) { // the numbers of each input -> the numbers of the first output
      const values = new Map(this.constants);
      this.inputs.forEach((input, i) => values.set(input.name, { dims: input.dims, data: given[i] }));
      for (const node of this.nodes) {
        const inputs = node.inputs.map((name) => name ? values.get(name) : undefined);
        const made = OPERATORS[node.operator](inputs, node.attributes, node.outputs.length);
        (Array.isArray(made) ? made : [made]).forEach((tensor, i) => values.set(node.outputs[i], tensor));
      }
      return values.get(this.outputs[0].name).data;
    }
  }

  return { Graph };
})();
