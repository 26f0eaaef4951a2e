// What is shown of a pair of prompts: what the circuit in this page computes; in a page without it, the numbers that Python stored.

import { PageCircuit } from "./circuit";
import { type PageData, type Row, STEPS } from "./data";
import { visible } from "./elements";
import type { Choice, Shown } from "./state";

export interface View {
  ids: [number[], number[]]; // to compare tokens; of stored pairs their texts' places
  texts: [string[], string[]];
  answers: [string, string]; // the right ones
  first: [number, number]; // probability of the first answer
  plain: [number, number]; // the same without changes
  rows: (node: string) => [Row, Row] | null; // deviations from the node's mean: STEPS is the largest stored one
  heads: Record<string, [Row[], Row[]]>; // shares of attention, 0 to 255
  prompts: [string, string]; // to be read; as they were typed
  problems: [string | null, string | null]; // why a typed prompt is not run; in its place is the pair's
}

export class Views {
  readonly circuit: PageCircuit | null;
  private readonly means: Map<string, number>;
  private last: { key: string; view: View } | null = null;

  constructor(private readonly data: PageData) {
    this.circuit = data.live && new PageCircuit(data.live, data.calibration);
    this.means = new Map(data.nodes.map(node => [node.id, node.mean]));
  }

  of(choice: Choice): View {
    const key = JSON.stringify([choice.pair, choice.typed, choice.edits]);
    if (this.last?.key !== key) this.last = { key, view: this.made(choice) };
    return this.last.view;
  }

  private made(choice: Choice): View {
    const { circuit } = this;
    if (!circuit) return this.stored(choice.pair);
    const problems: [string | null, string | null] = [null, null];
    const ids = circuit.ids(choice.pair).map((own, which) => {
      if (!choice.typed) return own;
      try {
        return circuit.encode(choice.typed[which]!);
      } catch (error) {
        problems[which] = (error as Error).message;
        return own;
      }
    }) as [number[], number[]];
    return { ...this.run(circuit, choice, ids), problems };
  }

  private answers(number: number): [string, string] {
    const { texts, pairs } = this.data.tokens!;
    return pairs[number]!.answers.map(place => texts[place]!) as [string, string];
  }

  private stored(number: number): View {
    const tokens = this.data.tokens!, pair = tokens.pairs[number]!;
    const heads = Object.fromEntries(Object.entries(tokens.heads).map(([head, pairs]) => [head, pairs[number]!]));
    const text = (id: number) => tokens.texts[id]!;
    return {
      ids: pair.tokens,
      texts: [pair.tokens[0].map(text), pair.tokens[1].map(text)],
      answers: this.answers(number),
      first: pair.first,
      plain: pair.first,
      rows: node => tokens.nodes[node]?.values[number] ?? null,
      heads,
      prompts: [pair.tokens[0].map(text).join(""), pair.tokens[1].map(text).join("")],
      problems: [null, null],
    };
  }

  private run(circuit: PageCircuit, { pair, edits, typed }: Choice, ids: [number[], number[]]): Omit<View, "problems"> {
    const plain = circuit.plain(ids, pair), found = circuit.both(ids, pair, edits);
    const steps = (node: string, values: Float64Array): Row => {
      const scale = this.data.tokens!.nodes[node]!.scale, mean = this.means.get(node)!;
      return Array.from(values, value => ((value - mean) / scale) * STEPS);
    };
    const shown = (prompt: number[]) => prompt.map(id => visible(circuit.text(id)));
    const shares = (which: 0 | 1, head: string): Row[] => (found[which].patterns.get(head) ?? []).map(row => Array.from(row, share => 255 * share));
    return {
      ids,
      texts: [shown(ids[0]), shown(ids[1])],
      answers: this.answers(pair),
      first: [circuit.probability(found[0]), circuit.probability(found[1])],
      plain: [circuit.probability(plain[0]), circuit.probability(plain[1])],
      rows: node => {
        const [a, b] = [found[0].values.get(node), found[1].values.get(node)];
        return a && b && this.data.tokens!.nodes[node] ? [steps(node, a), steps(node, b)] : null;
      },
      heads: Object.fromEntries([...found[0].patterns.keys()].map(head => [head, [shares(0, head), shares(1, head)]])),
      prompts: ids.map((prompt, which) => (prompt === circuit.ids(pair)[which] ? shown(prompt).join("") : visible(typed![which]!))) as [string, string],
    };
  }
}

/** Whether the prompts have the same number of tokens: only then can their values be exchanged and subtracted. */
export const alike = (view: View): boolean => view.ids[0].length === view.ids[1].length;

export const UNLIKE = "the prompts have different numbers of tokens";

/** The chosen token; null where there is none, or the shown prompt is shorter. */
export function tokenOf(view: View, choice: Choice): number | null {
  const { token } = choice;
  return token !== null && token < view.ids[shownOf(view, choice) === "second" ? 1 : 0].length ? token : null;
}

/** A node's deviations for the prompt or the difference that is shown; null where there are none. */
export function rowOf(view: View, choice: Choice, node: string): Row | null {
  const found = view.rows(node), shown = shownOf(view, choice);
  if (!found) return null;
  if (shown !== "difference") return found[shown === "second" ? 1 : 0];
  return found[0].map((step, i) => (step - found[1][i]!) / 2);
}

/** What is shown: of prompts that are not alike there is no difference, but the first one. */
export const shownOf = (view: View, choice: Choice): Shown => (choice.shown === "difference" && !alike(view) ? "first" : choice.shown);

/** The value itself: for a difference that between the two prompts, else the deviation from the node's mean. */
export function deviation(scale: number, shown: Shown, step: number): number {
  return (step / STEPS) * scale * (shown === "difference" ? 2 : 1);
}
