// The card of a node: what it tells apart, what it does, where it is active, what it is joined to.

import { type Edge, type Foreign, isOther, type NodeFacts, type PageData, type Passage, type Place, type Row, STEPS, type TokenData, unpackedPassages } from "./data";
import { make, nats, nodeLink, percent, short, signed, tint, visible } from "./elements";
import { Switches } from "./live";
import { noteFields, type Notes } from "./notes";
import type { State } from "./state";
import type { Views } from "./view";

const PLACES: [Place, string][] = [["difference", "at the token that differs"], ["after", "between it and the last"], ["end", "at the last token"]];

export class Card {
  private readonly panel = document.getElementById("card")!;
  private readonly byId: Map<string, NodeFacts>;
  private readonly hint: string;
  streams: () => [string, string][] = () => []; // of the drawn circuit
  private switches: Switches | null = null;

  constructor(private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly notes: Notes) {
    this.byId = new Map(data.nodes.map(node => [node.id, node]));
    this.hint = this.panel.textContent!.trim();
  }

  show(id: string | null): void {
    const node = id === null ? undefined : this.byId.get(id), foreign = this.data.drawings?.more.find(one => one.id === id);
    this.panel.classList.toggle("filled", node !== undefined || foreign !== undefined);
    this.switches = null;
    if (!node) {
      this.panel.replaceChildren(...(foreign ? this.ofOthers(foreign) : [make("p", "note", this.hint)]));
      return;
    }
    this.switches = this.views.circuit && new Switches(node.id, visible(this.data.answers[0] ?? ""), this.state, this.views);
    const { circuit } = this.state.choice, own = this.data.drawings?.choices[0]!.label;
    this.panel.replaceChildren(
      this.heading(node.id),
      make("p", "note", node.site, isOther(this.data, circuit) ? `. Numbers, edges and runs are those of the circuit of this page (${own}).` : ""),
      ...(this.switches ? [this.switches.row] : []),
      facts(node, this.data),
      noteFields(node.id, this.notes),
      ...this.joined(node.id, this.data.edges),
      ...streams(node.id, this.data.streams),
      ...partners(node, this.data.nodes),
      ...passagesOf(node.id, this.data),
      ...(this.data.tokens ? [this.onTask(node.id, this.data.tokens)] : []),
    );
    this.panel.scrollTop = 0;
  }

  /** After the circuit ran with other changes. */
  refresh(): void {
    this.switches?.update();
  }

  private heading(id: string): HTMLElement {
    const close = make("button", "close", "×");
    close.type = "button";
    close.setAttribute("aria-label", "Close the card");
    close.addEventListener("click", () => {
      this.state.set({ node: null });
      document.querySelector<HTMLElement>(".picture")!.focus({ preventScroll: true });
    });
    return make("header", "", make("h3", "", id), close);
  }

  /** A node that the page's circuit lacks: what is known is where it stands, its mean, and its edges. */
  private ofOthers(node: Foreign): Node[] {
    const { choices } = this.data.drawings!, having = choices.filter(choice => choice.nodes?.includes(node.id)), now = choices[this.state.choice.circuit]!;
    const shown = having.includes(now) ? now : having[0]!;
    const edges = shown.edges!.map(([source, target, weight]): Edge => [source, target, weight, null]);
    return [
      this.heading(node.id),
      make("p", "note", `${node.site}. Not in the circuit of this page, so nothing else was measured; in: ${having.map(choice => choice.label).join("; ")}.`),
      ...(node.mean === null ? [] : [make("dl", "facts", make("dt", "", "mean"), make("dd", "", short(node.mean)))]),
      make("p", "note", `Its edges in ${shown.label}:`),
      ...this.joined(node.id, edges),
      ...streams(node.id, this.streams()),
      ...partners(node, [...this.data.nodes, ...this.data.drawings!.more].filter(one => shown.nodes!.includes(one.id))),
    ];
  }

  /** The node's values in every pair that the page has, drawn when the reader opens them. */
  private onTask(id: string, tokens: TokenData): HTMLElement {
    const found = make("details", "", make("summary", "", `In ${tokens.pairs.length} pairs of the task`));
    found.addEventListener("toggle", () => {
      if (!found.open || found.childElementCount > 1) return;
      const scale = tokens.nodes[id]?.scale ?? 1, rows: HTMLElement[] = [];
      tokens.pairs.forEach((_, pair) => {
        const view = this.views.of({ ...this.state.choice, pair, typed: null, edits: {} }), values = view.rows(id);
        if (values) rows.push(...([0, 1] as const).map(which => make("li", "", make("small", "", visible(view.answers[which])), tinted(view.texts[which], values[which], scale, -1))));
      });
      found.append(make("p", "note", "The answer that is right, and the prompt; a token’s colour is the node’s deviation from its mean."), make("ul", "passages", ...rows));
    });
    return found;
  }

