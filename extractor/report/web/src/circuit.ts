// The circuit of the page with its tokenizer: prompts in, probabilities and node values out. Also `circuit` on the browser's console.

import { Tokenizer } from "@huggingface/tokenizers";
import type { LiveData, PageData } from "./data";
import { type Change, Engine, type Run } from "./engine";

/** Off: the node's mean. Other: its value on the pair's other prompt, without changes. A number: a factor of its own value. */
export type Edit = "off" | "other" | number;
export type Edits = Record<string, Edit>;

export class PageCircuit {
  private readonly engine: Engine;
  private readonly tokenizer: Tokenizer | null;
  private last: { key: string; runs: [Run, Run] } | null = null;

  constructor(private readonly live: LiveData, private readonly calibration: PageData["calibration"]) {
    this.engine = new Engine(live);
    this.tokenizer = live.tokenizer && new Tokenizer(live.tokenizer.json, {});
  }

  get canType(): boolean {
    return this.tokenizer !== null;
  }

  /** The ids of a typed prompt. Throws an Error whose message says what the circuit cannot read. */
  encode(text: string): number[] {
    const ids = [...this.live.tokenizer!.before, ...this.tokenizer!.encode(text, { add_special_tokens: false }).ids];
    if (!ids.length) throw new Error("A prompt has at least one token.");
    const { longest } = this.live;
    if (longest !== null && ids.length > longest) throw new Error(`${ids.length} tokens are too many: this page has positions for ${longest}.`);
    const unknown = ids.find(id => this.live.texts[id] === undefined);
    if (unknown !== undefined) throw new Error(`Token ${unknown} has no embedding in this model.`);
    return ids;
  }

  /** A token as it stands in a text. */
  text(token: number): string {
    return this.live.texts[this.engine.row(token)]!;
  }

  ids(pair: number): [number[], number[]] {
    return this.live.pairs[pair]!.tokens;
  }

  /** The prompt as it is typed: without the tokens that stand before every text. */
  typed(pair: number, which: number): string {
    const ids = this.ids(pair)[which]!, before = this.live.tokenizer!.before.length;
    return ids.slice(before).map(id => this.text(id)).join("");
  }

  /** Both prompts of a pair without changes; `pair` names the answers. */
  plain(prompts: [number[], number[]], pair: number): [Run, Run] {
    const key = JSON.stringify([prompts, pair]), [first, second] = this.live.pairs[pair]!.answers;
    if (this.last?.key !== key) this.last = { key, runs: [this.engine.run(prompts[0], first, second), this.engine.run(prompts[1], first, second)] };
    return this.last.runs;
  }

  /** The same, each with the changes. */
  both(prompts: [number[], number[]], pair: number, edits: Edits = {}): [Run, Run] {
    const [first, second] = this.live.pairs[pair]!.answers, plain = this.plain(prompts, pair);
    if (!Object.keys(edits).length) return plain;
    const changed = (which: 0 | 1) => this.engine.run(prompts[which], first, second, changes(edits, plain[1 - which]!, prompts[which].length));
    return [changed(0), changed(1)];
  }

  /** The probability of the first answer, as the circuit is calibrated. */
  probability(run: Run): number {
    const [scale, shift] = this.calibration;
    return 1 / (1 + Math.exp(-(scale * run.diff + shift)));
  }
}

/** Values of the other prompt need prompts of one length: without it, such an edit does nothing. */
function changes(edits: Edits, other: Run, length: number): Map<string, Change> {
  const found = new Map<string, Change>();
  for (const [node, edit] of Object.entries(edits)) {
    const values = other.values.get(node);
    if (!values) continue;
    if (edit === "off") found.set(node, { off: true });
    else if (edit !== "other") found.set(node, { factor: edit });
    else if (values.length === length) found.set(node, { values });
  }
  return found;
}
