// The circuit on a prompt: what `extractor.circuits.compiled` computes, at every token, with nodes switched off, patched or scaled.
//
// The names of parts and fields are those of compiled.safetensors. T tokens; a matrix (T, n) is a list of T rows.

import { bytesOf } from "./data";
import type { LiveData, Packed } from "./data";

type Numbers = Float32Array | Int32Array;
type Rows = Float64Array[];
interface Tensor { shape: number[]; data: Numbers }
interface Slots { channels: Tensor; base: Tensor; k: number }
interface Matrix { weight: Tensor; bias: Tensor }
interface Read { slots: Slots; tracked: Tensor; gain: Tensor; positions: Tensor; eps: number; width: number }
interface Write { slots: Slots; tracked: Tensor; constant: Tensor }
interface Attention {
  read: Read; write: Write; q: Matrix; k: Matrix; v: Matrix; out: Matrix; sites: [Slots, Slots, Slots]; heads: number; d_head: number;
  sink: Tensor | null; leak: Tensor | null; still_sink: Tensor | null; still_leak: Tensor | null;
}
interface Neurons { read: Read; write: Write; fc: Matrix; proj: Matrix; site: Slots; activation: string }

/** What is done to a node at every token: its mean, these values, or a factor of its own value. */
export type Change = { off: true } | { values: ArrayLike<number> } | { factor: number };

export interface Run {
  diff: number; // logit of the first answer less that of the second, not calibrated
  values: Map<string, Float64Array>; // of every node at every token, by its id
  patterns: Map<string, Rows>; // by 'layer.head': row i attends to columns 0 to i
}

export class Engine {
  readonly answers: number[];
  private readonly tensors = new Map<string, Tensor>();
  private readonly layers: [Attention, Neurons][];
  private readonly places: Map<number, number> | null; // null: the tables hold all tokens

  constructor(data: LiveData) {
    for (const [name, packed] of Object.entries(data.tensors)) this.tensors.set(name, unpacked(packed));
    this.layers = this.restored(data.layers) as [Attention, Neurons][];
    this.answers = [...this.table("answers").data];
    this.places = data.tokens && new Map(data.tokens.map((token, i) => [token, i]));
  }

  /** ids: of the prompt; first, second: the answers' token ids. */
  run(ids: number[], first: number, second: number, changes: Map<string, Change> = new Map()): Run {
    const found: Run = { diff: 0, values: new Map(), patterns: new Map() }, site = observed(found, changes);
    const rows = ids.map(id => this.row(id));
    const rest = rows.map((row, t) => this.squares(row, t));
    let h: Rows = rows.map((row, t) => sum(of(this.table("tracked"), row), this.hasPositions ? of(this.table("position_tracked"), t) : null));
    this.layers.forEach(([attention, neurons], layer) => {
      h = attend(attention, layer, h, rest.map(squares => squares[2 * layer]!), site, found);
      h = think(neurons, layer, h, rest.map(squares => squares[2 * layer + 1]!), site);
    });
    const last = ids.length - 1, { eps, width } = this.layers[this.layers.length - 1]![1].read, end = h[last]!;
    const scale = 1 / Math.sqrt((dot(end, end) + rest[last]![2 * this.layers.length]!) / width + eps);
    const of_answer = (answer: number) => {
      const column = this.answers.indexOf(answer), at = (name: string, row: number) => of(this.table(name), row)[column]!;
      const given = at("rest_readout", rows[last]!) + (this.hasPositions ? at("position_readout", last) : 0);
      return scale * (dot(end, of(this.table("readout"), column)) + given) + at("direct", rows[last]!);
    };
    found.diff = of_answer(first) - of_answer(second);
    return found;
  }

  /** Where a token stands in the tables. */
  row(token: number): number {
    return this.places ? this.places.get(token)! : token;
  }

  private get hasPositions(): boolean {
    return this.table("position_tracked").shape[0]! > 0;
  }

  /** Of the channels that no node reads or writes, before every norm. */
  private squares(row: number, t: number): Float64Array {
    const own = Float64Array.from(of(this.table("squares"), row));
    if (!this.hasPositions) return own;
    const there = of(this.table("position_squares"), t), crossed = of(this.table("crossed"), row)[t]!;
    return own.map((value, n) => Math.max(0, value + there[n]! + crossed));
  }

  private table(name: string): Tensor {
    return this.tensors.get(name)!;
  }

