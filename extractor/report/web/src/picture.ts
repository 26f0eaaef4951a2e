// A picture of circuits: what a node is joined to lights up, and nodes take the colour of their value at the chosen token.

import { type Drawing, isOther, type PageData } from "./data";
import { tint } from "./elements";
import type { Notes } from "./notes";
import type { Paint, Wires } from "./paint";
import { passed } from "./passed";
import { Paths } from "./paths";
import type { State } from "./state";
import { rowOf, shownOf, tokenOf, type Views } from "./view";

export class Picture {
  private readonly own: SVGGElement[]; // those of the page's circuit
  private readonly all: SVGGElement[];
  private readonly wires: SVGPathElement[];
  private readonly byId: Map<string, SVGGElement>;
  private readonly texts: SVGTextElement[];
  private readonly heads: Map<string, string>; // of queries, keys and values: 'layer.head'
  private paths: Paths | null = null; // of the drawn circuit
  private lighted: string | null = null;
  private drawn: Wires = "weight"; // what the widths of edges are drawn by
  private readonly circuit: { nodes: Set<string>; edges: Set<string> };

  constructor(readonly svg: SVGSVGElement, private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly paint: Paint, private readonly notes: Notes, private readonly preview: (id: string | null) => void) {
    this.circuit = { nodes: new Set(data.nodes.map(node => node.id)), edges: new Set(data.edges.map(([source, target]) => `${source} ${target}`)) };
    this.all = [...svg.querySelectorAll<SVGGElement>(".node")];
    this.own = this.all.filter(node => this.circuit.nodes.has(node.dataset.id!));
    this.texts = [...svg.querySelectorAll<SVGTextElement>(":scope > text")];
    const highest = Math.min(...this.all.map(node => Number(node.querySelector("rect")!.getAttribute("y")))) - 20;
    for (const text of this.texts) if (text.getAttribute("x") === this.texts[0]!.getAttribute("x") && Number(text.getAttribute("y")) > highest) text.classList.add("kept"); // names of rows stay in view
    this.wires = [...svg.querySelectorAll<SVGPathElement>("path.edge, path.stream")];
    this.byId = new Map(this.all.map(node => [node.dataset.id!, node]));
    const heads = [...data.nodes, ...(data.drawings?.more ?? [])].filter(node => node.head !== undefined);
    this.heads = new Map(heads.map(({ id, head }) => [id, `${id.split(".")[0]}.${head}`]));
    svg.setAttribute("role", "group");
    svg.querySelector("title")?.remove();
    this.all.forEach((node, i) => this.prepare(node, i));
    for (const wire of this.wires) if (wire.dataset.weight && !wire.firstChild) wire.append(titleOf(wire.dataset));
  }

  /** In a picture of several circuits: outline what the chosen one adds to the page's, fade what it lacks, hide what only others have. */
  mark({ label, nodes, edges }: Drawing): void {
    this.paths = null;
    this.dim();
    const chosen = nodes && { nodes: new Set(nodes), edges: new Set(edges!.map(([source, target]) => `${source} ${target}`)) };
    const paint = (shape: Element, own: boolean, there: boolean) => {
      shape.classList.toggle("added", there && !own);
      shape.classList.toggle("left", own && !there);
      shape.classList.toggle("absent", !own && !there);
    };
    for (const node of this.all) paint(node, this.circuit.nodes.has(node.dataset.id!), !chosen || chosen.nodes.has(node.dataset.id!));
    for (const wire of this.wires) {
      const { source, target } = wire.dataset, ends = [source!, target!].filter(Boolean);
      if (wire.classList.contains("edge")) paint(wire, this.circuit.edges.has(`${source} ${target}`), !chosen || chosen.edges.has(`${source} ${target}`));
      else paint(wire, ends.every(id => this.circuit.nodes.has(id)), !chosen || ends.every(id => chosen.nodes.has(id)));
    }
    const drawn = this.all.filter(isDrawn), size = this.texts.find(text => text.textContent!.includes(SEVERAL) || text.dataset.size !== undefined);
    this.all.forEach(node => node.setAttribute("tabindex", node === drawn[0] ? "0" : "-1"));
    if (!size) return;
    size.dataset.size = "";
    size.textContent = `${drawn.length} nodes, ${this.wires.filter(wire => wire.classList.contains("edge") && isDrawn(wire)).length} edges; ${label}`;
  }

  /** What joins the drawn nodes without a weight. */
  get streams(): [string, string][] {
    return this.wires.filter(wire => wire.classList.contains("stream") && isDrawn(wire)).map(({ dataset }) => [dataset.source!, dataset.target!]);
  }