  private joined(id: string, edges: Edge[]): Node[] {
    return [
      ...edgeList("From", edges.filter(edge => edge[1] === id), 0),
      ...edgeList("To", edges.filter(edge => edge[0] === id), 1),
    ];
  }
}

function facts(node: NodeFacts, data: PageData): HTMLElement {
  const list = make("dl", "facts");
  const add = (name: string, value: string | Node) => list.append(make("dt", "", name), make("dd", "", value));
  if (node.auc) {
    for (const [place, words] of PLACES) {
      const auc = node.auc[place];
      if (auc !== null && Math.abs(auc - 0.5) >= 0.1) add(`AUC ${words}`, `${Math.max(auc, 1 - auc).toFixed(2)}, higher before ${answer(data, auc > 0.5 ? 0 : 1)}`);
    }
  }
  if (node.moved !== undefined) add("set to the other prompt’s value", `moves ${percent(node.moved)} of the answer, flips ${percent(node.flipped!)}`);
  if (node.direct?.length === 2) add(`adds to ${answer(data, 0)} less ${answer(data, 1)}`, `${signed(hundredths(node.direct[0]!))} logits before ${answer(data, 0)}, ${signed(hundredths(node.direct[1]!))} before ${answer(data, 1)}`);
  if (node.without !== undefined && data.loss !== null) add("loss if removed", make("span", "", `${nats(node.without)} nats, with it ${nats(data.loss)} `, make("small", "note", "the pairs of “how it works”, calibration kept")));
  if (node.steering !== undefined) add("steers the dense model", `other answer ${percent(node.steering)} (select pairs)`);
  add("mean", short(node.mean));
  if (node.percentiles) {
    const at = (percentile: number) => short(node.percentiles![data.percentiles!.indexOf(percentile)]!);
    add("values on text, full model", `${at(1)} to ${at(99)} (1–99 %), median ${at(50)}, nonzero ${percent(node.nonzero!)}`);
  }
  if (node.unexplained != null) add("role in the full model", `${node.changed ? "another: " : ""}${node.unexplained > 1 ? "its values differ from those there by more than they vary there" : `${percent(node.unexplained)} of its variance unexplained`}`);
  if (node.reads.length) add("furthest from its mean at", tokens(node.reads));
  if (node.writes.length) add("raises, in the full model", tokens(node.writes));
  return list;
}

const hundredths = (value: number): number => Number(value.toFixed(2));
const answer = (data: PageData, which: number): string => (data.answers[which] ? `“${visible(data.answers[which])}”` : which ? "the second answer" : "the first answer");
const tokens = (texts: string[]): HTMLElement => make("span", "", ...texts.flatMap(text => [make("code", "token", text), " "]));

function edgeList(heading: string, edges: Edge[], end: 0 | 1): Node[] {
  if (!edges.length) return [];
  const measured = edges.some(edge => edge[3] !== null);
  const sorted = [...edges].sort((a, b) => (b[3] ?? -9) - (a[3] ?? -9) || Math.abs(b[2]) - Math.abs(a[2]));
  const list = make("ul", "joined");
  for (const edge of sorted) {
    const rise = edge[3] === null ? "" : signed(Number(edge[3].toFixed(3)));
    list.append(make("li", "", nodeLink(edge[end]), make("span", edge[2] < 0 ? "negative" : "positive", signed(edge[2])), measured ? make("span", "", rise) : null));
  }
  return [make("h4", "", `${heading} ${edges.length} node${edges.length > 1 ? "s" : ""} `, make("small", "note", measured ? "weight, rise of the loss if removed: all pairs, calibrated anew" : "weight")), list];
}

