// What the reader has chosen. It is kept in the address, so that a link opens the same view.

import type { Edit, Edits } from "./circuit";
import { type Fill, FILLS, type Wires, WIRES } from "./paint";

export type Shown = "first" | "second" | "difference";

export interface Choice {
  node: string | null;
  pair: number;
  shown: Shown;
  token: number | null;
  typed: [string, string] | null; // prompts of the reader, in place of the pair's
  edits: Edits; // what is done to nodes
  circuit: number; // place of the drawn one among those that can be chosen
  fill: Fill; // what nodes are painted by
  wires: Wires; // what edges are drawn by
}

const NOTHING: Choice = { node: null, pair: 0, shown: "first", token: null, typed: null, edits: {}, circuit: 0, fill: "value", wires: "weight" };
const LONGEST_LINK = 2000; // characters of a prompt that the address keeps
const [LEAST, MOST] = [-2, 3]; // factors, as the card's slider has them
const SETTLED = 250; // milliseconds: browsers limit how often an address changes
const SHOWN: Shown[] = ["first", "second", "difference"];

export class State {
  choice: Choice;
  goesBack = false; // the address changed by Back or Forward: the browser returns to where the reader was
  private later: ReturnType<typeof setTimeout> | undefined; // writes the address once typing and dragging have ended
  private pending: (() => void) | null = null; // what it will do then
  private readonly listeners: ((choice: Choice, before: Choice) => void)[] = [];

  /** nodes: of the page's circuit; others: that only other circuits have; lengths: number of tokens of each pair's prompts; circuits: how many are offered. */
  constructor(private readonly nodes: Set<string>, private readonly others: Set<string>, private readonly lengths: number[], private readonly circuits: number) {
    this.choice = this.fitting({ ...NOTHING, ...this.read() });
    addEventListener("hashchange", () => {
      this.settle(null); // the reader has left the entry that a late change belongs to
      this.goesBack = true;
      const found = this.read(); // a link to a section says nothing
      if (!location.hash || Object.keys(found).length) this.apply(this.fitting({ ...NOTHING, ...found }));
      this.goesBack = false;
    });
    addEventListener("click", event => this.follow(event));
  }

  onChange(listener: (choice: Choice, before: Choice) => void): void {
    this.listeners.push(listener);
  }

  /** leaves: Back returns to the choice before. */
  set(change: Partial<Choice>, leaves = false): void {
    const next = this.fitting({ ...this.choice, ...change });
    if (next.pair !== this.choice.pair) {
      if (change.token === undefined) next.token = null;
      if (change.typed === undefined) next.typed = null;
    }
    if (leaves) this.pending?.(); // Back returns to the last change, too
    const address = this.hash(next) || location.pathname + location.search;
    const write = () => {
      this.settle(null);
      try {
        leaves ? history.pushState(null, "", address) : history.replaceState(null, "", address);
      } catch {
        // a page without an address of its own, or too many changes at once: the view changes all the same
      }
    };
    if (change.typed !== undefined || change.edits !== undefined) this.settle(write);
    else write();
    this.apply(next);
  }

  private settle(write: (() => void) | null): void {
    clearTimeout(this.later);
    this.pending = write;
    if (write) this.later = setTimeout(write, SETTLED);
  }

  private has(node: string): boolean {
    return this.nodes.has(node) || this.others.has(node);
  }

  /** Change a node; undefined: leave it as it is computed. */
  edit(node: string, edit: Edit | undefined): void {
    const { [node]: _, ...others } = this.choice.edits;
    this.set({ edits: edit === undefined ? others : { ...others, [node]: edit } });
  }

  hash(choice: Choice): string {
    const parts = new URLSearchParams();
    if (choice.node) parts.set("node", choice.node);
    if (choice.circuit) parts.set("circuit", String(choice.circuit + 1));
    if (choice.pair) parts.set("pair", String(choice.pair + 1));
    if (choice.shown !== "first") parts.set("shown", choice.shown);
    if (choice.token !== null) parts.set("token", String(choice.token + 1));
    if (choice.typed?.every(text => text.length <= LONGEST_LINK)) choice.typed.forEach(text => parts.append("prompt", text));
    for (const [node, edit] of Object.entries(choice.edits)) parts.append("set", `${node}=${edit}`);
    if (choice.fill !== NOTHING.fill) parts.set("fill", choice.fill);
    if (choice.wires !== NOTHING.wires) parts.set("wires", choice.wires);
    const text = parts.toString();
    return text && "#" + text;
  }

  /** Without a token that the pair's prompts do not have. */
  private fitting(choice: Choice): Choice {
    return !choice.typed && choice.token !== null && choice.token >= (this.lengths[choice.pair] ?? 0) ? { ...choice, token: null } : choice;
  }

  /** A link to a node chooses it and leaves all else as it is. */
  private follow(event: MouseEvent): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another window opens
    const link = (event.target as Element).closest?.('a[href^="#node="]');
    const node = link && new URLSearchParams(link.getAttribute("href")!.slice(1)).get("node");
    if (!node || !this.has(node)) return;
    event.preventDefault();
    this.set({ node }, node !== this.choice.node);
  }

  private apply(next: Choice): void {
    const before = this.choice;
    this.choice = next;
    for (const listener of this.listeners) listener(next, before);
  }

  /** What the address says; a link to a section says nothing. Nodes, pairs and views that do not exist are left out. */
  private read(): Partial<Choice> {
    const parts = new URLSearchParams(location.hash.slice(1)), found: Partial<Choice> = {};
    const node = parts.get("node"), shown = parts.get("shown") as Shown | null;
    const number = (key: string, most: number) => {
      const value = Number(parts.get(key)) - 1;
      return Number.isInteger(value) && value >= 0 && value < most ? value : null;
    };
    if (node && this.has(node)) found.node = node;
    if (shown && SHOWN.includes(shown)) found.shown = shown;
    const pair = number("pair", this.lengths.length), token = number("token", Infinity);
    const circuit = number("circuit", this.circuits);
    if (circuit !== null) found.circuit = circuit;
    const fill = parts.get("fill") as Fill, wires = parts.get("wires") as Wires;
    if (FILLS.includes(fill)) found.fill = fill;
    if (WIRES.includes(wires)) found.wires = wires;
    if (pair !== null) found.pair = pair;
    if (token !== null) found.token = token;
    const prompts = parts.getAll("prompt"), edits = parts.getAll("set").map(text => this.editOf(text)).filter(edit => edit !== null);
    if (prompts.length === 2) found.typed = [prompts[0]!, prompts[1]!];
    if (edits.length) found.edits = Object.fromEntries(edits);
    return found;
  }

  private editOf(text: string): [string, Edit] | null {
    const [node, edit] = text.split("=");
    if (!this.nodes.has(node!) || !edit) return null;
    if (edit === "off" || edit === "other") return [node!, edit];
    const factor = Math.min(MOST, Math.max(LEAST, Number(edit)));
    return Number.isNaN(factor) || factor === 1 ? null : [node!, factor];
  }
}
