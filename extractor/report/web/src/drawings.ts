// The frame of the picture: which circuit is drawn, how it is painted, its size, and saving it.

import { type Drawing, inflated, isOther, type PageData } from "./data";
import { make } from "./elements";
import type { Notes } from "./notes";
import { type Fill, Paint, type Wires } from "./paint";
import { Picture } from "./picture";
import { bindSaving } from "./save";
import type { State } from "./state";
import { shownOf, tokenOf, type Views } from "./view";

export class Drawings {
  private readonly frame = document.querySelector<HTMLElement>(".picture")!;
  private readonly paint: Paint;
  private readonly pictures = new Map<number | null, Picture>();
  private readonly buttons: HTMLButtonElement[];
  private shown: Picture;
  private chosen = 0;
  private painted = ""; // what nodes and edges are painted by
  private scale = 0; // 0: the width of the page
  private fits = false; // all of it is shown, whatever the size of the window

  constructor(private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly notes: Notes, private readonly preview: (id: string | null) => void) {
    this.paint = new Paint(data);
    this.shown = this.made(this.frame.querySelector("svg")!);
    this.pictures.set(null, this.shown);
    this.buttons = this.choosing();
    this.painting();
    this.scaling();
    bindSaving(() => this.shown.svg);
    this.frame.addEventListener("scroll", () => this.follow(), { passive: true });
    addEventListener("resize", () => this.fits && this.fit());
    this.centre();
  }

  get choices(): Drawing[] {
    return this.data.drawings?.choices ?? [];
  }

  update(): void {
    const { circuit } = this.state.choice;
    if (circuit !== this.chosen) this.choose(circuit);
    this.repaint();
    this.shown.update();
  }

  /** What joins the drawn nodes without a weight. */
  get streams(): [string, string][] {
    return this.shown.streams;
  }

  /** Bring a node into view; where the drawn circuit lacks it, draw one that has it: of a large circuit all of it, or another. */
  reveal(id: string): void {
    const isAll = (choice: Drawing) => choice.nodes === null && choice.svg !== null && choice.svg >= 0;
    const having = this.choices.findIndex(choice => isAll(choice) || choice.nodes?.includes(id));
    if (!this.shown.has(id) && having >= 0) this.state.set({ circuit: having });
    this.shown.reveal(id);
  }

  private follow(): void {
    this.frame.style.setProperty("--left", `${(this.frame.scrollLeft / this.zoom).toFixed(1)}px`);
  }

  private made(svg: SVGSVGElement): Picture {
    return new Picture(svg, this.data, this.state, this.views, this.paint, this.notes, this.preview);
  }

  private choose(number: number): void {
    const choice = this.choices[number]!;
    this.chosen = number;
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
    document.getElementById("drawing-note")!.textContent = number ? choice.words : "";
    const svg = choice.svg === -1 ? null : choice.svg;
    if (!this.pictures.has(svg)) {
      const kept = this.data.drawings!.svgs[svg!]!;
      if (typeof kept !== "string") return void inflated(kept).then(text => this.opened(svg!, text));
      this.pictures.set(svg, this.parsed(kept));
    }
    this.show(this.pictures.get(svg)!, choice);
  }

  /** A compressed picture has been read; meanwhile the reader may have chosen another. */
  private opened(svg: number, text: string): void {
    if (!this.pictures.has(svg)) this.pictures.set(svg, this.parsed(text));
    const choice = this.choices[this.chosen]!, { node } = this.state.choice;
    if (choice.svg !== svg) return;
    this.show(this.pictures.get(svg)!, choice);
    this.shown.update();
    if (node) this.shown.reveal(node);
  }

  private parsed(text: string): Picture {
    const read = new DOMParser().parseFromString(text, "image/svg+xml");
    return this.made(document.importNode(read.documentElement, true) as unknown as SVGSVGElement);
  }

  private show(picture: Picture, choice: Drawing): void {
    this.shown = picture;
    this.frame.replaceChildren(this.shown.svg);
    this.shown.mark(choice);
    this.fits ? this.fit() : this.resize();
    this.follow();
  }

  /** Pixels of the screen for one of the drawing. */
  private get zoom(): number {
    return this.shown.svg.getBoundingClientRect().width / this.shown.svg.viewBox.baseVal.width || 1;
  }

  /** On a screen narrower than the picture: begin where the nodes are. */
  private centre(): void {
    const { frame } = this;
    if (frame.scrollWidth > frame.clientWidth) frame.scrollLeft = this.shown.middle * this.zoom - frame.clientWidth / 2;
  }