  update(): void {
    const { node, edits, circuit } = this.state.choice, view = this.data.tokens && this.views.of(this.state.choice);
    const shown = view && shownOf(view, this.state.choice), token = view && tokenOf(view, this.state.choice);
    node && this.shows(node) ? this.light(node) : this.dim();
    for (const chip of this.own) {
      const id = chip.dataset.id!, here = token === null || !view ? null : (rowOf(view, this.state.choice, id)?.[token] ?? null);
      const step = this.paint.fill === "value" && token !== null ? here : this.paint.step(id);
      const box = chip.querySelector("rect")!;
      box.style.fill = step === null ? "" : tint(step, 0.5);
      const colour = this.notes.colour(id);
      if (box.style.stroke !== colour) box.style.stroke = colour;
      chip.classList.toggle("valued", step !== null);
      chip.classList.toggle("changed-here", id in edits);
      chip.classList.toggle("grouped", colour !== "");
      chip.classList.toggle("noted", this.notes.of(id).text !== "");
    }
    const note = document.getElementById("token-note");
    if (note) {
      note.hidden = token === null || this.paint.fill !== "value";
      note.textContent = note.hidden ? "" : `The picture above shows the ${shown === "difference" ? "differences" : "values"} at token ${token! + 1}${isOther(this.data, circuit) ? " in the circuit of this page" : ""}.`;
    }
    const brought = this.paint.wires === "passed" && view ? passed(this.data, view, this.state.choice) : null;
    if (this.drawn === this.paint.wires && !brought) return;
    this.drawn = this.paint.wires;
    const legend = this.texts.find(text => text.dataset.legend !== undefined || text.textContent!.startsWith(WIDER));
    const signs = this.texts.filter(text => text.dataset.sign !== undefined || / weight$/.test(text.textContent!));
    for (const sign of signs) {
      sign.dataset.sign ??= sign.textContent!;
      const raises = sign.dataset.sign.startsWith("positive");
      sign.textContent = this.drawn === "passed" ? (raises ? "raises its target" : "lowers its target") : sign.dataset.sign;
    }
    if (legend) {
      legend.dataset.legend ??= legend.textContent!;
      legend.textContent = { weight: legend.dataset.legend, removed: `${WIDER} more the loss rises without it`, passed: `${WIDER} more it brings to the token` }[this.drawn]!;
    }
    for (const { classList, dataset, style } of this.wires) {
      if (classList.contains("edge")) [style.strokeWidth, style.strokeDasharray, style.stroke] = this.paint.line(`${dataset.source} ${dataset.target}`, brought) as [string, string, string];
    }
  }

  light(id: string): void {
    if (this.lighted === id) return;
    this.lighted = id;
    this.paths ??= this.drawnPaths();
    const lit = new Set([id]), before = this.paths.before(id), after = this.paths.after(id);
    for (const wire of this.wires) {
      const source = wire.dataset.source!, target = wire.dataset.target!;
      const touches = isDrawn(wire) && (source === id || target === id);
      wire.classList.toggle("lit", touches);
      wire.classList.toggle("path", !touches && isDrawn(wire) && ((before.has(target) && before.has(source)) || (after.has(source) && after.has(target))));
      if (touches) lit.add(source).add(target);
    }
    for (const node of this.all) {
      const own = node.dataset.id!;
      node.classList.toggle("lit", lit.has(own));
      node.classList.toggle("path", !lit.has(own) && (before.has(own) || after.has(own)));
      node.classList.toggle("chosen", own === id);
    }
    this.svg.classList.add("focused");
  }

  dim(): void {
    if (this.lighted === null) return;
    this.lighted = null;
    this.svg.classList.remove("focused");
    for (const shape of [...this.all, ...this.wires]) shape.classList.remove("lit", "path", "chosen");
  }

  private drawnPaths(): Paths {
    const arrows = this.wires.filter(isDrawn).map(({ dataset }): [string, string] => [dataset.source!, dataset.target!]);
    return new Paths(arrows, new Map([...this.heads].filter(([id]) => this.shows(id))));
  }

  /** Whether the drawn circuit has the node. */
  shows(id: string): boolean {
    const node = this.byId.get(id);
    return node !== undefined && isDrawn(node);
  }

  /** Whether the picture has it: of the chosen circuit, or faded. */
  has(id: string): boolean {
    return this.byId.get(id)?.classList.contains("absent") === false;
  }

  /** The middle of all nodes, pixels of the drawing. */
  get middle(): number {
    const boxes = this.own.map(node => node.querySelector("rect")!), places = boxes.map(box => Number(box.getAttribute("x")) + Number(box.getAttribute("width")) / 2);
    return places.reduce((sum, x) => sum + x, 0) / Math.max(1, places.length);
  }

  reveal(id: string): void {
    const underSheet = matchMedia("(max-width: 900px)").matches; // there the card lies over the lower part of the window
    this.byId.get(id)?.scrollIntoView({ block: underSheet ? "start" : "nearest", inline: "center" });
  }

  private prepare(node: SVGGElement, place: number): void {
    const title = node.querySelector("title");
    node.setAttribute("tabindex", place ? "-1" : "0"); // until a circuit is chosen: see mark
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", (title?.textContent ?? "").split("\n").join(", "));
    title?.remove(); // the card shows this text; two tips would overlap
    const id = node.dataset.id!;
    node.addEventListener("pointerenter", () => this.peek(id));
    node.addEventListener("pointerleave", () => this.peek(null));
    node.addEventListener("focus", () => node.matches(":focus-visible") && this.state.set({ node: id }));
    const toggle = () => this.state.set({ node: this.state.choice.node === id ? null : id });
    node.addEventListener("click", toggle);
    node.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return this.move(event, node);
      event.preventDefault();
      toggle();
    });
  }

  private peek(id: string | null): void {
    if (this.state.choice.node) return;
    id ? this.light(id) : this.dim();
    this.preview(id);
  }

  private move(event: KeyboardEvent, node: SVGGElement): void {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const nodes = this.all.filter(one => !one.classList.contains("absent"));
    const next = nodes[(nodes.indexOf(node) + step + nodes.length) % nodes.length]!;
    for (const other of nodes) other.setAttribute("tabindex", other === next ? "0" : "-1");
    next.focus();
  }
}

const SEVERAL = "circuits of several searches", WIDER = "the wider, the"; // words of the picture's own texts, which report.drawings and report.picture write
const isDrawn = (shape: Element): boolean => !shape.classList.contains("absent") && !shape.classList.contains("left");

function titleOf({ source, target, weight }: DOMStringMap): SVGElement {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = `${source} to ${target}: ${Number(weight) > 0 ? "+" : ""}${weight}`;
  return title;
}
