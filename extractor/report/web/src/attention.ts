// Where each head looks: a triangle of attention for the shown prompt. Pointing at a token lights the tokens that it reads.

import type { Row } from "./data";
import { make, percent } from "./elements";
import type { State } from "./state";
import { shownOf, type Views } from "./view";

const SVG = "http://www.w3.org/2000/svg", CELL = 14, NAME = 76; // pixels: of a cell, and of the tokens' texts beside the diagonal
const LONGEST = 10; // characters of such a text

export class AttentionView {
  readonly place = document.getElementById("attention")!;
  private figures: Figure[] = [];
  private drawn = ""; // the prompt and the heads of the figures

  constructor(private readonly state: State, private readonly views: Views) {
    this.draw();
  }

  draw(): void {
    const { choice } = this.state, view = this.views.of(choice), shown = shownOf(view, choice);
    const prompts: (0 | 1)[] = shown === "difference" ? [0, 1] : [shown === "second" ? 1 : 0]; // patterns are not subtracted: both are shown
    const key = JSON.stringify([view.texts, prompts, Object.keys(view.heads)]);
    const all = Object.entries(view.heads).flatMap(([head, rows]) => prompts.map(which => ({ head, which, rows: rows[which] })));
    if (key !== this.drawn) {
      this.drawn = key;
      this.figures = all.map(({ head, which, rows }) => new Figure(head, which ? "second prompt" : "first prompt", rows, view.texts[which]));
      this.place.replaceChildren(...this.figures.map(figure => figure.element));
    } else {
      all.forEach(({ rows }, i) => this.figures[i]!.fill(rows));
    }
  }
}

/** One head: a triangle of shares, and the tokens that the pointed-at row reads. */
class Figure {
  readonly element: HTMLElement;
  private readonly words = make("p", "reads note");
  private readonly cells: SVGElement[][];
  private readonly scale = make("p", "note");
  private shown: [row: number, column: number | null];
  private most = 0; // the largest share
  private written = ""; // what the words show

  constructor(name: string, prompt: string, private rows: Row[], private readonly texts: string[]) {
    const [layer, head] = name.split("."), size = CELL * rows.length;
    const svg = element("svg", { viewBox: `0 0 ${size + NAME} ${size}`, width: size + NAME, tabindex: 0, role: "img" });
    svg.setAttribute("aria-label", `Attention of head ${head} of layer ${layer}: rows attend to columns. Arrow keys choose a cell.`);
    this.cells = rows.map((row, i) => {
      const line = element("g", {}), cells = row.map((_, j) => element("rect", { x: CELL * j, y: CELL * i, width: CELL - 1, height: CELL - 1 }));
      cells.forEach((one, j) => one.addEventListener("pointerenter", () => this.read(i, j)));
      line.append(...cells);
      line.addEventListener("pointerenter", () => this.read(i));
      const name = element("text", { x: CELL * (i + 1) + 3, y: CELL * i + 10 });
      name.textContent = clipped(texts[i]!);
      svg.append(line, name);
      return cells;
    });
    svg.addEventListener("keydown", event => this.move(event));
    this.words.setAttribute("aria-live", "polite");
    this.shown = [rows.length - 1, null];
    this.fill(rows);
    this.element = make("figure", "plot card", make("figcaption", "", `Head ${head} of layer ${layer}, ${prompt}`));
    svg.style.width = `${size + NAME}px`; // a long prompt scrolls
    this.element.append(make("div", "scroll", svg as unknown as Node), this.scale, this.words);
  }

  fill(rows: Row[]): void {
    const most = Math.max(1e-9, ...rows.flat()), same = Math.abs(most - this.most) < 0.02 * most;
    rows.forEach((row, i) => {
      const before = this.rows[i]!;
      row.forEach((step, j) => {
        const box = this.cells[i]![j]!;
        if (!same || !box.style.fill || Math.abs(step - before[j]!) >= 0.5) box.style.fill = `rgb(var(--above) / ${(0.06 + 0.94 * (step / (same ? this.most : most))).toFixed(3)})`;
      });
    });
    this.rows = rows;
    if (!same) this.most = most;
    this.scale.textContent = `The darkest cell is ${percent(most / 255)} of a token’s attention.`;
    this.read(...this.shown);
  }

  private read(row: number, column: number | null = null): void {
    const [before, at] = this.shown;
    if (at !== null) this.cells[before]![at]!.classList.remove("at");
    if (column !== null) this.cells[row]![column]!.classList.add("at");
    this.shown = [row, column];
    const shares = this.rows[row]!.map(share => share.toFixed(2)), key = JSON.stringify([row, column, shares, this.most]);
    if (key === this.written) return;
    this.written = key;
    this.words.replaceChildren(...reading(this.texts, this.rows[row]!, row, this.most));
    if (column !== null) this.words.prepend(`${percent(this.rows[row]![column]! / 255)} of the attention of “${this.texts[row]}” goes to “${this.texts[column]}”. `);
  }

  private move(event: KeyboardEvent): void {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = this.shown, next = Math.min(this.rows.length - 1, Math.max(0, row + step[0]!));
    this.read(next, Math.min(next, Math.max(0, (column ?? next) + step[1]!)));
  }
}

function element(tag: string, given: Record<string, string | number>): SVGElement {
  const found = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(given)) found.setAttribute(key, String(value));
  return found;
}

const clipped = (text: string): string => (Array.from(text).length > LONGEST ? `${Array.from(text).slice(0, LONGEST - 1).join("")}…` : text);

/** "token 5 “x” reads:" and the tokens up to it, the stronger the more it attends to them; the share that no token gets. */
function reading(texts: string[], row: Row, place: number, most: number): (Node | string)[] {
  const rest = 1 - row.reduce((sum, step) => sum + step, 0) / 255;
  const shown = row.map((step, i) => {
    const part = make("code", "token", texts[i]!);
    part.style.background = `rgb(var(--above) / ${(0.4 * (step / most)).toFixed(3)})`;
    part.title = percent(step / 255);
    return part;
  });
  const best = row.indexOf(Math.max(...row)), sink = rest > 0.02 ? `; ${percent(rest)} goes to no token, but to the head’s sink` : "";
  return [make("b", "", `“${texts[place]}” reads `), ...shown, ` most of all “${texts[best]}”, ${percent(row[best]! / 255)}${sink}`];
}