  private choosing(): HTMLButtonElement[] {
    const row = document.getElementById("drawings")!;
    row.hidden = !this.choices.length;
    const undrawn = this.choices.filter(choice => choice.svg === -1);
    const buttons = this.choices.map((choice, i) => {
      const button = make("button", "", choice.label);
      button.type = "button";
      button.title = choice.words;
      button.hidden = choice.svg === -1;
      button.style.order = String(choice.label.startsWith("seed") ? 0 : -1e4 * Number(/, ([\d.]+) nats/.exec(choice.label)?.[1] ?? 1)); // largest target first
      button.setAttribute("aria-pressed", String(i === 0));
      button.addEventListener("click", () => this.state.set({ circuit: i }));
      return button;
    });
    row.append(...buttons);
    if (undrawn.length) row.after(notDrawn(undrawn));
    return buttons;
  }

  /** What nodes and edges are painted by; choices without numbers are not offered. */
  private painting(): void {
    const fill = document.querySelector<HTMLSelectElement>("#fill")!, wires = document.querySelector<HTMLSelectElement>("#wires")!;
    for (const option of [...fill.options]) if (!this.paint.has(option.value as Fill)) option.remove();
    fill.closest("label")!.hidden = fill.options.length < 2;
    for (const option of [...wires.options]) if (option.value !== "weight" && !this.paint.hasWires(option.value as Wires)) option.remove();
    wires.closest("label")!.hidden = wires.options.length < 2;
    const change = () => this.state.set({ fill: fill.value as Fill, wires: wires.value as Wires });
    fill.addEventListener("change", change);
    wires.addEventListener("change", change);
  }

  /** As the address says; choices without numbers are left out. */
  private repaint(): void {
    const { fill, wires, circuit } = this.state.choice, view = this.data.tokens && this.views.of(this.state.choice);
    const place = view && tokenOf(view, this.state.choice), text = view && place !== null ? view.texts[shownOf(view, this.state.choice) === "second" ? 1 : 0][place]! : null;
    const now = JSON.stringify([fill, wires, text, isOther(this.data, circuit)]);
    if (this.painted === now) return;
    this.painted = now;
    this.paint.fill = this.paint.has(fill) ? fill : "value";
    this.paint.wires = this.paint.hasWires(wires) ? wires : "weight";
    document.querySelector<HTMLSelectElement>("#fill")!.value = this.paint.fill;
    document.querySelector<HTMLSelectElement>("#wires")!.value = this.paint.wires;
    document.getElementById("paint-note")!.textContent = this.paint.words(text, isOther(this.data, circuit));
  }

  /** The buttons that make the picture larger and smaller; "fit" shows all of it. */
  private scaling(): void {
    const actions: Record<string, () => void> = {
      larger: () => (this.scale = Math.min(4, this.zoom * 1.25)),
      smaller: () => (this.scale = Math.max(0.1, this.zoom / 1.25)),
      fit: () => this.fit(),
      width: () => (this.scale = 0),
    };
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-zoom]")) {
      button.addEventListener("click", () => {
        this.fits = button.dataset.zoom === "fit";
        actions[button.dataset.zoom!]!();
        this.resize();
      });
    }
  }

  private fit(): void {
    const { width, height } = this.shown.svg.viewBox.baseVal;
    this.scale = Math.min(this.frame.clientWidth / width, (innerHeight - 40) / height);
    this.resize();
  }

  private resize(): void {
    const { style, viewBox } = this.shown.svg;
    style.width = this.scale ? `${Math.round(viewBox.baseVal.width * this.scale)}px` : "";
    style.minWidth = this.scale ? "0" : "";
  }
}

/** The circuits that are not drawn; those that differ in their target only share a line. */
function notDrawn(choices: Drawing[]): HTMLElement {
  const lines = new Map<string, Drawing[]>();
  for (const choice of choices) {
    const same = choice.words.slice(0, choice.words.lastIndexOf(", "));
    lines.set(same, [...(lines.get(same) ?? []), choice]);
  }
  const why = [...new Set(choices.map(choice => choice.why ?? ""))].join(" ");
  const line = (same: string, some: Drawing[]) => {
    const ends = some.map(({ words }) => words.slice(same.length + 2).replace(/\.$/, ""));
    return make("li", "", make("b", "", some.length > 1 ? `${some[0]!.label.split(",")[0]}, ${some.length} targets` : some[0]!.label), `: ${same}, ${ends.join(", ")}.`);
  };
  return make("ul", "note undrawn", ...[...lines].map(([same, some]) => line(same, some)), make("li", "", why));
}