/** A channel that one node writes and another reads, and a gate that meets its neuron: no weight joins them, so they are no edges. */
function streams(id: string, streams: [string, string][]): Node[] {
  const ends = (heading: string, found: string[], none: string) => {
    const rows = found.map(one => make("li", "", one ? nodeLink(one) : make("span", "note", none)));
    if (id.includes(".act_in.") && found.some(Boolean) && none === TOKENS) rows.push(make("li", "", make("span", "note", `and by ${TOKENS}`))); // a channel begins with them
    return found.length ? [make("h4", "", `${heading} `, make("small", "note", "no weight")), make("ul", "joined", ...rows)] : [];
  };
  return [
    ...ends("Reads what is written by", streams.filter(([, target]) => target === id).map(([source]) => source), TOKENS),
    ...ends("Is read by", streams.filter(([source]) => source === id).map(([, target]) => target), "the answers"),
  ];
}

const TOKENS = "the tokens’ embeddings";

/** Queries and keys of one head meet in its attention: no weight joins them, so they are no edges. */
function partners(node: NodeFacts | Foreign, nodes: (NodeFacts | Foreign)[]): Node[] {
  const [layer, , place] = node.id.split("."), other = place === "q" ? "k" : place === "k" ? "q" : null;
  if (other === null || node.head === undefined) return [];
  const found = nodes.filter(one => one.head === node.head && one.id.startsWith(`${layer}.attn.${other}.`));
  const words = other === "k" ? "Meets the keys of its head" : "Meets the queries of its head";
  if (!found.length) return [make("h4", "", words), make("p", "note", "The circuit has none of them: they have their means.")];
  return [make("h4", "", words, " ", make("small", "note", "no edges: they meet in attention")), make("ul", "joined", ...found.map(one => make("li", "", nodeLink(one.id))))];
}

function passagesOf(id: string, data: PageData): Node[] {
  const found = data.tokens?.passages[id];
  if (!found) return [];
  const each = new Map<number, Passage[]>(); // by the share, which is not quite the same for passages of one kind
  for (const one of unpackedPassages(found)) {
    const kind = SHARES.reduce((a, b) => (Math.abs(b - one.rank) < Math.abs(a - one.rank) ? b : a));
    each.set(kind, [...(each.get(kind) ?? []), one]);
  }
  const row = (one: Passage, rank: number) => passage(one, rank, data.tokens!.texts, found.scale), kinds = [...each];
  const more = kinds.flatMap(([rank, some]) => some.slice(1).map(one => row(one, rank)));
  const rest = make("details", "", make("summary", "", `${more.length} more passages`), make("ul", "passages", ...more));
  const words = make("h4", "", "In ordinary text, in the full model ", make("small", "note", "share of tokens with a higher value"));
  return [words, ...histogram(id, data), make("ul", "passages", ...kinds.map(([rank, some]) => row(some[0]!, rank))), ...(more.length ? [rest] : [])];
}

const SHARES = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999];

/** How often the node has what value, by the square root: rare values count. */
function histogram(id: string, data: PageData): Node[] {
  const found = data.tokens!.histograms[id];
  if (!found || found.high <= found.low) return [];
  const { low, high, counts } = found, most = Math.max(...counts), all = counts.reduce((a, b) => a + b, 0);
  const bars = counts.map((count, i) => {
    const bar = make("i"), from = low + ((high - low) * i) / counts.length, to = low + ((high - low) * (i + 1)) / counts.length;
    bar.style.height = `${100 * Math.sqrt(count / most)}%`;
    const range = i === 0 ? `up to ${short(to)}` : i === counts.length - 1 ? `${short(from)} and more` : `${short(from)} to ${short(to)}`;
    bar.title = `${range}: ${percent(count / all)}`;
    return bar;
  });
  const plot = make("div", "histogram", ...bars);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `Histogram of the values on ordinary text, from ${short(low)} to ${short(high)}`);
  return [plot, make("p", "note ends", make("span", "", short(low)), make("span", "", "height: square root of the number of tokens; both ends hold what lies beyond"), make("span", "", short(high)))];
}

function passage(one: Passage, rank: number, texts: string[], scale: number): HTMLElement {
  const words = one.tokens.map(token => texts[token]!.replaceAll("·", " "));
  return make("li", "", make("small", "", `${Number((100 * rank).toFixed(1))} %`), tinted(words, one.values, scale, one.at));
}

/** A text whose tokens have the colour of the node's deviation from its mean; at: the token that the text was chosen for, -1: none. */
function tinted(texts: string[], values: Row, scale: number, at: number): HTMLElement {
  const parts = texts.map((text, i) => {
    const step = values[i]!, part = make("span", i === at ? "at" : "", text);
    part.style.background = tint(step, 0.4);
    part.title = `${signed(Number(short((step / STEPS) * scale)))} from the mean`;
    return part;
  });
  return make("code", "", ...parts);
}