  private restored(value: unknown): unknown {
    if (Array.isArray(value)) return value.map(item => this.restored(item));
    if (value === null || typeof value !== "object") return value;
    const found = value as Record<string, unknown>;
    if ("tensor" in found) return this.tensors.get(found.tensor as string);
    if ("activation" in found) return found.activation;
    return Object.fromEntries(Object.entries(found.of as object).map(([name, item]) => [name, this.restored(item)]));
  }
}

type Site = (place: string, slots: Slots, x: Rows, each?: number, width?: number) => Rows;

/** AbsTopK among the slots that are nodes, then what is done to nodes; the values that the circuit goes on with are kept in `found`. */
function observed(found: Run, changes: Map<string, Change>): Site {
  return (place, { channels, base, k }, x) => {
    let real = 0;
    for (const channel of channels.data) if (channel >= 0) real++;
    const kept = real < k || channels.data.length <= k ? x : x.map(row => compete(row, channels.data, k));
    channels.data.forEach((channel, slot) => {
      if (channel < 0) return;
      const name = `${place}.${channel}`, change = changes.get(name);
      if (change) kept.forEach((row, t) => (row[slot] = changed(change, row[slot]!, base.data[slot]!, t)));
      const values = new Float64Array(kept.length);
      for (let t = 0; t < kept.length; t++) values[t] = kept[t]![slot]!;
      found.values.set(name, values);
    });
    return kept;
  };
}

function changed(change: Change, own: number, mean: number, t: number): number {
  if ("off" in change) return mean;
  return "values" in change ? change.values[t]! : change.factor * own;
}

/** The k largest nodes, and what ties with them. */
function compete(row: Float64Array, channels: Numbers, k: number): Float64Array {
  const sizes = Float64Array.from(row, (value, slot) => (channels[slot]! >= 0 ? Math.abs(value) : 0)).sort();
  const least = sizes[sizes.length - k]!;
  return row.map((value, slot) => (channels[slot]! < 0 || Math.abs(value) >= least ? value : 0));
}

function read(part: Read, place: string, h: Rows, rest: number[], site: Site): Rows {
  const x = h.map((row, t) => {
    const scale = 1 / Math.sqrt((dot(row, row) + rest[t]!) / part.width + part.eps);
    const found = new Float64Array(part.slots.channels.data.length), own = part.tracked.data.length;
    for (let i = 0; i < own; i++) found[i] = row[part.tracked.data[i]!]! * scale * part.gain.data[i]!;
    if (part.positions.shape[1]) found.set(of(part.positions, t), own);
    return found;
  });
  return site(place, part.slots, x);
}

function write(part: Write, place: string, h: Rows, out: Rows, site: Site): Rows {
  return site(place, part.slots, out).map((row, t) => {
    const next = h[t]!.map((value, channel) => value + part.constant.data[channel]!);
    part.tracked.data.forEach((channel, slot) => (next[channel]! += row[slot]!));
    return next;
  });
}

function attend(part: Attention, layer: number, h: Rows, rest: number[], site: Site, found: Run): Rows {
  const name = `${layer}.attn`, x = read(part.read, `${name}.act_in`, h, rest, site);
  const still = h.map((_, t) => constantHeads(part, t + 1));
  if (!part.heads) return write(part.write, `${name}.resid_delta`, h, still.map(row => sum(part.out.bias.data, row)), site);
  const parts = ["q", "k", "v"] as const;
  const [q, k, v] = parts.map((kind, i) => site(`${name}.${kind}`, part.sites[i]!, x.map(row => applied(part[kind], row)))) as [Rows, Rows, Rows];
  const mixed: Rows = h.map(() => new Float64Array(v[0]!.length)), shares: Rows = h.map(() => new Float64Array(part.heads));
  for (let head = 0; head < part.heads; head++) {
    const pattern = h.map((_, t) => looks(part, head, q, k, t));
    pattern.forEach((row, t) => {
      shares[t]![head] = row.reduce((a, b) => a + b, 0);
      const [from, to] = slice(v[0]!.length, part.heads, head);
      for (let s = 0; s < row.length; s++) for (let slot = from; slot < to; slot++) mixed[t]![slot]! += row[s]! * v[s]![slot]!;
    });
    const own = headOf(part, head);
    if (own !== null) found.patterns.set(`${layer}.${own}`, pattern);
  }
  const out = mixed.map((row, t) => sum(applied(part.out, row), part.leak && times(part.leak, shares[t]!), still[t]));
  return write(part.write, `${name}.resid_delta`, h, out, site);
}

