// The numbers of the page, as `extractor.report.page_script.page_json` writes them.

export interface NodeFacts {
  id: string;
  site: string;
  mean: number;
  reads: string[];
  writes: string[];
  auc?: Record<Place, number | null>;
  moved?: number;
  flipped?: number;
  without?: number;
  head?: number; // of a query, key or value, in its layer
  direct?: number[]; // what a write adds to the logit of the first answer less that of the second: before the first answer, before the second
  percentiles?: number[];
  nonzero?: number;
  unexplained?: number | null;
  changed?: boolean;
  steering?: number;
}

export type Place = "difference" | "after" | "end";
export type Edge = [source: string, target: string, weight: number, rise: number | null];
export type Row = number[];

export interface Pair {
  tokens: [number[], number[]];
  answers: [number, number];
  first: [number, number];
}

export interface Passage {
  rank: number;
  tokens: number[];
  values: Row;
  at: number;
}

export interface TokenData {
  texts: string[];
  pairs: Pair[];
  nodes: Record<string, { scale: number; values: [Row, Row][] }>;
  heads: Record<string, [Row[], Row[]][]>;
  passages: Record<string, Passages>;
  histograms: Record<string, { low: number; high: number; counts: number[] }>;
}

/** Of one node: of all passages one after the other, places of texts (16 bits) and steps (8 bits, signed), as base64. */
export interface Passages {
  scale: number;
  rank: number[];
  at: number[];
  length: number[];
  tokens: string;
  values: string;
}

export interface Packed {
  shape: number[];
  float?: string; // base64 of the upper three bytes of little-endian 32-bit numbers
  int?: string; // base64 of little-endian 32-bit numbers
}

/** The circuit itself, see `extractor.jobs.live_data`. */
export interface LiveData {
  tensors: Record<string, Packed>;
  layers: unknown;
  longest: number | null;
  tokens: number[] | null;
  texts: string[];
  pairs: { tokens: [number[], number[]]; answers: [number, number] }[];
  tokenizer: { json: object; before: number[] } | null;
}

/** One of the circuits that can be drawn. svg: place of its picture, null: the one in the page, -1: none; nodes, edges: null for the page's own. */
export interface Drawing {
  label: string;
  words: string;
  svg: number | null;
  nodes: string[] | null;
  edges: [source: string, target: string, weight: number][] | null;
  why?: string; // it is not drawn
}

/** A node that only other circuits have. */
export interface Foreign {
  id: string;
  site: string;
  mean: number | null;
  head?: number;
}

export interface PageData {
  key: string;
  drawings: { svgs: (string | { gzip: string })[]; choices: Drawing[]; more: Foreign[] } | null;
  streams: [source: string, target: string][]; // '': the input, the answers
  answers: string[];
  calibration: [scale: number, shift: number];
  live: LiveData | null;
  nodes: NodeFacts[];
  edges: Edge[];
  loss: number | null;
  percentiles: number[] | null;
  tokens: TokenData | null;
}

export const STEPS = 127; // a value of this size is `scale`, the largest deviation from the node's mean

export const bytesOf = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(text), character => character.charCodeAt(0));

/** Text that was compressed. */
export async function inflated(packed: { gzip: string }): Promise<string> {
  const bytes = new Blob([bytesOf(packed.gzip)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(bytes).text();
}

export function unpackedPassages({ rank, at, length, tokens, values }: Passages): Passage[] {
  const places = new Uint16Array(bytesOf(tokens).buffer), steps = new Int8Array(bytesOf(values).buffer);
  let end = 0;
  return rank.map((one, i) => {
    const start = end;
    end += length[i]!;
    return { rank: one, at: at[i]!, tokens: [...places.subarray(start, end)], values: [...steps.subarray(start, end)] };
  });
}

/** Whether the chosen circuit is another one than the page's: the core of a large circuit and all of it are the page's own. */
export const isOther = (data: PageData, circuit: number): boolean => (data.drawings?.choices[circuit]?.nodes ?? null) !== null;

declare const pageData: PageData; // stands before this script

export function readData(): PageData {
  return pageData;
}