/** With what shares a head attends at token t to tokens 0 to t. */
function looks(part: Attention, head: number, q: Rows, k: Rows, t: number): Float64Array {
  const [from, to] = slice(q[0]!.length, part.heads, head);
  const scores = Float64Array.from({ length: t + 1 }, (_, s) => {
    let score = 0;
    for (let slot = from; slot < to; slot++) score += q[t]![slot]! * k[s]![slot]!;
    return score / Math.sqrt(part.d_head);
  });
  const sink = part.sink ? part.sink.data[head]! : -Infinity, most = Math.max(sink, ...scores);
  const powers = scores.map(score => Math.exp(score - most));
  const total = powers.reduce((a, b) => a + b, 0) + Math.exp(sink - most);
  return powers.map(power => power / total);
}

/** What heads without a node q, k or v write: with a sink their share of attention depends on the number of tokens. */
function constantHeads(part: Attention, seen: number): Float64Array | null {
  if (!part.still_sink || !part.still_leak || !part.still_sink.data.length) return null;
  return times(part.still_leak, part.still_sink.data.map(sink => 1 / (1 + Math.exp(sink - Math.log(seen)))));
}

function headOf(part: Attention, head: number): number | null {
  for (const { channels } of part.sites) {
    const [from, to] = slice(channels.data.length, part.heads, head);
    for (let slot = from; slot < to; slot++) if (channels.data[slot]! >= 0) return Math.floor(channels.data[slot]! / part.d_head);
  }
  return null;
}

function slice(slots: number, heads: number, head: number): [number, number] {
  return [(slots / heads) * head, (slots / heads) * (head + 1)];
}

function think(part: Neurons, layer: number, h: Rows, rest: number[], site: Site): Rows {
  const name = `${layer}.mlp`, x = read(part.read, `${name}.act_in`, h, rest, site), activation = ACTIVATIONS[part.activation]!;
  const post = site(`${name}.post_act`, part.site, x.map(row => applied(part.fc, row).map(activation)));
  return write(part.write, `${name}.resid_delta`, h, post.map(row => applied(part.proj, row)), site);
}

const ACTIVATIONS: Record<string, (x: number) => number> = {
  GELU: x => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  "GELU tanh": x => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  ReLU: x => Math.max(0, x),
};

/** The error function by its series, and by its continued fraction from 3 on; to 1e-10. */
export function erf(x: number): number {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  let value: number;
  if (size < 3) {
    let term = size;
    value = size;
    for (let n = 1; Math.abs(term) > 1e-17 * value && n < 200; n++) {
      term *= (-size * size) / n;
      value += term / (2 * n + 1);
    }
    value *= 2 / Math.sqrt(Math.PI);
  } else {
    let fraction = size;
    for (let n = 60; n >= 1; n--) fraction = size + n / 2 / fraction;
    value = 1 - Math.exp(-size * size) / (Math.sqrt(Math.PI) * fraction);
  }
  return Math.sign(x) * value;
}

function unpacked(packed: Packed): Tensor {
  const given = bytesOf(packed.float ?? packed.int!);
  if (packed.float === undefined) return { shape: packed.shape, data: new Int32Array(given.buffer) };
  const whole = new Uint8Array((given.length / 3) * 4); // the lowest byte of each number is 0
  for (let from = 0, to = 1; from < given.length; to++) for (let i = 0; i < 3; i++) whole[to++] = given[from++]!;
  return { shape: packed.shape, data: new Float32Array(whole.buffer) };
}

/** Row of a matrix. */
function of(tensor: Tensor, row: number): Numbers {
  const width = tensor.shape[1]!;
  return tensor.data.subarray(row * width, (row + 1) * width);
}

const applied = (matrix: Matrix, x: ArrayLike<number>): Float64Array => sum(matrix.bias.data, times(matrix.weight, x));

function times({ shape, data }: Tensor, x: ArrayLike<number>): Float64Array {
  const [rows, columns] = shape as [number, number], found = new Float64Array(rows);
  for (let row = 0, at = 0; row < rows; row++) {
    let total = 0;
    for (let column = 0; column < columns; column++) total += data[at++]! * x[column]!;
    found[row] = total;
  }
  return found;
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < b.length; i++) total += a[i]! * b[i]!;
  return total;
}

function sum(first: ArrayLike<number>, ...others: (ArrayLike<number> | null | undefined)[]): Float64Array {
  const total = Float64Array.from(first);
  for (const other of others) if (other) for (let i = 0; i < total.length; i++) total[i]! += other[i]!;
  return total;
}
